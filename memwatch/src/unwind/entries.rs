//! Finding one's way in an unwind section.
//!
//! gimli's own iterator gives up at the first entry that it does not understand; this one only needs the lengths.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, DebugFrameOffset, EhFrame, EhFrameOffset,
    FrameDescriptionEntry, Register, RegisterRule, UnwindContext, UnwindContextStorage, UnwindOffset,
    UnwindSection, UnwindTableRow,
};

use super::x86_64::Bytes;

/// Work allowed per byte of a section. Each function costs its own entry and that of its group, which many share;
/// in real files the two are about as long, so that 2 is what all of them take together.
const WORK_PER_BYTE: u64 = 4;
const WORK_AT_LEAST: u64 = 1 << 20;

/// Groups of functions (CIEs) kept parsed. Real files have a handful.
const MAX_GROUPS: usize = 256;

/// gimli's working memory. All sixteen registers and the return address fit in 32 rules, and half of the vector
/// registers; states are remembered one deep in practice. Both also bound what a hostile file can make it copy.
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 32];
    type Stack = Box<[UnwindTableRow<usize, Self>; 8]>;
}

/// The two kinds of section differ in how entries are told apart.
pub(super) trait Kind<'a>: UnwindSection<Bytes<'a>> {
    /// What stands in place of the group's offset where a group begins.
    const GROUP_32: u32;
    /// Whether a length of zero ends the section.
    const ENDS_WITH_ZERO: bool;

    fn offset(at: usize) -> Self::Offset;
}

impl<'a> Kind<'a> for EhFrame<Bytes<'a>> {
    const GROUP_32: u32 = 0;
    const ENDS_WITH_ZERO: bool = true;

    fn offset(at: usize) -> EhFrameOffset {
        EhFrameOffset(at)
    }
}

impl<'a> Kind<'a> for DebugFrame<Bytes<'a>> {
    const GROUP_32: u32 = u32::MAX;
    const ENDS_WITH_ZERO: bool = false;

    fn offset(at: usize) -> DebugFrameOffset {
        DebugFrameOffset(at)
    }
}

type Group<'s> = CommonInformationEntry<Bytes<'s>>;

/// One section while it is read.
pub(super) struct Reading<'s, S> {
    pub section: S,
    pub bases: &'s BaseAddresses,
    bytes: &'s [u8],
    /// Parsed groups by their offset; none for those that are not valid.
    groups: HashMap<usize, Option<Group<'s>>>,
    work_left: u64,
    pub context: UnwindContext<usize, Storage>,
}

impl<'s, S: Kind<'s>> Reading<'s, S> {
    pub fn new(section: S, bytes: &'s [u8], bases: &'s BaseAddresses) -> Self {
        let work_left = WORK_AT_LEAST + WORK_PER_BYTE * bytes.len() as u64;
        Self {
            section,
            bases,
            bytes,
            groups: HashMap::new(),
            work_left,
            context: UnwindContext::new_in(),
        }
    }

    /// Whether the work allowed for the section is done.
    pub fn is_spent(&self) -> bool {
        self.work_left == 0
    }

    /// The function whose entry is at `at`, if it is valid.
    pub fn function(&mut self, at: usize) -> Option<FrameDescriptionEntry<Bytes<'s>>> {
        let section = self.section.clone();
        let partial = section.partial_fde_from_offset(self.bases, S::offset(at)).ok()?;
        let group = self.group(UnwindOffset::into(partial.cie_offset()))?;
        self.charge(partial.entry_len() + group.entry_len());
        partial.parse(|_, _, _| Ok(group.clone())).ok()
    }

    fn group(&mut self, at: usize) -> Option<Group<'s>> {
        if let Some(known) = self.groups.get(&at) {
            return known.clone();
        }
        if self.groups.len() == MAX_GROUPS {
            self.groups.clear();
        }
        let group = self.section.cie_from_offset(self.bases, S::offset(at)).ok();
        // Also what turns out not to be valid has been read.
        let length = entry_at::<S>(self.bytes, at)
            .and_then(Result::ok)
            .map_or(0, |entry| entry.end - at);
        self.charge(length);
        self.groups.insert(at, group.clone());
        group
    }

    fn charge(&mut self, bytes: usize) {
        self.work_left = self.work_left.saturating_sub(bytes as u64);
    }
}

/// One entry, from its length on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// About a function; else about a group of functions.
    pub is_function: bool,
    pub end: usize,
}

/// The entry's lengths are out of bounds: where the next one begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// The entry at `at`, or none at the end of the section.
pub(super) fn entry_at<'a, S: Kind<'a>>(bytes: &[u8], mut at: usize) -> Option<Result<Entry, Lost>> {
    loop {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Some(Err(Lost));
        };
        let entry = match u32::from_le_bytes(*length) {
            0 if S::ENDS_WITH_ZERO => return None,
            0 => {
                at += 4;
                continue;
            }
            u32::MAX => long_entry::<S>(rest, at + 4),
            length => {
                let id = rest.first_chunk::<4>().map(|id| u32::from_le_bytes(*id));
                id.map(|id| (id == S::GROUP_32, at + 4, length as usize))
            }
        };
        let fits = entry.and_then(|(is_group, start, length)| {
            let end = start
                .checked_add(length)
                .filter(|&end| length >= 4 && end <= bytes.len())?;
            Some(Entry {
                is_function: !is_group,
                end,
            })
        });
        return Some(fits.ok_or(Lost));
    }
}

/// An entry whose length has 64 bits: whether it is a group, where its contents begin, their length.
fn long_entry<'a, S: Kind<'a>>(rest: &[u8], at: usize) -> Option<(bool, usize, usize)> {
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let is_group = if S::GROUP_32 == 0 {
        u32::from_le_bytes(*rest.first_chunk::<4>()?) == 0
    } else {
        u64::from_le_bytes(*rest.first_chunk::<8>()?) == u64::MAX
    };
    Some((is_group, at + 8, length))
}
