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

/// Distinct rules over all files, the fixed ones included. The 2,400 programs and libraries of a large
/// development machine have 5,000. The full table takes 256 KiB.
pub const MAX_RULES: usize = 1 << 14;

/// Steps of a binary search that always suffice for one page.
pub const SEARCH_STEPS: u32 = PAGE_SHIFT + 1;

/// Nothing is known about these addresses: no code, or code without unwind information.
pub const RULE_NONE: u16 = 0;

/// There is unwind information, but none that fits a [`Rule`].
pub const RULE_UNSUPPORTED: u16 = 1;

/// [`Rule::ENTRY`], for probed functions without unwind information.
pub const RULE_ENTRY: u16 = 2;

/// [`Rule::FRAME_POINTER`], for other code without unwind information.
pub const RULE_FRAME_POINTER: u16 = 3;

/// The rules with fixed numbers.
pub const FIXED_RULES: [Rule; 4] = [
    Rule {
        ra_offset: 0,
        ..Rule::new(x86_64::CFA_NONE, 0)
    },
    Rule::UNSUPPORTED,
    Rule::ENTRY,
    Rule::FRAME_POINTER,
];

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

/// A page as the kernel side has it. One without rows belongs to a file whose table is not in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct KnownPage {
    pub page: Page,
    /// How often the kernel side looked for a row here, about: processors do not wait for each other. What it finds in
    /// [`CachedRule`]s does not count.
    pub looked_up: u64,
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

/// Processes whose code has a version of its own: what was found out about an address under an earlier version no
/// longer counts.
pub const SPACE_VERSIONS_KEPT: usize = 1 << 13;

/// Where the version of an instance's code stands, and whether it runs CPython.
#[inline]
pub const fn code_place(instance: u32) -> u32 {
    instance & (SPACE_VERSIONS_KEPT as u32 - 1)
}

/// What one process can execute, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Space {
    pub count: u32,
    pub reserved: u32,
    pub ranges: [CodeRange; MAX_RANGES],
}

/// Stands for the number of a rule where no known file is mapped.
pub const RULE_UNMAPPED: u16 = u16::MAX;

/// The number of the rule of one address of one process, remembered: in one word, so that all processors can read and
/// write it without a lock. The upper 48 bits tell whose it is; with the place in the cache they are 62 bits of a hash,
/// so that no two addresses of a machine's processes are ever taken for one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct CachedRule(pub u64);

impl CachedRule {
    /// What to give to [`Self::hash`] for an instance and the version of its code.
    #[inline]
    pub const fn seed(instance: u32, version: u32) -> u64 {
        (instance as u64 | (version as u64) << 32).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
    }

    #[inline]
    pub const fn hash(pc: u64, seed: u64) -> u64 {
        let mixed = pc.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
        (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
    }

    /// Where an address stands in a cache of `1 << bits` entries.
    #[inline]
    pub const fn place(hash: u64, bits: u32) -> u32 {
        (hash >> (64 - bits)) as u32
    }

    #[inline]
    pub const fn new(hash: u64, rule: u16) -> Self {
        Self(hash << 16 | rule as u64)
    }

    /// The rule's number, if the entry is about this address.
    #[inline]
    pub fn rule_for(self, hash: u64) -> Option<u16> {
        (self.0 >> 16 == hash & (u64::MAX >> 16)).then_some(self.0 as u16)
    }
}

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
const _: () = assert!(size_of::<KnownPage>() == 16);
const _: () = assert!(size_of::<Rule>() == 16);
const _: () = assert!(size_of::<CodeRange>() == 24);
const _: () = assert!(size_of::<Space>() == 8 + 24 * MAX_RANGES);
const _: () = assert!(MAX_RULES < RULE_UNMAPPED as usize);

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
    fn a_remembered_rule_comes_back_for_its_own_address_only() {
        let seed = CachedRule::seed(5, 7);
        let hash = CachedRule::hash(0x7f00_1234, seed);
        let entry = CachedRule::new(hash, RULE_UNMAPPED);
        assert_eq!(entry.rule_for(hash), Some(RULE_UNMAPPED));
        for other in [
            CachedRule::hash(0x7f00_1235, seed),
            CachedRule::hash(0x7f00_1234, CachedRule::seed(5, 8)),
            CachedRule::hash(0x7f00_1234, CachedRule::seed(6, 7)),
        ] {
            assert_eq!(entry.rule_for(other), None);
        }
        assert_eq!(CachedRule::default().rule_for(hash), None);
        assert!((0..10_000_u64).all(|pc| CachedRule::place(CachedRule::hash(pc * 977, seed), 14) < 1 << 14));
    }

    #[test]
    fn neighbouring_addresses_processes_and_versions_share_no_hash() {
        let mut hashes = [0; 4 * 4 * 128];
        for (n, hash) in (0_u32..).zip(&mut hashes) {
            let seed = CachedRule::seed(n >> 9, n >> 7 & 3);
            *hash = CachedRule::hash(0x7f12_3456_7000 + u64::from(n & 127) * 3, seed) & (u64::MAX >> 16);
        }
        hashes.sort_unstable();
        assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
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
