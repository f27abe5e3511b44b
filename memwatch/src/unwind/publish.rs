//! The unwind tables of the watched processes' files, in the kernel's maps.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::AsFd as _,
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::{Context as _, Result};
use memwatch_common::{
    limits::ROW_BLOCKS,
    unwind::{BLOCK_ROWS, CodeRange, MAX_RANGES, Page, PageKey, Row, RowBlock, Space, code_place},
};

use super::{Interner, Table, build};
use crate::{
    collect::batch,
    probe::load::KernelSide,
    target::{
        file_id::{FileId, FileIds},
        modules::{Module, ProcessModules, Range},
        vdso,
    },
};

/// Builds each file's table once and tells the kernel side where each process has its code.
pub struct Publisher {
    maps: Maps,
    interner: Interner,
    rules_written: usize,
    next_block: u32,
    objects: HashMap<FileId, Object>,
    vdso: Option<Object>,
    spaces: HashMap<u32, Published>,
    next_version: u32,
    /// Files whose rows found no room, or could not be read.
    without: HashSet<FileId>,
}

struct Maps {
    rules: OwnedFd,
    rows: OwnedFd,
    pages: OwnedFd,
    spaces: OwnedFd,
    versions: OwnedFd,
}

/// A file whose rows are in the kernel.
struct Object {
    number: u32,
    /// Its table without rows: what addresses in a process are in the file.
    layout: Table,
}

struct Published {
    ranges: Vec<CodeRange>,
}

/// The number of the vdso, which is no file.
const VDSO: u32 = 0;

impl Publisher {
    pub fn new(kernel: &KernelSide) -> Result<Self> {
        let maps = Maps {
            rules: kernel.own_map("RULES")?,
            rows: kernel.own_map("ROWS")?,
            pages: kernel.own_map("PAGES")?,
            spaces: kernel.own_map("SPACES")?,
            versions: kernel.own_map("SPACE_VERSIONS")?,
        };
        let mut publisher = Self {
            maps,
            interner: Interner::new(),
            rules_written: 0,
            next_block: 0,
            objects: HashMap::new(),
            vdso: None,
            spaces: HashMap::new(),
            next_version: 1,
            without: HashSet::new(),
        };
        publisher.write_rules().context("cannot write unwind rules")?;
        if let Some(bytes) = vdso::image() {
            publisher.vdso = publisher.object(VDSO, &bytes).ok();
        }
        Ok(publisher)
    }

