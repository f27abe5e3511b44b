//! From sites to rows: filter, group, sort, cut, and only then name what is shown.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use memwatch_common::hist::{lifetime_bucket_below_seconds, size_bucket_below};
use memwatch_common::limits::{LIFETIME_BUCKETS, SIZE_BUCKETS};
use memwatch_common::stack::STACK_BEFORE;

use super::counts::{Counting, Counts, SiteId, add_delta};
use super::estimate::{Estimate, Share};
use super::filter::{BadGlob, Filter};
use super::keys::{self, GroupKey};
use super::processes::Instance;
use super::query::{GroupBy, Query, SortBy, View};
use super::report::{Age, Delta, Frame, Row, SizeBucket};
use super::shares::by_size;
use super::state::{Baseline, Model, Site, site_key};
use super::threads::{by_thread, known_threads};
use crate::collect::sample::{AGE_EDGES_SECONDS, SiteAges};
use crate::symbolize::names::StackNames;

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("--older-than in a recording can be 24h at most: that is the last of the ages that are kept")]
    AgeNotRecorded,
    #[error(transparent)]
    Glob(#[from] BadGlob),
}

/// One site with the numbers that this query gives it.
struct Candidate<'a> {
    id: SiteId,
    site: &'a Site,
    ages: Option<SiteAges>,
    numbers: Numbers,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    pub total: Counts,
    pub delta: Option<Delta>,
    pub growth: Option<f64>,
    /// Birth of the oldest live block, 0 when not known.
    pub oldest_born_ns: u64,
    pub estimate: Estimate,
    /// Counted when it was handed out, and not known what became of it: part of `total` as allocated, not as freed.
    pub passed: Counts,
    /// What was in pools before any of that was counted: part of `estimate`, as far as it is still there.
    pub from_before: Estimate,
}

impl Numbers {
    fn add(&mut self, other: &Self) {
        self.inuse_bytes += other.inuse_bytes;
        self.inuse_objects += other.inuse_objects;
        self.total += other.total;
        if let Some(delta) = &other.delta {
            add_delta(self.delta.get_or_insert_default(), delta);
        }
        if let Some(growth) = other.growth {
            *self.growth.get_or_insert(0.0) += growth;
        }
        self.oldest_born_ns = older(self.oldest_born_ns, other.oldest_born_ns);
        self.estimate.add(&other.estimate);
        self.passed += other.passed;
        self.from_before.add(&other.from_before);
    }

    /// What the site's numbers mean where small Python objects are counted as they are handed out.
    fn by_counting(&mut self, id: &SiteId, process: &Instance) {
        match id.counting {
            Counting::Allocations => {
                self.passed = self.total;
                (self.total.freed_bytes, self.total.freed_objects) = (0, 0);
            }
            Counting::Pools if process.counts_small => {
                self.total = Counts::default();
                if id.stack == STACK_BEFORE {
                    let before = &process.from_before;
                    self.from_before = Estimate::of(before.inuse_bytes(), before.inuse_objects());
                }
                if let Some(delta) = &mut self.delta {
                    (delta.alloc_bytes, delta.alloc_objects) = (0, 0);
                }
            }
            Counting::Pools | Counting::Blocks => {}
        }
    }

    /// What is not in use any more by the pools was freed.
    const fn freed(&self) -> (u64, u64) {
        let (now, before) = (&self.estimate, &self.from_before);
        let (bytes, objects) = (
            self.passed.alloc_bytes + before.bytes,
            self.passed.alloc_objects + before.objects,
        );
        (
            self.total.freed_bytes + bytes.saturating_sub(now.bytes),
            self.total.freed_objects + objects.saturating_sub(now.objects),
        )
    }

    /// Whether there is anything to show under this query. Against a baseline, what is gone is news too.
    fn is_shown(&self, query: &Query, against_baseline: bool) -> bool {
        let alloc =
            query.view == View::Alloc || matches!(query.sort, SortBy::AllocBytes | SortBy::AllocObjects);
        let inuse = self.inuse_bytes > 0 || self.inuse_objects > 0;
        if query.older_than.is_some() {
            return inuse;
        }
        let changed = self
            .delta
            .is_some_and(|delta| delta.inuse_bytes != 0 || delta.inuse_objects != 0);
        inuse || (alloc && self.total.alloc_objects > 0) || (against_baseline && changed)
    }
}

const fn older(a: u64, b: u64) -> u64 {
    if a == 0 || (b != 0 && b < a) { b } else { a }
}

/// A group before its histograms are added up and its stack is named.
struct Group {
    key: GroupKey,
    numbers: Numbers,
    small: Share,
    stacks: u64,
    largest: SiteId,
    largest_bytes: u64,
}

