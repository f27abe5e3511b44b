//! Compact unwind tables: how the kernel side gets from a frame to its caller without frame pointers.
//!
//! All rows of all files lie in one flat array. The addresses of a file (as its program headers give them) are cut
//! into pages of 64 KiB; a page's rows are neighbours in the array, sorted by address, and [`Page`] says where they
//! are. A row holds until the next one of its page. The first row of a page starts at its first byte if the page's
//! first byte has a rule, so that no lookup needs the page before. What no file describes has [`RULE_NONE`]: a
//! lookup there fails instead of using the row before.

pub mod x86_64;

/// Address bits below a page: what fits [`Row::pc_low`].
pub const PAGE_SHIFT: u32 = 16;

/// Distinct rules over all files, the two fixed ones included. The 2,400 programs and libraries of a large
/// development machine have 5,000. The full table takes 256 KiB.
pub const MAX_RULES: usize = 1 << 14;

/// Steps of a binary search that always suffice for one page.
pub const SEARCH_STEPS: u32 = PAGE_SHIFT + 1;

/// Nothing is known about these addresses: no code, or code without unwind information.
pub const RULE_NONE: u16 = 0;

/// There is unwind information, but none that fits a [`Rule`].
pub const RULE_UNSUPPORTED: u16 = 1;

/// From `pc_low` on, up to the next row of the page, `rule` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Row {
    pub pc_low: u16,
    pub rule: u16,
}

/// Names 64 KiB of one file's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PageKey {
    /// The number of the file in memwatch.
    pub object: u32,
    /// Address in the file, without its low [`PAGE_SHIFT`] bits.
    pub page: u32,
}

/// Where a page's rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Page {
    pub first_row: u32,
    /// At most 65,536, which is one too many for 16 bits.
    pub count: u32,
}

/// How to find the caller's registers. What the kinds mean is up to the architecture's module.
///
/// The canonical frame address (CFA) is what the caller's stack pointer is once the call has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Rule {
    pub cfa_kind: u8,
    pub rbp_kind: u8,
    pub ra_kind: u8,
    /// The register that `cfa_kind` or `ra_kind` speaks of, in DWARF's numbering.
    pub register: u8,
    pub cfa_offset: i32,
    /// Added after the memory read of the kinds that make one.
    pub cfa_add: i16,
    pub rbp_offset: i16,
    pub ra_offset: i16,
    pub reserved: u16,
}

/// Rows lie in the kernel in pieces of this many, made as they are needed.
pub const BLOCK_ROWS: usize = 1024;

/// A piece of the flat array of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RowBlock {
    pub rows: [Row; BLOCK_ROWS],
}

/// Executable pieces of one process that are kept: twice what a process with 500 libraries has.
pub const MAX_RANGES: usize = 1024;

/// Addresses of a process that show a file's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CodeRange {
    pub start: u64,
    /// What to subtract from an address in the process, to get that in the file.
    pub bias: u64,
    pub bytes: u32,
    /// See [`PageKey::object`].
    pub object: u32,
}

/// What one process can execute, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Space {
    /// Another number whenever code was mapped or unmapped: what was found out about an address before no longer
    /// counts.
    pub version: u32,
    pub count: u32,
    pub ranges: [CodeRange; MAX_RANGES],
}

/// The rule of one address of one process, remembered. Written and read by all processors without a lock: `check`
/// tells an entry that was half written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedRule {
    pub pc: u64,
    /// The instance whose [`Space`] the address is in, and the space's version in the upper half.
    pub space: u64,
    pub rule: Rule,
    pub check: u64,
}

impl CachedRule {
    #[inline]
    pub fn new(pc: u64, space: u64, rule: Rule) -> Self {
        let mut entry = Self {
            pc,
            space,
            rule,
            check: 0,
        };
        entry.check = entry.sum();
        entry
    }

    /// The rule, if the entry is whole and about this address.
    #[inline]
    pub fn rule_for(&self, pc: u64, space: u64) -> Option<Rule> {
        let entry = *self;
        (entry.pc == pc && entry.space == space && entry.check == entry.sum()).then_some(entry.rule)
    }

