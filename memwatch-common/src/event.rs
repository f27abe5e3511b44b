//! Rare events that go to user space one by one.

/// The discriminants cross the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum EventKind {
    /// A watched process forked. `pid` is the child, `instance` the child's, `a` the parent's instance, `b` its pid.
    Fork = 2,
    /// A watched process started another program. `instance` is the new one, `a` the old.
    Exec = 3,
    /// A watched process ended. `instance`; `flags` are `EXIT_*`, `a` is its status as `wait` tells it.
    Exit = 4,
    /// `a` bytes were mapped at `address`; `flags` are `MAPPING_*`. `begin_ns` to `end_ns` is the system call.
    Map = 5,
    /// `a` bytes were unmapped at `address`.
    Unmap = 6,
    /// `a` bytes at `address` became `b` bytes at `c`.
    Remap = 7,
    /// The program break went from `address` to `a`.
    Break = 8,
}

impl EventKind {
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            2 => Some(Self::Fork),
            3 => Some(Self::Exec),
            4 => Some(Self::Exit),
            5 => Some(Self::Map),
            6 => Some(Self::Unmap),
            7 => Some(Self::Remap),
            8 => Some(Self::Break),
            _ => None,
        }
    }
}

/// The status of the process that ended is known.
pub const EXIT_STATUS: u32 = 1;
/// The kernel had chosen it to be killed for want of memory.
pub const EXIT_OUT_OF_MEMORY: u32 = 2;

/// The mapping has no file behind it.
pub const MAPPING_ANONYMOUS: u32 = 1;
/// An allocator asked for it inside one of its own functions: what it hands out is counted there.
pub const MAPPING_ALLOCATOR: u32 = 2;
/// The mapping can be executed: new code.
pub const MAPPING_EXECUTABLE: u32 = 4;
/// The mapping reserves addresses without access rights.
pub const MAPPING_NO_ACCESS: u32 = 8;

/// One size for all kinds keeps reading simple; these are rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    pub kind: u32,
    pub pid: u32,
    pub instance: u32,
    pub thread: u32,
    pub flags: u32,
    pub domain: u32,
    pub stack: u64,
    pub begin_ns: u64,
    pub end_ns: u64,
    pub address: u64,
    pub a: u64,
    pub b: u64,
    pub c: u64,
}

impl Event {
    pub const ZERO: Self = Self {
        kind: 0,
        pid: 0,
        instance: 0,
        thread: 0,
        flags: 0,
        domain: 0,
        stack: 0,
        begin_ns: 0,
        end_ns: 0,
        address: 0,
        a: 0,
        b: 0,
        c: 0,
    };
}

const _: () = assert!(size_of::<Event>() == 80);
