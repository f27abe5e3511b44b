//! Sites and their numbers. The numbers of all sites that changed stand column by column, each as what it is more
//! than could be expected: a site whose blocks all have one size costs a byte for its bytes, and that byte is 0.

use std::collections::{HashMap, HashSet};

use memwatch_common::{Domain, SiteTotals};

mod ages;
mod threads;
mod totals;
mod version1;

use self::totals::Learned;
use super::Bounds;
use super::names::read_hash;
use crate::collect::sample::{AGE_EDGES_SECONDS, Held, SiteAges};
use crate::model::counts::{Counting, SiteId};
use crate::model::mappings::MappingKind;
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_bytes};

/// What was last written or read of a site.
#[derive(Clone, Debug)]
struct Known {
    id: SiteId,
    totals: SiteTotals,
    ages: SiteAges,
    /// By their ids.
    threads: Vec<(u32, Held)>,
    learned: Learned,
    /// [`TOTALS`], [`AGED`] and [`THREADED`]: what was read and not handed out yet.
    unsettled: u8,
}

const TOTALS: u8 = 1;
const AGED: u8 = 2;
const THREADED: u8 = 4;

/// What [`Sites::settle`] hands out of a site: what was read of it since the last time.
pub(super) struct Changed<'a> {
    pub id: &'a SiteId,
    pub totals: Option<&'a SiteTotals>,
    pub ages: Option<&'a SiteAges>,
    pub threads: Option<&'a [(u32, Held)]>,
}

