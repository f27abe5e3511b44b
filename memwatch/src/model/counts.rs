//! The four numbers that everything is made of, and what identifies the place they belong to.

use std::ops::AddAssign;

use memwatch_common::{Domain, SiteTotals};

use super::mappings::MappingKind;
use super::report::Delta;

/// What was allocated and freed since recording began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
    pub freed_bytes: u64,
    pub freed_objects: u64,
}

impl Counts {
    pub const fn numbers(&self) -> [u64; 4] {
        [
            self.alloc_bytes,
            self.alloc_objects,
            self.freed_bytes,
            self.freed_objects,
        ]
    }

    pub const fn of_numbers(numbers: [u64; 4]) -> Self {
        let [alloc_bytes, alloc_objects, freed_bytes, freed_objects] = numbers;
        Self {
            alloc_bytes,
            alloc_objects,
            freed_bytes,
            freed_objects,
        }
    }

    /// The kernel's counters are read one after the other, so a free can be seen before its allocation: then 0.
    pub const fn inuse_bytes(&self) -> u64 {
        self.alloc_bytes.saturating_sub(self.freed_bytes)
    }

    pub const fn inuse_objects(&self) -> u64 {
        self.alloc_objects.saturating_sub(self.freed_objects)
    }

    /// The change from `earlier` to `self`.
    pub fn since(&self, earlier: &Self) -> Delta {
        Delta {
            inuse_bytes: difference(self.inuse_bytes(), earlier.inuse_bytes()),
            inuse_objects: difference(self.inuse_objects(), earlier.inuse_objects()),
            alloc_bytes: difference(self.alloc_bytes, earlier.alloc_bytes),
            alloc_objects: difference(self.alloc_objects, earlier.alloc_objects),
        }
    }

    /// The same for what turns out to be in use of blocks that were counted before, as allocated and freed at once: they
    /// were not freed. More than were counted have been there before anybody did.
    pub fn add_kept(&mut self, earlier: &Self, later: &Self) {
        let change = |earlier: u64, later: u64, alloc: &mut u64, freed: &mut u64| {
            let less = earlier.saturating_sub(later);
            let more = later.saturating_sub(earlier);
            let known = more.min(*freed);
            *freed = *freed - known + less;
            *alloc += more - known;
        };
        change(
            earlier.inuse_bytes(),
            later.inuse_bytes(),
            &mut self.alloc_bytes,
            &mut self.freed_bytes,
        );
        change(
            earlier.inuse_objects(),
            later.inuse_objects(),
            &mut self.alloc_objects,
            &mut self.freed_objects,
        );
    }

    /// Adds what happened between `earlier` and `later`. Counters only grow, so nothing is ever taken away.
    pub fn add_change(&mut self, earlier: &Self, later: &Self) {
        self.alloc_bytes += later.alloc_bytes.saturating_sub(earlier.alloc_bytes);
        self.alloc_objects += later.alloc_objects.saturating_sub(earlier.alloc_objects);
        self.freed_bytes += later.freed_bytes.saturating_sub(earlier.freed_bytes);
        self.freed_objects += later.freed_objects.saturating_sub(earlier.freed_objects);
    }
}

impl From<&SiteTotals> for Counts {
    fn from(totals: &SiteTotals) -> Self {
        Self {
            alloc_bytes: totals.alloc_bytes,
            alloc_objects: totals.alloc_objects,
            freed_bytes: totals.freed_bytes,
            freed_objects: totals.freed_objects,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.alloc_bytes += other.alloc_bytes;
        self.alloc_objects += other.alloc_objects;
        self.freed_bytes += other.freed_bytes;
        self.freed_objects += other.freed_objects;
    }
}

/// `a - b` for counters: the wrapped difference of two `u64` is right as `i64` whenever it fits one.
pub const fn difference(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b) as i64
}

pub fn add_delta(sum: &mut Delta, other: &Delta) {
    sum.inuse_bytes += other.inuse_bytes;
    sum.inuse_objects += other.inuse_objects;
    sum.alloc_bytes += other.alloc_bytes;
    sum.alloc_objects += other.alloc_objects;
}

/// One stack of one process in one domain; mappings of memory and of files from one stack are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId {
    pub instance: u32,
    pub domain: Domain,
    pub stack: u64,
    /// Only for [`Domain::Mmap`].
    pub mapping: Option<MappingKind>,
    pub counting: Counting,
}

/// How what a site has is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counting {
    /// Block by block.
    #[default]
    Blocks,
    /// By pymalloc's pools: an estimate.
    Pools,
    /// What was handed out is known block by block, what became of it is not. In the site's own numbers all of it is
    /// freed at once, so that none is in use.
    Allocations,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Counts = Counts {
        alloc_bytes: 100,
        alloc_objects: 4,
        freed_bytes: 30,
        freed_objects: 1,
    };
    const LATE: Counts = Counts {
        alloc_bytes: 150,
        alloc_objects: 6,
        freed_bytes: 120,
        freed_objects: 4,
    };

    #[test]
    fn a_difference_can_be_negative() {
        assert_eq!(
            LATE.since(&EARLY),
            Delta {
                inuse_bytes: -40,
                inuse_objects: -1,
                alloc_bytes: 50,
                alloc_objects: 2
            }
        );
    }

    #[test]
    fn more_freed_than_allocated_is_nothing_in_use() {
        let torn = Counts {
            alloc_bytes: 8,
            freed_bytes: 16,
            alloc_objects: 1,
            freed_objects: 2,
        };
        assert_eq!((torn.inuse_bytes(), torn.inuse_objects()), (0, 0));
    }

    #[test]
    fn what_is_kept_was_not_freed() {
        let all_gone = |bytes, objects| Counts {
            alloc_bytes: bytes,
            alloc_objects: objects,
            freed_bytes: bytes,
            freed_objects: objects,
        };
        let held = |bytes, objects| Counts {
            alloc_bytes: bytes,
            alloc_objects: objects,
            ..Counts::default()
        };
        let mut sum = all_gone(1000, 10);
        sum.add_kept(&Counts::default(), &held(300, 3));
        assert_eq!(
            (sum.alloc_bytes, sum.freed_bytes, sum.inuse_bytes()),
            (1000, 700, 300)
        );
        sum.add_kept(&held(300, 3), &held(100, 1));
        assert_eq!(
            (sum.alloc_objects, sum.freed_objects, sum.inuse_objects()),
            (10, 9, 1)
        );
        // More than was ever counted: it was there before.
        sum.add_kept(&held(100, 1), &held(1200, 12));
        assert_eq!((sum.alloc_bytes, sum.freed_bytes), (1200, 0));
        assert_eq!((sum.alloc_objects, sum.inuse_objects()), (12, 12));
    }

    #[test]
    fn changes_add_up() {
        let mut sum = EARLY;
        sum.add_change(&EARLY, &LATE);
        assert_eq!(sum, LATE);
    }
}
