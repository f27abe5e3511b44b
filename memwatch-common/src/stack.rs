//! Stacks as they leave the kernel: addresses only.

use crate::limits::MAX_FRAMES;

/// The stack of an allocation that found no room in `STACKS`, or could not be read at all.
pub const STACK_UNKNOWN: u64 = 0;

/// No stack: what was in use before it was watched.
pub const STACK_BEFORE: u64 = u64::MAX;

/// The walk stopped because the frame limit was reached.
pub const STACK_TRUNCATED: u32 = 1;
/// The chain of frames broke: what lies below the last frame is not known.
pub const STACK_BROKEN: u32 = 2;
/// The walk ended at a place where a stack really begins.
pub const STACK_COMPLETE: u32 = 4;

/// Return addresses, innermost first. The first is the probed function itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Stack {
    pub count: u32,
    /// `STACK_*`
    pub flags: u32,
    /// The Python frames of the same moment, by their hash; 0 where no Python ran.
    pub python: u64,
    pub frames: [u64; MAX_FRAMES],
}

const _: () = assert!(size_of::<Stack>() == 1032);
