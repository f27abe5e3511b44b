//! Sites and their numbers. The numbers of all sites that changed stand column by column, each as what it is more
//! than could be expected: a site whose blocks all have one size costs a byte for its bytes, and that byte is 0.

use std::collections::{HashMap, HashSet};

use memwatch_common::limits::{LIFETIME_BUCKETS, SIZE_BUCKETS};
use memwatch_common::{Domain, SiteTotals};

use super::Bounds;
use super::error::Bad;
use super::names::read_hash;
use super::numbers::{Input, put, put_bytes, put_difference};
use crate::collect::sample::{AGE_EDGES_SECONDS, SiteAges};
use crate::model::counts::{Counting, SiteId};
use crate::model::mappings::MappingKind;

/// What was last written or read of a site.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: SiteId,
    totals: SiteTotals,
    ages: SiteAges,
}

/// All sites as the file has them so far, by their numbers in it. Both sides keep one.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    /// None where the process was let go. Numbers are not given twice.
    known: Vec<Option<Box<Known>>>,
    numbers: HashMap<SiteId, u32>,
    /// All numbers together. Their sums must not overflow, whatever a file says.
    weight: u128,
}

const MAPPINGS: [Option<MappingKind>; 4] = [
    None,
    Some(MappingKind::Anonymous),
    Some(MappingKind::File),
    Some(MappingKind::Reserved),
];

/// The index in [`MAPPINGS`].
const fn mapping_number(mapping: Option<MappingKind>) -> u8 {
    match mapping {
        None => 0,
        Some(MappingKind::Anonymous) => 1,
        Some(MappingKind::File) => 2,
        Some(MappingKind::Reserved) => 3,
    }
}

/// In the place of a mapping's number: small Python objects, known by their pools.
const POOLED: u8 = 4;
/// The same for those of which only the allocation is known.
const ALLOCATED_ONLY: u8 = 5;

/// Gaps between site numbers, then one for each of the four counts, then the histograms.
const COLUMNS: usize = 9;
const GAPS: usize = 0;
const ALLOCATED: usize = 1;
const FREED: usize = 2;
const ALLOCATED_BYTES: usize = 3;
const FREED_BYTES: usize = 4;
const SIZE_BUCKET: usize = 5;
const SIZES: usize = 6;
const LIFETIME_BUCKET: usize = 7;
const LIFETIMES: usize = 8;

const AGES: usize = AGE_EDGES_SECONDS.len() + 1;
const OLDEST: u64 = 1 << AGES;

impl Sites {
    /// Numbers for sites that are new, in the order given; `out` gets what tells of them.
    pub fn add_new(&mut self, ids: impl Iterator<Item = SiteId>, out: &mut Vec<u8>) {
        for id in ids {
            if self.add(id) {
                put(out, u64::from(id.instance));
                out.push(id.domain as u8);
                out.push(match id.counting {
                    Counting::Blocks => mapping_number(id.mapping),
                    Counting::Pools => POOLED,
                    Counting::Allocations => ALLOCATED_ONLY,
                });
                out.extend_from_slice(&id.stack.to_le_bytes());
            }
        }
    }

    fn add(&mut self, id: SiteId) -> bool {
        let next = self.known.len() as u32;
        let is_new = !self.numbers.contains_key(&id);
        if is_new {
            self.numbers.insert(id, next);
            self.known.push(Some(Box::new(Known {
                id,
                totals: SiteTotals::ZERO,
                ages: SiteAges::default(),
            })));
        }
        is_new
    }

    pub fn contains(&self, id: &SiteId) -> bool {
        self.numbers.contains_key(id)
    }