/// All sites as the file has them so far, by their numbers in it. Both sides keep one.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    /// None where the process was let go. Numbers are not given twice.
    known: Vec<Option<Box<Known>>>,
    numbers: HashMap<SiteId, u32>,
    /// All numbers together. Their sums must not overflow, whatever a file says.
    weight: i128,
    /// The sites of which something was read and not handed out yet.
    unsettled: Vec<u32>,
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
                threads: Vec::new(),
                learned: Learned::default(),
                unsettled: 0,
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
                self.weight -= weight(&known);
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
        let mut columns: [Vec<u8>; totals::COLUMNS] = Default::default();
        let mut next = 0;
        for (number, now) in numbered {
            let Some(Some(known)) = self.known.get_mut(number as usize) else {
                continue;
            };
            if same(&known.totals, now) {
                continue;
            }
            put(&mut columns[totals::GAPS], u64::from(number - next));
            next = number + 1;
            totals::put_totals(&mut columns, known, now);
        }
        put_columns(&columns, out);
    }

    /// What was read is handed out by [`Sites::settle`].
    pub fn read_totals(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.read(bytes, TOTALS, totals::read_totals)
    }

    /// As version 1 of the format has them.
    pub fn read_totals_1(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.read(bytes, TOTALS, |columns, known| {
            let before = totals_weight(&known.totals);
            version1::read_totals(columns, known)?;
            Ok(totals_weight(&known.totals) - before)
        })
    }

    /// Like [`Sites::write_totals`], for ages. What is counted on its own for `--older-than` is not kept: the
    /// buckets tell it.
    pub fn write_ages(&mut self, ages: impl Fn(&SiteId) -> SiteAges, out: &mut Vec<u8>) {
        let mut columns: [Vec<u8>; ages::COLUMNS] = Default::default();
        let mut next = 0;
        for (number, known) in self.known.iter_mut().enumerate() {
            let Some(known) = known else { continue };
            let now = ages(&known.id);
            let mask = ages::changed(&known.ages, &now);
            if mask != 0 {
                put(&mut columns[ages::GAPS], number as u64 - next);
                next = number as u64 + 1;
                ages::put_ages(&mut columns, known, &now, mask);
            }
        }
        put_columns(&columns, out);
    }

    pub fn read_ages(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.read(bytes, AGED, |columns, known| {
            weighed(columns, known, ages::read_ages)
        })
    }

    /// The same for what threads have; `threads` gives it in the order of their ids.
    pub fn write_threads<'a>(&mut self, held: impl Fn(&SiteId) -> &'a [(u32, Held)], out: &mut Vec<u8>) {
        let mut columns: [Vec<u8>; threads::COLUMNS] = Default::default();
        let mut next = 0;
        for (number, known) in self.known.iter_mut().enumerate() {
            let Some(known) = known else { continue };
            let now = held(&known.id);
            if known.threads != now {
                put(&mut columns[threads::GAPS], number as u64 - next);
                next = number as u64 + 1;
                threads::put_threads(&mut columns, known, now);
            }
        }
        put_columns(&columns, out);
    }

    pub fn read_threads(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.read(bytes, THREADED, |columns, known| {
            let before = threads_weight(&known.threads);
            threads::read_threads(columns, known)?;
            Ok(threads_weight(&known.threads) - before)
        })
    }

    /// As version 1 of the format has them.
    pub fn read_ages_1(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.read(bytes, AGED, |columns, known| {
            weighed(columns, known, version1::read_ages)
        })
    }

    /// One site after the other, of which the first column holds the gaps between their numbers. `read_one` tells
    /// how much larger its numbers became.
    fn read<const N: usize>(
        &mut self,
        bytes: &[u8],
        what: u8,
        read_one: impl Fn(&mut [Input<'_>; N], &mut Known) -> Result<i128, Bad>,
    ) -> Result<(), Bad> {
        let mut columns = read_columns::<N>(bytes)?;
        let mut next = 0_u64;
        while !columns[0].is_empty() {
            let number = next.saturating_add(columns[0].number()?);
            next = number.saturating_add(1);
            let slot = usize::try_from(number)
                .ok()
                .and_then(|number| self.known.get_mut(number));
            let known = slot
                .and_then(Option::as_deref_mut)
                .ok_or(Bad("numbers belong to a site that is not there"))?;
            self.weight += read_one(&mut columns, known)?;
            if self.weight > i128::from(i64::MAX) {
                return Err(Bad("its numbers are larger than any memory"));
            }
            if known.unsettled == 0 {
                self.unsettled.push(number as u32);
            }
            known.unsettled |= what;
        }
        Ok(())
    }

    /// Hands out what was read since the last time: the totals and the ages as they are now.
    pub fn settle(&mut self, mut take: impl FnMut(&Changed<'_>)) {
        for number in self.unsettled.drain(..) {
            // None: it was let go meanwhile.
            if let Some(Some(known)) = self.known.get_mut(number as usize) {
                take(&Changed {
                    id: &known.id,
                    totals: (known.unsettled & TOTALS != 0).then_some(&known.totals),
                    ages: (known.unsettled & AGED != 0).then_some(&known.ages),
                    threads: (known.unsettled & THREADED != 0).then_some(&known.threads[..]),
                });
                known.unsettled = 0;
            }
        }
    }
}

fn weighed(
    columns: &mut [Input<'_>; ages::COLUMNS],
    known: &mut Known,
    read: impl Fn(&mut [Input<'_>; ages::COLUMNS], &mut Known) -> Result<(), Bad>,
) -> Result<i128, Bad> {
    let before = ages_weight(&known.ages);
    read(columns, known)?;
    Ok(ages_weight(&known.ages) - before)
}

fn weight(known: &Known) -> i128 {
    totals_weight(&known.totals) + ages_weight(&known.ages) + threads_weight(&known.threads)
}

fn totals_weight(totals: &SiteTotals) -> i128 {
    let counts = [
        totals.alloc_bytes,
        totals.alloc_objects,
        totals.freed_bytes,
        totals.freed_objects,
    ];
    let all = counts.iter().chain(&totals.sizes).chain(&totals.lifetimes);
    all.map(|value| i128::from(*value)).sum()
}

fn ages_weight(ages: &SiteAges) -> i128 {
    ages.objects
        .iter()
        .chain(&ages.bytes)
        .map(|value| i128::from(*value))
        .sum()
}

fn threads_weight(threads: &[(u32, Held)]) -> i128 {
    let weights = threads
        .iter()
        .map(|(_, held)| i128::from(held.objects) + i128::from(held.bytes));
    weights.sum()
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
    use memwatch_common::limits::SIZE_BUCKETS;
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
        // Both histograms have as many.
        let buckets = prop::collection::vec((0..SIZE_BUCKETS, number()), 0..5);
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
        /// Threads come and go, and what they have is any number.
        #[test]
        fn any_threads_come_back(ticks in prop::collection::vec(prop::collection::btree_map(any::<u32>(), (1..1_u64 << 40, 0..1_u64 << 40), 0..6), 1..6)) {
            let (mut writer, mut reader) = (Sites::default(), Sites::default());
            let id = SiteId { instance: 1, domain: Domain::Native, stack: 5, mapping: None, counting: Counting::Blocks };
            let mut new = Vec::new();
            writer.add_new([id].into_iter(), &mut new);
            prop_assert_eq!(reader.read_new(&new, &Bounds::SMALL), Ok(()));
            for tick in ticks {
                let now: Vec<(u32, Held)> = tick.into_iter().map(|(thread, (objects, bytes))| (thread, Held { objects, bytes })).collect();
                let mut bytes = Vec::new();
                writer.write_threads(|_| &now[..], &mut bytes);
                if !bytes.is_empty() {
                    prop_assert_eq!(reader.read_threads(&bytes), Ok(()));
                }
                let mut read = None;
                reader.settle(|site| read = site.threads.map(<[_]>::to_vec));
                prop_assert!(read.is_none_or(|read| read == now));
                prop_assert_eq!(&reader.known[0].as_ref().unwrap().threads, &now);
            }
        }

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
                if !bytes.is_empty() {
                    prop_assert_eq!(reader.read_totals(&bytes), Ok(()));
                }
                let mut changed = Vec::new();
                reader.settle(|site| changed.extend(site.totals.map(|totals| (*site.id, *totals))));
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
