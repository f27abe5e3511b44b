//! The unwind tables of the watched processes' files, made by a thread of their own: reading a large file takes longer
//! than a tick may wait.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    cache::Cache,
    kernel_tables::{KernelTables, Maps},
    worker::Worker,
};
use crate::{
    probe::load::KernelSide,
    target::{modules::ProcessModules, vdso},
};

/// How often it is looked whether a table that found no room is more useful than one that did.
const LOOK_AT_USE_EVERY: Duration = Duration::from_secs(2);

/// What has become of all tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub built: u64,
    pub from_cache: u64,
    /// Files with the content of another one.
    pub shared: u64,
    /// Reading files, building, and the cache.
    pub spent: Duration,
    /// How often a file that some process maps had to do without its table, for want of room.
    pub lost: u64,
    /// How often such a file got its table after all.
    pub brought_back: u64,
    /// Rows that have a place in the kernel; unused ones at the end of a file included.
    pub rows: u64,
    pub most_rows: u64,
    /// Since last asked: what went wrong, in words.
    pub failures: Vec<String>,
}

impl Progress {
    pub(super) fn fail(&mut self, what: String) {
        /// More would say nothing new.
        const MOST: usize = 20;
        if self.failures.len() < MOST {
            self.failures.push(what);
        }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            built, from_cache, ..
        } = self;
        let took = self.spent.as_secs_f64() * 1e3;
        write!(
            f,
            "{built} unwind tables built, {from_cache} from the cache, in {took:.1} ms"
        )
    }
}

enum Command {
    Map(u32, u32, ProcessModules),
    Prepare(PathBuf),
    Unmap(Vec<u32>),
    /// Answered when nothing is left to do.
    Wait(Sender<()>),
}

/// Builds each file's table once and tells the kernel side where each process has its code.
pub struct Publisher {
    commands: Sender<Command>,
    progress: Arc<Mutex<Progress>>,
}

/// What is settled before the first table.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub most_rows: u32,
    /// Keep tables between runs.
    pub cache: bool,
    /// Called when many tables were built.
    pub give_back_memory: Option<fn()>,
}

impl Publisher {
    pub fn new(kernel: &KernelSide, settings: Settings) -> Result<Self> {
        let maps = Maps::new(kernel)?;
        let cache = if settings.cache { Cache::open() } else { None };
        let image = vdso::image();
        let worker = Worker::new(maps, settings.most_rows, cache, image.as_deref())
            .context("cannot write unwind rules")?;
        let (commands, received) = mpsc::channel();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&progress);
        // It ends when this side goes away; nobody waits for it, as what it writes outside the kernel is whole or not there.
        thread::Builder::new()
            .name("unwind-tables".to_owned())
            .spawn(move || run(worker, &received, &shared, settings.give_back_memory))
            .context("cannot start a thread for unwind tables")?;
        Ok(Self { commands, progress })
    }

    /// A process has its code there now. What cannot be had is left out: stacks end there, and that is counted.
    pub fn map(&self, instance: u32, pid: u32, modules: &ProcessModules) {
        self.send(Command::Map(instance, pid, modules.clone()));
    }

    /// The table of a file that is going to be mapped.
    pub fn prepare(&self, path: &Path) {
        self.send(Command::Prepare(path.to_owned()));
    }

    pub fn unmap(&self, instances: Vec<u32>) {
        if !instances.is_empty() {
            self.send(Command::Unmap(instances));
        }
    }

    /// Returns when everything so far is done, or when that takes longer. True when it is done.
    pub fn wait(&self, most: Duration) -> bool {
        let (done, is_done) = mpsc::channel();
        self.send(Command::Wait(done));
        is_done.recv_timeout(most).is_ok()
    }

    pub fn progress(&self) -> Progress {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = std::mem::take(&mut progress.failures);
        Progress {
            failures,
            ..progress.clone()
        }
    }

    fn send(&self, command: Command) {
        // The thread ends after us. Should it have panicked, stacks end early, and the kernel side counts them.
        let _ = self.commands.send(command);
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// The thread.
fn run<K: KernelTables>(
    mut worker: Worker<K>,
    commands: &Receiver<Command>,
    progress: &Mutex<Progress>,
    give_back_memory: Option<fn()>,
) {
    let mut waiting = Vec::new();
    loop {
        match next(commands, &worker) {
            Next::Command(command) => {
                match command {
                    Command::Map(instance, pid, modules) => worker.map(instance, pid, &modules),
                    Command::Prepare(path) => worker.prepare(&path),
                    Command::Unmap(instances) => worker.unmap(&instances),
                    Command::Wait(done) => waiting.push(done),
                }
                // All that is known first: files that many processes map are built once.
                if !worker.is_idle() || waiting.is_empty() {
                    continue;
                }
            }
            Next::Work => worker.work(),
            Next::LookAtUse => worker.look_at_use(),
            Next::End => return,
        }
        tell(&mut worker, progress);
        if worker.is_idle() {
            if let Some(give_back) = give_back_memory {
                give_back();
            }
            for done in waiting.drain(..) {
                // Who does not wait any more need not be told.
                let _ = done.send(());
            }
        }
    }
}

enum Next {
    Command(Command),
    Work,
    LookAtUse,
    End,
}

fn next<K: KernelTables>(commands: &Receiver<Command>, worker: &Worker<K>) -> Next {
    if !worker.is_idle() {
        return match commands.try_recv() {
            Ok(command) => Next::Command(command),
            Err(TryRecvError::Empty) => Next::Work,
            Err(TryRecvError::Disconnected) => Next::End,
        };
    }
    if !worker.misses_some() {
        return commands.recv().map_or(Next::End, Next::Command);
    }
    match commands.recv_timeout(LOOK_AT_USE_EVERY) {
        Ok(command) => Next::Command(command),
        Err(RecvTimeoutError::Timeout) => Next::LookAtUse,
        Err(RecvTimeoutError::Disconnected) => Next::End,
    }
}

fn tell<K: KernelTables>(worker: &mut Worker<K>, progress: &Mutex<Progress>) {
    let mut new = worker.progress();
    let mut shared = progress.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failures = std::mem::take(&mut shared.failures);
    failures.append(&mut new.failures);
    *shared = Progress { failures, ..new };
}
