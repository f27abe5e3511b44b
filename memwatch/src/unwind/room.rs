//! Which files' rows are in the kernel, within a bound.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Range,
};

use memwatch_common::{
    limits::ROW_PAGES,
    unwind::{BLOCK_ROWS, KnownPage, Page, PageKey, Row, RowBlock},
};

use super::{
    Interner, Segment, Table,
    fingerprint::Fingerprint,
    kernel_tables::KernelTables,
    table::TablePage,
    useful::{Candidate, Need, victims},
};

/// The number of the vdso, which is no file.
pub(super) const VDSO: u32 = 0;

/// Numbers of blocks are given out in turn, so that it takes four billion rows before one comes again.
const BLOCK_NUMBERS: u32 = u32::MAX / BLOCK_ROWS as u32;

pub(super) struct Room<K> {
    pub kernel: K,
    interner: Interner,
    rules_written: usize,
    most_blocks: u32,
    blocks: u32,
    pages: u32,
    next_block: u32,
    objects: BTreeMap<u32, Object>,
    by_digest: HashMap<[u8; 32], u32>,
    next_number: u32,
    /// How often a file that some process maps had to do without its table.
    lost: u64,
}

/// A file, whether its rows are in the kernel or not.
#[derive(Debug)]
pub(super) struct Object {
    /// What addresses in a process are in the file.
    pub segments: Vec<Segment>,
    digest: Option<[u8; 32]>,
    /// Its pages in the kernel, with rows or without.
    pages: Vec<u32>,
    /// What its rows need.
    blocks: u32,
    /// Where they are; empty where they are not.
    at: Range<u32>,
    /// How many times a watched process has it mapped.
    pub users: u32,
    score: u64,
    looked_up: u64,
}

impl Object {
    fn is_resident(&self) -> bool {
        !self.at.is_empty() || self.blocks == 0
    }
}

impl<K: KernelTables> Room<K> {
    pub fn new(kernel: K, most_rows: u32) -> io::Result<Self> {
        let mut room = Self {
            kernel,
            interner: Interner::new(),
            rules_written: 0,
            most_blocks: most_rows.div_ceil(BLOCK_ROWS as u32),
            blocks: 0,
            pages: 0,
            next_block: 0,
            objects: BTreeMap::new(),
            by_digest: HashMap::new(),
            next_number: VDSO + 1,
            lost: 0,
        };
        room.write_rules()?;
        Ok(room)
    }

    pub fn object(&self, number: u32) -> Option<&Object> {
        self.objects.get(&number)
    }

    pub fn object_mut(&mut self, number: u32) -> Option<&mut Object> {
        self.objects.get_mut(&number)
    }