/// The rows that `query` asks for, and how many there would be without its limit. Changes are against `baseline`,
/// or else against the tick before.
pub fn rows(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    now_ns: u64,
) -> Result<(Vec<Row>, u64), QueryError> {
    let (rows, total) = rows_by_site(model, query, names, baseline, now_ns)?;
    Ok((rows.into_iter().map(|(_, row)| row).collect(), total))
}

/// The same, and for each row the site that it is about: of several, the one that holds most.
pub fn rows_by_site(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    now_ns: u64,
) -> Result<(Vec<(SiteId, Row)>, u64), QueryError> {
    let filter = Filter::new(query)?;
    let mut candidates = candidates(model, query, baseline, now_ns);
    if filter.is_active() {
        candidates
            .retain(|candidate| filter.wants(&names.stack(candidate.id.instance, candidate.id.stack).frames));
    }
    // Hash maps have no order of their own; rows are to come out the same each time.
    candidates.sort_unstable_by_key(|candidate| candidate.id);

    let (groups, members) = grouped(model, query, names, baseline, &candidates);
    let mut shown: Vec<usize> = (0..groups.len())
        .filter(|index| groups[*index].numbers.is_shown(query, baseline.is_some()))
        .collect();
    let total = shown.len() as u64;
    shown.sort_by(|a, b| compare(query, &groups[*a], &groups[*b]));
    shown.truncate(query.limit);
    let histograms = histograms(&groups, &shown, &candidates, &members);
    let rows = shown.iter().zip(histograms).map(|(index, histograms)| {
        let group = &groups[*index];
        (
            group.largest,
            row(model, query, names, group, &histograms, now_ns),
        )
    });
    Ok((rows.collect(), total))
}

fn candidates<'a>(
    model: &'a Model,
    query: &Query,
    baseline: Option<&Baseline>,
    now_ns: u64,
) -> Vec<Candidate<'a>> {
    let live = model.live();
    let asks_ages = live.is_some() || query.older_than.is_some() || query.sort == SortBy::Age;
    let mapping_ages = if asks_ages {
        model.mapping_ages(now_ns, query.older_than)
    } else {
        HashMap::new()
    };
    let ages_of = |id: &SiteId| {
        if id.mapping.is_some() {
            return asks_ages.then(|| mapping_ages.get(id).copied().unwrap_or_default());
        }
        live.map(|scan| scan.sites.get(&site_key(id)).copied().unwrap_or_default())
    };
    let wanted = model.sites().filter(|(id, _)| query.wants(id.domain));
    wanted
        .map(|(id, site)| {
            let ages = ages_of(id);
            let total = Counts::from(&site.totals);
            let (inuse_bytes, inuse_objects) = if query.older_than.is_some() {
                // Before the first pass over the live blocks none is known to be old.
                ages.map_or((0, 0), |ages| (ages.old_bytes, ages.old_objects))
            } else {
                (total.inuse_bytes(), total.inuse_objects())
            };
            let delta = match baseline {
                Some(baseline) => Some(total.since(&baseline.counts(id))),
                None => model.last_change(site),
            };
            let mut numbers = Numbers {
                inuse_bytes,
                inuse_objects,
                total,
                delta,
                growth: model.growth(site),
                oldest_born_ns: ages.map_or(0, |ages| ages.oldest_born_ns),
                estimate: if id.counting == Counting::Pools {
                    Estimate::of(inuse_bytes, inuse_objects)
                } else {
                    Estimate::default()
                },
                passed: Counts::default(),
                from_before: Estimate::default(),
            };
            if let Some(process) = model.processes().get(id.instance) {
                numbers.by_counting(id, process);
            }
            Candidate {
                id: *id,
                site,
                ages,
                numbers,
            }
        })
        .collect()
}

