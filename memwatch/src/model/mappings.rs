//! Which memory a process mapped, and from where: an interval set fed with the system calls that succeeded.
//!
//! Calls of several threads overlap, and the events of two calls can come in either order. Two rules keep the
//! sums exact all the same. A removal takes out only what was there before its call began: a segment that
//! appeared while the call was running took the place of what the call removed. An insertion takes out what
//! lies under it unless that is surely newer.

use std::collections::{BTreeMap, HashMap};

use memwatch_common::event::{MAPPING_ALLOCATOR, MAPPING_ANONYMOUS, MAPPING_NO_ACCESS};
use memwatch_common::hist::{lifetime_bucket, size_bucket};
use memwatch_common::{Event, SiteTotals};

use crate::collect::sample::{AGE_EDGES_SECONDS, SiteAges};

/// The kernel maps whole pages, whatever length was asked for.
const PAGE_BYTES: u64 = 4096;

/// What is behind a mapping. Reservations are told apart because they hold addresses, not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MappingKind {
    Anonymous,
    File,
    /// Addresses without access rights, anonymous or not.
    Reserved,
}

impl MappingKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::File => "file",
            Self::Reserved => "reserved",
        }
    }

    const fn from_flags(flags: u32) -> Self {
        if flags & MAPPING_NO_ACCESS != 0 {
            Self::Reserved
        } else if flags & MAPPING_ANONYMOUS != 0 {
            Self::Anonymous
        } else {
            Self::File
        }
    }
}

/// Where a mapping came from.
pub type MappingSite = (u64, MappingKind);

/// When the system call was entered and when it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct When {
    begin_ns: u64,
    end_ns: u64,
}

/// What one mapping call made. It lives until its last byte is gone.
#[derive(Clone, Debug)]
struct Object {
    stack: u64,
    flags: u32,
    made: When,
    bytes_left: u64,
    /// A fork copied it from the parent: not this process's own doing.
    inherited: bool,
}

impl Object {
    const fn site(&self) -> MappingSite {
        (self.stack, MappingKind::from_flags(self.flags))
    }

    const fn is_allocators(&self) -> bool {
        self.flags & MAPPING_ALLOCATOR != 0
    }

    /// Whether it appears in domain `mmap`.
    const fn is_counted(&self) -> bool {
        !self.inherited && !self.is_allocators()
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    end: u64,
    object: u64,
}

/// Removals of what was mapped before recording began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untracked {
    pub calls: u64,
    pub bytes: u64,
}

/// The mappings of one process that were made since recording began.
#[derive(Clone, Debug, Default)]
pub struct MappingSet {
    /// By first address; never overlapping.
    segments: BTreeMap<u64, Segment>,
    objects: HashMap<u64, Object>,
    next_object: u64,
    totals: HashMap<MappingSite, SiteTotals>,
    touched: Vec<MappingSite>,
    allocator_bytes: u64,
    inherited_bytes: u64,
    untracked: Untracked,
}

/// What a removal found.
#[derive(Clone, Copy, Debug, Default)]
struct Removed {
    /// The flags of the first object that was hit.
    flags: Option<u32>,
    untracked_bytes: u64,
}

impl MappingSet {
    pub fn map(&mut self, event: &Event) {
        self.insert(
            pages(event.address, event.a),
            event.flags,
            event.stack,
            when(event),
        );
    }

    pub fn unmap(&mut self, event: &Event) {
        let removed = self.remove(pages(event.address, event.a), when(event));
        self.count_untracked(removed);
    }

    /// Like `realloc`: the old object is gone, a new one of the whole new size comes from the new stack.
    pub fn remap(&mut self, event: &Event) {
        // An old size of 0 makes a second mapping of the same pages.
        let old = if event.a == 0 {
            Removed {
                flags: self.flags_at(event.address),
                untracked_bytes: 0,
            }
        } else {
            self.remove(pages(event.address, event.a), when(event))
        };
        self.count_untracked(old);
        // What is behind the mapping is told by the call that first made it, not by mremap.
        let flags = match old.flags {
            Some(flags) => (flags & !MAPPING_ALLOCATOR) | (event.flags & MAPPING_ALLOCATOR),
            None => event.flags | MAPPING_ANONYMOUS,
        };
        self.insert(pages(event.c, event.b), flags, event.stack, when(event));
    }

