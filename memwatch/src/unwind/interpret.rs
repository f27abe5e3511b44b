//! Walking a stack with compact tables, in user space.
//!
//! Lookup and step are the code that the kernel side runs; only the loop around them is this module's.

use memwatch_common::unwind::Rule;
use memwatch_common::unwind::x86_64::{Frame, Step};

/// Goes from `frame` to its caller. `lookup` gives the rule for an address of the process, `read` the eight bytes
/// at one. When the result is not [`Step::Next`], the frame stays as it is.
pub fn step(
    frame: &mut Frame,
    lookup: impl FnOnce(u64) -> Rule,
    read: impl FnMut(u64) -> Option<u64>,
) -> Step {
    lookup(frame.lookup_address()).step(frame, read)
}

/// A whole stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Innermost first; each frame's `rip`, the first one's included.
    pub addresses: Vec<u64>,
    /// Why it ended; `Next` when the limit was reached.
    pub end: Step,
    /// The outermost frame reached.
    pub last: Frame,
}

/// Walks from `frame` on outwards, for at most `limit` frames.
pub fn walk(
    mut frame: Frame,
    limit: usize,
    mut lookup: impl FnMut(u64) -> Rule,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Walk {
    let mut addresses = Vec::new();
    let mut end = Step::Next;
    while addresses.len() < limit {
        addresses.push(frame.rip);
        end = step(&mut frame, &mut lookup, &mut read);
        if end != Step::Next {
            break;
        }
    }
    Walk {
        addresses,
        end,
        last: frame,
    }
}
