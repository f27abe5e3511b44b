//! Everything that is known at one time, kept current by one [`Sample`] a tick. A tick costs what changed in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use memwatch_common::counter::COUNTERS;
use memwatch_common::site::ALLOCATED_ONLY;
use memwatch_common::stack::STACK_BEFORE;
use memwatch_common::{Domain, Event, EventKind, SiteKey, SiteTotals};

use super::counts::{Counting, Counts, SiteId};
use super::exit::Exit;
use super::growth::{Clock, History, Window};
use super::mappings::{MappingSet, Untracked};
use super::processes::{MAX_ENDED, ProcessFacts, Processes};
use super::report::{Delta, Limit};
use crate::collect::sample::{ClassBytes, ClassUse, Held, LiveScan, PoolTotals, Sample, SiteAges};
use crate::python::classes::CLASSES;

pub mod replay;

/// One site and what is needed to say how it changes.
#[derive(Clone, Debug)]
pub struct Site {
    pub totals: SiteTotals,
    /// As it was before the tick in which it last changed.
    before: Counts,
    changed_in: u64,
    history: History,
    /// What it has in pools of small Python objects, as far as that is known.
    pub classes: Vec<ClassBytes>,
}

/// The counts of all sites at one time, to compare with.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    pub at_ns: u64,
    counts: HashMap<SiteId, Counts>,
    threads: Option<HashMap<SiteKey, Vec<(u32, Held)>>>,
}

impl Baseline {
    /// Of which threads nothing is known.
    pub fn new(at_ns: u64, counts: HashMap<SiteId, Counts>) -> Self {
        Self {
            at_ns,
            counts,
            threads: None,
        }
    }

    /// None when nothing was known of threads then.
    pub(super) fn threads(&self, site: &SiteId) -> Option<&[(u32, Held)]> {
        let all = self.threads.as_ref()?;
        if site.counting != Counting::Blocks || site.mapping.is_some() {
            return Some(&[]);
        }
        Some(all.get(&site_key(site)).map_or(&[], Vec::as_slice))
    }

