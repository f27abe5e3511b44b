//! What one unpacked tick is made of: sections of a kind, a length and bytes.

use crate::numbers::Bad;
use crate::numbers::{Input, put, put_bytes};

/// Never given a new meaning; a number that is no longer written stays reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Section {
    /// JSON, in the first tick only: [`super::header::Header`].
    Header = 1,
    /// JSON: [`super::header::TickFacts`].
    Tick = 2,
    Strings = 3,
    Frames = 4,
    Stacks = 5,
    /// Which stack a hash of a process means.
    StackOf = 6,
    /// JSON: processes that are new or became something else.
    Processes = 7,
    /// The numbers of processes.
    ProcessNumbers = 8,
    /// Processes that were let go, with all their sites.
    Forgotten = 9,
    Sites = 10,
    /// Of version 1.
    Totals1 = 11,
    /// Of version 1.
    Ages1 = 12,
    Counters = 13,
    Totals = 14,
    Ages = 15,
    /// What of each site was asked for by which thread.
    Threads = 16,
}

impl Section {
    const ALL: [Self; 16] = [
        Self::Header,
        Self::Tick,
        Self::Strings,
        Self::Frames,
        Self::Stacks,
        Self::StackOf,
        Self::Processes,
        Self::ProcessNumbers,
        Self::Forgotten,
        Self::Sites,
        Self::Totals1,
        Self::Ages1,
        Self::Counters,
        Self::Totals,
        Self::Ages,
        Self::Threads,
    ];

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == number)
    }

    /// Writes the section unless it is empty.
    pub fn put(self, out: &mut Vec<u8>, bytes: &[u8]) {
        if !bytes.is_empty() {
            put(out, self as u64);
            put_bytes(out, bytes);
        }
    }
}

/// The next section that is known here; others are skipped.
pub(super) fn next<'a>(input: &mut Input<'a>) -> Result<Option<(Section, &'a [u8])>, Bad> {
    while !input.is_empty() {
        let number = input.number()?;
        let bytes = input.bytes()?;
        if let Some(section) = Section::from_number(number) {
            return Ok(Some((section, bytes)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_sections_are_skipped() {
        let mut out = Vec::new();
        put(&mut out, 900);
        put_bytes(&mut out, b"from the future");
        Section::Ages.put(&mut out, b"x");
        Section::Sites.put(&mut out, b"");
        let mut input = Input::new(&out);
        assert_eq!(next(&mut input), Ok(Some((Section::Ages, &b"x"[..]))));
        assert_eq!(next(&mut input), Ok(None));
    }

    #[test]
    fn every_section_has_its_own_number() {
        for (index, section) in Section::ALL.into_iter().enumerate() {
            assert_eq!(section as usize, index + 1);
            assert_eq!(Section::from_number(section as u64), Some(section));
        }
    }
}