    pub fn read_new(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            let instance = input.small()?;
            let domain =
                Domain::from_u32(u32::from(input.byte()?)).ok_or(Bad("a site has no known domain"))?;
            let kind = input.byte()?;
            let (mapping, counting) = match (MAPPINGS.get(usize::from(kind)), kind) {
                (Some(mapping), _) => (*mapping, Counting::Blocks),
                (None, POOLED) => (None, Counting::Pools),
                (None, ALLOCATED_ONLY) => (None, Counting::Allocations),
                (None, _) => return Err(Bad("a mapping is of no known kind")),
            };
            let stack = read_hash(&mut input)?;
            let id = SiteId {
                instance,
                domain,
                stack,
                mapping,
                counting,
            };
            if !self.add(id) {
                return Err(Bad("a site is told of twice"));
            }
            if self.numbers.len() > bounds.sites {
                return Err(Bad("it has more sites than a recording can"));
            }
        }
        Ok(())
    }

    pub fn forget(&mut self, instances: &HashSet<u32>) {
        if instances.is_empty() {
            return;
        }
        for slot in &mut self.known {
            if let Some(known) = slot.take_if(|known| instances.contains(&known.id.instance)) {
                self.numbers.remove(&known.id);
                self.weight = self.weight.saturating_sub(weight(&known));
            }
        }
    }

    /// The sites of these whose totals are not what was last written, as columns.
    pub fn write_totals<'a>(
        &mut self,
        sites: impl Iterator<Item = (&'a SiteId, &'a SiteTotals)>,
        out: &mut Vec<u8>,
    ) {
        let numbered = sites.filter_map(|(id, totals)| Some((*self.numbers.get(id)?, totals)));
        let mut numbered: Vec<(u32, &SiteTotals)> = numbered.collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        let mut columns: [Vec<u8>; COLUMNS] = Default::default();
        let mut next = 0;
        for (number, now) in numbered {
            let Some(Some(known)) = self.known.get_mut(number as usize) else {
                continue;
            };
            if same(&known.totals, now) {
                continue;
            }
            put(&mut columns[GAPS], u64::from(number - next));
            next = number + 1;
            put_totals(&mut columns, &known.totals, now);
            known.totals = *now;
        }
        put_columns(&columns, out);
    }

    /// The sites that changed.
    pub fn read_totals(&mut self, bytes: &[u8]) -> Result<Vec<(SiteId, SiteTotals)>, Bad> {
        let mut columns = read_columns::<COLUMNS>(bytes)?;
        let mut changed = Vec::new();
        let mut next = 0;
        while !columns[GAPS].is_empty() {
            let known = self.known_at(&mut next, &mut columns[GAPS])?;
            let before = known.totals;
            known.totals = read_totals(&mut columns, &before)?;
            let (id, now) = (known.id, known.totals);
            self.reweigh(totals_weight(&before), totals_weight(&now))?;
            changed.push((id, now));
        }
        Ok(changed)
    }

    fn known_at(&mut self, next: &mut u64, gaps: &mut Input<'_>) -> Result<&mut Known, Bad> {
        let number = next.saturating_add(gaps.number()?);
        *next = number.saturating_add(1);
        let slot = usize::try_from(number)
            .ok()
            .and_then(|number| self.known.get_mut(number));
        slot.and_then(Option::as_deref_mut)
            .ok_or(Bad("numbers belong to a site that is not there"))
    }

    fn reweigh(&mut self, before: u128, now: u128) -> Result<(), Bad> {
        self.weight = self.weight.saturating_sub(before).saturating_add(now);
        if self.weight > i64::MAX as u128 {
            return Err(Bad("its numbers are larger than any memory"));
        }
        Ok(())
    }

    /// Like [`Sites::write_totals`], for ages. What is counted on its own for `--older-than` is not kept: the
    /// buckets tell it.
    pub fn write_ages(&mut self, ages: impl Fn(&SiteId) -> SiteAges, out: &mut Vec<u8>) {
        let mut columns: [Vec<u8>; 4] = Default::default();
        let mut next = 0;
        for (number, known) in self.known.iter_mut().enumerate() {
            let Some(known) = known else { continue };
            let now = ages(&known.id);
            let differs = |index: &usize| {
                now.objects[*index] != known.ages.objects[*index]
                    || now.bytes[*index] != known.ages.bytes[*index]
            };
            let mut mask: u64 = (0..AGES).filter(differs).map(|index| 1 << index).sum();
            if now.oldest_born_ns != known.ages.oldest_born_ns {
                mask |= OLDEST;
            }
            if mask == 0 {
                continue;
            }
            put(&mut columns[0], number as u64 - next);
            next = number as u64 + 1;
            put(&mut columns[1], mask);
            let mean = mean_bytes(&known.totals);
            for index in (0..AGES).filter(differs) {
                let (objects, bytes) = (known.ages.objects[index], known.ages.bytes[index]);
                put_difference(&mut columns[2], now.objects[index], objects);
                let expected = expect(bytes, mean, now.objects[index].wrapping_sub(objects));
                put_difference(&mut columns[3], now.bytes[index], expected);
            }
            if mask & OLDEST != 0 {
                put_difference(&mut columns[2], now.oldest_born_ns, known.ages.oldest_born_ns);
            }
            known.ages = now;
        }
        put_columns(&columns, out);
    }

    pub fn read_ages(&mut self, bytes: &[u8]) -> Result<Vec<(SiteId, SiteAges)>, Bad> {
        let mut columns = read_columns::<4>(bytes)?;
        let mut changed = Vec::new();
        let mut next = 0;
        while !columns[0].is_empty() {
            let known = self.known_at(&mut next, &mut columns[0])?;
            let mask = columns[1].number()?;
            let (before, mean) = (known.ages, mean_bytes(&known.totals));
            for index in (0..AGES).filter(|index| mask & (1 << index) != 0) {
                let (objects, bytes) = (before.objects[index], before.bytes[index]);
                let now = columns[2].difference(objects)?;
                known.ages.objects[index] = now;
                known.ages.bytes[index] =
                    columns[3].difference(expect(bytes, mean, now.wrapping_sub(objects)))?;
            }
            if mask & OLDEST != 0 {
                known.ages.oldest_born_ns = columns[2].difference(before.oldest_born_ns)?;
            }
            let (id, now) = (known.id, known.ages);
            self.reweigh(ages_weight(&before), ages_weight(&now))?;
            changed.push((id, now));
        }
        Ok(changed)
    }
}

