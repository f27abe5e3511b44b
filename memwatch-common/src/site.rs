//! Call sites and what they allocated.

use crate::limits::{LIFETIME_BUCKETS, SIZE_BUCKETS};

/// Who asked for a block; the outermost wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Domain {
    Native = 0,
    PythonRaw = 1,
    PythonMem = 2,
    PythonObject = 3,
    Mmap = 4,
}

impl Domain {
    pub const ALL: [Self; 5] = [
        Self::Native,
        Self::PythonRaw,
        Self::PythonMem,
        Self::PythonObject,
        Self::Mmap,
    ];

    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Native),
            1 => Some(Self::PythonRaw),
            2 => Some(Self::PythonMem),
            3 => Some(Self::PythonObject),
            4 => Some(Self::Mmap),
            _ => None,
        }
    }

    /// The name in every output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::PythonRaw => "python.raw",
            Self::PythonMem => "python.mem",
            Self::PythonObject => "python.object",
            Self::Mmap => "mmap",
        }
    }
}

/// One stack of one process in one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SiteKey {
    /// The process's number in memwatch, see [`crate::process::ProcessState::instance`].
    pub instance: u32,
    /// A [`Domain`], maybe with [`ALLOCATED_ONLY`].
    pub domain: u32,
    /// Hash of the stack; a key of `STACKS`.
    pub stack: u64,
}

/// Beside the domain in a [`SiteKey`]: blocks that were counted when they were handed out, but neither where they are nor
/// when they went is known. Such a site has nothing freed and nothing in use.
pub const ALLOCATED_ONLY: u32 = 1 << 8;

/// The domain under which such blocks are counted when there is no room for their site.
pub const UNKNOWN_SMALL: u32 = Domain::PythonObject as u32 | ALLOCATED_ONLY;

/// What a site did since recording began. Written with atomic additions; only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SiteTotals {
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
    pub freed_bytes: u64,
    pub freed_objects: u64,
    /// The tick in which user space was last told of a change here.
    pub tick: u64,
    /// Allocations by size, see [`crate::hist::size_bucket`].
    pub sizes: [u64; SIZE_BUCKETS],
    /// Freed blocks by how long they lived, see [`crate::hist::lifetime_bucket`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
}

impl SiteTotals {
    pub const ZERO: Self = Self {
        alloc_bytes: 0,
        alloc_objects: 0,
        freed_bytes: 0,
        freed_objects: 0,
        tick: 0,
        sizes: [0; SIZE_BUCKETS],
        lifetimes: [0; LIFETIME_BUCKETS],
    };

    /// Bytes alive now. Counters are read one after the other, so a free can be seen before its allocation: then 0.
    pub const fn inuse_bytes(&self) -> u64 {
        self.alloc_bytes.saturating_sub(self.freed_bytes)
    }

    pub const fn inuse_objects(&self) -> u64 {
        self.alloc_objects.saturating_sub(self.freed_objects)
    }
}

const _: () = assert!(size_of::<SiteKey>() == 16);
const _: () = assert!(size_of::<SiteTotals>() == 40 + 8 * (SIZE_BUCKETS + LIFETIME_BUCKETS));
