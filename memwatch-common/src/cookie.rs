//! The number that the kernel hands to a program with each hit: which function was probed, and for whom.

use crate::site::Domain;
use crate::size_at::SizeWord;

/// What a probed function does with its arguments. The discriminants cross the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Function {
    /// `f(size) -> block`: malloc, valloc, operator new, mallocx, …
    Malloc = 1,
    /// `f(count, size) -> block`
    Calloc = 2,
    /// `f(block, size) -> block`
    Realloc = 3,
    /// `f(block, count, size) -> block`
    Reallocarray = 4,
    /// `f(block)`: free, cfree, operator delete, sdallocx, …
    Free = 5,
    /// `f(alignment, size) -> block`: memalign, aligned_alloc
    Memalign = 6,
    /// `f(&block, alignment, size) -> error`
    PosixMemalign = 7,
    /// `f(size) -> block`, rounded up to whole pages
    Pvalloc = 8,
    /// `f(..) -> block`: CPython's `allocate_from_new_pool`, which gives the first block of a pool. The id says how many
    /// low bits of a pool's address are 0. With 0 it is mimalloc's `f(heap, queue, size) -> page`, which gives the pool
    /// itself.
    PythonPool = 9,
    /// CPython hands out a small block here: a place at which its allocator was inlined, or the allocator itself. Flags
    /// and id say how large the block is, see [`Cookie::size`].
    PythonSmall = 10,
    /// CPython begins to use a pool here, in the middle of a function (3.8, and where a compiler put it there). The id is
    /// the number of the register that holds its address.
    PythonPoolSite = 11,
}

impl Function {
    pub const ALL: [Self; 11] = [
        Self::Malloc,
        Self::Calloc,
        Self::Realloc,
        Self::Reallocarray,
        Self::Free,
        Self::Memalign,
        Self::PosixMemalign,
        Self::Pvalloc,
        Self::PythonPool,
        Self::PythonSmall,
        Self::PythonPoolSite,
    ];

    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Malloc),
            2 => Some(Self::Calloc),
            3 => Some(Self::Realloc),
            4 => Some(Self::Reallocarray),
            5 => Some(Self::Free),
            6 => Some(Self::Memalign),
            7 => Some(Self::PosixMemalign),
            8 => Some(Self::Pvalloc),
            9 => Some(Self::PythonPool),
            10 => Some(Self::PythonSmall),
            11 => Some(Self::PythonPoolSite),
            _ => None,
        }
    }

    /// Whether the result matters, so that the function's return must be seen too.
    pub const fn has_return(self) -> bool {
        !matches!(self, Self::Free | Self::PythonSmall | Self::PythonPoolSite)
    }

    /// Whether it gives out blocks of its own, which are counted one by one.
    pub const fn allocates(self) -> bool {
        !matches!(
            self,
            Self::Free | Self::PythonPool | Self::PythonSmall | Self::PythonPoolSite
        )
    }

    /// How many of the first argument registers must still be intact where the probe sits.
    pub const fn arguments(self) -> usize {
        match self {
            Self::PythonPool | Self::PythonPoolSite => 0,
            Self::Malloc | Self::Free | Self::Pvalloc => 1,
            Self::Calloc | Self::Realloc | Self::Memalign => 2,
            Self::Reallocarray | Self::PosixMemalign | Self::PythonSmall => 3,
        }
    }
}

/// The block headers of this allocator are glibc's: 8 bytes before a block stands its chunk size.
pub const FLAG_GLIBC: u8 = 1;

/// The probe sits on a branch; only where its two sides were equal the call is meant.
pub const FLAG_IF_EQUAL: u8 = 2;

/// From this bit on the flags are the upper bits of a size.
const SIZE_SHIFT: u32 = 2;

const _: () = assert!(SizeWord::BITS <= 8 + (8 - SIZE_SHIFT));

/// The flags and the id that a place has which hands out blocks of this size.
pub const fn flags_and_id(size: SizeWord) -> (u8, u8) {
    (((size.0 >> 8) << SIZE_SHIFT) as u8, size.0 as u8)
}

/// `function | domain << 8 | flags << 16 | id << 24 | generation << 32 | place << 52`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Generations are numbers below this one, and begin again after the last.
    pub const GENERATIONS: u32 = 1 << 20;

    /// `id` tells functions of one kind apart (`malloc` that jumps to `mi_malloc`); `generation` tells the links
    /// that count now from those being taken out; `offset` is where in its file the probe sits.
    pub const fn new(
        function: Function,
        domain: Domain,
        flags: u8,
        id: u8,
        generation: u32,
        offset: u64,
    ) -> Self {
        Self(
            function as u64
                | (domain as u64) << 8
                | (flags as u64) << 16
                | (id as u64) << 24
                | ((generation % Self::GENERATIONS) as u64) << 32
                | offset << 52,
        )
    }

    #[inline]
    pub const fn function(self) -> u8 {
        self.0 as u8
    }

    #[inline]
    pub const fn domain(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline]
    pub const fn has_flag(self, flag: u8) -> bool {
        (self.0 >> 16) as u8 & flag != 0
    }

    #[inline]
    pub const fn id(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The size of the blocks that are handed out.
    #[inline]
    pub const fn size(self) -> SizeWord {
        SizeWord(self.id() as u16 | (((self.0 >> 16) as u8 >> SIZE_SHIFT) as u16) << 8)
    }

    #[inline]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 % Self::GENERATIONS
    }

    /// Whether the probe can sit at this address of the process: files are mapped by whole pages. One other address of
    /// 4,096 is taken for it too.
    #[inline]
    pub const fn may_sit_at(self, address: u64) -> bool {
        self.0 >> 52 == address & 0xfff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_gives_back_what_was_put_in() {
        for function in Function::ALL {
            let cookie = Cookie::new(
                function,
                Domain::PythonObject,
                FLAG_GLIBC,
                200,
                0xd_beef,
                0x1234_5678,
            );
            assert_eq!(Function::from_u8(cookie.function()), Some(function));
            assert_eq!(cookie.domain(), Domain::PythonObject as u8);
            assert!(cookie.has_flag(FLAG_GLIBC));
            assert_eq!(cookie.id(), 200);
            assert_eq!(cookie.generation(), 0xd_beef);
            assert!(cookie.may_sit_at(0x7fff_0000_0678));
            assert!(!cookie.may_sit_at(0x7fff_0000_0679));
        }
    }

    #[test]
    fn a_size_stands_beside_a_flag() {
        let size = SizeWord(0x2fed);
        let (flags, id) = flags_and_id(size);
        let cookie = Cookie::new(
            Function::PythonSmall,
            Domain::PythonMem,
            flags | FLAG_IF_EQUAL,
            id,
            1,
            0,
        );
        assert_eq!(cookie.size(), size);
        assert!(cookie.has_flag(FLAG_IF_EQUAL));
        assert!(
            !Cookie::new(Function::PythonSmall, Domain::PythonMem, flags, id, 1, 0).has_flag(FLAG_IF_EQUAL)
        );
    }

    #[test]
    fn generations_begin_again() {
        let of = |generation| Cookie::new(Function::Malloc, Domain::Native, 0, 0, generation, 0).generation();
        assert_eq!(of(Cookie::GENERATIONS - 1), Cookie::GENERATIONS - 1);
        assert_eq!(of(Cookie::GENERATIONS), 0);
    }

    #[test]
    fn unknown_functions_are_none() {
        assert!((0..=u8::MAX).filter_map(Function::from_u8).count() == Function::ALL.len());
    }
}
