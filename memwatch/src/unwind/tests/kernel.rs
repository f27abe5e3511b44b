//! The kernel's maps as far as tables need them, strict about what a walk could see.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use memwatch_common::unwind::{
    BLOCK_ROWS, KnownPage, PAGE_SHIFT, PageKey, RULE_NONE, RowBlock, Rule, Space, search,
};

use crate::unwind::kernel_tables::KernelTables;

#[derive(Default)]
pub struct FakeKernel {
    pub rules: Vec<Rule>,
    pub blocks: BTreeMap<u32, RowBlock>,
    pub pages: HashMap<(u32, u32), KnownPage>,
    pub spaces: BTreeMap<u32, Space>,
    pub versions: BTreeMap<u32, u32>,
    pub most_blocks: usize,
    pub waits: usize,
    /// Blocks to which a walk may still be led.
    walked: BTreeSet<u32>,
    /// Taken out, so that another could get its memory while a walk holds it.
    pages_loose: bool,
    blocks_loose: bool,
    space_loose: bool,
}

impl FakeKernel {
    pub fn with_room(most_blocks: usize) -> Self {
        Self {
            most_blocks,
            ..Self::default()
        }
    }

    /// As the kernel side looks an address of a file up.
    pub fn rule(&mut self, object: u32, address: u64) -> Rule {
        let Some(known) = self.pages.get_mut(&(object, (address >> PAGE_SHIFT) as u32)) else {
            return self.rules[usize::from(RULE_NONE)];
        };
        known.looked_up += 1;
        let row = |row: u32| {
            let block = self.blocks.get(&(row / BLOCK_ROWS as u32))?;
            Some(block.rows[row as usize % BLOCK_ROWS])
        };
        self.rules[usize::from(search(known.page, address as u16, row))]
    }

    fn blocks_of(page: &KnownPage) -> impl Iterator<Item = u32> {
        let first = page.page.first_row;
        let last = first + page.page.count.max(1) - 1;
        (first / BLOCK_ROWS as u32..=last / BLOCK_ROWS as u32).filter(move |_| page.page.count > 0)
    }
}

impl KernelTables for FakeKernel {
    fn set_rule(&mut self, number: u32, rule: &Rule) -> io::Result<()> {
        assert_eq!(number as usize, self.rules.len(), "rules are never changed");
        self.rules.push(*rule);
        Ok(())
    }

    fn set_block(&mut self, number: u32, block: &RowBlock) -> io::Result<()> {
        assert!(!self.blocks_loose, "a walk may still hold what was taken out");
        if self.blocks.len() >= self.most_blocks {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        assert!(
            self.blocks.insert(number, *block).is_none(),
            "a block is never written to again"
        );
        Ok(())
    }

    fn remove_blocks(&mut self, numbers: &[u32]) -> io::Result<()> {
        for number in numbers {
            assert!(!self.walked.contains(number), "a walk may be on its way there");
            assert!(
                self.pages
                    .values()
                    .all(|page| Self::blocks_of(page).all(|block| block != *number)),
                "a page still leads there"
            );
            self.blocks.remove(number);
        }
        Ok(())
    }

    fn set_page(&mut self, key: PageKey, page: &KnownPage) -> io::Result<()> {
        assert!(!self.pages_loose, "a walk may still hold what was taken out");
        assert!(
            Self::blocks_of(page).all(|block| self.blocks.contains_key(&block)),
            "a page leads to rows that are not there"
        );
        assert!(self.pages.insert((key.object, key.page), *page).is_none());
        Ok(())
    }

    fn remove_pages(&mut self, keys: &[PageKey]) -> io::Result<()> {
        for key in keys {
            if let Some(page) = self.pages.remove(&(key.object, key.page)) {
                self.walked.extend(Self::blocks_of(&page));
                self.pages_loose = true;
            }
        }
        Ok(())
    }

    fn looked_up(&self, each: &mut dyn FnMut(&PageKey, u64)) -> io::Result<()> {
        for (&(object, page), known) in &self.pages {
            each(&PageKey { object, page }, known.looked_up);
        }
        Ok(())
    }

    fn set_space(&mut self, instance: u32, space: &Space) -> io::Result<()> {
        assert!(!self.space_loose, "a walk may still hold what was replaced");
        self.space_loose = self.spaces.insert(instance, *space).is_some();
        Ok(())
    }

    fn remove_spaces(&mut self, instances: &[u32]) -> io::Result<()> {
        for instance in instances {
            self.space_loose |= self.spaces.remove(instance).is_some();
        }
        Ok(())
    }

    fn set_version(&mut self, instance: u32, version: u32) -> io::Result<()> {
        assert_ne!(self.versions.insert(instance, version), Some(version));
        Ok(())
    }

    fn wait_for_walks(&mut self) {
        self.waits += 1;
        self.walked.clear();
        self.pages_loose = false;
        self.blocks_loose = false;
        self.space_loose = false;
    }
}
