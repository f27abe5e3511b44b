//! One watch: the kernel side in place, the model it feeds, and the names. No loop and no output; the controller
//! has those.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use memwatch_common::{
    Counter, Domain, Event, EventKind, ProcessState,
    counter::Effect,
    event::{MAPPING_ANONYMOUS, MAPPING_EXECUTABLE},
    process::{PROCESS_EXITED, PROCESS_FORKED},
};

use crate::{
    collect::{
        collector::{self, Collector},
        sample::Sample,
        stacks::KernelStacks,
    },
    model::{
        assemble::{self, Meta},
        counts::Counts,
        group::QueryError,
        health::Notice,
        processes::ProcessFacts,
        query::Query,
        report::{Host, Kind, Limit, Overhead, Predicted, Process, Report},
        state::{Baseline, Model},
    },
    probe::{
        attach::{Attached, Attacher, Scope},
        load::KernelSide,
    },
    symbolize::{Symbolizer, names::StackNames},
    target::{ProcRoot, describe::Describer, modules::ProcessModules, rss::SelfUsage},
    unwind::publish::Publisher,
    watch::{
        pools::{NotShown, Pools},
        pythons::Pythons,
    },
};

pub mod clock;
pub mod command;
pub mod neighbours;
pub mod overhead;
pub mod pools;
pub mod pythons;
pub mod start;
mod trial;

/// Host-wide probes give way to probes in the watched processes when the others hit them more often than this:
/// at half a microsecond a hit, one per cent of a core.
const FOREIGN_HITS_PER_SECOND: f64 = 20_000.0;

/// Names may take this long per tick on the screen; what does not fit is named in the next.
pub const NAMING_BUDGET: Duration = Duration::from_millis(150);

pub struct Watch {
    kernel: KernelSide,
    collector: Collector,
    attacher: Attacher,
    model: Model,
    symbolizer: Symbolizer<KernelStacks>,
    publisher: Publisher,
    pythons: Pythons,
    pools: Pools,
    describer: Describer,
    proc: ProcRoot,
    /// Watched and alive: pid to instance.
    alive: BTreeMap<u32, u32>,
    facts: HashMap<u32, ProcessFacts>,
    /// Ended, with blocks that are still in the map of live blocks.
    dead: HashSet<u32>,
    /// Children, and whom they were forked from: what they free may be a copy of that one's block.
    parents: HashMap<u32, u32>,
    notices: Vec<Notice>,
    scope_is_automatic: bool,
    /// Whether interpreters are looked for.
    python: bool,
    meta: Meta,
    /// What watching each block of CPython was thought to cost.
    predicted: Option<Predicted>,
    since: jiff::Timestamp,
    since_ns: u64,
    tick: u64,
    ticked_at: Instant,
    usage: Option<SelfUsage>,
    foreign_hits: u64,
    work: overhead::Work,
    scanned: Option<(Instant, Duration)>,
}

