//! A site's numbers by block size.
//!
//! The kernel counts allocations by size; bytes, frees and what is in use are counted for the whole site. Where a
//! site's blocks all fall into one bucket, which is the rule, its numbers are that bucket's and exact. Otherwise
//! allocations are exact and the rest is an estimate: each bucket gets a share of it, by the bytes that its
//! allocations stand for. The shares always add up to the site's own numbers.

use memwatch_common::SiteTotals;
use memwatch_common::hist::size_bucket_below;

use super::group::Numbers;
use super::report::Delta;

pub(super) fn by_size(totals: &SiteTotals, numbers: &Numbers) -> Vec<(usize, Numbers)> {
    let filled: Vec<usize> = (0..totals.sizes.len())
        .filter(|bucket| totals.sizes[*bucket] > 0)
        .collect();
    let objects: Vec<u64> = filled.iter().map(|bucket| totals.sizes[*bucket]).collect();
    let weights: Vec<u64> = filled
        .iter()
        .zip(&objects)
        .map(|(bucket, objects)| objects.saturating_mul(middle(*bucket)))
        .collect();
    let mut shares: Vec<(usize, Numbers)> = filled
        .iter()
        .map(|bucket| (*bucket, Numbers::default()))
        .collect();
    let inuse_bytes = split(numbers.inuse_bytes, &weights);
    let inuse_objects = split(numbers.inuse_objects, &objects);
    let alloc_bytes = split(numbers.total.alloc_bytes, &weights);
    let freed_bytes = split(numbers.total.freed_bytes, &weights);
    let freed_objects = split(numbers.total.freed_objects, &objects);
    for (place, (_, share)) in shares.iter_mut().enumerate() {
        share.inuse_bytes = inuse_bytes[place];
        share.inuse_objects = inuse_objects[place];
        share.estimate = numbers.estimate.part(inuse_bytes[place], inuse_objects[place]);
        share.total.alloc_bytes = alloc_bytes[place];
        share.total.alloc_objects = objects[place];
        share.total.freed_bytes = freed_bytes[place];
        share.total.freed_objects = freed_objects[place];
    }
    if let [(_, only)] = &mut shares[..] {
        *only = *numbers;
    } else {
        split_changes(numbers, &weights, &objects, &mut shares);
    }
    shares
}

fn split_changes(numbers: &Numbers, weights: &[u64], objects: &[u64], shares: &mut [(usize, Numbers)]) {
    if let Some(delta) = &numbers.delta {
        let signed = |value: i64, weights: &[u64]| -> Vec<i64> {
            let parts = split(value.unsigned_abs(), weights).into_iter();
            parts.map(|part| part as i64 * value.signum()).collect()
        };
        let inuse_bytes = signed(delta.inuse_bytes, weights);
        let inuse_objects = signed(delta.inuse_objects, objects);
        let alloc_bytes = signed(delta.alloc_bytes, weights);
        let alloc_objects = signed(delta.alloc_objects, objects);
        for (place, (_, share)) in shares.iter_mut().enumerate() {
            share.delta = Some(Delta {
                inuse_bytes: inuse_bytes[place],
                inuse_objects: inuse_objects[place],
                alloc_bytes: alloc_bytes[place],
                alloc_objects: alloc_objects[place],
            });
        }
    }
    if let Some(growth) = numbers.growth {
        let sum: f64 = weights.iter().map(|weight| *weight as f64).sum();
        for ((_, share), weight) in shares.iter_mut().zip(weights) {
            share.growth = Some(if sum > 0.0 {
                growth * *weight as f64 / sum
            } else {
                0.0
            });
        }
    }
}

/// A size in the middle of a bucket; buckets are powers of two, so three quarters of the upper edge.
fn middle(bucket: usize) -> u64 {
    match size_bucket_below(bucket) {
        Some(below) => (below * 3 / 4).max(u64::from(bucket > 0)),
        None => size_bucket_below(bucket.saturating_sub(1)).map_or(0, |from| from * 3 / 2),
    }
}

/// Whole parts of `value` in proportion to the weights, which add up to it.
fn split(value: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let (mut before, mut given) = (0_u128, 0_u64);
    let parts = weights.iter().enumerate().map(|(place, weight)| {
        before += u128::from(*weight);
        // Rounding the running sum instead of each part keeps the total right.
        let until = match (u128::from(value) * before).checked_div(sum) {
            Some(until) => until as u64,
            None if place + 1 == weights.len() => value,
            None => 0,
        };
        let part = until - given;
        given = until;
        part
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::super::counts::Counts;
    use super::super::testing::blocks;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_of_one_size_are_exact() {
        let totals = blocks(100, 7, 2);
        let numbers = Numbers {
            inuse_bytes: 500,
            inuse_objects: 5,
            total: Counts::from(&totals),
            ..Numbers::default()
        };
        let shares = by_size(&totals, &numbers);
        assert_eq!(shares.len(), 1);
        assert_eq!(
            (shares[0].0, shares[0].1.inuse_bytes, shares[0].1.total),
            (7, 500, numbers.total)
        );
    }

    #[test]
    fn blocks_of_several_sizes_share_in_proportion() {
        let mut totals = blocks(100, 10, 0);
        totals.alloc_objects = 20;
        totals.alloc_bytes = 11_000;
        totals.sizes[11] = 10;
        let delta = Some(Delta {
            inuse_bytes: -1100,
            ..Delta::default()
        });
        let numbers = Numbers {
            inuse_bytes: 11_000,
            inuse_objects: 20,
            total: Counts::from(&totals),
            delta,
            ..Numbers::default()
        };
        let shares = by_size(&totals, &numbers);
        assert_eq!([shares[0].0, shares[1].0], [7, 11]);
        assert_eq!(
            [shares[0].1.total.alloc_objects, shares[1].1.total.alloc_objects],
            [10, 10]
        );
        assert_eq!([shares[0].1.inuse_bytes, shares[1].1.inuse_bytes], [647, 10_353]);
        let change = |place: usize| shares[place].1.delta.unwrap().inuse_bytes;
        assert_eq!([change(0), change(1)], [-64, -1036]);
    }

    #[test]
    fn empty_blocks_have_a_bucket_too() {
        let totals = blocks(0, 3, 0);
        let numbers = Numbers {
            inuse_objects: 3,
            total: Counts::from(&totals),
            ..Numbers::default()
        };
        assert_eq!(by_size(&totals, &numbers)[0].1.inuse_objects, 3);
    }

    proptest! {
        #[test]
        fn parts_add_up(value in any::<u64>(), weights in prop::collection::vec(0..u64::MAX / 64, 1..32)) {
            let parts = split(value, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(value));
        }
    }
}
