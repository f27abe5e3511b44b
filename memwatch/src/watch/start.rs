//! From a target to a watch: everything in place, then the gate is opened at one instant.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsString,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use memwatch_common::{Event, counter::Effect, process::PROCESS_FOLLOW};

use super::{
    Watch, clock, command::HeldCommand, facts, meta, neighbours, overhead, pools::Pools, pythons::Pythons,
};
use crate::{
    cli::{
        error::{ExitCode, Failure},
        resolve::Verbosity,
    },
    collect::{collector::Collector, stacks::KernelStacks},
    model::state::Model,
    named::named,
    probe::{
        attach::{Attacher, Scope},
        capabilities::kernel_version,
        links::Method,
        load::{Bounds, KernelSide},
        plan::Abilities,
        preflight::{self, ReturnProbes},
        price::Prices,
    },
    symbolize::Symbolizer,
    target::{
        ProcRoot,
        describe::Describer,
        select::{Selector, Target},
        status::Seccomp,
    },
    unwind::publish::{self, Publisher},
};

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Running(Target),
    /// Started by memwatch, watched from its first instruction.
    Command(Vec<OsString>),
}

named! {
    /// Where the user wants the probes.
    #[derive(Default)]
    ScopeChoice {
        /// In the whole host while the neighbours are quiet, else in the watched processes.
        #[default]
        Auto = "auto",
        Host = "host",
        Process = "process",
    }
}

/// Tables are waited for this long before a watch begins.
const MOST_FOR_TABLES: Duration = Duration::from_secs(10);

