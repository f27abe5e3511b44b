//! Naming stacks of processes, with caches and within a time that one tick may take.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memwatch_common::Stack;
use memwatch_common::python::PythonStack;
use memwatch_common::stack::{STACK_BEFORE, STACK_COMPLETE, STACK_UNKNOWN};

use super::cache::Generations;
use super::module::Module;
use super::names::{NamedStack, StackNames};
use super::open;
use super::perf_map::PerfMap;
use super::python::PythonNames;
use super::space::{AddressSpace, Content, FileKey, Region};
use super::symbol_table::SymbolTable;
use crate::model::report::Frame;
use crate::target::vdso;

/// Places in files that are kept with their names; a frame is some 300 bytes.
const MAX_PLACES: usize = 1 << 17;
/// Stacks kept with their names.
const MAX_STACKS: usize = 1 << 14;
/// Files kept open before their names are asked for, so that a file that is deleted meanwhile can still be read.
/// A quarter of the usual limit of a process.
const MAX_OPEN_FILES: usize = 256;

/// Stacks whose Python frames are known to have been read; beyond this many they are read again.
const MOST_PYTHON_READ: usize = 1 << 17;

/// Where the addresses of a stack are read from.
pub trait StackSource {
    fn frames(&mut self, stack_hash: u64) -> Option<Stack>;

    /// The Python frames that a stack refers to.
    fn python_frames(&mut self, _hash: u64) -> Option<PythonStack> {
        None
    }
}

impl<F: FnMut(u64) -> Option<Stack>> StackSource for F {
    fn frames(&mut self, stack_hash: u64) -> Option<Stack> {
        self(stack_hash)
    }
}

#[derive(Debug, Default)]
struct Process {
    /// None once it has ended: the number may mean another process then.
    pid: Option<u32>,
    namespace_pid: Option<u32>,
    space: AddressSpace,
    /// The tick in which the mappings, and the perf map, were last read.
    mappings_read: Option<u64>,
    perf_map_read: Option<u64>,
    perf_map: PerfMap,
    perf_map_bytes: u64,
}

/// How sure a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// As good as it gets.
    Final,
    /// Code that may get a name later: not to be kept.
    Passing,
    /// The time is used up: to be asked again.
    Raw,
}

pub struct Symbolizer<S> {
    source: S,
    processes: HashMap<u32, Process>,
    python: PythonNames,
    /// Python stacks that were read already.
    python_read: HashSet<u64>,
    modules: HashMap<FileKey, Module>,
    open_files: usize,
    /// Read when it is first needed; empty when it cannot be.
    vdso: Option<SymbolTable>,
    places: Generations<(FileKey, u64, u64), Frames>,
    stacks: Generations<(u32, u64), Arc<NamedStack>>,
    tick: u64,
    /// None: as long as it takes.
    until: Option<Instant>,
}

impl<S: StackSource> Symbolizer<S> {
    pub fn new(source: S) -> Self {
        Self {
            source,
            processes: HashMap::new(),
            python: PythonNames::default(),
            python_read: HashSet::new(),
            modules: HashMap::new(),
            open_files: 0,
            vdso: None,
            places: Generations::new(MAX_PLACES),
            stacks: Generations::new(MAX_STACKS),
            tick: 0,
            until: None,
        }
    }

    /// From now on names may take `budget` in all until the next call; what does not fit comes as `module+0x…`
    /// and is named in a later tick. One name can take longer than the budget: the first of a large file.
    pub fn begin_tick(&mut self, budget: Option<Duration>) {
        self.tick += 1;
        self.until = budget.map(|budget| Instant::now() + budget);
    }

