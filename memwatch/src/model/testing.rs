//! Samples for tests, in few words.

use memwatch_common::counter::COUNTERS;
use memwatch_common::hist::size_bucket;
use memwatch_common::{Domain, Event, ProcessState, SiteKey, SiteTotals};

use crate::collect::sample::Sample;

pub const SECOND: u64 = 1_000_000_000;

/// The sample of the tick that came `tick` seconds after the first.
pub fn sample(tick: u64) -> Sample {
    Sample {
        at_ns: (100 + tick) * SECOND,
        tick,
        sites: Vec::new(),
        pools: Vec::new(),
        pools_ns: None,
        pool_classes: Vec::new(),
        events: Vec::new(),
        processes: Vec::new(),
        counters: [0; COUNTERS],
        live: None,
        limits: std::collections::BTreeMap::new(),
        kernel_map_bytes: None,
    }
}

pub fn key(instance: u32, domain: Domain, stack: u64) -> SiteKey {
    SiteKey {
        instance,
        domain: domain as u32,
        stack,
    }
}

/// `objects` blocks of `size` bytes, of which `freed` are gone.
pub fn blocks(size: u64, objects: u64, freed: u64) -> SiteTotals {
    let mut totals = SiteTotals {
        alloc_bytes: size * objects,
        alloc_objects: objects,
        freed_bytes: size * freed,
        freed_objects: freed,
        ..SiteTotals::ZERO
    };
    totals.sizes[size_bucket(size)] = objects;
    totals.lifetimes[3] = freed;
    totals
}

impl Sample {
    #[must_use]
    pub fn site(mut self, key: SiteKey, totals: SiteTotals) -> Self {
        self.sites.push((key, totals));
        self
    }

    #[must_use]
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    /// The watched processes: pid and instance.
    #[must_use]
    pub fn alive(mut self, pid: u32, instance: u32) -> Self {
        self.processes.push((pid, ProcessState::new(instance, 0)));
        self
    }
}
