//! What a site allocated and freed since it was last told of. Everything that can be expected from the rest is written as
//! what it differs from that, so most numbers are 0: the histograms add up to the counts and keep their shape, blocks of
//! one bucket tend to be of one size, and what is freed is what was in use.

use memwatch_common::SiteTotals;
use memwatch_common::limits::{LIFETIME_BUCKETS, SIZE_BUCKETS};

use super::{Known, expect, mean_bytes};
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_difference};

/// Gaps between site numbers, then one for each of the four counts, then the histograms.
pub(super) const COLUMNS: usize = 9;
pub(super) const GAPS: usize = 0;
const ALLOCATED: usize = 1;
const FREED: usize = 2;
const ALLOCATED_BYTES: usize = 3;
const FREED_BYTES: usize = 4;
const SIZES: usize = 5;
const LIFETIMES: usize = 7;

const _: () = assert!(SIZE_BUCKETS == BUCKETS && LIFETIME_BUCKETS == BUCKETS);
const BUCKETS: usize = 32;

/// What both sides learn of a site while they go along.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned {
    /// Bytes of a block, for each bucket of sizes; 0 where there was none yet.
    means: [u64; BUCKETS],
    /// The means that were seen alone and came out even.
    sure: u32,
    /// The buckets that ever changed.
    sizes: u32,
    lifetimes: u32,
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            means: [0; BUCKETS],
            sure: 0,
            sizes: 0,
            lifetimes: 0,
        }
    }
}

/// By how much some buckets changed.
struct Changes {
    mask: u32,
    by: [u64; BUCKETS],
}

impl Changes {
    fn between(before: &[u64; BUCKETS], now: &[u64; BUCKETS]) -> Self {
        let mut changes = Self {
            mask: 0,
            by: [0; BUCKETS],
        };
        for index in 0..BUCKETS {
            changes.by[index] = now[index].wrapping_sub(before[index]);
            changes.mask |= u32::from(changes.by[index] != 0) << index;
        }
        changes
    }

    fn iter(&self) -> impl Iterator<Item = (usize, u64)> {
        bits(self.mask).map(|index| (index, self.by[index]))
    }
}

fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = mask.trailing_zeros();
        mask &= mask.checked_sub(1)?;
        Some(index as usize)
    })
}

impl Learned {
    fn mean(&self, bucket: usize) -> u64 {
        match (self.means[bucket], bucket) {
            (0, 0 | 1) => bucket as u64,
            // The middle of a bucket that ends below two to this power.
            (0, _) => 3 << (bucket - 2),
            (mean, _) => mean,
        }
    }

    fn expected_bytes(&self, allocated: &Changes) -> u64 {
        let bytes = |(bucket, objects): (usize, u64)| objects.wrapping_mul(self.mean(bucket));
        allocated.iter().map(bytes).fold(0, u64::wrapping_add)
    }

    /// Blocks of these buckets were allocated, and had so many bytes.
    fn learn(&mut self, allocated: &Changes, bytes: u64) {
        let error = bytes.wrapping_sub(self.expected_bytes(allocated)) as i64;
        let unsure = allocated.mask & !self.sure;
        // Whoever is not sure was wrong; else whoever has most.
        let candidates = if unsure == 0 { allocated.mask } else { unsure };
        let weight = |bucket: &usize| allocated.by[*bucket].saturating_mul(self.mean(*bucket));
        let Some(bucket) = bits(candidates).max_by_key(weight) else {
            return;
        };
        let Ok(objects) = i64::try_from(allocated.by[bucket]) else {
            return;
        };
        if objects <= 0 || (error == 0 && unsure == 0) {
            return;
        }
        let mean = (self.mean(bucket) as i64).wrapping_add(error / objects);
        self.means[bucket] = within(bucket, mean);
        let is_even = error % objects == 0 && unsure.is_power_of_two();
        self.sure = (self.sure & !(1 << bucket)) | u32::from(is_even) << bucket;
    }
}

/// No mean is outside its bucket.
fn within(bucket: usize, mean: i64) -> u64 {
    let mean = mean.max(0) as u64;
    match bucket {
        0 => 0,
        _ if bucket + 1 == BUCKETS => mean.max(1 << (bucket - 1)),
        _ => mean.clamp(1 << (bucket - 1), (1 << bucket) - 1),
    }
}