    /// Nothing, for a site that was not there yet.
    pub fn counts(&self, site: &SiteId) -> Counts {
        self.counts.get(site).copied().unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    sites: HashMap<SiteId, Site>,
    processes: Processes,
    mappings: HashMap<u32, MappingSet>,
    clock: Clock,
    /// Samples applied; the first is number 1.
    samples: u64,
    tick: u64,
    since_ns: u64,
    at_ns: u64,
    counters: [u64; COUNTERS],
    limits: BTreeMap<String, Limit>,
    kernel_map_bytes: Option<u64>,
    live: Option<LiveScan>,
    /// When Python's pools were last read; 0: never.
    pools_ns: u64,
    pool_classes: HashMap<u32, [ClassUse; CLASSES]>,
    /// Sites and events that carried a number with no meaning here.
    undecoded: u64,
    /// Only in a model that a recording was read into: what there is no [`MappingSet`] to tell.
    saved: Option<replay::Saved>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    pub fn new() -> Self {
        Self {
            sites: HashMap::new(),
            processes: Processes::default(),
            mappings: HashMap::new(),
            clock: Clock::default(),
            samples: 0,
            tick: 0,
            since_ns: 0,
            at_ns: 0,
            counters: [0; COUNTERS],
            limits: BTreeMap::new(),
            kernel_map_bytes: None,
            live: None,
            pools_ns: 0,
            pool_classes: HashMap::new(),
            undecoded: 0,
            saved: None,
        }
    }

    pub fn apply(&mut self, sample: Sample) {
        self.samples += 1;
        if self.samples == 1 {
            self.since_ns = sample.at_ns;
        }
        self.tick = sample.tick;
        self.at_ns = sample.at_ns;
        self.clock.tick(sample.at_ns);
        for event in &sample.events {
            self.event(event);
        }
        self.apply_processes(&sample);
        for (key, totals) in &sample.sites {
            match site_id(key) {
                Some(id) if id.counting == Counting::Allocations => self.update(id, &gone_at_once(totals)),
                Some(id) => self.update(id, totals),
                None => self.undecoded += 1,
            }
        }
        for pool in &sample.pools {
            self.update_pools(pool);
        }
        self.pools_ns = sample.pools_ns.unwrap_or(self.pools_ns);
        self.pool_classes.extend(sample.pool_classes);
        self.update_mappings();
        self.let_go_of_replaced(&sample.events);
        self.counters = sample.counters;
        self.limits = sample.limits;
        self.kernel_map_bytes = sample.kernel_map_bytes;
        if sample.live.is_some() {
            self.live = sample.live;
        }
    }

    fn apply_processes(&mut self, sample: &Sample) {
        let mut alive = BTreeSet::new();
        for (pid, state) in &sample.processes {
            alive.insert(state.instance);
            if let Some(entry) = self.processes.entry(state.instance) {
                entry.pid = Some(*pid);
                entry.state = Some(*state);
                if entry.parent.is_none() && state.parent_instance != 0 {
                    entry.parent = Some(state.parent_instance);
                }
            }
        }
        self.processes.end_missing(&alive);
    }

    fn event(&mut self, event: &Event) {
        let Some(kind) = EventKind::from_u32(event.kind) else {
            self.undecoded += 1;
            return;
        };
        match kind {
            EventKind::Fork => {
                let (parent, parent_pid) = (event.a as u32, event.b as u32);
                self.processes.fork(event.instance, event.pid, parent, parent_pid);
                if let Some(inherited) = self.mappings.get(&parent).map(MappingSet::inherit) {
                    self.mappings.insert(event.instance, inherited);
                }
            }
            EventKind::Exec => self.processes.exec(event.instance, event.pid, event.a as u32),
            EventKind::Exit => self.processes.exit(event.instance, Exit::of(event)),
            EventKind::Map => self.change_mappings(event, MappingSet::map),
            EventKind::Unmap => self.change_mappings(event, MappingSet::unmap),
            EventKind::Remap => self.change_mappings(event, MappingSet::remap),
            EventKind::Break => self.change_mappings(event, MappingSet::program_break),
        }
    }

    fn change_mappings(&mut self, event: &Event, change: fn(&mut MappingSet, &Event)) {
        if let Some(process) = self.processes.entry(event.instance) {
            process.pid.get_or_insert(event.pid);
            change(self.mappings.entry(event.instance).or_default(), event);
        }
    }

    fn update_pools(&mut self, pools: &PoolTotals) {
        let Some(id) = site_id(&pools.key) else { return };
        let id = SiteId {
            counting: Counting::Pools,
            ..id
        };
        self.update(id, &pools.totals);
        if let Some(site) = self.sites.get_mut(&id) {
            site.classes.clone_from(&pools.classes);
        }
    }

    fn update_mappings(&mut self) {
        let mut changes = Vec::new();
        for (instance, set) in &mut self.mappings {
            for ((stack, mapping), totals) in set.take_changes() {
                let domain = Domain::Mmap;
                changes.push((
                    SiteId {
                        instance: *instance,
                        domain,
                        stack,
                        mapping: Some(mapping),
                        counting: Counting::Blocks,
                    },
                    totals,
                ));
            }
        }
        for (id, totals) in changes {
            self.update(id, &totals);
        }
    }

    /// A program that another one replaced holds nothing any more: exec took all of it. (What a process held when it
    /// ended stays as it was: that is what people look for at the end.)
    fn let_go_of_replaced(&mut self, events: &[Event]) {
        let execs = events.iter().filter(|event| event.kind == EventKind::Exec as u32);
        let replaced: BTreeSet<u32> = execs.map(|event| event.a as u32).collect();
        if replaced.is_empty() {
            return;
        }
        let sites = self
            .sites
            .iter()
            .filter(|(id, _)| replaced.contains(&id.instance));
        let last: Vec<(SiteId, SiteTotals)> = sites.map(|(id, site)| (*id, site.totals)).collect();
        for (id, totals) in last {
            let freed = SiteTotals {
                freed_bytes: totals.alloc_bytes,
                freed_objects: totals.alloc_objects,
                ..totals
            };
            self.update(id, &freed);
        }
    }

    fn update(&mut self, id: SiteId, totals: &SiteTotals) {
        let Some(process) = self.processes.entry(id.instance) else {
            return;
        };
        process.counts_small |= id.counting == Counting::Allocations;
        let site = self.sites.entry(id).or_insert_with(|| Site {
            totals: SiteTotals::ZERO,
            before: Counts::default(),
            changed_in: self.samples,
            history: History::default(),
            classes: Vec::new(),
        });
        let (before, now) = (Counts::from(&site.totals), Counts::from(totals));
        // The kernel side does not know that exec freed the rest.
        if process.replaced
            && now.alloc_objects == before.alloc_objects
            && now.freed_objects < before.freed_objects
        {
            return;
        }
        // After a full ring all sites are read again, also those that did not change.
        if before == now {
            return;
        }
        // Pools do not tell the domains of their blocks, so what is left of those stands under one.
        let domain = if id.counting == Counting::Allocations {
            Domain::PythonObject
        } else {
            id.domain
        };
        // What was there before the watch was not counted as it was handed out.
        let is_from_before = id.stack == STACK_BEFORE && before == Counts::default();
        if id.counting == Counting::Pools && is_from_before {
            process.from_before = now;
        }
        let counts = &mut process.counts[domain as usize];
        if id.counting == Counting::Pools && process.counts_small && !is_from_before {
            counts.add_kept(&before, &now);
        } else {
            counts.add_change(&before, &now);
        }
        site.totals = *totals;
        site.before = before;
        site.changed_in = self.samples;
        let window_start_ns = self.clock.window().map_or(0, |window| window.start_ns);
        site.history.push(self.at_ns, now.inuse_bytes(), window_start_ns);
    }

    pub fn describe(&mut self, instance: u32, facts: ProcessFacts) {
        self.processes.describe(instance, facts);
    }

    /// Lets the longest ended processes go, with all their sites, and names them: their entries in the kernel and
    /// their names can go too.
    pub fn forget(&mut self) -> Vec<u32> {
        let gone = self.processes.forget(MAX_ENDED);
        if !gone.is_empty() {
            let gone: BTreeSet<u32> = gone.iter().copied().collect();
            self.sites.retain(|id, _| !gone.contains(&id.instance));
            self.mappings.retain(|instance, _| !gone.contains(instance));
            self.pool_classes.retain(|instance, _| !gone.contains(instance));
        }
        gone
    }

    pub fn baseline(&self) -> Baseline {
        let counts = self
            .sites
            .iter()
            .map(|(id, site)| (*id, Counts::from(&site.totals)))
            .collect();
        Baseline {
            at_ns: self.at_ns,
            counts,
            threads: self.live.as_ref().map(|live| live.threads.clone()),
        }
    }

    pub fn sites(&self) -> impl Iterator<Item = (&SiteId, &Site)> {
        self.sites.iter()
    }

    pub fn site(&self, id: &SiteId) -> Option<&Site> {
        self.sites.get(id)
    }

    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The change of a site over the last tick; none before there were two.
    pub fn last_change(&self, site: &Site) -> Option<Delta> {
        if self.samples < 2 {
            return None;
        }
        if site.changed_in < self.samples {
            return Some(Delta::default());
        }
        Some(Counts::from(&site.totals).since(&site.before))
    }

    /// Bytes per second over the last ticks; none before there were two.
    pub fn growth(&self, site: &Site) -> Option<f64> {
        self.clock
            .window()
            .map(|window: Window| site.history.growth(window))
    }

    /// How a process uses its pools of small Python objects of one size class, where that is known.
    pub fn pool_class(&self, instance: u32, class: u8) -> Option<ClassUse> {
        self.pool_classes.get(&instance)?.get(usize::from(class)).copied()
    }

    /// The last pass over the live blocks, if there was one.
    pub fn live(&self) -> Option<&LiveScan> {
        self.live.as_ref()
    }

    /// What each thread has of a site, as of the last pass. Only of blocks that are known one by one.
    pub(crate) fn threads(&self, site: &SiteId) -> &[(u32, Held)] {
        let live = self
            .live
            .as_ref()
            .filter(|_| site.counting == Counting::Blocks && site.mapping.is_none());
        live.and_then(|live| live.threads.get(&site_key(site)))
            .map_or(&[], Vec::as_slice)
    }

    /// Live mappings by age at `now_ns`, those at least `older_than` old counted on their own.
    pub fn mapping_ages(&self, now_ns: u64, older_than: Option<Duration>) -> HashMap<SiteId, SiteAges> {
        if let Some(saved) = &self.saved {
            return saved.mapping_ages(older_than);
        }
        let older_than_ns = older_than.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let mut all = HashMap::new();
        for (instance, set) in &self.mappings {
            for ((stack, mapping), ages) in set.ages(now_ns, older_than_ns) {
                let domain = Domain::Mmap;
                all.insert(
                    SiteId {
                        instance: *instance,
                        domain,
                        stack,
                        mapping: Some(mapping),
                        counting: Counting::Blocks,
                    },
                    ages,
                );
            }
        }
        all
    }

    /// What allocators hold of the kernel in this process; none when its mappings are not watched.
    pub fn allocator_mapped_bytes(&self, instance: u32) -> Option<u64> {
        if let Some(saved) = &self.saved {
            return saved.mapped(instance).allocator_bytes;
        }
        self.mappings.get(&instance).map(MappingSet::allocator_bytes)
    }

    pub fn untracked_unmaps(&self, instance: u32) -> Untracked {
        if let Some(saved) = &self.saved {
            return saved.mapped(instance).untracked;
        }
        self.mappings
            .get(&instance)
            .map(MappingSet::untracked)
            .unwrap_or_default()
    }

    pub fn counters(&self) -> &[u64; COUNTERS] {
        &self.counters
    }

    pub fn limits(&self) -> &BTreeMap<String, Limit> {
        &self.limits
    }

    pub fn kernel_map_bytes(&self) -> Option<u64> {
        self.kernel_map_bytes
    }

    pub fn undecoded(&self) -> u64 {
        self.undecoded
    }

    pub fn tick(&self) -> u64 {
        self.tick
    }

    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// How old what is known of Python's pools was at the last sample.
    pub fn pools_age_ns(&self) -> Option<u64> {
        (self.pools_ns > 0).then(|| self.at_ns.saturating_sub(self.pools_ns))
    }

    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }
}

/// The site of blocks of which nobody knows where they are: none is in use there.
fn gone_at_once(totals: &SiteTotals) -> SiteTotals {
    SiteTotals {
        freed_bytes: totals.alloc_bytes,
        freed_objects: totals.alloc_objects,
        ..*totals
    }
}

/// None when the domain is none of the known ones.
pub fn site_id(key: &SiteKey) -> Option<SiteId> {
    let domain = Domain::from_u32(key.domain & !ALLOCATED_ONLY)?;
    let counting = if key.domain & ALLOCATED_ONLY == 0 {
        Counting::Blocks
    } else {
        Counting::Allocations
    };
    Some(SiteId {
        instance: key.instance,
        domain,
        stack: key.stack,
        mapping: None,
        counting,
    })
}

pub fn site_key(id: &SiteId) -> SiteKey {
    let flag = if id.counting == Counting::Allocations {
        ALLOCATED_ONLY
    } else {
        0
    };
    SiteKey {
        instance: id.instance,
        domain: id.domain as u32 | flag,
        stack: id.stack,
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
