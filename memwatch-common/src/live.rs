//! Blocks that are alive.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LiveKey {
    pub address: u64,
    pub instance: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LiveValue {
    pub bytes: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub born_ns: u64,
    pub stack: u64,
    pub domain: u32,
    pub thread: u32,
}

impl LiveValue {
    pub const ZERO: Self = Self {
        bytes: 0,
        born_ns: 0,
        stack: 0,
        domain: 0,
        thread: 0,
    };
}

const _: () = assert!(size_of::<LiveKey>() == 16);
const _: () = assert!(size_of::<LiveValue>() == 32);
