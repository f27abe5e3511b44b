//! Blocks that are alive.

/// Three words of 32 bits: the kernel hashes that in half the time of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LiveKey {
    address_low: u32,
    address_high: u32,
    pub instance: u32,
}

impl LiveKey {
    pub const fn new(address: u64, instance: u32) -> Self {
        Self {
            address_low: address as u32,
            address_high: (address >> 32) as u32,
            instance,
        }
    }

    pub const fn address(&self) -> u64 {
        (self.address_high as u64) << 32 | self.address_low as u64
    }
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

const _: () = assert!(size_of::<LiveKey>() == 12);
const _: () = assert!(size_of::<LiveValue>() == 32);