fn weight(known: &Known) -> u128 {
    totals_weight(&known.totals) + ages_weight(&known.ages)
}

fn totals_weight(totals: &SiteTotals) -> u128 {
    let counts = [
        totals.alloc_bytes,
        totals.alloc_objects,
        totals.freed_bytes,
        totals.freed_objects,
    ];
    let all = counts.iter().chain(&totals.sizes).chain(&totals.lifetimes);
    all.map(|value| u128::from(*value)).sum()
}

fn ages_weight(ages: &SiteAges) -> u128 {
    ages.objects
        .iter()
        .chain(&ages.bytes)
        .map(|value| u128::from(*value))
        .sum()
}

/// The tick in which the kernel side told of it last does not matter.
fn same(a: &SiteTotals, b: &SiteTotals) -> bool {
    SiteTotals { tick: 0, ..*a } == SiteTotals { tick: 0, ..*b }
}

fn mean_bytes(totals: &SiteTotals) -> u64 {
    totals.alloc_bytes.checked_div(totals.alloc_objects).unwrap_or(0)
}

/// The bytes that are likely after this many more objects.
const fn expect(bytes: u64, mean: u64, objects: u64) -> u64 {
    bytes.wrapping_add(mean.wrapping_mul(objects))
}

fn put_totals(columns: &mut [Vec<u8>; COLUMNS], before: &SiteTotals, now: &SiteTotals) {
    let allocated = now.alloc_objects.wrapping_sub(before.alloc_objects);
    let freed = now.freed_objects.wrapping_sub(before.freed_objects);
    put_difference(&mut columns[ALLOCATED], allocated, 0);
    put_difference(&mut columns[FREED], freed, allocated);
    let expected = expect(before.alloc_bytes, mean_bytes(before), allocated);
    put_difference(&mut columns[ALLOCATED_BYTES], now.alloc_bytes, expected);
    let expected = expect(before.freed_bytes, mean_bytes(now), freed);
    put_difference(&mut columns[FREED_BYTES], now.freed_bytes, expected);
    let (sizes, lifetimes) = columns.split_at_mut(LIFETIME_BUCKET);
    put_histogram(&mut sizes[SIZE_BUCKET..], &before.sizes, &now.sizes, allocated);
    put_histogram(lifetimes, &before.lifetimes, &now.lifetimes, freed);
}