    /// Reads the mappings of a process at once, so that its stacks have names even if it ends right after. If it
    /// has ended already, those of the process it was forked from serve.
    pub fn add_process(&mut self, instance: u32, pid: u32, forked_from: Option<u32>) {
        let inherited = forked_from.and_then(|parent| self.processes.get(&parent));
        let space = inherited.map(|parent| parent.space.clone()).unwrap_or_default();
        let perf_map = inherited
            .map(|parent| parent.perf_map.clone())
            .unwrap_or_default();
        let namespace_pid = open::namespace_pid(pid);
        let process = Process {
            pid: Some(pid),
            namespace_pid,
            space,
            perf_map,
            ..Process::default()
        };
        self.processes.insert(instance, process);
        self.refresh(instance);
    }

    /// Reads the mappings again: new code was mapped.
    pub fn refresh(&mut self, instance: u32) {
        let Some(process) = self.processes.get_mut(&instance) else {
            return;
        };
        let Some(pid) = process.pid else { return };
        process.mappings_read = Some(self.tick);
        let Ok(mappings) = open::read_maps(pid) else {
            return;
        };
        if !process.space.update(&mappings) {
            return;
        }
        let regions: Vec<Region> = process.space.regions().cloned().collect();
        for region in &regions {
            if self.open_files < MAX_OPEN_FILES {
                self.open_module(Some(pid), region);
            }
        }
    }

    /// The process exited or another program took its place. Its names stay until it is forgotten.
    pub fn end_process(&mut self, instance: u32) {
        if let Some(process) = self.processes.get_mut(&instance) {
            process.pid = None;
        }
        self.python.end(instance);
    }

    /// Lets go of ended processes, and of the files that only they had mapped.
    pub fn forget(&mut self, instances: &[u32]) {
        if instances.is_empty() {
            return;
        }
        let gone: HashSet<u32> = instances.iter().copied().collect();
        self.processes.retain(|instance, _| !gone.contains(instance));
        self.stacks.retain(|(instance, _)| !gone.contains(instance));
        self.python.forget(instances);
        let used: HashSet<FileKey> = self
            .processes
            .values()
            .flat_map(|process| process.space.regions())
            .filter_map(file_key)
            .collect();
        self.modules.retain(|key, _| used.contains(key));
        self.places.retain(|(key, _, _)| used.contains(key));
        self.open_files = self
            .modules
            .values()
            .filter(|module| module.has_open_file())
            .count();
    }

    pub fn python(&mut self) -> &mut PythonNames {
        &mut self.python
    }

    /// Reads what the Python frames of a stack refer to while it is there.
    pub fn read_python(&mut self, instance: u32, stack_hash: u64) {
        if self.python.interpreter(instance).is_none() || [STACK_UNKNOWN, STACK_BEFORE].contains(&stack_hash)
        {
            return;
        }
        if self.python_read.len() >= MOST_PYTHON_READ {
            self.python_read.clear();
        }
        if !self.python_read.insert(stack_hash ^ u64::from(instance)) {
            return;
        }
        let python = self.source.frames(stack_hash).map_or(0, |stack| stack.python);
        if let Some(stack) = self.source.python_frames(python) {
            self.python.read(instance, &stack);
        }
    }

    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// Opens a file the first time it is seen mapped. A file that could not be opened is tried again.
    fn open_module(&mut self, pid: Option<u32>, region: &Region) {
        let Content::File { key, path } = &region.content else {
            return;
        };
        if self.modules.contains_key(key) {
            return;
        }
        if let Some(file) = open::mapped_file(pid, region, key, path) {
            self.open_files += 1;
            self.modules
                .insert(key.clone(), Module::new(Arc::clone(path), Some(file), pid));
        }
    }

