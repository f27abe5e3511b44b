//! One tick's reading of the kernel side. A tick costs what changed: the kernel side names the sites that did, and
//! only these are read, unless so many changed that its ring buffer ran over.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use memwatch_common::{
    Counter, Event, LiveKey, LiveValue, ProcessState, SiteKey, SiteTotals, counter::COUNTERS,
    process::PROCESS_EXITED,
};

use super::{
    batch, decode,
    sample::{AGE_EDGES_SECONDS, Held, LiveScan, Sample, SiteAges},
};
use crate::{
    model::report::Limit,
    probe::{links::map_fd, load::KernelSide},
};

pub struct Collector {
    /// Lifecycle and mappings.
    ring: RingBuf<MapData>,
    /// Keys of sites that changed.
    changes: RingBuf<MapData>,
    /// Since the last sample.
    events: Vec<Event>,
    touched: HashSet<SiteKey>,
    /// Last states of programs that ended since the last sample.
    ended: Vec<(u32, ProcessState)>,
    ring_full: u64,
    max_entries: BTreeMap<&'static str, u64>,
    stacks_used: u64,
    sites_used: u64,
}

const HASH_MAPS: [&str; 4] = ["LIVE", "SITES", "STACKS", "PROCESSES"];
const ALL_MAPS: [&str; 25] = [
    "LIVE",
    "POOLS",
    "SITES",
    "STACKS",
    "PROCESSES",
    "STATES",
    "CONFIG",
    "NEXT_INSTANCE",
    "NEW_SITE",
    "EVENTS",
    "CHANGES",
    "COUNTS",
    "RULES",
    "ROWS",
    "PAGES",
    "SPACES",
    "SPACE_VERSIONS",
    "PC_RULES",
    "KNOWN_STACKS",
    "PYTHONS",
    "PYTHON_AT",
    "PYTHON_CODES",
    "PYTHON_CODES_TOLD",
    "PYTHON_STACKS",
    "POOL_CALLERS",
];

impl Collector {
    pub fn new(kernel: &mut KernelSide) -> Result<Self> {
        let ring = kernel.ebpf.take_map("EVENTS").context("no map EVENTS")?;
        let changes = kernel.ebpf.take_map("CHANGES").context("no map CHANGES")?;
        let mut max_entries = BTreeMap::new();
        for name in HASH_MAPS {
            max_entries.insert(name, u64::from(fd_info(kernel.map(name)?)?.max_entries));
        }
        Ok(Self {
            ring: RingBuf::try_from(ring)?,
            changes: RingBuf::try_from(changes)?,
            events: Vec::new(),
            touched: HashSet::new(),
            ended: Vec::new(),
            ring_full: 0,
            max_entries,
            stacks_used: 0,
            sites_used: 0,
        })
    }

    /// Becomes readable when something happened that cannot wait for the next tick.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns this descriptor as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Takes what is in the ring buffers. Gives the events; they also go into the next sample.
    pub fn drain(&mut self) -> Vec<Event> {
        let first = self.events.len();
        while let Some(item) = self.ring.next() {
            match decode::event(&item) {
                Ok((_, event)) => self.events.push(event),
                // Both sides are built together; a record that does not fit is a bug, not the user's.
                Err(error) => debug_assert!(false, "{error}"),
            }
        }
        while let Some(item) = self.changes.next() {
            match decode::site_key(&item) {
                Ok(key) => {
                    self.touched.insert(key);
                }
                Err(error) => debug_assert!(false, "{error}"),
            }
        }
        self.events.split_at(first).1.to_vec()
    }

    /// Reads one sample. What happened before `at_ns` is in it when the kernel side was told of `kernel_tick` before
    /// that time, and the ring buffer was drained after it. With `scan`, also goes through all live blocks; its value
    /// is the `--older-than` in nanoseconds.
    pub fn collect(
        &mut self,
        kernel: &KernelSide,
        tick: u64,
        kernel_tick: u64,
        at_ns: u64,
        scan: Option<u64>,
    ) -> Result<Sample> {
        let counters = counters(kernel)?;
        let ring_full = counters[Counter::RingFull as usize];
        let sites = if ring_full == self.ring_full {
            self.touched_sites(kernel)?
        } else {
            all_sites(kernel)?
        };
        self.ring_full = ring_full;
        // These have told of their change in the tick that has just begun, and will not do so again.
        let told = |(_, totals): &&(SiteKey, SiteTotals)| totals.tick >= kernel_tick;
        self.touched = sites.iter().filter(told).map(|(key, _)| *key).collect();
        let mut processes = processes(kernel)?;
        let running = processes.len() as u64;
        let live_blocks = processes.iter().map(|(_, state)| state.live_blocks).sum();
        processes.append(&mut self.ended);
        let live = scan
            .map(|older_than_ns| live(kernel, at_ns, older_than_ns))
            .transpose()?;
        Ok(Sample {
            at_ns,
            tick,
            sites,
            pools: Vec::new(),
            pools_ns: None,
            pool_classes: Vec::new(),
            events: std::mem::take(&mut self.events),
            counters,
            live,
            limits: self.limits(live_blocks, running),
            processes,
            kernel_map_bytes: kernel_map_bytes(kernel),
        })
    }

