//! Small Python objects: which pools the watched processes have in use, and which stack took each into use.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use memwatch_common::{Domain, LiveKey, SiteKey, python::OpenedPool};

use super::{clock, start::PythonMode};
use crate::{
    collect::{
        batch,
        sample::{LiveScan, PoolTotals, Sample},
    },
    probe::load::KernelSide,
    python::{
        ProcessMemory,
        allocator::{Base, PythonDomain},
        interpreter::Interpreter,
        pool_sites::PoolSites,
        pymalloc::Pool,
    },
    symbolize::python::PythonNames,
};

/// So often memory that changes is read before it is called unknown.
const TRIES: usize = 3;

/// Reading the heads of all pools may take one part in so many of the time.
const SHARE_OF_TIME: u32 = 10;

/// Why a process's objects are not shown as wanted.
#[derive(Clone, Copy, Debug)]
pub enum NotShown {
    /// Small ones only.
    Pools(&'static str),
    /// All of a free-threaded build.
    Pages(&'static str),
}

pub struct Pools {
    map: OwnedFd,
    pub mode: PythonMode,
    processes: HashMap<u32, PoolSites>,
    /// When the pools were last read, and what that took.
    read: Option<(Instant, Duration)>,
}

impl Pools {
    pub fn new(kernel: &KernelSide, mode: PythonMode) -> Result<Self> {
        Ok(Self {
            map: kernel.own_map("POOLS")?,
            mode,
            processes: HashMap::new(),
            read: None,
        })
    }

    /// A process whose interpreter is known now. Gives why its small objects will not be shown as wanted, if they will not.
    pub fn add(
        &mut self,
        instance: u32,
        interpreter: &Interpreter,
        memory: &ProcessMemory,
    ) -> Option<NotShown> {
        let allocator = &interpreter.file.allocator;
        if self.mode == PythonMode::Off || self.mode == PythonMode::Exact && !allocator.is_inlined() {
            return None;
        }
        let active = interpreter.active_allocator(PythonDomain::Object, memory);
        // Each block is libc's then.
        if active
            .ok()
            .flatten()
            .is_some_and(|active| active.base == Base::Malloc)
        {
            return None;
        }
        // Such a build has pymalloc's code too, and never runs it.
        if interpreter.build.free_threaded {
            return self.add_free_threaded(instance, interpreter, memory);
        }
        if allocator.new_pool.is_none() && allocator.pool_sites.is_empty() {
            return Some(NotShown::Pools(
                "small Python objects are not shown: it could not be found where this build begins a pool",
            ));
        }
        self.processes.entry(instance).or_default();
        None
    }

    fn add_free_threaded(
        &mut self,
        instance: u32,
        interpreter: &Interpreter,
        memory: &ProcessMemory,
    ) -> Option<NotShown> {
        if interpreter.file.fresh_page.is_none() {
            return Some(NotShown::Pages(
                "Python objects are not shown: it could not be found where this free-threaded build takes a page of mimalloc into use (--python exact shows them if its allocator is not inlined)",
            ));
        }
        // What is read changes meanwhile.
        if (0..TRIES).all(|_| interpreter.pools(&[], memory).is_err()) {
            return Some(NotShown::Pages(
                "Python objects are not shown: mimalloc's pages are not as this memwatch knows them from 3.13.5 and 3.14.7 (--python exact shows them if its allocator is not inlined)",
            ));
        }
        self.processes.entry(instance).or_default();
        (self.mode == PythonMode::Exact).then_some(NotShown::Pools(
            "Python objects are estimated by mimalloc's pages: this free-threaded build has its allocator inlined, and few of its blocks or none are counted one by one",
        ))
    }

    /// A child runs its parent's interpreter. What it has of its parent was there before it.
    pub fn forked(&mut self, instance: u32, parent: u32) {
        if self.processes.contains_key(&parent) {
            self.processes.entry(instance).or_default();
        }
    }

    pub fn forget(&mut self, instances: &HashSet<u32>) {
        if !instances.iter().any(|gone| self.processes.contains_key(gone)) {
            return;
        }
        self.processes.retain(|instance, _| !instances.contains(instance));
        let mut keys = Vec::new();
        let read = batch::for_each(self.map.as_fd(), |key: &LiveKey, _: &OpenedPool| {
            if instances.contains(&key.instance) {
                keys.push(*key);
            }
        });
        // What stays only takes room.
        let _ = read.and_then(|()| batch::delete(self.map.as_fd(), &keys));
    }

    /// Reads all pools into the sample, when it is time to.
    pub fn collect(&mut self, names: &PythonNames, sample: &mut Sample, older_than_ns: u64) -> Result<()> {
        let now = Instant::now();
        let due = self
            .read
            .is_none_or(|(at, took)| now.duration_since(at) >= took * SHARE_OF_TIME);
        if !self.processes.is_empty() && due {
            let began = clock::thread_cpu();
            sample.pools_ns = Some(clock::monotonic_ns());
            self.read_all(names, sample)?;
            self.read = Some((now, clock::thread_cpu().saturating_sub(began)));
        }
        if let Some(scan) = &mut sample.live {
            self.add_ages(scan, older_than_ns);
        }
        Ok(())
    }

    fn read_all(&mut self, names: &PythonNames, sample: &mut Sample) -> Result<()> {
        let began_ns = clock::monotonic_ns();
        let mut known = self.known_pages(names)?;
        // A process that has ended, or is just starting, has no pools to be read.
        let found: HashMap<u32, Vec<Pool>> = self
            .processes
            .keys()
            .filter_map(|instance| {
                let (interpreter, memory) = names.process(*instance)?;
                let known = known.remove(instance).unwrap_or_default();
                Some((*instance, interpreter.pools(&known, memory).ok()?.pools))
            })
            .collect();
        // After the pools themselves: one that was opened meanwhile is not taken for an old one.
        let mut opened: HashMap<u32, HashMap<u64, OpenedPool>> = HashMap::new();
        batch::for_each(self.map.as_fd(), |key: &LiveKey, pool: &OpenedPool| {
            if found.contains_key(&key.instance) {
                opened
                    .entry(key.instance)
                    .or_default()
                    .insert(key.address(), *pool);
            }
        })
        .context("cannot read who opened Python's pools")?;
        let none = HashMap::new();
        for (instance, pools) in &found {
            let Some(sites) = self.processes.get_mut(instance) else {
                continue;
            };
            let opened = opened.get(instance).unwrap_or(&none);
            let changed: Vec<_> = sites.update(pools, opened, began_ns).collect();
            sample
                .pools
                .extend(changed.into_iter().map(|(stack, site)| PoolTotals {
                    key: site_key(*instance, stack),
                    totals: site.totals,
                    classes: sites.classes(stack),
                }));
            sample.pool_classes.push((*instance, sites.uses()));
            // mimalloc uses an empty page again without taking it into use anew.
            let kept = pools.iter().filter(|pool| pool.in_use == 0);
            let kept: HashSet<u64> = kept.map(|pool| pool.address).collect();
            let gone = |address: &u64, pool: &OpenedPool| {
                pool.born_ns < began_ns && !sites.holds(*address) && !kept.contains(address)
            };
            let gone: Vec<LiveKey> = opened
                .iter()
                .filter(|(address, pool)| gone(address, pool))
                .map(|(address, _)| LiveKey::new(*address, *instance))
                .collect();
            self.take_out(&gone, opened);
        }
        Ok(())
    }

    /// Pages of mimalloc that were taken into use: very large blocks are found by these.
    fn known_pages(&self, names: &PythonNames) -> Result<HashMap<u32, Vec<u64>>> {
        let free_threaded = |instance: &u32| {
            let process = names.process(*instance);
            process.is_some_and(|(interpreter, _)| interpreter.build.free_threaded)
        };
        let mut known: HashMap<u32, Vec<u64>> = self
            .processes
            .keys()
            .filter(|instance| free_threaded(instance))
            .map(|instance| (*instance, Vec::new()))
            .collect();
        if !known.is_empty() {
            batch::for_each(self.map.as_fd(), |key: &LiveKey, _: &OpenedPool| {
                if let Some(pages) = known.get_mut(&key.instance) {
                    pages.push(key.address());
                }
            })
            .context("cannot read who opened Python's pages")?;
        }
        Ok(known)
    }

    /// Makes room, unless a pool has been opened again meanwhile.
    fn take_out(&self, gone: &[LiveKey], opened: &HashMap<u64, OpenedPool>) {
        let unchanged = |key: &&LiveKey| {
            let now: Option<OpenedPool> = batch::get(self.map.as_fd(), *key).ok().flatten();
            now.as_ref() == opened.get(&key.address())
        };
        let keys: Vec<LiveKey> = gone.iter().filter(unchanged).copied().collect();
        // What stays only takes room.
        let _ = batch::delete(self.map.as_fd(), &keys);
    }

    /// Blocks in pools that were opened are as old as these, at most.
    fn add_ages(&self, scan: &mut LiveScan, older_than_ns: u64) {
        for (instance, sites) in &self.processes {
            for (stack, born_ns, blocks, bytes) in sites.ages() {
                scan.sites.entry(site_key(*instance, stack)).or_default().add(
                    born_ns,
                    blocks,
                    bytes,
                    scan.at_ns,
                    older_than_ns,
                );
            }
        }
    }
}

fn site_key(instance: u32, stack: u64) -> SiteKey {
    SiteKey {
        instance,
        domain: Domain::PythonObject as u32,
        stack,
    }
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools")
            .field("processes", &self.processes.len())
            .finish_non_exhaustive()
    }
}