pub(super) fn put_totals(columns: &mut [Vec<u8>; COLUMNS], known: &mut Known, now: &SiteTotals) {
    let (before, learned) = (&known.totals, &mut known.learned);
    let allocated = now.alloc_objects.wrapping_sub(before.alloc_objects);
    let freed = now.freed_objects.wrapping_sub(before.freed_objects);
    put_difference(&mut columns[ALLOCATED], allocated, 0);
    put_difference(&mut columns[FREED], freed, allocated);
    let sizes = Changes::between(&before.sizes, &now.sizes);
    put_histogram(
        &mut columns[SIZES..],
        &sizes,
        &before.sizes,
        learned.sizes,
        allocated,
    );
    let expected = before.alloc_bytes.wrapping_add(learned.expected_bytes(&sizes));
    put_difference(&mut columns[ALLOCATED_BYTES], now.alloc_bytes, expected);
    let expected = expected_freed(before, now.alloc_objects, now.alloc_bytes, freed);
    put_difference(&mut columns[FREED_BYTES], now.freed_bytes, expected);
    let lives = Changes::between(&before.lifetimes, &now.lifetimes);
    let known_lives = learned.lifetimes;
    put_histogram(
        &mut columns[LIFETIMES..],
        &lives,
        &before.lifetimes,
        known_lives,
        freed,
    );
    learned.learn(&sizes, now.alloc_bytes.wrapping_sub(before.alloc_bytes));
    learned.sizes |= sizes.mask;
    learned.lifetimes |= lives.mask;
    known.totals = *now;
}

