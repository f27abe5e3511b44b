//! How format version 1 had the numbers of sites.

use memwatch_common::SiteTotals;

use super::totals::COLUMNS;
use super::{AGES, Known, OLDEST, expect, mean_bytes};
use crate::numbers::Bad;
use crate::numbers::Input;

const ALLOCATED: usize = 1;
const FREED: usize = 2;
const ALLOCATED_BYTES: usize = 3;
const FREED_BYTES: usize = 4;
const SIZES: usize = 5;
const LIFETIMES: usize = 7;

pub(super) fn read_totals(columns: &mut [Input<'_>; COLUMNS], known: &mut Known) -> Result<(), Bad> {
    let before = &known.totals;
    let mut now: SiteTotals = *before;
    let allocated = columns[ALLOCATED].difference(0)?;
    let freed = columns[FREED].difference(allocated)?;
    now.alloc_objects = before.alloc_objects.wrapping_add(allocated);
    now.freed_objects = before.freed_objects.wrapping_add(freed);
    let expected = expect(before.alloc_bytes, mean_bytes(before), allocated);
    now.alloc_bytes = columns[ALLOCATED_BYTES].difference(expected)?;
    let expected = expect(before.freed_bytes, mean_bytes(&now), freed);
    now.freed_bytes = columns[FREED_BYTES].difference(expected)?;
    let (sizes, lifetimes) = columns.split_at_mut(LIFETIMES);
    read_histogram(&mut sizes[SIZES..], &mut now.sizes, allocated)?;
    read_histogram(lifetimes, &mut now.lifetimes, freed)?;
    known.totals = now;
    Ok(())
}

fn read_histogram(columns: &mut [Input<'_>], values: &mut [u64], expected: u64) -> Result<(), Bad> {
    let mask = columns[0].number()?;
    if values.len() < 64 && mask >> values.len() != 0 {
        return Err(Bad("a histogram has more buckets than are known"));
    }
    let mut rest = expected;
    let mut left = mask.count_ones();
    for (index, value) in values.iter_mut().enumerate() {
        if mask & (1 << index) != 0 {
            left -= 1;
            let likely = if left == 0 { rest } else { 0 };
            let change = columns[1].difference(likely)?;
            rest = rest.wrapping_sub(change);
            *value = value.wrapping_add(change);
        }
    }
    Ok(())
}

pub(super) fn read_ages(columns: &mut [Input<'_>; 4], known: &mut Known) -> Result<(), Bad> {
    let mask = columns[1].number()?;
    let (before, mean) = (known.ages, mean_bytes(&known.totals));
    for index in (0..AGES).filter(|index| mask & (1 << index) != 0) {
        let (objects, bytes) = (before.objects[index], before.bytes[index]);
        let now = columns[2].difference(objects)?;
        known.ages.objects[index] = now;
        known.ages.bytes[index] = columns[3].difference(expect(bytes, mean, now.wrapping_sub(objects)))?;
    }
    if mask & OLDEST != 0 {
        known.ages.oldest_born_ns = columns[2].difference(before.oldest_born_ns)?;
    }
    Ok(())
}