fn read_totals(columns: &mut [Input<'_>; COLUMNS], before: &SiteTotals) -> Result<SiteTotals, Bad> {
    let mut now = *before;
    let allocated = columns[ALLOCATED].difference(0)?;
    let freed = columns[FREED].difference(allocated)?;
    now.alloc_objects = before.alloc_objects.wrapping_add(allocated);
    now.freed_objects = before.freed_objects.wrapping_add(freed);
    let expected = expect(before.alloc_bytes, mean_bytes(before), allocated);
    now.alloc_bytes = columns[ALLOCATED_BYTES].difference(expected)?;
    let expected = expect(before.freed_bytes, mean_bytes(&now), freed);
    now.freed_bytes = columns[FREED_BYTES].difference(expected)?;
    let (sizes, lifetimes) = columns.split_at_mut(LIFETIME_BUCKET);
    read_histogram(&mut sizes[SIZE_BUCKET..], &mut now.sizes, allocated)?;
    read_histogram(lifetimes, &mut now.lifetimes, freed)?;
    Ok(now)
}

const _: () = assert!(SIZE_BUCKETS <= 64 && LIFETIME_BUCKETS <= 64);
const _: () = assert!(SIZES == SIZE_BUCKET + 1 && LIFETIMES == LIFETIME_BUCKET + 1);

/// Which buckets changed, then by how much. All changes together are expected to be `expected`, so the last is
/// written as what it differs from the rest of it.
fn put_histogram(columns: &mut [Vec<u8>], before: &[u64], now: &[u64], expected: u64) {
    let changed: Vec<usize> = (0..now.len())
        .filter(|index| now[*index] != before[*index])
        .collect();
    put(&mut columns[0], changed.iter().map(|index| 1_u64 << index).sum());
    let mut rest = expected;
    for (place, index) in changed.iter().enumerate() {
        let change = now[*index].wrapping_sub(before[*index]);
        let likely = if place + 1 == changed.len() { rest } else { 0 };
        put_difference(&mut columns[1], change, likely);
        rest = rest.wrapping_sub(change);
    }
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

/// Nothing at all when there are no rows.
fn put_columns(columns: &[Vec<u8>], out: &mut Vec<u8>) {
    if columns.iter().any(|column| !column.is_empty()) {
        for column in columns {
            put_bytes(out, column);
        }
    }
}

fn read_columns<const N: usize>(bytes: &[u8]) -> Result<[Input<'_>; N], Bad> {
    let mut input = Input::new(bytes);
    let mut columns = [Input::new(&[]); N];
    for column in &mut columns {
        *column = Input::new(input.bytes()?);
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_of_mapping_has_its_number() {
        for (index, mapping) in MAPPINGS.into_iter().enumerate() {
            assert_eq!(usize::from(mapping_number(mapping)), index);
        }
    }

    fn totals() -> impl Strategy<Value = SiteTotals> {
        let number = || prop_oneof![0..50_u64, 0..1_u64 << 40];
        let buckets = prop::collection::vec((0..SIZE_BUCKETS, 0..1_u64 << 30), 0..5);
        let counts = (number(), number(), number(), number());
        (counts, buckets.clone(), buckets).prop_map(|((a, b, c, d), sizes, lifetimes)| {
            let mut totals = SiteTotals {
                alloc_bytes: a,
                alloc_objects: b,
                freed_bytes: c,
                freed_objects: d,
                ..SiteTotals::ZERO
            };
            for (bucket, objects) in sizes {
                totals.sizes[bucket] = objects;
            }
            for (bucket, objects) in lifetimes {
                totals.lifetimes[bucket] = objects;
            }
            totals
        })
    }

    proptest! {
        /// Also numbers that do not fit together, as they are when they are read while the process runs.
        #[test]
        fn any_totals_come_back(ticks in prop::collection::vec(prop::collection::vec((0..6_u64, totals()), 0..5), 1..5)) {
            let (mut writer, mut reader) = (Sites::default(), Sites::default());
            let id = |stack| SiteId { instance: 1, domain: Domain::Native, stack, mapping: None, counting: [Counting::Blocks, Counting::Pools, Counting::Allocations][stack as usize % 3] };
            let mut known: HashMap<SiteId, SiteTotals> = HashMap::new();
            for tick in ticks {
                let now: HashMap<SiteId, SiteTotals> = tick.into_iter().map(|(stack, totals)| (id(stack), totals)).collect();
                let mut new = Vec::new();
                writer.add_new(now.keys().copied(), &mut new);
                prop_assert_eq!(reader.read_new(&new, &Bounds::SMALL), Ok(()));
                let mut bytes = Vec::new();
                writer.write_totals(now.iter(), &mut bytes);
                let changed = if bytes.is_empty() { Vec::new() } else { reader.read_totals(&bytes).unwrap() };
                let expected = now.iter().filter(|(id, totals)| known.get(id).copied().unwrap_or(SiteTotals::ZERO) != **totals);
                prop_assert_eq!(changed.len(), expected.count());
                for (id, totals) in changed {
                    prop_assert_eq!(now.get(&id), Some(&totals));
                }
                known.extend(now);
            }
        }
    }
}
