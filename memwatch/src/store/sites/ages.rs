//! How old the blocks of a site are.

use super::{AGES, Known, OLDEST, expect, mean_bytes};
use crate::collect::sample::SiteAges;
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_difference};

/// Gaps between site numbers, what changed, objects, bytes.
pub(super) const COLUMNS: usize = 4;
pub(super) const GAPS: usize = 0;
const CHANGED: usize = 1;
const OBJECTS: usize = 2;
const BYTES: usize = 3;

/// The changed buckets and whether the oldest is another; 0 when nothing changed.
pub(super) fn changed(before: &SiteAges, now: &SiteAges) -> u64 {
    let differs = |index: &usize| {
        now.objects[*index] != before.objects[*index] || now.bytes[*index] != before.bytes[*index]
    };
    let mask: u64 = (0..AGES).filter(differs).map(|index| 1 << index).sum();
    if now.oldest_born_ns == before.oldest_born_ns {
        mask
    } else {
        mask | OLDEST
    }
}

pub(super) fn put_ages(columns: &mut [Vec<u8>; COLUMNS], known: &mut Known, now: &SiteAges, mask: u64) {
    put(&mut columns[CHANGED], mask);
    let usual = usual_bytes(known);
    for index in (0..AGES).filter(|index| mask & (1 << index) != 0) {
        let (objects, bytes) = (known.ages.objects[index], known.ages.bytes[index]);
        put_difference(&mut columns[OBJECTS], now.objects[index], objects);
        let expected = expected_bytes(objects, bytes, now.objects[index], usual);
        put_difference(&mut columns[BYTES], now.bytes[index], expected);
    }
    if mask & OLDEST != 0 {
        put_difference(
            &mut columns[OBJECTS],
            now.oldest_born_ns,
            known.ages.oldest_born_ns,
        );
    }
    known.ages = *now;
}

pub(super) fn read_ages(columns: &mut [Input<'_>; COLUMNS], known: &mut Known) -> Result<(), Bad> {
    let mask = columns[CHANGED].number()?;
    let usual = usual_bytes(known);
    for index in (0..AGES).filter(|index| mask & (1 << index) != 0) {
        let (objects, bytes) = (known.ages.objects[index], known.ages.bytes[index]);
        let now = columns[OBJECTS].difference(objects)?;
        known.ages.objects[index] = now;
        let expected = expected_bytes(objects, bytes, now, usual);
        known.ages.bytes[index] = columns[BYTES].difference(expected)?;
    }
    if mask & OLDEST != 0 {
        known.ages.oldest_born_ns = columns[OBJECTS].difference(known.ages.oldest_born_ns)?;
    }
    Ok(())
}

/// Bytes of a block in a bucket that had none.
fn usual_bytes(known: &Known) -> u64 {
    let sum = |numbers: &[u64]| numbers.iter().copied().fold(0, u64::wrapping_add);
    let (objects, bytes) = (sum(&known.ages.objects), sum(&known.ages.bytes));
    bytes
        .checked_div(objects)
        .unwrap_or_else(|| mean_bytes(&known.totals))
}

/// The blocks of a bucket keep their mean size; no blocks have no bytes.
fn expected_bytes(objects: u64, bytes: u64, now: u64, usual: u64) -> u64 {
    if now == 0 {
        return 0;
    }
    let mean = bytes.checked_div(objects).unwrap_or(usual);
    expect(bytes, mean, now.wrapping_sub(objects))
}