    pub fn program_break(&mut self, event: &Event) {
        if event.a > event.address {
            self.insert(
                (event.address, event.a),
                event.flags | MAPPING_ANONYMOUS,
                event.stack,
                when(event),
            );
        } else {
            let removed = self.remove((event.a, event.address), when(event));
            self.count_untracked(removed);
        }
    }

    /// What a forked child starts with: everything is there and nothing is its own.
    #[must_use]
    pub fn inherit(&self) -> Self {
        let mut child = Self {
            next_object: self.next_object,
            ..Self::default()
        };
        child.segments.clone_from(&self.segments);
        child.objects.clone_from(&self.objects);
        for object in child.objects.values_mut() {
            object.inherited = true;
            child.inherited_bytes += object.bytes_left;
        }
        child
    }

    /// The sites that changed since the last call, with their totals since recording began.
    pub fn take_changes(&mut self) -> Vec<(MappingSite, SiteTotals)> {
        self.touched.sort_unstable();
        self.touched.dedup();
        let touched = std::mem::take(&mut self.touched);
        touched
            .into_iter()
            .filter_map(|site| Some((site, *self.totals.get(&site)?)))
            .collect()
    }

    /// Mapped by allocators for themselves, at this time.
    pub fn allocator_bytes(&self) -> u64 {
        self.allocator_bytes
    }

    /// What is left of the parent's mappings.
    pub fn inherited_bytes(&self) -> u64 {
        self.inherited_bytes
    }

    pub fn untracked(&self) -> Untracked {
        self.untracked
    }

    /// Live mappings by age, as [`crate::collect::sample::LiveScan`] has them for blocks.
    pub fn ages(&self, now_ns: u64, older_than_ns: u64) -> HashMap<MappingSite, SiteAges> {
        let mut sites: HashMap<MappingSite, SiteAges> = HashMap::new();
        for object in self.objects.values().filter(|object| object.is_counted()) {
            let born_ns = object.made.end_ns;
            let age_ns = now_ns.saturating_sub(born_ns);
            let ages = sites.entry(object.site()).or_default();
            ages.objects[age_bucket(age_ns)] += 1;
            ages.bytes[age_bucket(age_ns)] += object.bytes_left;
            if ages.oldest_born_ns == 0 || born_ns < ages.oldest_born_ns {
                ages.oldest_born_ns = born_ns;
            }
            if age_ns >= older_than_ns {
                ages.old_objects += 1;
                ages.old_bytes += object.bytes_left;
            }
        }
        sites
    }

    fn insert(&mut self, (start, end): (u64, u64), flags: u32, stack: u64, when: When) {
        if start >= end {
            return;
        }
        // Surely newer: its call began after this one had returned.
        let newer = |made: When| made.begin_ns >= when.end_ns;
        let gaps = self.carve((start, end), when, |made| !newer(made)).gaps;
        let id = self.next_object;
        self.next_object += 1;
        let kept: u64 = gaps.iter().map(|(from, to)| to - from).sum();
        let object = Object {
            stack,
            flags,
            made: when,
            bytes_left: kept,
            inherited: false,
        };
        self.count_allocation(&object, end - start, kept, when);
        for (from, to) in gaps {
            self.segments.insert(from, Segment { end: to, object: id });
        }
        if kept > 0 {
            self.objects.insert(id, object);
        }
    }

    /// Counts the whole mapping, and as freed at once what newer mappings already cover.
    fn count_allocation(&mut self, object: &Object, bytes: u64, kept: u64, when: When) {
        if object.is_allocators() {
            self.allocator_bytes += kept;
            return;
        }
        self.touched.push(object.site());
        let totals = self.totals.entry(object.site()).or_insert(SiteTotals::ZERO);
        totals.alloc_bytes += bytes;
        totals.alloc_objects += 1;
        totals.sizes[size_bucket(bytes)] += 1;
        totals.freed_bytes += bytes - kept;
        if kept == 0 {
            totals.freed_objects += 1;
            totals.lifetimes[lifetime_bucket(when.end_ns - when.begin_ns)] += 1;
        }
    }