    fn touched_sites(&self, kernel: &KernelSide) -> Result<Vec<(SiteKey, SiteTotals)>> {
        let sites = kernel.map("SITES")?;
        let mut changed = Vec::with_capacity(self.touched.len());
        for key in &self.touched {
            if let Some(totals) = batch::get(sites, key).context("cannot read a site")? {
                changed.push((*key, totals));
            }
        }
        Ok(changed)
    }

    fn limits(&self, live_blocks: u64, processes: u64) -> BTreeMap<String, Limit> {
        let used = [live_blocks, self.sites_used, self.stacks_used, processes];
        HASH_MAPS
            .iter()
            .zip(used)
            .map(|(name, used)| {
                (
                    name.to_lowercase(),
                    Limit {
                        used,
                        max: self.max_entries[name],
                    },
                )
            })
            .collect()
    }

    /// The last state of a program that has ended, or that another one has replaced, goes out of the tables into the
    /// next sample.
    pub fn take_ended(&mut self, kernel: &KernelSide, pid: u32, instance: u32) -> Result<()> {
        if let Some(mut state) = kernel.state(instance)? {
            kernel.free_state(instance)?;
            state.flags |= PROCESS_EXITED;
            self.ended.push((pid, state));
        }
        let processes = kernel.map("PROCESSES")?;
        if batch::get(processes, &pid)? == Some(instance) {
            batch::delete(processes, &[pid])?;
        }
        Ok(())
    }

    /// How many sites and stacks there are, as the model counts them.
    pub fn set_used(&mut self, sites: u64, stacks: u64) {
        self.sites_used = sites;
        self.stacks_used = stacks;
    }
}

fn all_sites(kernel: &KernelSide) -> Result<Vec<(SiteKey, SiteTotals)>> {
    let mut sites = Vec::new();
    batch::for_each(kernel.map("SITES")?, |key, totals| sites.push((*key, *totals)))
        .context("cannot read the sites")?;
    Ok(sites)
}

pub(crate) fn counters(kernel: &KernelSide) -> Result<[u64; COUNTERS]> {
    let counts: PerCpuArray<&MapData, [u64; COUNTERS]> =
        PerCpuArray::try_from(kernel.ebpf.map("COUNTS").context("no map COUNTS")?)?;
    let per_cpu = counts.get(&0, 0).context("cannot read the counters")?;
    let mut sums = [0; COUNTERS];
    for cpu in per_cpu.iter() {
        for (sum, value) in sums.iter_mut().zip(cpu) {
            *sum += value;
        }
    }
    Ok(sums)
}

fn processes(kernel: &KernelSide) -> Result<Vec<(u32, ProcessState)>> {
    let mut instances = Vec::new();
    batch::for_each(kernel.map("PROCESSES")?, |pid: &u32, instance: &u32| {
        instances.push((*pid, *instance));
    })
    .context("cannot read the processes")?;
    let mut processes = Vec::with_capacity(instances.len());
    for (pid, instance) in instances {
        if let Some(state) = kernel.state(instance)? {
            processes.push((pid, state));
        }
    }
    Ok(processes)
}

/// The instance that the kernel side has for a process now.
pub(crate) fn instance_of(kernel: &KernelSide, pid: u32) -> Result<Option<u32>> {
    batch::get(kernel.map("PROCESSES")?, &pid).context("cannot read the instance of a process")
}

/// Blocks of programs that are gone make room.
pub(crate) fn purge_live(kernel: &KernelSide, dead: &HashSet<u32>) -> Result<()> {
    let live = kernel.map("LIVE")?;
    let mut keys: Vec<LiveKey> = Vec::new();
    batch::for_each(live, |key: &LiveKey, _: &LiveValue| {
        if dead.contains(&key.instance) {
            keys.push(*key);
        }
    })
    .context("cannot read the live blocks")?;
    batch::delete(live, &keys).context("cannot take out live blocks")
}