    /// The file with this content, by whatever path it is reached.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<u32> {
        self.by_digest.get(&fingerprint.digest).copied()
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }

    pub fn rows_used(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_ROWS as u64
    }

    pub fn most_rows(&self) -> u64 {
        u64::from(self.most_blocks) * BLOCK_ROWS as u64
    }

    /// A new file, which `users` have mapped; puts its rows into the kernel if there is room. Gives its number.
    pub fn add(
        &mut self,
        fingerprint: Option<&Fingerprint>,
        segments: Vec<Segment>,
        table: &Table,
    ) -> io::Result<u32> {
        let digest = fingerprint.map(|fingerprint| fingerprint.digest);
        let number = if digest.is_some() { self.next_number } else { VDSO };
        self.next_number = self.next_number.max(number + 1);
        let object = Object {
            segments,
            digest,
            pages: Vec::new(),
            blocks: table.rows.len().div_ceil(BLOCK_ROWS) as u32,
            at: 0..0,
            users: 0,
            score: 0,
            looked_up: 0,
        };
        self.objects.insert(number, object);
        if let Some(digest) = digest {
            self.by_digest.insert(digest, number);
        }
        if !self.put(number, table)? {
            self.lost += 1;
        }
        Ok(number)
    }

    /// Puts a known file's rows into the kernel. False when there is no room.
    pub fn put(&mut self, number: u32, table: &Table) -> io::Result<bool> {
        let pages = || table.pages.iter().map(|entry| entry.page).collect::<Vec<u32>>();
        let Some(victims) = self.room_for(number, table.pages.len() as u32) else {
            if self.object(number).is_some_and(|object| object.pages.is_empty()) {
                self.set_empty_pages(number, pages())?;
            }
            return Ok(false);
        };
        self.make_way(number, &victims)?;
        let rows = self.interner.translate(table);
        self.write_rules()?;
        let blocks = rows.len().div_ceil(BLOCK_ROWS) as u32;
        let at = self.free_numbers(blocks);
        self.blocks += blocks;
        let first_row = at.start * BLOCK_ROWS as u32;
        if let Some(object) = self.objects.get_mut(&number) {
            object.at = at.clone();
            object.pages = pages();
            self.pages += object.pages.len() as u32;
        }
        let written = self
            .write_rows(at.start, &rows)
            .and_then(|()| self.write_pages(number, first_row, &table.pages));
        match written {
            Ok(()) => Ok(true),
            // No memory in the kernel is no room, too.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::E2BIG)) => {
                self.take_out(&[number])?;
                self.set_empty_pages(number, pages())?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Who goes to make room for a file; none when that is not worth it.
    fn room_for(&self, number: u32, pages: u32) -> Option<Vec<u32>> {
        let object = self.objects.get(&number)?;
        if object.blocks > self.most_blocks {
            return None;
        }
        let new_pages = pages.saturating_sub(object.pages.len() as u32);
        let need = Need {
            blocks: (self.blocks + object.blocks).saturating_sub(self.most_blocks),
            pages: (self.pages + new_pages).saturating_sub(ROW_PAGES),
        };
        let others: Vec<Candidate> = self
            .objects
            .iter()
            .filter(|(other, object)| **other != number && **other != VDSO && object.is_resident())
            .map(|(number, object)| Candidate {
                number: *number,
                blocks: object.at.len() as u32,
                pages: object.pages.len() as u32,
                mapped: object.users > 0,
                score: object.score,
            })
            .collect();
        victims(&others, need, object.score)
    }

    /// Takes the victims' rows out, and the pages that a file had while it had no rows. Victims that are mapped keep pages
    /// without rows, by which the kernel side counts how often they are missed.
    fn make_way(&mut self, number: u32, victims: &[u32]) -> io::Result<()> {
        let in_the_way = self.object(number).is_some_and(|object| !object.pages.is_empty());
        if !in_the_way && victims.is_empty() {
            return Ok(());
        }
        for (taken, pages) in self.take_out(&[victims, &[number]].concat())? {
            if taken == number {
                continue;
            }
            if self.object(taken).is_some_and(|object| object.users > 0) {
                self.lost += 1;
                self.set_empty_pages(taken, pages)?;
            } else {
                self.remove(taken);
            }
        }
        Ok(())
    }

    /// No page leads to their rows any more, then no walk knows of them any more, then they go. Gives each one's pages.
    fn take_out(&mut self, numbers: &[u32]) -> io::Result<Vec<(u32, Vec<u32>)>> {
        let mut keys = Vec::new();
        for number in numbers {
            let pages = self.object(*number).map_or(&[][..], |object| &object.pages);
            keys.extend(pages.iter().map(|page| page_key(*number, *page)));
        }
        self.kernel.remove_pages(&keys)?;
        self.kernel.wait_for_walks();
        let mut taken = Vec::new();
        for number in numbers {
            let Some(object) = self.objects.get_mut(number) else {
                continue;
            };
            let blocks: Vec<u32> = std::mem::take(&mut object.at).collect();
            let pages = std::mem::take(&mut object.pages);
            object.looked_up = 0;
            self.blocks -= blocks.len() as u32;
            self.pages -= pages.len() as u32;
            self.kernel.remove_blocks(&blocks)?;
            taken.push((*number, pages));
        }
        Ok(taken)
    }

    /// Takes a file's rows out, whoever maps it.
    pub fn take_away(&mut self, number: u32) -> io::Result<()> {
        self.take_out(&[number])?;
        self.remove(number);
        Ok(())
    }

    fn remove(&mut self, number: u32) {
        if let Some(digest) = self.objects.remove(&number).and_then(|object| object.digest) {
            self.by_digest.remove(&digest);
        }
    }

    /// A file without rows that no process maps any more need not be known. False when it stays.
    pub fn forget(&mut self, number: u32) -> io::Result<bool> {
        let unused = |object: &Object| object.users == 0 && !object.is_resident();
        if number == VDSO || !self.object(number).is_some_and(unused) {
            return Ok(false);
        }
        self.take_away(number)?;
        Ok(true)
    }

    /// Reads how often each file's rows were looked for since the last time; what was before counts half.
    pub fn look_at_use(&mut self) -> io::Result<()> {
        let mut sums: HashMap<u32, u64> = HashMap::new();
        self.kernel.looked_up(&mut |key, count| {
            *sums.entry(key.object).or_default() += count;
        })?;
        for (number, object) in &mut self.objects {
            let sum = sums.get(number).copied().unwrap_or(0);
            object.score = object.score / 2 + sum.saturating_sub(object.looked_up);
            object.looked_up = sum;
        }
        Ok(())
    }

    /// Whether any mapped file is without its rows.
    pub fn misses_some(&self) -> bool {
        self.objects
            .values()
            .any(|object| object.users > 0 && !object.is_resident() && object.blocks <= self.most_blocks)
    }

    /// The file that is missed most and for which there would be room.
    pub fn wanted(&self) -> Option<u32> {
        let mut missed: Vec<(u64, u32)> = self
            .objects
            .iter()
            .filter(|(_, object)| object.users > 0 && !object.is_resident())
            .map(|(number, object)| (object.score, *number))
            .collect();
        missed.sort_by_key(|(score, number)| (std::cmp::Reverse(*score), *number));
        missed
            .into_iter()
            .map(|(_, number)| number)
            .find(|number| self.room_for(*number, 0).is_some())
    }

    /// Numbers in a row that no rows have, preferably such that were not used for long.
    fn free_numbers(&mut self, count: u32) -> Range<u32> {
        let mut start = self.next_block;
        loop {
            if start > BLOCK_NUMBERS - count {
                start = 0;
            }
            let taken = |object: &&Object| object.at.start < start + count && start < object.at.end;
            match self.objects.values().find(taken) {
                Some(object) => start = object.at.end,
                None => break,
            }
        }
        self.next_block = start + count;
        start..start + count
    }

    fn write_rules(&mut self) -> io::Result<()> {
        for (number, rule) in self.interner.rules().iter().enumerate().skip(self.rules_written) {
            self.kernel.set_rule(number as u32, rule)?;
        }
        self.rules_written = self.interner.rules().len();
        Ok(())
    }

    fn write_rows(&mut self, first: u32, rows: &[Row]) -> io::Result<()> {
        for (number, piece) in (first..).zip(rows.chunks(BLOCK_ROWS)) {
            let mut block = RowBlock {
                rows: [Row::default(); BLOCK_ROWS],
            };
            block.rows[..piece.len()].copy_from_slice(piece);
            self.kernel.set_block(number, &block)?;
        }
        Ok(())
    }

    fn write_pages(&mut self, number: u32, first_row: u32, pages: &[TablePage]) -> io::Result<()> {
        for entry in pages {
            let page = Page {
                first_row: entry.rows.first_row + first_row,
                count: entry.rows.count,
            };
            self.kernel
                .set_page(page_key(number, entry.page), &KnownPage { page, looked_up: 0 })?;
        }
        Ok(())
    }

    fn set_empty_pages(&mut self, number: u32, pages: Vec<u32>) -> io::Result<()> {
        let Some(object) = self.objects.get_mut(&number) else {
            return Ok(());
        };
        if self.pages + pages.len() as u32 > ROW_PAGES {
            return Ok(());
        }
        for page in &pages {
            self.kernel
                .set_page(page_key(number, *page), &KnownPage::default())?;
        }
        self.pages += pages.len() as u32;
        object.pages = pages;
        Ok(())
    }
}

const fn page_key(object: u32, page: u32) -> PageKey {
    PageKey { object, page }
}
