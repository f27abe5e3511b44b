//! On which instruction of a function a probe is cheapest.
//!
//! The kernel emulates some instructions in place and single-steps all others in a copy, which costs a second
//! exception: ten times as much in a virtual machine, three times on bare metal. So it pays to move a probe from
//! the entry to the first instruction that is emulated, as long as the probe there sees exactly what it would have
//! seen at the entry:
//!
//! - the arguments: no instruction in between writes a register that holds one;
//! - the stack: `sp` has not moved, so that the return address is where a return probe and the unwinder look for it,
//!   and nothing was stored over it;
//! - the same calls: every path from the entry passes the place (nothing in between leaves the straight line) and
//!   every path to the place comes from the entry (no branch goes to a byte in between, or to the place).
//!
//! A branch back to the entry itself is no obstacle. It is the function calling itself as its last act; a probe on
//! the entry would be hit by it in the same way, so nothing is lost or gained by moving. What cannot be seen is an
//! indirect jump into the first few instructions; functions with jump tables are therefore probed at their entry.

use std::fmt;

use memwatch_common::Function;

use super::placer_x86;
use super::symbols::Machine;

/// What one hit costs the thread that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cost {
    /// One exception.
    Emulated,
    /// No exception: the kernel replaces a five-byte no-op by a call of its own (Linux 6.18).
    Nop5Optimised,
    /// Two exceptions.
    SingleStepped,
}

impl Cost {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nop5Optimised => "optimised",
            Self::Emulated => "emulated",
            Self::SingleStepped => "single-stepped",
        }
    }
}

/// Where to put a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub offset_from_entry: u32,
    /// For people.
    pub instruction: String,
    pub cost: Cost,
    /// Why no emulated instruction could be used.
    pub fallback: Option<Fallback>,
}

/// Why the search for an emulated instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    ArgumentWritten,
    StackPointerMoved,
    ReturnAddressAtRisk,
    LineLeft,
    BranchTarget,
    JumpTable,
    OtherEntry,
    CodeEnds,
    Undecodable,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArgumentWritten => "an argument register is overwritten before any cheap instruction",
            Self::StackPointerMoved => "the stack pointer moves before any cheap instruction",
            Self::ReturnAddressAtRisk => "the stack is written before any cheap instruction",
            Self::LineLeft => "the code branches before any cheap instruction",
            Self::BranchTarget => "a branch leads back to before the first cheap instruction",
            Self::JumpTable => "the function has a jump table that could lead to its first instructions",
            Self::OtherEntry => "another function begins before the first cheap instruction",
            Self::CodeEnds => "the function ends before any cheap instruction",
            Self::Undecodable => "the code could not be decoded up to a cheap instruction",
        })
    }
}

/// Why a function cannot be probed at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("memwatch cannot read the code of this machine type")]
    Machine,
    #[error("the file has no code at the function's address")]
    NoCode,
    #[error("the function begins with bytes that are no instruction")]
    Undecodable,
    #[error("the kernel puts no probe on `{instruction}`, with which the function begins")]
    Refused { instruction: String },
}

/// The code of one function.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// From the entry on; may go beyond the function's end, and may end before it.
    pub bytes: &'a [u8],
    /// The address of the first byte, as linked.
    pub entry: u64,
    /// Where the symbol table tells it.
    pub size: Option<u64>,
    /// Another symbol begins so many bytes after the entry: the place must lie before it.
    pub limit: Option<u64>,
}

/// What the running kernel does with instructions under a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulation {
    /// No-ops of more than one byte are emulated, and the five-byte one is optimised (Linux 6.18).
    pub long_nops: bool,
}

/// The cheapest place for a probe on `function`.
pub fn place(
    machine: Machine,
    code: &Code<'_>,
    function: Function,
    emulation: Emulation,
) -> Result<Placement, PlaceError> {
    match machine {
        Machine::X86_64 => placer_x86::place(code, function, emulation),
        Machine::Other => Err(PlaceError::Machine),
    }
}
