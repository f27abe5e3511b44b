//! What watching costs the targets, estimated from how often probes were hit and what a hit costs.

use memwatch_common::{Counter, Domain, counter::COUNTERS};

use crate::{
    model::{counts::Counts, state::Model},
    probe::{attach::Attacher, plan::Point},
};

/// Work of the kernel side beside the probe itself, in nanoseconds: taking the stack and the accounting of one
/// allocation, the accounting of one free. Measured with `cargo xtask bench`; see docs/overhead.md.
const ALLOCATION_NS: f64 = 900.0;
const FREE_NS: f64 = 350.0;
/// When no placement is known: a cheap one.
const DEFAULT_PROBE_NS: f64 = 700.0;

/// Hits so far, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    hits: u64,
    allocations: u64,
}

impl Work {
    pub fn of(counters: &[u64; COUNTERS], model: &Model) -> Self {
        let native = model.sites().filter(|(id, _)| id.domain == Domain::Native);
        Self {
            hits: counters[Counter::Hits as usize],
            allocations: native
                .map(|(_, site)| Counts::from(&site.totals).alloc_objects)
                .sum(),
        }
    }

    /// Per cent of one core that the hits since `before` cost the targets.
    pub fn percent_since(&self, before: &Self, seconds: f64, attacher: &Attacher) -> f64 {
        let allocations = self.allocations.saturating_sub(before.allocations) as f64;
        let hits = self.hits.saturating_sub(before.hits) as f64;
        let price = |with_return: bool| {
            let plans = attacher.allocators();
            let points = plans.iter().flat_map(|plan| &plan.points);
            let cheapest = points
                .filter(|point| point.needs_return == with_return)
                .map(Point::nanoseconds)
                .min();
            cheapest.map_or(DEFAULT_PROBE_NS, |ns| ns as f64)
        };
        let ns = allocations * (price(true) + ALLOCATION_NS)
            + (hits - allocations).max(0.0) * (price(false) + FREE_NS);
        ns / 1e7 / seconds.max(1e-3)
    }
}