    /// Where an address stands in a cache of `1 << bits` entries.
    #[inline]
    pub const fn slot(pc: u64, space: u64, bits: u32) -> u32 {
        ((pc ^ space.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as u32
    }

    /// Not 0 for an entry of zeros, which is no entry.
    #[inline]
    fn sum(&self) -> u64 {
        let rule = &self.rule;
        let kinds = u32::from_le_bytes([rule.cfa_kind, rule.rbp_kind, rule.ra_kind, rule.register]);
        let low = u64::from(kinds) | u64::from(rule.cfa_offset as u32) << 32;
        let high = u64::from(rule.cfa_add as u16)
            | u64::from(rule.rbp_offset as u16) << 16
            | u64::from(rule.ra_offset as u16) << 32
            | u64::from(rule.reserved) << 48;
        0x5bd1_e995 ^ self.pc ^ self.space.rotate_left(13) ^ low.rotate_left(29) ^ high.rotate_left(47)
    }
}

/// [`Rule::reserved`] of the rule for addresses that no known file is mapped at.
pub const UNMAPPED: u16 = 1;

/// Finds the rule that holds at `pc_low` in a page. `row` reads one row of the array.
#[expect(
    clippy::inline_always,
    reason = "`row` must be inlined: the kernel's verifier does not know closures"
)]
#[inline(always)]
pub fn search(page: Page, pc_low: u16, mut row: impl FnMut(u32) -> Option<Row>) -> u16 {
    let mut low = page.first_row;
    let mut high = page.first_row.saturating_add(page.count);
    let mut rule = RULE_NONE;
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let Some(row) = row(middle) else { return RULE_NONE };
        if row.pc_low <= pc_low {
            rule = row.rule;
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    rule
}

const _: () = assert!(size_of::<Row>() == 4);
const _: () = assert!(size_of::<PageKey>() == 8);
const _: () = assert!(size_of::<Page>() == 8);
const _: () = assert!(size_of::<Rule>() == 16);
const _: () = assert!(size_of::<CodeRange>() == 24);
const _: () = assert!(size_of::<Space>() == 8 + 24 * MAX_RANGES);
const _: () = assert!(size_of::<CachedRule>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_until_the_next() {
        let rows =
            [(9, 9), (0x10, 2), (0x20, 3), (0xffff, 4), (7, 7)].map(|(pc_low, rule)| Row { pc_low, rule });
        let page = Page {
            first_row: 1,
            count: 3,
        };
        let find = |pc_low| search(page, pc_low, |row| rows.get(row as usize).copied());
        assert_eq!(find(0), RULE_NONE);
        assert_eq!(find(0xf), RULE_NONE);
        assert_eq!(find(0x10), 2);
        assert_eq!(find(0x1f), 2);
        assert_eq!(find(0x20), 3);
        assert_eq!(find(0xfffe), 3);
        assert_eq!(find(0xffff), 4);
    }

    #[test]
    fn the_search_reaches_every_row_of_a_full_page() {
        let page = Page {
            first_row: 5,
            count: 1 << PAGE_SHIFT,
        };
        let row = |at: u32| {
            Some(Row {
                pc_low: (at - 5) as u16,
                rule: !((at - 5) as u16),
            })
        };
        assert!((0..=u16::MAX).all(|pc_low| search(page, pc_low, row) == !pc_low));
    }

    #[test]
    fn a_remembered_rule_comes_back_whole_or_not_at_all() {
        let rule = Rule {
            cfa_kind: 2,
            cfa_offset: -8,
            rbp_offset: -16,
            ra_offset: -8,
            reserved: 1,
            ..Rule::default()
        };
        let entry = CachedRule::new(0x7f00_1234, 5 | 7 << 32, rule);
        assert_eq!(entry.rule_for(0x7f00_1234, 5 | 7 << 32), Some(rule));
        assert_eq!(entry.rule_for(0x7f00_1235, 5 | 7 << 32), None);
        assert_eq!(entry.rule_for(0x7f00_1234, 5 | 8 << 32), None);
        let torn = CachedRule {
            rule: Rule {
                cfa_offset: 16,
                ..rule
            },
            ..entry
        };
        assert_eq!(torn.rule_for(torn.pc, torn.space), None);
        assert_eq!(CachedRule::default().rule_for(0, 0), None);
        assert!((0..10_000_u64).all(|pc| CachedRule::slot(pc * 977, 3, 14) < 1 << 14));
    }

    #[test]
    fn rows_that_cannot_be_read_give_no_rule() {
        let page = Page {
            first_row: u32::MAX,
            count: 2,
        };
        assert_eq!(search(page, 1, |_| None), RULE_NONE);
    }
}
