//! One file's unwind table.

use memwatch_common::unwind::{FIXED_RULES, PAGE_SHIFT, Page, RULE_NONE, Row, Rule, search};

use super::collect::Collector;
use super::elf::{Elf, Segment};
use super::fingerprint::Fingerprint;
use super::pages;
use super::stats::TableStats;

/// The largest file measured needs fewer than 2 million; this many take 32 MiB in the kernel.
pub const MAX_ROWS: usize = 8 << 20;

/// Code that one table can be about: 4 GiB.
pub const MAX_PAGES: u64 = 1 << 16;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("not a valid ELF file: {0}")]
    Elf(#[from] object::read::Error),
    #[error("not an x86-64 file")]
    Machine,
    #[error("neither a program nor a shared library")]
    Kind,
    #[error("its executable segments overlap, are too many or too large")]
    Layout,
}

/// Where the rows of one page are in [`Table::rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePage {
    /// Address in the file, without its low bits.
    pub page: u32,
    pub rows: Page,
}

/// What [`build`] makes of a file. Stands alone: rows speak of this table's own rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The file's code, by address.
    pub segments: Vec<Segment>,
    /// By page; pages about which nothing is known are left out.
    pub pages: Vec<TablePage>,
    pub rows: Vec<Row>,
    /// The first two are the fixed ones.
    pub rules: Vec<Rule>,
    pub stats: TableStats,
}

/// Reads the unwind information of a file, or of the vdso's bytes.
///
/// Takes time and memory in proportion to the size of the unwind sections, whatever is in them. What cannot be
/// read or expressed is left out and counted in [`Table::stats`].
pub fn build(bytes: &[u8]) -> Result<Table, BuildError> {
    Ok(Source::read(bytes)?.build())
}

/// A file as far as it has to be read to know whether its table is there already.
pub struct Source<'a>(Elf<'a>);

impl<'a> Source<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, BuildError> {
        let elf = Elf::parse(bytes)?;
        let mapped = elf.code.iter().map(|(segment, _)| segment.size).sum::<u64>();
        if mapped >> PAGE_SHIFT >= MAX_PAGES {
            return Err(BuildError::Layout);
        }
        Ok(Self(elf))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }

    pub fn segments(&self) -> Vec<Segment> {
        self.0.code.iter().map(|(segment, _)| *segment).collect()
    }

    pub fn build(&self) -> Table {
        build_from(&self.0)
    }
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Source").field(&self.segments()).finish()
    }
}

fn build_from(elf: &Elf<'_>) -> Table {
    let mut collector = Collector::new(elf);
    collector.read_all();
    collector.fill_gaps();
    let collected = collector.finish();
    let paged = pages::lay_out(&collected.spans, &collected.drafts);
    let mut stats = collected.stats;
    stats.code_bytes = elf.code_bytes;
    stats.covered_bytes = paged.covered_bytes;
    Table {
        segments: elf.code.iter().map(|(segment, _)| *segment).collect(),
        pages: paged.pages,
        rows: paged.rows,
        rules: collected.rules,
        stats,
    }
}

/// What to subtract from an address in a process, to get that in the file: for a mapping that begins at `start` and shows
/// the file from `offset` on. None when the file has no code there.
pub fn bias(segments: &[Segment], start: u64, offset: u64) -> Option<u64> {
    let mapped = |segment: &&Segment| {
        (segment.file_offset & !0xfff..segment.file_offset + segment.size).contains(&offset)
    };
    let segment = segments.iter().find(mapped)?;
    let address = segment
        .address
        .wrapping_add(offset)
        .wrapping_sub(segment.file_offset);
    Some(start.wrapping_sub(address))
}

impl Table {
    /// The number of the rule for an address in the file.
    pub fn rule_number(&self, address: u64) -> u16 {
        let Ok(page) = u32::try_from(address >> PAGE_SHIFT) else {
            return RULE_NONE;
        };
        let Ok(at) = self.pages.binary_search_by_key(&page, |entry| entry.page) else {
            return RULE_NONE;
        };
        search(self.pages[at].rows, address as u16, |row| {
            self.rows.get(row as usize).copied()
        })
    }

    /// The rule for an address in the file.
    pub fn rule(&self, address: u64) -> Rule {
        self.rules
            .get(usize::from(self.rule_number(address)))
            .copied()
            .unwrap_or_default()
    }

    /// See [`bias`].
    pub fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        bias(&self.segments, start, offset)
    }

    /// Whether the parts fit together, which lookups rely on.
    pub fn check(&self) -> Result<(), &'static str> {
        // Each function can have a gap after it, each page a row at its start.
        if self.rows.len() > 2 * MAX_ROWS + self.pages.len() || self.pages.len() as u64 > MAX_PAGES + 64 {
            return Err("too large");
        }
        if !self.rules.starts_with(&FIXED_RULES) {
            return Err("fixed rules missing");
        }
        if self
            .rows
            .iter()
            .any(|row| usize::from(row.rule) >= self.rules.len())
        {
            return Err("row without rule");
        }
        let mut next = 0;
        let mut last_page = None;
        for &TablePage { page, rows } in &self.pages {
            if rows.first_row != next || rows.count == 0 || last_page.is_some_and(|last| last >= page) {
                return Err("pages not in order");
            }
            next = rows.first_row.checked_add(rows.count).ok_or("page too long")?;
            let range = rows.first_row as usize..next as usize;
            let of_page = self.rows.get(range).ok_or("page without rows")?;
            if !of_page.is_sorted_by(|a, b| a.pc_low < b.pc_low) {
                return Err("rows not in order");
            }
            last_page = Some(page);
        }
        if next as usize != self.rows.len() {
            return Err("rows without page");
        }
        Ok(())
    }
}