named! {
    /// How Python programs are watched.
    #[derive(Default)]
    PythonMode {
        /// What CPython asks libc for block by block, small objects by the pools that they are in.
        #[default]
        Pools = "pools",
        /// Each block that CPython hands out.
        Exact = "exact",
        /// As any other program.
        Off = "off",
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub subject: Subject,
    pub bounds: Bounds,
    pub interval: Duration,
    pub follow: bool,
    pub scope: ScopeChoice,
    pub method: Method,
    pub python: PythonMode,
    /// With [`PythonMode::Exact`]: whatever it costs the target.
    pub force: bool,
    /// Unwind tables are kept between runs.
    pub cache: bool,
}

/// What is told while a watch is put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// For those who want to know.
    Step(&'a str),
    /// For everybody.
    Warning(&'a str),
}

impl Told<'_> {
    /// On stderr, as far as the user wants.
    pub fn say(self, verbosity: Verbosity) {
        let (text, wanted) = match self {
            Self::Step(text) => (text, verbosity >= Verbosity::Verbose),
            Self::Warning(text) => (text, verbosity > Verbosity::Quiet),
        };
        if wanted {
            // Nobody reads it: no reason not to watch.
            let _ = writeln!(std::io::stderr(), "memwatch: {text}");
        }
    }
}

/// Puts a watch in place. `told` gets each step.
pub fn start(settings: &Settings, told: &mut dyn FnMut(Told<'_>)) -> Result<Watch> {
    let progress = &mut |step: &str| told(Told::Step(step));
    let proc = ProcRoot::default();
    let before = neighbours::Reading::take(&proc);
    let (pids, held) = subject(&settings.subject)?;
    // Not before: a command that is started must not inherit it.
    raise_file_limit();
    progress("loading the kernel side");
    let mut kernel = KernelSide::load(&settings.bounds, settings.method).map_err(not_permitted)?;
    progress("trying return probes on a process of our own");
    let return_probes = preflight::return_probes(&kernel).map_err(not_permitted)?;
    let pids = endurable(&proc, &settings.subject, pids, return_probes)?;
    // For figures only.
    let prices = Prices::measure(&kernel, return_probes, clock::thread_cpu).unwrap_or_default();
    let collector = Collector::new(&mut kernel)?;
    let (major, minor) = kernel_version();
    let attacher = Attacher::new(
        proc.clone(),
        Abilities {
            python: settings.python == PythonMode::Exact,
            pools: settings.python != PythonMode::Off,
            ..Abilities::of_kernel(major, minor, true)
        },
        Scope::Process,
    )
    .priced(prices);
    let symbolizer = Symbolizer::new(KernelStacks::new(&kernel)?);
    let mut watch = Watch {
        collector,
        attacher,
        model: Model::new(),
        symbolizer,
        publisher: Publisher::new(
            &kernel,
            publish::Settings {
                most_rows: settings.bounds.unwind_rows,
                cache: settings.cache,
                give_back_memory: GIVE_BACK_MEMORY.get().copied(),
            },
        )?,
        pythons: Pythons::new(&kernel, proc.clone())?,
        pools: Pools::new(&kernel, settings.python)?,
        describer: Describer::new(proc.clone()),
        proc,
        alive: BTreeMap::new(),
        facts: HashMap::new(),
        dead: HashSet::new(),
        parents: HashMap::new(),
        notices: Vec::new(),
        scope_is_automatic: settings.scope == ScopeChoice::Auto,
        python: settings.python != PythonMode::Off,
        meta: meta(settings),
        predicted: None,
        since: jiff::Timestamp::now(),
        since_ns: clock::monotonic_ns(),
        tick: 0,
        ticked_at: Instant::now(),
        usage: None,
        foreign_hits: 0,
        work: overhead::Work::default(),
        scanned: None,
        kernel,
    };
    watch.put_in_place(settings, &pids, held.as_ref(), &before, told)?;
    if let Some(held) = held {
        held.release()?;
    }
    // The kernel's type information and whole files were read for this and are not needed any more.
    give_back_memory();
    Ok(watch)
}

/// Probes, maps, files and the memory of Python processes are open files: as many as the system lets us have.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls read and write this value only; where they fail the limit stays as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// How the program's allocator gives free memory back to the system, where it does not do so by itself.
pub static GIVE_BACK_MEMORY: std::sync::OnceLock<fn()> = std::sync::OnceLock::new();

pub fn give_back_memory() {
    if let Some(give_back) = GIVE_BACK_MEMORY.get() {
        give_back();
    }
}

/// The processes meant, in order of their pids.
fn subject(subject: &Subject) -> Result<(Vec<u32>, Option<HeldCommand>)> {
    match subject {
        Subject::Running(target) => {
            let selected = Selector::default().select(target)?;
            Ok((selected.into_iter().map(|selected| selected.pid).collect(), None))
        }
        Subject::Command(arguments) => {
            let held = HeldCommand::spawn(arguments)?;
            Ok((vec![held.pid()], Some(held)))
        }
    }
}

/// Without those that return probes would kill. One that the user named is an error.
fn endurable(
    proc: &ProcRoot,
    subject: &Subject,
    pids: Vec<u32>,
    return_probes: ReturnProbes,
) -> Result<Vec<u32>> {
    if return_probes == ReturnProbes::Safe {
        return Ok(pids);
    }
    let filtered = |pid: &u32| {
        proc.status(*pid)
            .is_ok_and(|status| status.seccomp == Some(Seccomp::Filter))
    };
    if matches!(subject, Subject::Running(Target::Pids(_)))
        && let Some(pid) = pids.iter().find(|pid| filtered(pid))
    {
        return Err(Failure::new(
            ExitCode::NotPermitted,
            anyhow!(
                "process {pid} has a seccomp filter, and this kernel would kill it at the first return probe"
            ),
        )
        .hint("Linux 6.14 and newer stable kernels mend this")
        .into());
    }
    Ok(pids.into_iter().filter(|pid| !filtered(pid)).collect())
}

impl Watch {
    fn put_in_place(
        &mut self,
        settings: &Settings,
        pids: &[u32],
        held: Option<&HeldCommand>,
        before: &neighbours::Reading,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<()> {
        let progress = &mut |step: &str| told(Told::Step(step));
        let flags = if settings.follow { PROCESS_FOLLOW } else { 0 };
        for pid in pids {
            let instance = self.kernel.watch(*pid, flags)?;
            self.alive.insert(*pid, instance);
        }
        self.kernel.attach_lifecycle().map_err(not_permitted)?;
        progress("watching system calls that map memory");
        if let Err(error) = self.kernel.attach_mappings() {
            self.attacher
                .fail("mmap, munmap, mremap, brk", "kernel", format!("{error:#}"));
        }
        self.attacher.scope = self.choose_scope(settings, pids, held, before);
        if let Some(held) = held {
            for library in held.libraries() {
                // What is no program fails when it is started, and then says why.
                if let Err(error) = self.attacher.library(&self.kernel, library, held.pid()) {
                    self.attacher
                        .fail("*", &library.display().to_string(), format!("{error:#}"));
                }
                // Without it stacks through this file end early, which the kernel side counts.
                self.publisher.prepare(library);
            }
        } else {
            self.attach_all(settings, pids, progress)?;
            if settings.python == PythonMode::Exact {
                self.decide_on_exact(settings, told)?;
            }
        }
        self.wait_for_tables(told);
        self.end_those_gone(pids)?;
        // From here on nothing is missed.
        self.since = jiff::Timestamp::now();
        self.since_ns = clock::monotonic_ns();
        self.kernel.set_gate(true)
    }

    /// Of a process that ended before the kernel side listened, no event tells.
    fn end_those_gone(&mut self, pids: &[u32]) -> Result<()> {
        for pid in pids {
            // A first thread that has ended leaves the others running.
            let runs = self
                .proc
                .stat(*pid)
                .is_ok_and(|stat| !stat.is_dead() || stat.threads > 1);
            if let Some(instance) = self.alive.get(pid).copied().filter(|_| !runs) {
                let mut event = Event::ZERO;
                event.pid = *pid;
                event.instance = instance;
                self.ended(&event)?;
            }
        }
        Ok(())
    }

    /// They are built while probes are put in place; what is not done by now is waited for, so that the first stacks are
    /// whole.
    fn wait_for_tables(&mut self, told: &mut dyn FnMut(Told<'_>)) {
        let done = self.publisher.wait(MOST_FOR_TABLES);
        told(Told::Step(&self.publisher.progress().to_string()));
        if !done {
            self.notice(
                "unwind tables are still being built: the first stacks may end early".to_owned(),
                Effect::Stacks,
            );
        }
    }

    /// Each block of CPython can cost a busy program more than it has: it is told before, and pools are watched instead
    /// where it would be too much, unless the user says so.
    fn decide_on_exact(&mut self, settings: &Settings, told: &mut dyn FnMut(Told<'_>)) -> Result<()> {
        told(Told::Step("counting how often Python allocates"));
        let Some(mut predicted) = self.try_out()? else {
            return Ok(());
        };
        predicted.in_force |= settings.force;
        self.predicted = Some(predicted);
        if predicted.in_force {
            told(Told::Warning(&format!(
                "watching each block of Python will cost the target {predicted}"
            )));
            return Ok(());
        }
        let why = format!(
            "watching each block of Python would cost the target {predicted}; small objects are estimated from pools instead (--force watches each block all the same)"
        );
        told(Told::Warning(&why));
        self.notice(why, Effect::Stacks);
        self.meta.python = Some(PythonMode::Pools.name());
        self.attacher.give_up_python();
        for (pid, instance) in self.alive.clone() {
            // One that ends just now need not be probed.
            let _ = self.attacher.process(&self.kernel, pid);
            self.watch_pools(instance);
        }
        Ok(())
    }

    /// The pools of a process whose interpreter is known already.
    fn watch_pools(&mut self, instance: u32) {
        self.pools.mode = PythonMode::Pools;
        let why_not = match self.symbolizer.python().process(instance) {
            Some((interpreter, memory)) => self.pools.add(instance, interpreter, memory),
            None => None,
        };
        if let Some(why) = why_not {
            self.no_pools(why);
        }
    }

    fn attach_all(
        &mut self,
        settings: &Settings,
        pids: &[u32],
        progress: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let mut why_not = None;
        let mut watched = 0;
        for pid in pids {
            progress(&format!("probing process {pid}"));
            let attached = match self.attacher.process(&self.kernel, *pid) {
                Ok(attached) => attached,
                Err(error) => {
                    why_not = Some(format!("{error:#}"));
                    continue;
                }
            };
            if attached.allocators == 0 {
                why_not = Some(
                    attached
                        .why_not
                        .unwrap_or_else(|| "nothing that it has mapped has allocation functions".to_owned()),
                );
                self.attacher.skip(
                    "*",
                    &format!("process {pid}"),
                    why_not.clone().unwrap_or_default(),
                );
                continue;
            }
            watched += 1;
            let Some(instance) = self.alive.get(pid).copied() else {
                continue;
            };
            self.publish(*pid, &attached.modules);
            self.symbolizer.add_process(instance, *pid, None);
            self.look_for_python(*pid, instance, &attached.modules);
            if let Ok(process) = self.describer.describe(*pid, &attached.modules) {
                let facts = facts(process);
                self.model.describe(instance, facts.clone());
                self.facts.insert(instance, facts);
            }
        }
        if watched > 0 {
            return Ok(());
        }
        let gone = pids.iter().all(|pid| self.proc.stat(*pid).is_err());
        if gone {
            return Err(Failure::new(
                ExitCode::NoTarget,
                anyhow!("the target ended before anything was seen"),
            )
            .into());
        }
        let who = match &settings.subject {
            Subject::Running(Target::Pids(pids)) if pids.len() == 1 => format!("process {}", pids[0]),
            _ => "any of the processes".to_owned(),
        };
        Err(Failure::new(
            ExitCode::NotPermitted,
            anyhow!(
                "there is no allocator in {who} that can be watched: {}",
                why_not.unwrap_or_default()
            ),
        )
        .hint("`memwatch doctor --pid PID` tells more")
        .into())
    }

    /// Host-wide only when nobody else pays for it.
    fn choose_scope(
        &self,
        settings: &Settings,
        pids: &[u32],
        held: Option<&HeldCommand>,
        before: &neighbours::Reading,
    ) -> Scope {
        match settings.scope {
            ScopeChoice::Host => return Scope::Host,
            ScopeChoice::Process => return Scope::Process,
            ScopeChoice::Auto if !settings.follow => return Scope::Process,
            ScopeChoice::Auto => {}
        }
        let mut files = HashSet::new();
        let mut catalog = crate::target::modules::Catalog::new(self.proc.clone());
        let mut ids = crate::target::file_id::FileIds::default();
        for pid in pids {
            if let Ok(modules) = catalog.read(*pid) {
                files.extend(modules.modules.iter().filter_map(|module| module.id));
            }
        }
        if let Some(held) = held {
            files.extend(
                held.libraries()
                    .iter()
                    .filter_map(|path| Some(ids.look_up(path).ok()?.id)),
            );
        }
        let ours: BTreeSet<u32> = pids.iter().copied().collect();
        std::thread::sleep(neighbours::LOOK.saturating_sub(before.age()));
        if neighbours::quiet(&self.proc, before, &ours, &files) {
            Scope::Host
        } else {
            Scope::Process
        }
    }
}

/// What the kernel does not let us do, or cannot.
fn not_permitted(error: anyhow::Error) -> anyhow::Error {
    let failure = Failure::new(ExitCode::NotPermitted, error);
    let permitted = ProcRoot::default().path().exists() && is_root();
    if permitted {
        failure.hint("`memwatch doctor` tells what this kernel allows")
    } else {
        failure.hint("run memwatch as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE")
    }
    .into()
}

fn is_root() -> bool {
    // SAFETY: no arguments, no failure.
    unsafe { libc::geteuid() == 0 }
}

/// Used where a kernel side is needed without a target.
pub fn load_only(bounds: &Bounds, method: Method) -> Result<KernelSide> {
    KernelSide::load(bounds, method)
        .map_err(not_permitted)
        .context("cannot load the kernel side")
}
