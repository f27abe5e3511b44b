//! Whether the other processes that map the same allocator are quiet enough to be probed along with the target.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, Instant},
};

use crate::target::{ProcRoot, file_id::FileId, modules::Catalog};

/// The others may use this much of one core together: less cannot hold many allocations.
const QUIET: f64 = 0.2;
/// How long they are looked at.
pub const LOOK: Duration = Duration::from_millis(120);

/// Processor time of every process, at one time.
#[derive(Debug)]
pub struct Reading {
    at: Instant,
    ticks: BTreeMap<u32, u64>,
}

impl Reading {
    pub fn take(proc: &ProcRoot) -> Self {
        let mut ticks = BTreeMap::new();
        for pid in proc.pids().unwrap_or_default() {
            if let Ok(stat) = proc.stat(pid)
                && !stat.is_kernel_thread()
            {
                ticks.insert(pid, stat.cpu_ticks);
            }
        }
        Self {
            at: Instant::now(),
            ticks,
        }
    }

    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Those that worked since `before`, with the share of one core that they used.
    fn busy_since(&self, before: &Self, ticks_per_second: u64) -> Vec<(u32, f64)> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let share = |(pid, now): (&u32, &u64)| {
            let worked = now.saturating_sub(*before.ticks.get(pid).unwrap_or(&0));
            (worked > 0).then(|| (*pid, worked as f64 / ticks_per_second as f64 / seconds))
        };
        self.ticks.iter().filter_map(share).collect()
    }
}

/// Whether those that work and map one of `files`, `ours` apart, are quiet.
pub(crate) fn quiet(
    proc: &ProcRoot,
    before: &Reading,
    ours: &BTreeSet<u32>,
    files: &HashSet<FileId>,
) -> bool {
    let now = Reading::take(proc);
    let mut catalog = Catalog::new(proc.clone());
    let mut load = 0.0;
    for (pid, share) in now.busy_since(before, crate::target::process::ticks_per_second()) {
        if ours.contains(&pid) || proc.own_pid() == Some(pid) {
            continue;
        }
        let maps_one = catalog.read(pid).is_ok_and(|modules| {
            modules
                .modules
                .iter()
                .any(|module| module.id.is_some_and(|id| files.contains(&id)))
        });
        if maps_one {
            load += share;
        }
    }
    load <= QUIET
}