    fn out_of_time(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn name_stack(&mut self, instance: u32, stack: &Stack) -> (NamedStack, Outcome) {
        let count = (stack.count as usize).min(stack.frames.len());
        let mut native = Vec::with_capacity(count);
        let mut worst = Outcome::Final;
        for (index, pc) in stack.frames[..count].iter().enumerate() {
            let back = u64::from(index > 0);
            let (named, outcome) = self.name_address(instance, *pc, back);
            native.push(named);
            worst = worst.max(outcome);
        }
        let frames = self.with_python(instance, stack, &native);
        let truncated = stack.flags & STACK_COMPLETE == 0;
        (
            NamedStack {
                frames,
                truncated,
                raw: worst == Outcome::Raw,
            },
            worst,
        )
    }

    fn with_python(&mut self, instance: u32, stack: &Stack, native: &[Frames]) -> Vec<Arc<Frame>> {
        let python = match stack.python {
            0 => None,
            hash => self.source.python_frames(hash),
        };
        python
            .and_then(|python| self.python.merge(instance, stack, native, &python))
            .unwrap_or_else(|| native.iter().flat_map(|frames| frames.iter().cloned()).collect())
    }

    fn name_address(&mut self, instance: u32, pc: u64, back: u64) -> (Frames, Outcome) {
        let lookup = pc.wrapping_sub(back);
        let mut region = self.region(instance, lookup);
        let mut known = Outcome::Final;
        if region.is_none() {
            if self.may_read_mappings(instance) {
                self.refresh(instance);
                region = self.region(instance, lookup);
            } else if self.is_alive(instance) {
                // Code may have been mapped since the mappings were read in this tick.
                known = Outcome::Passing;
            }
        }
        let (frames, outcome) = match &region {
            Some(Region {
                content: Content::Vdso,
                start,
                ..
            }) => (self.name_vdso(*start, pc, back), Outcome::Final),
            Some(
                found @ Region {
                    content: Content::File { key, .. },
                    ..
                },
            ) => self.name_in_file(instance, found, key, pc, back),
            _ => self.name_compiled(instance, region.as_ref(), pc, back),
        };
        (frames, outcome.max(known))
    }

    fn is_alive(&self, instance: u32) -> bool {
        self.processes
            .get(&instance)
            .is_some_and(|process| process.pid.is_some())
    }

    fn region(&self, instance: u32, address: u64) -> Option<Region> {
        self.processes.get(&instance)?.space.find(address).cloned()
    }

    /// Once a tick: addresses that belong to nothing must not cost a pass over the mappings each.
    fn may_read_mappings(&self, instance: u32) -> bool {
        let process = self.processes.get(&instance);
        process.is_some_and(|process| process.pid.is_some() && process.mappings_read != Some(self.tick))
    }

    fn name_in_file(
        &mut self,
        instance: u32,
        region: &Region,
        key: &FileKey,
        pc: u64,
        back: u64,
    ) -> (Frames, Outcome) {
        let offset = pc.wrapping_sub(back) - region.start + region.offset;
        let place = (key.clone(), offset, back);
        if let Some(frames) = self.places.get(&place) {
            return (frames, Outcome::Final);
        }
        let late = self.out_of_time();
        if !late {
            let pid = self.processes.get(&instance).and_then(|process| process.pid);
            self.open_module(pid, region);
        }
        let Some(module) = self.modules.get_mut(key) else {
            let outcome = if late { Outcome::Raw } else { Outcome::Final };
            return (one(unopened(region, offset + back)), outcome);
        };
        if !module.is_elf() {
            // Code compiled at run time can lie in a file of memory.
            return self.name_compiled(instance, Some(region), pc, back);
        }
        let address = module.address_of(offset) + back;
        if late {
            return (one(module.unnamed(address)), Outcome::Raw);
        }
        let was_open = module.has_open_file();
        let frames: Frames = Frame::shared(module.frames(address, back)).into();
        if was_open && !module.has_open_file() {
            self.open_files -= 1;
        }
        self.places.insert(place, Arc::clone(&frames));
        (frames, Outcome::Final)
    }

    /// Code that no file holds: named by the perf map, if the runtime writes one.
    fn name_compiled(
        &mut self,
        instance: u32,
        region: Option<&Region>,
        pc: u64,
        back: u64,
    ) -> (Frames, Outcome) {
        let late = self.out_of_time();
        let place = Frame {
            module: region.map(module_name),
            address: Some(pc),
            ..Frame::default()
        };
        let Some(process) = self.processes.get_mut(&instance) else {
            return (one(place), Outcome::Final);
        };
        let lookup = pc.wrapping_sub(back);
        if process.perf_map.find(lookup).is_none() && process.perf_map_read != Some(self.tick) {
            if late {
                return (one(place), Outcome::Raw);
            }
            process.perf_map_read = Some(self.tick);
            if process.read_perf_map() {
                // What had no name before may have one now.
                self.stacks.retain(|(of, _)| *of != instance);
            }
        }
        let Some((name, start)) = process.perf_map.find(lookup) else {
            // A runtime that writes a perf map may write the name after the code has run.
            let writes = process.pid.is_some() && process.perf_map_bytes > 0;
            return (one(place), if writes { Outcome::Passing } else { Outcome::Final });
        };
        let function = Some(name.to_owned());
        (
            one(Frame {
                function,
                offset: Some(pc - start),
                ..place
            }),
            Outcome::Final,
        )
    }

    fn name_vdso(&mut self, start: u64, pc: u64, back: u64) -> Frames {
        let read = || SymbolTable::read(&vdso::image()?[..]);
        let table = self.vdso.get_or_insert_with(|| read().unwrap_or_default());
        let address = pc - start;
        let place = Frame {
            module: Some("[vdso]".into()),
            address: Some(address),
            ..Frame::default()
        };
        match table.find(address - back) {
            Some((function, from)) => one(Frame {
                function: Some(function),
                offset: Some(address - from),
                ..place
            }),
            None => one(place),
        }
    }
}

impl<S: StackSource> StackNames for Symbolizer<S> {
    fn stack(&mut self, instance: u32, stack_hash: u64) -> Arc<NamedStack> {
        if let Some(stack) = self.stacks.get(&(instance, stack_hash)) {
            return stack;
        }
        let addresses = if [STACK_UNKNOWN, STACK_BEFORE].contains(&stack_hash) {
            None
        } else {
            self.source.frames(stack_hash)
        };
        let Some(addresses) = addresses else {
            return Arc::new(NamedStack {
                truncated: true,
                ..NamedStack::default()
            });
        };
        let (stack, outcome) = self.name_stack(instance, &addresses);
        let stack = Arc::new(stack);
        if outcome == Outcome::Final {
            self.stacks.insert((instance, stack_hash), Arc::clone(&stack));
        }
        stack
    }
}

impl Process {
    /// Whether there was anything new.
    fn read_perf_map(&mut self) -> bool {
        let (Some(pid), Some(namespace_pid)) = (self.pid, self.namespace_pid) else {
            return false;
        };
        let Some((text, bytes)) = open::perf_map(pid, namespace_pid, self.perf_map_bytes) else {
            return false;
        };
        self.perf_map = PerfMap::parse(&text);
        self.perf_map_bytes = bytes;
        true
    }
}

fn file_key(region: &Region) -> Option<FileKey> {
    if let Content::File { key, .. } = &region.content {
        Some(key.clone())
    } else {
        None
    }
}

/// The names of one address: several, where functions were inlined. All stacks that pass there share them.
pub(super) type Frames = Arc<[Arc<Frame>]>;

fn one(frame: Frame) -> Frames {
    Arc::from([Arc::new(frame)])
}

fn unopened(region: &Region, address: u64) -> Frame {
    Frame {
        module: Some(module_name(region)),
        address: Some(address),
        ..Frame::default()
    }
}

fn module_name(region: &Region) -> String {
    match &region.content {
        Content::File { path, .. } => path.to_string(),
        Content::Vdso => "[vdso]".to_owned(),
        Content::Anonymous(name) => name.as_deref().unwrap_or("[anon]").to_owned(),
    }
}

#[cfg(test)]
#[path = "symbolizer_tests.rs"]
mod tests;
