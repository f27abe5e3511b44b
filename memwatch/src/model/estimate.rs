//! How wrong the numbers of small Python objects may be.
//!
//! All blocks of a pool count for the stack that took the pool into use. Where stacks take turns, that is a sample of one
//! block in a pool's worth: a stack that opened `n` pools may have filled some `2 √n` more or fewer in 95 of 100 cases,
//! and one more is begun. A block is up to 15 bytes larger than what was asked for.

use memwatch_common::python::POOL_BYTES;

use crate::python::pymalloc::ALIGNMENT;

/// The part of a number in use that is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    pub bytes: u64,
    objects: u64,
    pools: u64,
}

impl Estimate {
    /// `pools` may be less than what the bytes need: the first recordings did not keep it.
    pub fn of(bytes: u64, objects: u64, pools: u64) -> Self {
        Self {
            bytes,
            objects,
            pools: pools.max(bytes.div_ceil(POOL_BYTES)),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.objects += other.objects;
        self.pools += other.pools;
    }

    /// That of some of the blocks; all are estimated or none is.
    pub const fn part(&self, bytes: u64, objects: u64) -> Self {
        if self.pools == 0 {
            return *self;
        }
        Self {
            bytes,
            objects,
            pools: self.pools,
        }
    }

    /// Between what numbers the truth lies if `inuse_bytes` are shown; none if these are exact.
    pub fn interval(&self, inuse_bytes: u64) -> Option<(u64, u64)> {
        if self.pools == 0 {
            return None;
        }
        let margin = (1 + self.pools.saturating_mul(4).isqrt()).saturating_mul(POOL_BYTES);
        let rounded = (ALIGNMENT - 1).saturating_mul(self.objects);
        let less = margin.saturating_add(rounded).min(self.bytes);
        Some((
            inuse_bytes.saturating_sub(less),
            inuse_bytes.saturating_add(margin),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_estimated_has_no_interval() {
        assert_eq!(Estimate::default().interval(5), None);
    }

    #[test]
    fn the_exact_part_is_never_in_doubt() {
        let mut sum = Estimate::default();
        sum.add(&Estimate::of(1000, 10, 1));
        let (low, high) = sum.interval(1_001_000).unwrap();
        assert_eq!(low, 1_000_000);
        assert_eq!(high, 1_001_000 + 3 * POOL_BYTES);
    }

    #[test]
    fn the_more_pools_the_smaller_the_doubt() {
        let doubt = |bytes: u64| {
            let (low, high) = Estimate::of(bytes, 0, 0).interval(bytes).unwrap();
            (high - low) * 100 / bytes
        };
        assert_eq!([1 << 20, 20 << 20, 1 << 30].map(doubt), [53, 11, 1]);
    }

    #[test]
    fn no_number_overflows() {
        let most = Estimate::of(u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(most.interval(u64::MAX).unwrap().1, u64::MAX);
    }
}
