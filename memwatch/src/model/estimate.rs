//! How wrong the numbers of small Python objects may be.
//!
//! All blocks of a pool count for the stack that took the pool into use, and what is new in older pools is shared out.
//! That is a sample of who allocates, and not of who keeps: where several stacks allocate blocks of one size, what one
//! of them lets go of makes room for another, and no pool is taken into use for that. So blocks of a size that several
//! stacks have opened pools for can be anybody's of them. A stack that is the only one is sure of its blocks, but for
//! what others may have put there that allocate so seldom that they never had to open a pool.

use std::collections::BTreeMap;

use crate::collect::sample::{ClassBytes, ClassUse};
use crate::python::classes;
use crate::python::pymalloc::ALIGNMENT;

/// Of whom not one of many pools was opened, blocks of at most so many pools were put there in 95 of 100 cases.
const UNSEEN_POOLS: u64 = 3;

/// That is, of so many pools at least: fewer say nothing.
const MANY_POOLS: u64 = 32;

/// The part of a number in use that is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    pub bytes: u64,
    pub objects: u64,
}

impl Estimate {
    pub const fn of(bytes: u64, objects: u64) -> Self {
        Self { bytes, objects }
    }

    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.objects += other.objects;
    }

    /// That of some of the blocks; all are estimated or none is.
    pub const fn part(&self, bytes: u64, objects: u64) -> Self {
        if self.bytes == 0 {
            return *self;
        }
        Self { bytes, objects }
    }

    /// Between what numbers the truth lies if `inuse_bytes` are shown; none if these are exact, or if nothing is known
    /// of the pools, as in recordings.
    pub fn interval(&self, inuse_bytes: u64, doubt: Option<Doubt>) -> Option<(u64, u64)> {
        let doubt = doubt?;
        let rounded = (ALIGNMENT - 1).saturating_mul(self.objects);
        // Some of a row's blocks are no more than all.
        let taken = doubt.taken.clamp(self.bytes, self.bytes.saturating_add(rounded));
        let exact = inuse_bytes.saturating_sub(self.bytes);
        let less = doubt.less.saturating_add(rounded).min(self.bytes);
        Some((
            inuse_bytes.saturating_sub(less),
            exact.saturating_add(taken).saturating_add(doubt.more),
        ))
    }
}

/// How many bytes may be somebody else's, and how many of others' may be one's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    pub less: u64,
    pub more: u64,
    /// What the blocks take that are counted as one's own: at least what they were asked for with.
    pub taken: u64,
}

/// What some stacks have in pools, by process and size class.
#[derive(Clone, Debug, Default)]
pub(super) struct Share(BTreeMap<(u32, u8), Part>);

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    bytes: u64,
    /// Of these, what was shared out: anybody's.
    filled: u64,
    openers: u32,
    /// What was there before the watch is among it.
    before: bool,
}

impl Share {
    pub fn add(&mut self, instance: u32, class: &ClassBytes, before: bool) {
        let part = self.0.entry((instance, class.class)).or_default();
        part.bytes += class.bytes;
        part.filled += class.filled;
        part.openers += u32::from(!before);
        part.before |= before;
    }

    /// `of` tells how a process uses a size class. None where nothing is in pools, or nothing is known of them.
    pub fn doubt(&self, of: impl Fn(u32, u8) -> Option<ClassUse>) -> Option<Doubt> {
        if self.0.is_empty() {
            return None;
        }
        let mut sum = Doubt::default();
        for ((instance, class), part) in &self.0 {
            let doubt = part.doubt(*class, &of(*instance, *class)?);
            let spare = classes::spare(*class, part.bytes);
            sum.less = sum.less.saturating_add(doubt.less).saturating_add(spare);
            sum.more = sum.more.saturating_add(doubt.more);
            sum.taken = sum.taken.saturating_add(part.bytes);
        }
        Some(sum)
    }
}

impl Part {
    /// But for what the blocks take.
    fn doubt(&self, class: u8, all: &ClassUse) -> Doubt {
        if !classes::is_shared(class) {
            return Doubt::default();
        }
        let pool_bytes = classes::pool_bytes(class);
        let others = all.bytes.saturating_sub(self.bytes);
        let is_shared = all.openers > self.openers;
        match (self.before, self.openers) {
            // Nothing that was there before is anywhere else; what is in its place may be new.
            (true, 0) => Doubt {
                less: self.bytes,
                ..Doubt::default()
            },
            _ if is_shared => Doubt {
                less: self.bytes,
                more: others,
                taken: 0,
            },
            // All that there is.
            (true, _) => Doubt::default(),
            (false, _) => Doubt {
                less: if self.bytes.saturating_sub(self.filled) < MANY_POOLS * pool_bytes {
                    self.bytes
                } else {
                    self.filled.saturating_add(UNSEEN_POOLS * pool_bytes)
                },
                more: others.saturating_add(UNSEEN_POOLS * pool_bytes),
                taken: 0,
            },
        }
    }
}

#[cfg(test)]
#[path = "estimate_tests.rs"]
mod tests;