    /// Publishes where a process has its code now. What cannot be had is left out: stacks end there, and that is
    /// counted.
    pub fn refresh(&mut self, instance: u32, modules: &ProcessModules) -> Result<()> {
        let mut ranges = Vec::new();
        for module in &modules.modules {
            if let Some(object) = self.module(module) {
                ranges.extend(module.ranges.iter().filter_map(|range| code_range(object, range)));
            }
        }
        if let (Some((start, end)), Some(object)) = (modules.vdso, &self.vdso) {
            ranges.extend(code_range(
                object,
                &Range {
                    start,
                    end,
                    offset: 0,
                },
            ));
        }
        ranges.sort_by_key(|range| range.start);
        ranges.truncate(MAX_RANGES);
        if self
            .spaces
            .get(&instance)
            .is_some_and(|published| published.ranges == ranges)
        {
            return Ok(());
        }
        #[expect(
            clippy::large_stack_arrays,
            reason = "24 KiB, once a change of a process's mappings"
        )]
        let mut space = Box::new(Space {
            count: ranges.len() as u32,
            reserved: 0,
            ranges: [CodeRange::default(); MAX_RANGES],
        });
        space.ranges[..ranges.len()].copy_from_slice(&ranges);
        batch::set(self.maps.spaces.as_fd(), &instance, &*space)
            .context("cannot tell the kernel side where code is")?;
        // After the ranges: what was looked up in between is looked up again.
        let place = code_place(instance);
        batch::set(self.maps.versions.as_fd(), &place, &self.next_version)
            .context("cannot tell the kernel side that code has changed")?;
        self.next_version += 1;
        self.spaces.insert(instance, Published { ranges });
        Ok(())
    }

    pub fn forget(&mut self, instances: &[u32]) {
        for instance in instances {
            self.spaces.remove(instance);
        }
        // One that cannot be taken out stays until memwatch ends.
        let _ = batch::delete(self.maps.spaces.as_fd(), instances);
    }

    /// Builds the table of a file that is going to be mapped.
    pub fn prepare(&mut self, path: &Path) -> Result<()> {
        let id = FileIds::default().look_up(path)?.id;
        if !self.objects.contains_key(&id) {
            let object = self.file(self.objects.len() as u32 + 1, path)?;
            self.objects.insert(id, object);
        }
        Ok(())
    }

    fn module(&mut self, module: &Module) -> Option<&Object> {
        let id = module.id?;
        if !self.objects.contains_key(&id) && !self.without.contains(&id) {
            let number = self.objects.len() as u32 + 1;
            match module.access_path.as_deref().map(|path| self.file(number, path)) {
                Some(Ok(object)) => {
                    self.objects.insert(id, object);
                }
                // Its stacks end there, which the kernel side counts.
                Some(Err(_)) | None => {
                    self.without.insert(id);
                }
            }
        }
        self.objects.get(&id)
    }

    fn file(&mut self, number: u32, path: &Path) -> Result<Object> {
        let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the mapping is private; a file that is cut meanwhile would raise SIGBUS, as it would in the
        // target, whose code it is.
        let bytes =
            unsafe { memmap2::Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
        self.object(number, &bytes)
    }

    /// Builds a table and writes it to the kernel: rules first, then rows, then the pages that lead to them.
    fn object(&mut self, number: u32, bytes: &[u8]) -> Result<Object> {
        let mut table = build(bytes)?;
        let rows = self.interner.translate(&table);
        self.write_rules()?;
        let blocks = rows.len().div_ceil(BLOCK_ROWS) as u32;
        if self.next_block + blocks > ROW_BLOCKS {
            anyhow::bail!("no room for {} more unwind rows", rows.len());
        }
        let first = self.next_block;
        self.next_block += blocks;
        self.write_rows(first, &rows)?;
        for entry in &table.pages {
            let key = PageKey {
                object: number,
                page: entry.page,
            };
            let page = Page {
                first_row: entry.rows.first_row + first * BLOCK_ROWS as u32,
                count: entry.rows.count,
            };
            batch::set(self.maps.pages.as_fd(), &key, &page).context("cannot write unwind pages")?;
        }
        table.rows = Vec::new();
        table.pages = Vec::new();
        table.rules = Vec::new();
        Ok(Object {
            number,
            layout: table,
        })
    }

    fn write_rules(&mut self) -> io::Result<()> {
        for (number, rule) in self.interner.rules().iter().enumerate().skip(self.rules_written) {
            batch::set(self.maps.rules.as_fd(), &(number as u32), rule)?;
        }
        self.rules_written = self.interner.rules().len();
        Ok(())
    }

    fn write_rows(&self, first: u32, rows: &[Row]) -> Result<()> {
        for (number, piece) in (first..).zip(rows.chunks(BLOCK_ROWS)) {
            let mut block = RowBlock {
                rows: [Row::default(); BLOCK_ROWS],
            };
            block.rows[..piece.len()].copy_from_slice(piece);
            batch::set(self.maps.rows.as_fd(), &number, &block).context("cannot write unwind rows")?;
        }
        Ok(())
    }
}

fn code_range(object: &Object, range: &Range) -> Option<CodeRange> {
    let bias = object.layout.bias(range.start, range.offset)?;
    let bytes = u32::try_from(range.end - range.start).ok()?;
    Some(CodeRange {
        start: range.start,
        bias,
        bytes,
        object: object.number,
    })
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("objects", &self.objects.len())
            .field("spaces", &self.spaces.len())
            .finish_non_exhaustive()
    }
}