impl Watch {
    pub fn ring_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.collector.ring_fd()
    }

    /// No watched process is left.
    pub fn all_ended(&self) -> bool {
        self.alive.is_empty()
    }

    pub fn alive(&self) -> impl Iterator<Item = u32> + '_ {
        self.alive.keys().copied()
    }

    /// Acts on what cannot wait for the next tick: forks, execs, exits, new code.
    pub fn react(&mut self) -> Result<()> {
        let mut new_code = Vec::new();
        for event in self.collector.drain() {
            match EventKind::from_u32(event.kind) {
                Some(EventKind::Fork) => self.forked(&event)?,
                Some(EventKind::Exec) => self.replaced(&event)?,
                Some(EventKind::Exit) => self.ended(&event)?,
                Some(EventKind::Map)
                    if event.flags & (MAPPING_EXECUTABLE | MAPPING_ANONYMOUS) == MAPPING_EXECUTABLE =>
                {
                    new_code.push(event);
                }
                _ => {}
            }
        }
        new_code.dedup_by_key(|event| event.pid);
        for event in new_code {
            self.new_code(&event);
        }
        Ok(())
    }

    fn forked(&mut self, event: &Event) -> Result<()> {
        if self.alive.get(&event.pid) == Some(&event.instance) {
            return Ok(());
        }
        self.kernel.reserve_unknown_site(event.instance)?;
        self.alive.insert(event.pid, event.instance);
        self.parents.insert(event.instance, event.a as u32);
        self.symbolizer
            .add_process(event.instance, event.pid, Some(event.a as u32));
        self.python_forked(event);
        if self.attacher.scope == Scope::Process && self.attach(event.pid).is_some() {
            let late = clock::monotonic_ns().saturating_sub(event.end_ns) as f64 / 1e6;
            self.notice(
                format!(
                    "process {} was probed {late:.1} ms after its fork: what it allocated before is not counted (--probe-scope host has no such gap)",
                    event.pid
                ),
                Effect::Totals,
            );
        }
        self.describe(event.pid, event.instance);
        Ok(())
    }

    fn replaced(&mut self, event: &Event) -> Result<()> {
        if self.alive.get(&event.pid) == Some(&event.instance) {
            return Ok(());
        }
        let old = event.a as u32;
        self.collector.take_ended(&self.kernel, event.pid, old)?;
        self.symbolizer.end_process(old);
        self.dead.insert(old);
        self.begun(event)
    }

    /// A program runs that was not forked from a watched one.
    fn begun(&mut self, event: &Event) -> Result<()> {
        self.kernel.reserve_unknown_site(event.instance)?;
        self.alive.insert(event.pid, event.instance);
        self.symbolizer.add_process(event.instance, event.pid, None);
        // The kernel maps the program itself, so no event tells of its code.
        self.new_code(event);
        Ok(())
    }

    fn ended(&mut self, event: &Event) -> Result<()> {
        if self.alive.get(&event.pid) == Some(&event.instance) {
            self.alive.remove(&event.pid);
        }
        self.collector
            .take_ended(&self.kernel, event.pid, event.instance)?;
        self.symbolizer.end_process(event.instance);
        self.attacher.detach_process(event.pid);
        self.dead.insert(event.instance);
        Ok(())
    }

    /// Forks, execs and exits whose events were lost on the way: the kernel side's tables tell of them too.
    fn catch_up(&mut self, processes: &[(u32, ProcessState)]) -> Result<()> {
        for (pid, state) in processes {
            let mut event = Event::ZERO;
            event.pid = *pid;
            event.instance = state.instance;
            event.end_ns = state.forked_ns;
            let known = self.alive.get(pid).copied();
            if state.flags & PROCESS_EXITED != 0 {
                // A program that started another one has ended too, but its process goes on under a new number.
                let now = collector::instance_of(&self.kernel, *pid)?;
                if now == Some(state.instance) {
                    self.ended(&event)?;
                }
            } else if let Some(old) = known {
                event.a = u64::from(old);
                self.replaced(&event)?;
            } else if state.flags & PROCESS_FORKED != 0 {
                event.a = u64::from(state.parent_instance);
                self.forked(&event)?;
            } else {
                self.begun(&event)?;
            }
        }
        Ok(())
    }

    /// A program or a library was loaded: it may be an allocator or an interpreter.
    fn new_code(&mut self, event: &Event) {
        self.symbolizer.refresh(event.instance);
        let Some(attached) = self.attach(event.pid) else {
            return;
        };
        self.publish(event.pid, &attached.modules);
        self.look_for_python(event.pid, event.instance, &attached.modules);
        let late = clock::monotonic_ns().saturating_sub(event.end_ns) as f64 / 1e6;
        for file in attached.new_files {
            self.notice(
                format!("{file} was probed {late:.1} ms after process {} loaded it: what it handed out before is not counted", event.pid),
                Effect::Totals,
            );
        }
        self.describe_with(event.pid, event.instance, &attached.modules);
    }

    fn attach(&mut self, pid: u32) -> Option<Attached> {
        // A process that has just ended cannot be probed, and need not be.
        self.attacher.process(&self.kernel, pid).ok()
    }

    /// Tells the kernel side where the process has its code, for whole stacks.
    fn publish(&mut self, pid: u32, modules: &ProcessModules) {
        let Some(instance) = self.alive.get(&pid).copied() else {
            return;
        };
        self.publisher.map(instance, pid, modules);
    }

    fn look_for_python(&mut self, pid: u32, instance: u32, modules: &ProcessModules) {
        if self.python
            && self.symbolizer.python().interpreter(instance).is_none()
            && let Some(outcome) = self.pythons.look(pid, instance, modules)
        {
            self.python(outcome);
        }
    }

    fn python(&mut self, outcome: pythons::Outcome) {
        match outcome {
            pythons::Outcome::Ready {
                instance,
                interpreter,
                memory,
            } => {
                if let Some(why) = self.pools.add(instance, &interpreter, &memory) {
                    self.no_pools(why);
                }
                self.symbolizer.python().add(instance, interpreter.into(), memory);
                for domain in pythons::DOMAINS {
                    if !self.meta.domains.contains(&domain) {
                        self.meta.domains.push(domain);
                    }
                }
            }
            pythons::Outcome::Refused { pid, why } => {
                self.notice(format!("process {pid}: {why}"), Effect::Stacks);
            }
        }
    }

    fn no_pools(&mut self, why: NotShown) {
        // Without its pools a process has its large blocks still, which are libc's; without its pages it has none.
        let effect = match why {
            NotShown::Pools(_) => Effect::Stacks,
            NotShown::Pages(_) => Effect::Totals,
        };
        let (NotShown::Pools(why) | NotShown::Pages(why)) = why;
        self.notice(why.to_owned(), effect);
    }

    /// A child runs its parent's interpreter.
    fn python_forked(&mut self, event: &Event) {
        let parent = event.a as u32;
        let Some(interpreter) = self.symbolizer.python().interpreter(parent).cloned() else {
            self.pythons.forked_early(parent, event.pid, event.instance);
            return;
        };
        if let Ok(memory) = self.pythons.forked(event.pid, event.instance, &interpreter) {
            self.symbolizer.python().add(event.instance, interpreter, memory);
            self.pools.forked(event.instance, parent);
        }
    }

    fn notice(&mut self, text: String, effect: Effect) {
        /// More would say nothing new and fill the screen.
        const MOST: usize = 20;
        if self.notices.len() < MOST {
            self.notices.push(Notice { text, effect });
        }
    }

    fn describe(&mut self, pid: u32, instance: u32) {
        self.describe_with(pid, instance, &ProcessModules::default());
    }

    fn describe_with(&mut self, pid: u32, instance: u32, modules: &ProcessModules) {
        let Ok(process) = self.describer.describe(pid, modules) else {
            return;
        };
        let mut facts = facts(process);
        if facts.runtimes.is_empty()
            && let Some(known) = self.facts.get(&instance)
        {
            facts.runtimes.clone_from(&known.runtimes);
        }
        self.model.describe(instance, facts.clone());
        self.facts.insert(instance, facts);
    }

    /// One tick: reads what changed into the model. `naming`: how long names may take until the next.
    pub fn tick(&mut self, query: &Query, naming: Option<Duration>) -> Result<()> {
        // In this order: a site that changes from here on tells of it once more, and what changed before at_ns is
        // in the ring buffer by now. The kernel side's first tick is 1: a new site's is 0.
        let kernel_tick = self.tick + 2;
        self.kernel.set_tick(kernel_tick)?;
        let now = Instant::now();
        let at_ns = clock::monotonic_ns();
        self.react()?;
        let scan = self.scan_now(query, now);
        let mut sample = self
            .collector
            .collect(&self.kernel, self.tick, kernel_tick, at_ns, scan)?;
        if scan.is_some() {
            self.scanned = Some((Instant::now(), now.elapsed()));
        }
        self.tell_of_tables(&mut sample);
        self.catch_up(&sample.processes)?;
        let elapsed = now.duration_since(self.ticked_at).as_secs_f64();
        self.measure(&sample.counters, elapsed);
        let foreign = sample.counters[Counter::ForeignHits as usize];
        for outcome in self.pythons.look_again() {
            self.python(outcome);
        }
        self.pools
            .collect(self.symbolizer.python(), &mut sample, older_than_ns(query))?;
        self.pythons.learn(self.symbolizer.python());
        let changed = sample.sites.iter().map(|(key, _)| key);
        for key in changed.chain(sample.pools.iter().map(|pools| &pools.key)) {
            self.symbolizer.read_python(key.instance, key.stack);
        }
        self.model.apply(sample);
        self.refresh_memory();
        self.clean_up()?;
        self.collector.set_used(
            self.model.sites().count() as u64,
            self.symbolizer.source().known(),
        );
        if self.scope_is_automatic && self.attacher.scope == Scope::Host && self.tick > 0 {
            self.spare_neighbours(foreign, elapsed)?;
        }
        self.foreign_hits = foreign;
        self.ticked_at = now;
        self.tick += 1;
        self.symbolizer.begin_tick(naming);
        Ok(())
    }

    /// What has become of unwind tables since the last tick.
    fn tell_of_tables(&mut self, sample: &mut Sample) {
        let progress = self.publisher.progress();
        sample.counters[Counter::UnwindRowsFull as usize] += progress.lost;
        let limit = Limit {
            used: progress.rows,
            max: progress.most_rows,
        };
        sample.limits.insert("unwind_rows".to_owned(), limit);
        for failure in progress.failures {
            self.notice(failure, Effect::Stacks);
        }
    }

    /// Going through all live blocks costs what exists, so it is done as often as it stays below one part in ten.
    fn scan_now(&self, query: &Query, now: Instant) -> Option<u64> {
        let due = match self.scanned {
            Some((at, took)) => now.duration_since(at) >= took * 10,
            None => true,
        };
        (due || query.older_than.is_some()).then_some(older_than_ns(query))
    }

    fn spare_neighbours(&mut self, foreign: u64, elapsed: f64) -> Result<()> {
        let rate = (foreign - self.foreign_hits) as f64 / elapsed.max(1e-3);
        if rate <= FOREIGN_HITS_PER_SECOND {
            return Ok(());
        }
        let pids: Vec<u32> = self.alive().collect();
        self.attacher.narrow(&mut self.kernel, &pids)?;
        self.notice(
            format!(
                "other processes hit the probes {rate:.0} times a second, so these now sit in the watched processes only: children are probed some milliseconds after their fork"
            ),
            Effect::Work,
        );
        Ok(())
    }

    fn refresh_memory(&mut self) {
        let alive: Vec<(u32, u32)> = self
            .alive
            .iter()
            .map(|(pid, instance)| (*pid, *instance))
            .collect();
        for (pid, instance) in alive {
            let (Some(facts), Ok(memory)) = (self.facts.get_mut(&instance), self.proc.memory(pid)) else {
                continue;
            };
            facts.rss_bytes = memory.rss_bytes.or(facts.rss_bytes);
            facts.peak_rss_bytes = memory.peak_rss_bytes.or(facts.peak_rss_bytes);
            self.model.describe(instance, facts.clone());
        }
    }

    /// Makes room in the kernel's maps for those who still run.
    fn clean_up(&mut self) -> Result<()> {
        self.attacher.look_again();
        self.attacher.let_go_of_replaced();
        let needed = self.ancestors();
        let (kept, gone): (HashSet<u32>, HashSet<u32>) =
            self.dead.iter().partition(|instance| needed.contains(instance));
        if !gone.is_empty() {
            collector::purge_live(&self.kernel, &gone)?;
            self.pools.forget(&gone);
            self.dead = kept;
        }
        let forgotten = self.model.forget();
        if !forgotten.is_empty() {
            collector::purge_sites(&self.kernel, &forgotten.iter().copied().collect())?;
            self.symbolizer.forget(&forgotten);
            // A child may live on where its parent's code was.
            let unused: Vec<u32> = forgotten
                .iter()
                .copied()
                .filter(|instance| !needed.contains(instance))
                .collect();
            self.publisher.unmap(unused);
            self.pythons.forget(&forgotten);
            for instance in forgotten {
                self.parents.remove(&instance);
                self.facts.remove(&instance);
            }
        }
        Ok(())
    }

    /// Whose blocks living processes may hold copies of.
    fn ancestors(&self) -> HashSet<u32> {
        let mut all = HashSet::new();
        for instance in self.alive.values() {
            let mut next = self.parents.get(instance);
            while let Some(parent) = next
                && all.insert(*parent)
            {
                next = self.parents.get(parent);
            }
        }
        all
    }

    fn measure(&mut self, counters: &[u64; memwatch_common::counter::COUNTERS], elapsed: f64) {
        let usage = SelfUsage::now(Instant::now()).ok();
        let cpu = match (&usage, &self.usage) {
            (Some(now), Some(before)) => now.cpu_percent_since(before),
            _ => None,
        };
        let rss = self
            .proc
            .own_pid()
            .and_then(|pid| self.proc.rss_bytes(pid).ok().flatten());
        self.usage = usage;
        let work = overhead::Work::of(counters, &self.model);
        self.meta.overhead = Overhead {
            target_percent: (self.tick > 0).then(|| work.percent_since(&self.work, elapsed, &self.attacher)),
            self_cpu_percent: cpu.filter(|_| self.tick > 0),
            self_rss_bytes: rss,
            predicted: self.predicted,
            ..Overhead::default()
        };
        self.work = work;
    }

    /// What is known now, grouped and named.
    pub fn report(
        &mut self,
        query: &Query,
        kind: Kind,
        baseline: Option<&Baseline>,
    ) -> Result<Report, QueryError> {
        self.refresh_meta();
        self.meta.kind = kind;
        assemble::report(
            &self.model,
            query,
            &mut self.symbolizer,
            baseline,
            self.model.at_ns(),
            &self.meta,
        )
    }

    /// What is known now as it is, for saving it.
    pub fn parts(&mut self) -> (&Model, &mut dyn StackNames, &Meta) {
        self.refresh_meta();
        (&self.model, &mut self.symbolizer, &self.meta)
    }

    fn refresh_meta(&mut self) {
        let passed = Duration::from_nanos(self.model.at_ns().saturating_sub(self.since_ns));
        self.meta.since = self.since.to_string();
        self.meta.time =
            (self.since + jiff::SignedDuration::try_from(passed).unwrap_or_default()).to_string();
        self.meta.probes = self.attacher.report(&self.kernel);
        self.meta.notices.clone_from(&self.notices);
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    /// `CLOCK_MONOTONIC` of the instant from which on nothing is missed.
    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    pub fn baseline(&self) -> Baseline {
        self.model.baseline()
    }

    /// Bytes in use over all that is watched.
    pub fn inuse_bytes(&self) -> u64 {
        self.model
            .sites()
            .map(|(_, site)| Counts::from(&site.totals).inuse_bytes())
            .sum()
    }

    pub fn tick_number(&self) -> u64 {
        self.tick
    }

    /// Nothing counts from this instant on; the probes go when the watch is dropped.
    pub fn stop(&mut self) -> Result<()> {
        self.kernel.set_gate(false)
    }
}