/// Sites of programs that ended long ago make room.
pub(crate) fn purge_sites(kernel: &KernelSide, dead: &HashSet<u32>) -> Result<()> {
    let sites = kernel.map("SITES")?;
    let mut keys: Vec<SiteKey> = Vec::new();
    batch::for_each(sites, |key: &SiteKey, _: &SiteTotals| {
        if dead.contains(&key.instance) {
            keys.push(*key);
        }
    })
    .context("cannot read the sites")?;
    batch::delete(sites, &keys).context("cannot take out sites")
}

fn live(kernel: &KernelSide, at_ns: u64, older_than_ns: u64) -> Result<LiveScan> {
    let mut by_thread: HashMap<(SiteKey, u32), SiteAges> = HashMap::new();
    batch::for_each(kernel.map("LIVE")?, |key: &LiveKey, value: &LiveValue| {
        let site = SiteKey {
            instance: key.instance,
            domain: value.domain,
            stack: value.stack,
        };
        by_thread.entry((site, value.thread)).or_default().add(
            value.born_ns,
            1,
            value.bytes,
            at_ns,
            older_than_ns,
        );
    })
    .context("cannot read the live blocks")?;
    let mut scan = LiveScan {
        at_ns,
        ..LiveScan::default()
    };
    for ((site, thread), ages) in by_thread {
        scan.sites.entry(site).or_default().merge(&ages);
        let held = Held {
            objects: ages.objects.iter().sum(),
            bytes: ages.bytes.iter().sum(),
        };
        scan.threads.entry(site).or_default().push((thread, held));
    }
    for threads in scan.threads.values_mut() {
        threads.sort_unstable_by_key(|(thread, _)| *thread);
    }
    Ok(scan)
}

impl SiteAges {
    fn merge(&mut self, other: &Self) {
        for (sum, value) in self.objects.iter_mut().zip(other.objects) {
            *sum += value;
        }
        for (sum, value) in self.bytes.iter_mut().zip(other.bytes) {
            *sum += value;
        }
        self.oldest_born_ns = match (self.oldest_born_ns, other.oldest_born_ns) {
            (0, born) | (born, 0) => born,
            (a, b) => a.min(b),
        };
        self.old_bytes += other.old_bytes;
        self.old_objects += other.old_objects;
    }

    /// Blocks born at one time.
    pub(crate) fn add(&mut self, born_ns: u64, objects: u64, bytes: u64, at_ns: u64, older_than_ns: u64) {
        let age_ns = at_ns.saturating_sub(born_ns);
        let age = age_ns as f64 / 1e9;
        let bucket = AGE_EDGES_SECONDS
            .iter()
            .position(|edge| age < *edge)
            .unwrap_or(AGE_EDGES_SECONDS.len());
        self.objects[bucket] += objects;
        self.bytes[bucket] += bytes;
        if self.oldest_born_ns == 0 || born_ns < self.oldest_born_ns {
            self.oldest_born_ns = born_ns;
        }
        if age_ns >= older_than_ns {
            self.old_bytes += bytes;
            self.old_objects += objects;
        }
    }
}

/// Memory of all maps, as the kernel accounts it.
fn kernel_map_bytes(kernel: &KernelSide) -> Option<u64> {
    ALL_MAPS
        .iter()
        .filter_map(|name| kernel.ebpf.map(name).and_then(map_fd))
        .map(|fd| fd_info(fd).ok()?.memlock)
        .sum()
}

struct FdInfo {
    memlock: Option<u64>,
    max_entries: u32,
}

fn fd_info(fd: BorrowedFd<'_>) -> io::Result<FdInfo> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    Ok(FdInfo {
        memlock: field("memlock:"),
        max_entries: field("max_entries:").unwrap_or(0) as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_fall_into_their_buckets() {
        let mut ages = SiteAges::default();
        let now = 100_000_000_000_000;
        for (age_s, bucket) in [(0.5, 0), (1.0, 1), (9.9, 1), (59.0, 2), (90_000.0, 8)] {
            let born_ns = now - (age_s * 1e9) as u64;
            let before = ages.objects[bucket];
            ages.add(born_ns, 1, 10, now, 10_000_000_000);
            assert_eq!(ages.objects[bucket], before + 1, "{age_s}");
            assert_eq!(ages.bytes[bucket], ages.objects[bucket] * 10, "{age_s}");
        }
        assert_eq!(ages.oldest_born_ns, now - 90_000_000_000_000);
        assert_eq!((ages.old_objects, ages.old_bytes), (2, 20));
    }
}
