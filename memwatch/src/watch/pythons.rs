//! The interpreters of the watched processes: found, checked, and told to the kernel side.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use memwatch_common::{
    Domain,
    limits::MAX_PYTHON_RANGES,
    python::{CodeCopy, CodeKey, DomainRange, PoolCaller, PythonProcess},
    size_at::SizeAt,
    unwind::code_place,
};

use crate::{
    collect::batch,
    probe::load::KernelSide,
    python::{
        asked::PoolCallers,
        interpreter::{self, Found, Interpreter, PythonError, PythonFiles},
        memory::ProcessMemory,
        thread_state::CLibrary,
    },
    symbolize::python::PythonNames,
    target::{ProcRoot, modules::ProcessModules},
};

/// Programs that only embed an interpreter may never start it.
const MOST_TRIES: u32 = 60;

pub struct Pythons {
    files: PythonFiles,
    proc: ProcRoot,
    processes: OwnedFd,
    places: OwnedFd,
    codes: OwnedFd,
    callers: OwnedFd,
    /// The numbers of the ways to take a pool into use that the kernel side knows.
    numbers: HashMap<PoolCallers, u32>,
    /// Code objects of processes that nothing was known of when they were seen the last time.
    early: HashSet<CodeKey>,
    waiting: Vec<Waiting>,
}

/// An interpreter that has not started.
struct Waiting {
    pid: u32,
    instance: u32,
    found: Found,
    library: CLibrary,
    tries: u32,
}

/// An interpreter that the kernel side now follows, or why it does not.
pub enum Outcome {
    Ready {
        instance: u32,
        interpreter: Box<Interpreter>,
        memory: ProcessMemory,
    },
    Refused {
        pid: u32,
        why: String,
    },
}

impl Pythons {
    pub fn new(kernel: &KernelSide, proc: ProcRoot) -> Result<Self> {
        Ok(Self {
            files: PythonFiles::default(),
            proc,
            processes: kernel.own_map("PYTHONS")?,
            places: kernel.own_map("PYTHON_AT")?,
            codes: kernel.own_map("PYTHON_CODES")?,
            callers: kernel.own_map("POOL_CALLERS")?,
            numbers: HashMap::new(),
            early: HashSet::new(),
            waiting: Vec::new(),
        })
    }

    /// Looks for interpreters among what a process has mapped. A process with two is watched in the first.
    pub fn look(&mut self, pid: u32, instance: u32, modules: &ProcessModules) -> Option<Outcome> {
        let found = self.files.find(modules).into_iter().next()?;
        let waiting = Waiting {
            pid,
            instance,
            found,
            library: interpreter::c_library(modules),
            tries: 0,
        };
        self.waiting.retain(|other| other.instance != instance);
        self.attach(waiting)
    }

    /// Once a tick: interpreters that had not started before.
    pub fn look_again(&mut self) -> Vec<Outcome> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .filter_map(|waiting| self.attach(waiting))
            .collect()
    }

    /// A child runs the interpreter that its parent runs.
    pub fn forked(&mut self, pid: u32, instance: u32, interpreter: &Interpreter) -> Result<ProcessMemory> {
        self.tell(instance, interpreter)?;
        Ok(ProcessMemory::open(&self.proc, pid)?)
    }

    /// The same where the parent's has not started yet: the child is waited for too.
    pub fn forked_early(&mut self, parent: u32, pid: u32, instance: u32) {
        let of_parent = self.waiting.iter().find(|waiting| waiting.instance == parent);
        let child = of_parent.map(|waiting| Waiting {
            pid,
            instance,
            found: waiting.found.clone(),
            library: waiting.library,
            tries: 0,
        });
        self.waiting.extend(child);
    }

    pub fn forget(&self, instances: &[u32]) {
        // One that cannot be taken out stays until memwatch ends.
        let _ = batch::delete(self.processes.as_fd(), instances);
    }

    /// Takes in the code objects that were seen for the first time since the last look.
    pub fn learn(&mut self, names: &mut PythonNames) {
        if names.is_empty() {
            return;
        }
        let (mut keys, mut early) = (Vec::new(), HashSet::new());
        let read = batch::for_each(self.codes.as_fd(), |key: &CodeKey, copy: &CodeCopy| {
            // A child's may come before it is heard of that there is a child.
            if names.learn(key, copy) || self.early.contains(key) {
                keys.push(*key);
            } else {
                early.insert(*key);
            }
        });
        self.early = early;
        // What cannot be read so is read from the process, if it is there; what stays only takes room.
        let _ = read.and_then(|()| batch::delete(self.codes.as_fd(), &keys));
    }

    fn attach(&mut self, mut waiting: Waiting) -> Option<Outcome> {
        let (pid, instance) = (waiting.pid, waiting.instance);
        let file = match &waiting.found.file {
            Ok(file) => file,
            Err(error) => return Some(refused(pid, error)),
        };
        let memory = ProcessMemory::open(&self.proc, pid).ok()?;
        match Interpreter::attach(file, waiting.found.bias, waiting.library, &memory) {
            Ok(interpreter) => Some(match self.tell(instance, &interpreter) {
                Ok(()) => Outcome::Ready {
                    instance,
                    interpreter: Box::new(interpreter),
                    memory,
                },
                Err(error) => refused(pid, &format!("{error:#}")),
            }),
            Err(PythonError::NotStarted | PythonError::Unreadable(_)) => {
                waiting.tries += 1;
                if waiting.tries < MOST_TRIES {
                    self.waiting.push(waiting);
                }
                None
            }
            Err(error) => Some(refused(pid, &error)),
        }
    }

    fn tell(&mut self, instance: u32, interpreter: &Interpreter) -> Result<()> {
        let mut process = PythonProcess {
            layout: interpreter.layout,
            bias: interpreter.bias,
            file: self.number(&interpreter.file.allocator.pool_callers),
            count: 0,
            ranges: [DomainRange::default(); MAX_PYTHON_RANGES],
        };
        for (range, place) in interpreter.domain_ranges().iter().zip(&mut process.ranges) {
            *place = *range;
            process.count += 1;
        }
        batch::set(self.processes.as_fd(), &instance, &process)
            .context("cannot tell where Python frames are")?;
        batch::set(self.places.as_fd(), &code_place(instance), &1_u32)
            .context("cannot tell that Python runs")?;
        Ok(())
    }

    /// The number of a file by its calls that take a pool into use. The kernel side is told of them when they are new.
    fn number(&mut self, callers: &PoolCallers) -> u32 {
        if let Some(number) = self.numbers.get(callers) {
            return *number;
        }
        let file = self.numbers.len() as u32;
        for (address, size) in callers {
            let (Ok(back), Some(size)) = (u32::try_from(*address), size.and_then(SizeAt::words)) else {
                continue;
            };
            // Of those that there is no room for, objects are shown as large as the blocks that they are in.
            let _ = batch::set(self.callers.as_fd(), &PoolCaller { file, back }, &size);
        }
        self.numbers.insert(callers.clone(), file);
        file
    }
}

fn refused(pid: u32, why: &impl ToString) -> Outcome {
    Outcome::Refused {
        pid,
        why: why.to_string(),
    }
}

/// What Python allocates for itself is told apart from what C code asks libc for.
pub const DOMAINS: [Domain; 3] = [Domain::PythonRaw, Domain::PythonMem, Domain::PythonObject];

impl std::fmt::Debug for Pythons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pythons")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
