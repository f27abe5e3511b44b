//! What watching costs the targets, estimated from how often probes were hit and what a hit costs.

use memwatch_common::{Counter, Domain, Function, counter::COUNTERS};

use crate::{
    model::{
        counts::{Counting, Counts, SiteId},
        state::Model,
    },
    probe::{attach::Attacher, plan::Point},
};

/// Work of the kernel side beside the probe itself, in nanoseconds: taking the stack and the accounting of one
/// allocation, the accounting of one free. Measured with `cargo xtask bench`; see docs/overhead.md.
const ALLOCATION_NS: f64 = 900.0;
const FREE_NS: f64 = 350.0;
/// The same where some 20 Python frames are taken too.
const PYTHON_ALLOCATION_NS: f64 = 3_500.0;
/// When no placement is known: a cheap one.
const DEFAULT_PROBE_NS: f64 = 700.0;

/// Hits so far, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    hits: u64,
    allocations: u64,
    /// Small Python objects that are counted one by one.
    small: u64,
}

impl Work {
    pub fn of(counters: &[u64; COUNTERS], model: &Model) -> Self {
        let allocated = |of: &dyn Fn(&SiteId) -> bool| {
            let sites = model.sites().filter(|(id, _)| of(id));
            sites
                .map(|(_, site)| Counts::from(&site.totals).alloc_objects)
                .sum()
        };
        let blocks = |id: &SiteId| id.counting == Counting::Blocks;
        Self {
            hits: counters[Counter::Hits as usize],
            allocations: allocated(&|id| id.domain == Domain::Native && blocks(id)),
            small: allocated(&|id| {
                let exact = blocks(id) && !matches!(id.domain, Domain::Native | Domain::Mmap);
                exact || id.counting == Counting::Allocations
            }),
        }
    }

    /// Per cent of one core that the hits since `before` cost the targets.
    pub fn percent_since(&self, before: &Self, seconds: f64, attacher: &Attacher) -> f64 {
        let allocations = self.allocations.saturating_sub(before.allocations) as f64;
        let hits = self.hits.saturating_sub(before.hits) as f64;
        let small = self.small.saturating_sub(before.small) as f64;
        let price = |with_return: bool| {
            let found = price(attacher, |point| point.needs_return == with_return);
            found.unwrap_or(DEFAULT_PROBE_NS)
        };
        let ns = allocations * (price(true) + ALLOCATION_NS)
            + small * python_allocation_ns(attacher)
            + (hits - allocations - small).max(0.0) * (price(false) + FREE_NS);
        ns / 1e7 / seconds.max(1e-3)
    }
}

/// What one of CPython's allocations costs.
pub fn python_allocation_ns(attacher: &Attacher) -> f64 {
    let is_allocation = |point: &Point| point.is_python() && point.function != Function::Free;
    main_price(attacher, "PyObject_Malloc", is_allocation) + PYTHON_ALLOCATION_NS
}

/// And one of its frees.
pub fn python_free_ns(attacher: &Attacher) -> f64 {
    let is_free = |point: &Point| point.is_python() && point.function == Function::Free;
    main_price(attacher, "PyObject_Free", is_free) + FREE_NS
}

/// The trap alone, without what is done behind it.
pub fn python_probe_ns(attacher: &Attacher) -> f64 {
    main_price(attacher, "PyObject_Free", Point::is_python)
}

/// That of the function that is called most by far, else the cheapest.
fn main_price(attacher: &Attacher, symbol: &str, of: impl Fn(&Point) -> bool) -> f64 {
    let main = price(attacher, |point| point.symbol == symbol);
    main.or_else(|| price(attacher, of)).unwrap_or(DEFAULT_PROBE_NS)
}

fn price(attacher: &Attacher, of: impl Fn(&Point) -> bool) -> Option<f64> {
    let (plans, prices) = (attacher.watched(), attacher.prices());
    let points = plans.iter().flat_map(|plan| &plan.points);
    let cheapest = points
        .filter(|point| of(point))
        .map(|point| point.nanoseconds(prices))
        .min();
    cheapest.map(|ns| ns as f64)
}