    fn remove(&mut self, span: (u64, u64), when: When) -> Removed {
        if span.0 >= span.1 {
            return Removed::default();
        }
        let carved = self.carve(span, when, |made| made.end_ns <= when.begin_ns);
        let all: u64 = carved.gaps.iter().map(|(from, to)| to - from).sum();
        Removed {
            flags: carved.flags,
            untracked_bytes: all - carved.taken_bytes,
        }
    }

    /// Takes out of `span` all that `yields` to the call, and tells what is free in it then.
    fn carve(&mut self, (start, end): (u64, u64), when: When, yields: impl Fn(When) -> bool) -> Carved {
        let mut carved = Carved::default();
        let mut free_from = start;
        for (from, segment) in self.overlapping(start, end) {
            let Some(object) = self.objects.get(&segment.object) else {
                continue;
            };
            let (cut_from, cut_to) = (from.max(start), segment.end.min(end));
            if yields(object.made) {
                carved.flags.get_or_insert(object.flags);
                carved.taken_bytes += cut_to - cut_from;
                self.cut(from, segment, (cut_from, cut_to), when);
            } else {
                if free_from < cut_from {
                    carved.gaps.push((free_from, cut_from));
                }
                free_from = cut_to;
            }
        }
        if free_from < end {
            carved.gaps.push((free_from, end));
        }
        carved
    }

    fn overlapping(&self, start: u64, end: u64) -> Vec<(u64, Segment)> {
        let before = self
            .segments
            .range(..start)
            .next_back()
            .filter(|(_, segment)| segment.end > start);
        before
            .into_iter()
            .chain(self.segments.range(start..end))
            .map(|(from, segment)| (*from, *segment))
            .collect()
    }

    /// Takes `[cut_from, cut_to)` out of the segment at `from`; what is left of it on both sides stays.
    fn cut(&mut self, from: u64, segment: Segment, (cut_from, cut_to): (u64, u64), when: When) {
        self.segments.remove(&from);
        if from < cut_from {
            self.segments.insert(
                from,
                Segment {
                    end: cut_from,
                    object: segment.object,
                },
            );
        }
        if cut_to < segment.end {
            self.segments.insert(cut_to, segment);
        }
        let bytes = cut_to - cut_from;
        let Some(object) = self.objects.get_mut(&segment.object) else {
            return;
        };
        object.bytes_left -= bytes;
        let gone = object.bytes_left == 0;
        if object.inherited {
            self.inherited_bytes -= bytes;
        } else if object.is_allocators() {
            self.allocator_bytes -= bytes;
        } else {
            self.touched.push(object.site());
            let totals = self.totals.entry(object.site()).or_insert(SiteTotals::ZERO);
            totals.freed_bytes += bytes;
            if gone {
                totals.freed_objects += 1;
                totals.lifetimes[lifetime_bucket(when.end_ns.saturating_sub(object.made.end_ns))] += 1;
            }
        }
        if gone {
            self.objects.remove(&segment.object);
        }
    }

    fn flags_at(&self, address: u64) -> Option<u32> {
        let (_, segment) = self.segments.range(..=address).next_back()?;
        if segment.end <= address {
            return None;
        }
        self.objects.get(&segment.object).map(|object| object.flags)
    }

    fn count_untracked(&mut self, removed: Removed) {
        if removed.untracked_bytes > 0 {
            self.untracked.calls += 1;
            self.untracked.bytes += removed.untracked_bytes;
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Carved {
    gaps: Vec<(u64, u64)>,
    flags: Option<u32>,
    taken_bytes: u64,
}

fn when(event: &Event) -> When {
    When {
        begin_ns: event.begin_ns,
        end_ns: event.end_ns.max(event.begin_ns),
    }
}

/// The whole pages of `bytes` at `address`. An address space ends far below what overflows here.
fn pages(address: u64, bytes: u64) -> (u64, u64) {
    let end = address.saturating_add(bytes).checked_next_multiple_of(PAGE_BYTES);
    (address, end.unwrap_or(u64::MAX - (PAGE_BYTES - 1)))
}

fn age_bucket(age_ns: u64) -> usize {
    let seconds = age_ns as f64 / 1e9;
    AGE_EDGES_SECONDS
        .iter()
        .position(|edge| seconds < *edge)
        .unwrap_or(AGE_EDGES_SECONDS.len())
}

#[cfg(test)]
#[path = "mappings_tests.rs"]
mod tests;
