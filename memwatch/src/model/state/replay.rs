//! A model out of a recording: the same [`Model`] as live, fed with what was saved instead of with samples.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use memwatch_common::SiteTotals;
use memwatch_common::counter::COUNTERS;

use super::super::counts::{Counts, SiteId};
use super::super::mappings::Untracked;
use super::super::processes::Instance;
use super::super::report::Limit;
use super::{Baseline, Model, Site, site_key};
use crate::collect::sample::{AGE_EDGES_SECONDS, Held, LiveScan, SiteAges};

/// What one saved tick changes, besides the sites. Absolute values, not differences.
#[derive(Clone, Debug)]
pub struct Change {
    pub at_ns: u64,
    pub tick: u64,
    pub processes: Vec<(u32, Instance)>,
    pub forgotten: Vec<u32>,
    pub mapped: Vec<(u32, Mapped)>,
    /// When the live blocks were last gone through.
    pub scanned_ns: Option<u64>,
    pub counters: [u64; COUNTERS],
    pub limits: Option<BTreeMap<String, Limit>>,
    pub kernel_map_bytes: Option<u64>,
    pub undecoded: u64,
}

impl Default for Change {
    fn default() -> Self {
        Self {
            at_ns: 0,
            tick: 0,
            processes: Vec::new(),
            forgotten: Vec::new(),
            mapped: Vec::new(),
            scanned_ns: None,
            counters: [0; COUNTERS],
            limits: None,
            kernel_map_bytes: None,
            undecoded: 0,
        }
    }
}

/// What a process's mappings come to, besides its sites in domain `mmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    pub allocator_bytes: Option<u64>,
    pub untracked: Untracked,
}

/// What a live model asks its [`super::MappingSet`]s for.
#[derive(Clone, Debug, Default)]
pub(super) struct Saved {
    mapped: HashMap<u32, Mapped>,
    ages: HashMap<SiteId, SiteAges>,
}

impl Saved {
    pub(super) fn mapped(&self, instance: u32) -> Mapped {
        self.mapped.get(&instance).copied().unwrap_or_default()
    }

    pub(super) fn mapping_ages(&self, older_than: Option<Duration>) -> HashMap<SiteId, SiteAges> {
        let all = self.ages.iter();
        all.map(|(id, ages)| (*id, ages.older_than(older_than))).collect()
    }
}

impl SiteAges {
    /// The same with what is at least this old counted on its own; exact for the edges of the histogram.
    #[must_use]
    fn older_than(&self, age: Option<Duration>) -> Self {
        let from = first_bucket(age);
        Self {
            old_bytes: self.bytes[from..].iter().sum(),
            old_objects: self.objects[from..].iter().sum(),
            ..*self
        }
    }
}

/// The first age bucket of blocks that are at least this old.
fn first_bucket(age: Option<Duration>) -> usize {
    let seconds = age.map_or(0.0, |age| age.as_secs_f64());
    AGE_EDGES_SECONDS.iter().filter(|edge| **edge <= seconds).count()
}

/// The least age, not below this one, that a recording can tell; none beyond the last that it keeps.
pub fn told_age(age: Duration) -> Option<Duration> {
    if age.is_zero() {
        return Some(age);
    }
    let mut edges = AGE_EDGES_SECONDS
        .iter()
        .map(|edge| Duration::from_secs_f64(*edge));
    edges.find(|edge| *edge >= age)
}

impl Model {
    /// An empty model to read a recording into.
    pub fn for_recording(since_ns: u64) -> Self {
        Self {
            since_ns,
            saved: Some(Saved::default()),
            ..Self::new()
        }
    }

    /// One tick of a recording. Its sites follow, or come with a later tick when nobody wants to look before.
    pub fn restore(&mut self, change: Change) {
        self.samples += 1;
        self.tick = change.tick;
        self.at_ns = change.at_ns;
        self.clock.tick(change.at_ns);
        for (number, instance) in change.processes {
            self.processes.restore(number, instance);
        }
        if let Some(at_ns) = change.scanned_ns {
            self.live.get_or_insert_default().at_ns = at_ns;
        }
        if let Some(saved) = &mut self.saved {
            saved.mapped.extend(change.mapped);
        }
        self.let_go(&change.forgotten);
        self.counters = change.counters;
        if let Some(limits) = change.limits {
            self.limits = limits;
        }
        self.kernel_map_bytes = change.kernel_map_bytes;
        self.undecoded = change.undecoded;
    }

    /// What became of a site at the tick that was restored last.
    pub fn restore_site(&mut self, id: &SiteId, totals: Option<&SiteTotals>, ages: Option<&SiteAges>) {
        if let Some(totals) = totals {
            self.update(*id, totals);
        }
        let Some(ages) = ages else { return };
        if id.mapping.is_some() {
            if let Some(saved) = &mut self.saved {
                saved.ages.insert(*id, *ages);
            }
        } else if let Some(live) = &mut self.live {
            live.sites.insert(site_key(id), *ages);
        }
    }

    /// The same for what its threads have.
    pub fn restore_threads(&mut self, id: &SiteId, threads: &[(u32, Held)]) {
        if let Some(live) = &mut self.live {
            live.threads.insert(site_key(id), threads.to_vec());
        }
    }

    fn let_go(&mut self, instances: &[u32]) {
        if instances.is_empty() {
            return;
        }
        let gone: BTreeSet<u32> = instances.iter().copied().collect();
        self.sites.retain(|id, _| !gone.contains(&id.instance));
        if let Some(live) = &mut self.live {
            live.sites.retain(|key, _| !gone.contains(&key.instance));
            live.threads.retain(|key, _| !gone.contains(&key.instance));
        }
        if let Some(saved) = &mut self.saved {
            saved.ages.retain(|id, _| !gone.contains(&id.instance));
            saved.mapped.retain(|instance, _| !gone.contains(instance));
        }
        self.processes.remove(&gone);
    }

    /// In a model of a recording: counts what is at least this old on its own, as a live scan does.
    pub fn count_older_than(&mut self, age: Option<Duration>) {
        if self.saved.is_none() {
            return;
        }
        if let Some(live) = &mut self.live {
            for ages in live.sites.values_mut() {
                *ages = ages.older_than(age);
            }
        }
    }

    pub fn is_recorded(&self) -> bool {
        self.saved.is_some()
    }

    /// Adds a site or a process that only an older recording knows: nothing of it is left.
    pub fn add_gone(&mut self, id: SiteId, process: Option<&Instance>) {
        if let Some(process) = process
            && self.processes.get(id.instance).is_none()
        {
            let gone = Instance {
                exited: true,
                counts: <[Counts; _]>::default(),
                ..process.clone()
            };
            self.processes.restore(id.instance, gone);
        }
        let samples = self.samples;
        self.sites.entry(id).or_insert_with(|| Site {
            totals: SiteTotals::ZERO,
            before: Counts::default(),
            changed_in: samples,
            history: super::History::default(),
            classes: Vec::new(),
        });
    }

    pub fn live_scan_ns(&self) -> Option<u64> {
        self.live.as_ref().map(|live: &LiveScan| live.at_ns)
    }
}

impl Baseline {
    /// Counts that were taken elsewhere, under the ids of the model that they are compared with.
    pub fn of(at_ns: u64, counts: HashMap<SiteId, Counts>) -> Self {
        Self::new(at_ns, counts)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SiteId, &Counts)> {
        self.counts.iter()
    }
}