fn older_than_ns(query: &Query) -> u64 {
    query.older_than.map_or(0, |age| age.as_nanos() as u64)
}

fn facts(process: Process) -> ProcessFacts {
    ProcessFacts {
        ppid: process.ppid,
        start_time: process.start_time,
        comm: process.comm,
        exe: process.exe,
        cmdline: process.cmdline,
        cgroup: process.cgroup,
        container: process.container,
        pod: process.pod,
        runtimes: process.runtimes,
        rss_bytes: process.rss_bytes,
        peak_rss_bytes: process.peak_rss_bytes,
    }
}

/// What stays the same over a watch.
fn meta(settings: &start::Settings) -> Meta {
    Meta {
        interval_seconds: settings.interval.as_secs_f64(),
        host: host(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        follow: settings.follow,
        max_depth: settings.bounds.max_frames,
        domains: vec![Domain::Native, Domain::Mmap],
        python: Some(settings.python.name()),
        ..Meta::default()
    }
}

fn host() -> Host {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Host {
        name: read("hostname"),
        kernel: read("osrelease"),
        arch: std::env::consts::ARCH.to_owned(),
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("alive", &self.alive)
            .field("tick", &self.tick)
            .finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closed before the first probe goes: a free whose probe is already gone would look like a leak to nobody
        // any more, but a return without its call would be counted.
        let _ = self.kernel.set_gate(false);
    }
}