/// How much larger the numbers became, all together.
pub(super) fn read_totals(columns: &mut [Input<'_>; COLUMNS], known: &mut Known) -> Result<i128, Bad> {
    let (totals, learned) = (&mut known.totals, &mut known.learned);
    let allocated = columns[ALLOCATED].difference(0)?;
    let freed = columns[FREED].difference(allocated)?;
    let mut grown = 0;
    let mut set = |place: &mut u64, now: u64| {
        grown += i128::from(now) - i128::from(*place);
        *place = now;
    };
    let sizes = read_histogram(&mut columns[SIZES..], &totals.sizes, learned.sizes, allocated)?;
    let bytes = totals.alloc_bytes.wrapping_add(learned.expected_bytes(&sizes));
    let alloc_bytes = columns[ALLOCATED_BYTES].difference(bytes)?;
    let alloc_objects = totals.alloc_objects.wrapping_add(allocated);
    let bytes = expected_freed(totals, alloc_objects, alloc_bytes, freed);
    let freed_bytes = columns[FREED_BYTES].difference(bytes)?;
    let lives = read_histogram(
        &mut columns[LIFETIMES..],
        &totals.lifetimes,
        learned.lifetimes,
        freed,
    )?;
    learned.learn(&sizes, alloc_bytes.wrapping_sub(totals.alloc_bytes));
    learned.sizes |= sizes.mask;
    learned.lifetimes |= lives.mask;
    let freed_objects = totals.freed_objects.wrapping_add(freed);
    set(&mut totals.alloc_objects, alloc_objects);
    set(&mut totals.freed_objects, freed_objects);
    set(&mut totals.alloc_bytes, alloc_bytes);
    set(&mut totals.freed_bytes, freed_bytes);
    for (histogram, changes) in [(&mut totals.sizes, &sizes), (&mut totals.lifetimes, &lives)] {
        for (bucket, by) in changes.iter() {
            let now = histogram[bucket].wrapping_add(by);
            set(&mut histogram[bucket], now);
        }
    }
    Ok(grown)
}

/// What is freed has the size of what was in use; when all of it is freed, that is exact.
fn expected_freed(before: &SiteTotals, alloc_objects: u64, alloc_bytes: u64, freed: u64) -> u64 {
    let objects = alloc_objects.saturating_sub(before.freed_objects);
    let bytes = alloc_bytes.saturating_sub(before.freed_bytes);
    if objects == freed {
        return before.freed_bytes.wrapping_add(bytes);
    }
    let mean = bytes.checked_div(objects).unwrap_or_else(|| mean_bytes(before));
    expect(before.freed_bytes, mean, freed)
}

/// Which buckets changed, then by how much. Those that did before (`known`) come first, without gaps. All changes
/// together are expected to be `expected`, in the shares that the buckets have so far, so the last is what is left.
fn put_histogram(
    columns: &mut [Vec<u8>],
    changes: &Changes,
    before: &[u64; BUCKETS],
    known: u32,
    expected: u64,
) {
    let new = changes.mask & !known;
    let old = bits(known).enumerate();
    let old: u64 = old
        .map(|(place, bucket)| u64::from(changes.mask >> bucket & 1) << place)
        .sum();
    put(&mut columns[0], old << 1 | u64::from(new != 0));
    if new != 0 {
        put(&mut columns[0], u64::from(new));
    }
    let mut shares = Shares::new(changes.mask, before, expected);
    for (bucket, by) in changes.iter() {
        put_difference(&mut columns[1], by, shares.next(before[bucket], by));
    }
}

fn read_histogram(
    columns: &mut [Input<'_>],
    before: &[u64; BUCKETS],
    known: u32,
    expected: u64,
) -> Result<Changes, Bad> {
    let coded = columns[0].number()?;
    let mut mask = 0;
    for (place, bucket) in bits(known).enumerate() {
        mask |= ((coded >> 1 >> place & 1) as u32) << bucket;
    }
    if coded >> 1 >> known.count_ones() != 0 {
        return Err(Bad("a histogram has more buckets than are known"));
    }
    if coded & 1 != 0 {
        mask |= columns[0].small()?;
    }
    let mut changes = Changes {
        mask,
        by: [0; BUCKETS],
    };
    let mut shares = Shares::new(mask, before, expected);
    for bucket in bits(mask) {
        let likely = shares.likely(before[bucket]);
        let by = columns[1].difference(likely)?;
        shares.take(before[bucket], by);
        changes.by[bucket] = by;
    }
    Ok(changes)
}

/// A number that is divided among buckets as they were before.
struct Shares {
    rest: u64,
    /// Of the buckets that are still to come.
    weights: u64,
    left: u32,
}

impl Shares {
    fn new(mask: u32, before: &[u64; BUCKETS], expected: u64) -> Self {
        Self {
            rest: expected,
            weights: bits(mask).map(|bucket| before[bucket]).fold(0, u64::wrapping_add),
            left: mask.count_ones(),
        }
    }

    fn likely(&self, weight: u64) -> u64 {
        if self.left == 1 {
            return self.rest;
        }
        if self.weights == 0 || self.rest >> 32 != 0 {
            return 0;
        }
        let too_long = 32_u32.saturating_sub(self.weights.leading_zeros());
        let (weight, weights) = (weight >> too_long, self.weights >> too_long);
        self.rest.wrapping_mul(weight).wrapping_add(weights / 2) / weights
    }

    fn take(&mut self, weight: u64, by: u64) {
        self.rest = self.rest.wrapping_sub(by);
        self.weights = self.weights.wrapping_sub(weight);
        self.left -= 1;
    }

    /// What was likely, after which this much was taken.
    fn next(&mut self, weight: u64, by: u64) -> u64 {
        let likely = self.likely(weight);
        self.take(weight, by);
        likely
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(by: &[(usize, u64)]) -> Changes {
        let mut now = [0; BUCKETS];
        for (bucket, by) in by {
            now[*bucket] = *by;
        }
        Changes::between(&[0; BUCKETS], &now)
    }

    #[test]
    fn blocks_of_one_size_in_each_bucket_are_expected_to_the_byte_from_then_on() {
        let mut learned = Learned::default();
        // 100 bytes in the bucket to 127, 200 in that to 255.
        let bytes = |small: u64, large: u64| small * 100 + large * 200;
        for (small, large) in [(0, 3), (5, 2)] {
            learned.learn(&changes(&[(7, small), (8, large)]), bytes(small, large));
        }
        for (small, large) in [(1, 0), (0, 1), (7, 9), (1000, 1)] {
            let allocated = changes(&[(7, small), (8, large)]);
            assert_eq!(learned.expected_bytes(&allocated), bytes(small, large));
            learned.learn(&allocated, bytes(small, large));
        }
    }

    #[test]
    fn a_mean_stays_in_its_bucket() {
        let mut learned = Learned::default();
        for bytes in [0, 1, 1 << 40, u64::MAX] {
            for bucket in 0..BUCKETS {
                learned.learn(&changes(&[(bucket, 1)]), bytes);
                let mean = learned.mean(bucket);
                let last = bucket + 1 == BUCKETS;
                let bits = (u64::BITS - mean.leading_zeros()) as usize;
                assert!(bits == bucket || (last && bits > bucket), "{bucket}: {mean}");
            }
        }
    }

    #[test]
    fn shares_are_as_before_and_the_last_takes_the_rest() {
        let before = {
            let mut before = [0; BUCKETS];
            (before[3], before[5], before[9]) = (10, 30, 60);
            before
        };
        let mut shares = Shares::new(1 << 3 | 1 << 5 | 1 << 9, &before, 1000);
        assert_eq!(shares.next(10, 100), 100);
        assert_eq!(shares.next(30, 200), 300);
        assert_eq!(shares.next(60, 700), 700);
        let huge = Shares::new(3, &[u64::MAX / 2; BUCKETS], u64::MAX);
        assert_eq!(huge.likely(1), 0);
    }
}