/// The groups, and for each candidate the groups that it counts in.
fn grouped(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    candidates: &[Candidate<'_>],
) -> (Vec<Group>, Vec<(usize, usize)>) {
    let mut indexes: HashMap<GroupKey, usize> = HashMap::new();
    let (mut groups, mut members): (Vec<Group>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    for (position, candidate) in candidates.iter().enumerate() {
        for (key, numbers) in keys_of(model, query, names, baseline, candidate) {
            let index = *indexes.entry(key.clone()).or_insert_with(|| {
                groups.push(Group {
                    key,
                    numbers: Numbers::default(),
                    small: Share::default(),
                    stacks: 0,
                    largest: candidate.id,
                    largest_bytes: 0,
                });
                groups.len() - 1
            });
            let group = &mut groups[index];
            let bytes = match query.view {
                View::Inuse => numbers.inuse_bytes,
                View::Alloc => numbers.total.alloc_bytes,
            };
            if bytes > group.largest_bytes {
                (group.largest, group.largest_bytes) = (candidate.id, bytes);
            }
            group.numbers.add(&numbers);
            let before = candidate.id.stack == STACK_BEFORE;
            for class in &candidate.site.classes {
                if group.key.has_class(class.class) {
                    group.small.add(candidate.id.instance, class, before);
                }
            }
            group.stacks += 1;
            members.push((position, index));
        }
    }
    (groups, members)
}

fn keys_of(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    candidate: &Candidate<'_>,
) -> Vec<(GroupKey, Numbers)> {
    let id = candidate.id;
    let key = match query.group_by {
        GroupBy::Traceback => GroupKey::Site(id),
        GroupBy::Thread => {
            let before = baseline.and_then(|baseline| baseline.threads(&id));
            // How old the blocks of a thread are is not known.
            let now = if query.older_than.is_some() {
                &[]
            } else {
                model.threads(&id)
            };
            let shares = by_thread(now, before, &candidate.numbers);
            return shares
                .into_iter()
                .map(|(thread, numbers)| (GroupKey::Thread(id.instance, thread), numbers))
                .collect();
        }
        GroupBy::Process => GroupKey::Instance(id.instance),
        GroupBy::Domain => GroupKey::Domain(id.domain),
        GroupBy::Container => {
            let facts = model.processes().get(id.instance).map(|process| &process.facts);
            GroupKey::Container(
                facts
                    .and_then(|facts| facts.container.as_ref())
                    .map(|container| container.id.clone()),
            )
        }
        GroupBy::Size => {
            let shares = by_size(&candidate.site.totals, &candidate.numbers);
            return shares
                .into_iter()
                .map(|(bucket, numbers)| (GroupKey::Size(bucket), numbers))
                .collect();
        }
        GroupBy::Line | GroupBy::File | GroupBy::Function | GroupBy::Module => {
            let stack = names.stack(id.instance, id.stack);
            let names = keys::names(query.group_by, &id, &stack.frames, query.cumulative);
            return names
                .into_iter()
                .map(|name| (GroupKey::Name(name), candidate.numbers))
                .collect();
        }
    };
    vec![(key, candidate.numbers)]
}

/// Largest first; what is equal comes in the order of the key, so that rows do not jump from tick to tick.
fn compare(query: &Query, a: &Group, b: &Group) -> Ordering {
    let (x, y) = (&a.numbers, &b.numbers);
    let change = |n: &Numbers| {
        let delta = n.delta.unwrap_or_default();
        let (bytes, objects) = match query.view {
            View::Inuse => (delta.inuse_bytes, delta.inuse_objects),
            View::Alloc => (delta.alloc_bytes, delta.alloc_objects),
        };
        (bytes.unsigned_abs(), objects.unsigned_abs())
    };
    let first = match query.sort {
        SortBy::InuseBytes => y.inuse_bytes.cmp(&x.inuse_bytes),
        SortBy::InuseObjects => y.inuse_objects.cmp(&x.inuse_objects),
        SortBy::AllocBytes => y.total.alloc_bytes.cmp(&x.total.alloc_bytes),
        SortBy::AllocObjects => y.total.alloc_objects.cmp(&x.total.alloc_objects),
        SortBy::Growth => y.growth.unwrap_or(0.0).total_cmp(&x.growth.unwrap_or(0.0)),
        // Unknown ages, which are 0, come last.
        SortBy::Age => x
            .oldest_born_ns
            .wrapping_sub(1)
            .cmp(&y.oldest_born_ns.wrapping_sub(1)),
        SortBy::Difference => change(y).cmp(&change(x)),
    };
    let bytes = |n: &Numbers| Reverse((n.inuse_bytes, n.total.alloc_bytes));
    first
        .then_with(|| bytes(x).cmp(&bytes(y)))
        .then_with(|| a.key.cmp(&b.key))
}

/// What only shown groups need.
struct Histograms {
    ages: Option<[u64; AGE_EDGES_SECONDS.len() + 1]>,
    lifetimes: [u64; LIFETIME_BUCKETS],
    sizes: [u64; SIZE_BUCKETS],
    instance: Shared<u32>,
    domain: Shared<&'static str>,
    mapping: Shared<Option<&'static str>>,
}

/// A value that all members of a group have in common, if they do.
#[derive(Clone, Copy, Debug)]
enum Shared<T> {
    Nothing,
    One(T),
    Several,
}

impl<T: PartialEq + Copy> Shared<T> {
    fn add(&mut self, value: T) {
        *self = match *self {
            Self::Nothing => Self::One(value),
            Self::One(same) if same == value => Self::One(same),
            _ => Self::Several,
        };
    }

    fn get(self) -> Option<T> {
        if let Self::One(value) = self {
            Some(value)
        } else {
            None
        }
    }
}

fn histograms(
    groups: &[Group],
    shown: &[usize],
    candidates: &[Candidate<'_>],
    members: &[(usize, usize)],
) -> Vec<Histograms> {
    let mut places = vec![None; groups.len()];
    for (place, index) in shown.iter().enumerate() {
        places[*index] = Some(place);
    }
    let empty = || Histograms {
        ages: None,
        lifetimes: [0; LIFETIME_BUCKETS],
        sizes: [0; SIZE_BUCKETS],
        instance: Shared::Nothing,
        domain: Shared::Nothing,
        mapping: Shared::Nothing,
    };
    let mut all: Vec<Histograms> = shown.iter().map(|_| empty()).collect();
    for (position, index) in members {
        let Some(place) = places[*index] else { continue };
        let (candidate, sum) = (&candidates[*position], &mut all[place]);
        sum.instance.add(candidate.id.instance);
        sum.domain.add(candidate.id.domain.name());
        sum.mapping
            .add(candidate.id.mapping.map(super::mappings::MappingKind::name));
        match groups[*index].key {
            // Ages and lifetimes are not known by size.
            GroupKey::Size(bucket) => {
                sum.sizes[bucket] += candidate.site.totals.sizes[bucket];
                continue;
            }
            // Nor by thread, and no sizes either.
            GroupKey::Thread(..) => continue,
            _ => {}
        }
        add_all(&mut sum.lifetimes, &candidate.site.totals.lifetimes);
        add_all(&mut sum.sizes, &candidate.site.totals.sizes);
        if let Some(ages) = &candidate.ages {
            add_all(sum.ages.get_or_insert_default(), &ages.objects);
        }
    }
    all
}

fn add_all(sums: &mut [u64], values: &[u64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

fn row(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    group: &Group,
    sums: &Histograms,
    now_ns: u64,
) -> Row {
    let stack = names.stack(group.largest.instance, group.largest.stack);
    let numbers = &group.numbers;
    let frames: Vec<Arc<Frame>> = stack
        .frames
        .iter()
        .take(query.frames.unwrap_or(usize::MAX))
        .cloned()
        .collect();
    let oldest =
        (numbers.oldest_born_ns > 0).then(|| now_ns.saturating_sub(numbers.oldest_born_ns) as f64 / 1e9);
    let doubt = group
        .small
        .doubt(|instance, class| model.pool_class(instance, class));
    let interval = numbers.estimate.interval(numbers.inuse_bytes, doubt);
    let (freed_bytes, freed_objects) = numbers.freed();
    let threads = match &group.key {
        GroupKey::Site(id) if query.older_than.is_none() => known_threads(model.threads(id), numbers),
        _ => Vec::new(),
    };
    Row {
        threads,
        key: group.key.text(&stack.frames, model.processes()),
        pid: sums
            .instance
            .get()
            .and_then(|instance| model.processes().get(instance)?.pid),
        domain: sums.domain.get().map(str::to_owned),
        inuse_bytes: numbers.inuse_bytes,
        inuse_objects: numbers.inuse_objects,
        estimated_bytes: numbers.estimate.bytes,
        inuse_low_bytes: interval.map(|(low, _)| low),
        inuse_high_bytes: interval.map(|(_, high)| high),
        alloc_bytes: numbers.total.alloc_bytes,
        alloc_objects: numbers.total.alloc_objects,
        freed_bytes,
        freed_objects,
        growth_bytes_per_second: numbers.growth,
        delta: numbers.delta,
        ages: sums.ages.as_ref().map(|ages| age_list(ages)),
        lifetimes: lifetime_list(&sums.lifetimes),
        sizes: size_list(&sums.sizes),
        oldest_seconds: oldest,
        truncated: stack.truncated,
        frames,
        stacks: group.stacks,
        mapping: sums.mapping.get().flatten().map(str::to_owned),
    }
}

fn age_list(objects: &[u64]) -> Vec<Age> {
    let edges = AGE_EDGES_SECONDS.iter().map(|edge| Some(*edge)).chain([None]);
    edges
        .zip(objects)
        .map(|(below_seconds, objects)| Age {
            below_seconds,
            objects: *objects,
        })
        .collect()
}

/// Only buckets that hold anything.
fn lifetime_list(objects: &[u64; LIFETIME_BUCKETS]) -> Vec<Age> {
    let filled = objects.iter().enumerate().filter(|(_, objects)| **objects > 0);
    filled
        .map(|(bucket, objects)| Age {
            below_seconds: lifetime_bucket_below_seconds(bucket),
            objects: *objects,
        })
        .collect()
}

/// Only buckets that hold anything.
fn size_list(objects: &[u64; SIZE_BUCKETS]) -> Vec<SizeBucket> {
    let filled = objects.iter().enumerate().filter(|(_, objects)| **objects > 0);
    filled
        .map(|(bucket, objects)| SizeBucket {
            below_bytes: size_bucket_below(bucket),
            objects: *objects,
        })
        .collect()
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
