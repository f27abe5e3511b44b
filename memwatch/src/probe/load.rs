//! Loading the kernel side: maps, tracepoints, and the gate.

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{RawTracePoint, TracePoint},
};
use memwatch_common::{
    Config, Cookie, ProcessState, SiteKey, SiteTotals,
    config::{GATE_CLOSED, GATE_COUNTING, GATE_OPEN},
    limits,
    process::{FIRST_KERNEL_INSTANCE, state_place, state_places},
    site::UNKNOWN_SMALL,
    unwind::BLOCK_ROWS,
};

use super::{
    capabilities::{TaskLayout, frames_at_once},
    links::{Method, UprobePrograms, map_fd},
    tracefs,
};
use crate::collect::batch;

/// The kernel side as built with this binary; empty when it was built without.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memwatch-ebpf"));

/// Bounds of the kernel side, as the user set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub live_blocks: u32,
    pub live_per_process: u64,
    pub sites: u32,
    pub stacks: u32,
    pub processes: u32,
    /// Rounded up to whole blocks.
    pub unwind_rows: u32,
    pub max_frames: u32,
    pub min_bytes: u64,
    pub max_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            live_blocks: limits::DEFAULT_LIVE_BLOCKS,
            live_per_process: u64::from(limits::DEFAULT_LIVE_BLOCKS) / 4 * 3,
            sites: limits::DEFAULT_SITES,
            stacks: limits::DEFAULT_STACKS,
            processes: limits::DEFAULT_PROCESSES,
            unwind_rows: limits::DEFAULT_UNWIND_ROWS,
            max_frames: limits::MAX_FRAMES as u32,
            min_bytes: 0,
            max_bytes: u64::MAX,
        }
    }
}

const MAPPING_PROGRAMS: [(&str, [&str; 4]); 2] = [
    (
        "enter_mapping",
        [
            "sys_enter_mmap",
            "sys_enter_munmap",
            "sys_enter_mremap",
            "sys_enter_brk",
        ],
    ),
    (
        "exit_mapping",
        [
            "sys_exit_mmap",
            "sys_exit_munmap",
            "sys_exit_mremap",
            "sys_exit_brk",
        ],
    ),
];

const LIFECYCLE_PROGRAMS: [(&str, &str); 3] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
];

/// The loaded kernel side. Nothing is recorded until the gate is opened.
pub struct KernelSide {
    pub ebpf: Ebpf,
    pub programs: UprobePrograms,
    config: Config,
    link_generation: u32,
    next_instance: u32,
}

impl KernelSide {
    pub fn load(bounds: &Bounds, first_method: Method) -> Result<Self> {
        if OBJECT.is_empty() {
            bail!(
                "this memwatch was built without its kernel side (MEMWATCH_BPF=stub): run `cargo xtask setup`, then build again"
            );
        }
        let layout = TaskLayout::of_running_kernel()?;
        let mut ebpf = EbpfLoader::new()
            .allow_unsupported_maps()
            .override_global("FINDS_MAPPINGS", &u8::from(layout.finds_mappings), true)
            .override_global("FRAMES_AT_ONCE", &frames_at_once(), true)
            .map_max_entries("LIVE", bounds.live_blocks)
            .map_max_entries("SITES", bounds.sites)
            .map_max_entries("STACKS", bounds.stacks)
            .map_max_entries("PYTHON_STACKS", bounds.stacks)
            .map_max_entries("ROWS", bounds.unwind_rows.div_ceil(BLOCK_ROWS as u32).max(1))
            .map_max_entries("PROCESSES", bounds.processes)
            .map_max_entries("STATES", 2 * state_places(bounds.processes))
            .load(OBJECT)
            .context("cannot load the kernel side")?;
        let programs = UprobePrograms::load_best(OBJECT, &ebpf, first_method)?;
        let mut config = Config {
            gate: 0,
            generation: 1,
            tick: 1,
            live_per_process: bounds.live_per_process,
            min_bytes: bounds.min_bytes,
            max_bytes: bounds.max_bytes,
            max_frames: bounds.max_frames,
            task_pid: 0,
            task_tgid: 0,
            task_signal: 0,
            signal_live: 0,
            task_sas_sp: 0,
            task_sas_size: 0,
            task_mm: 0,
            mm_brk: 0,
            task_utask: 0,
            utask_returns: 0,
            return_stack: 0,
            return_address: 0,
            return_next: 0,
            task_fsbase: 0,
            vma_flags: 0,
            state_places: state_places(bounds.processes),
            task_exit_code: 0,
            signal_oom_mm: 0,
            reserved: 0,
        };
        layout.write_to(&mut config);
        set_array(&mut ebpf, "NEXT_INSTANCE", u64::from(FIRST_KERNEL_INSTANCE))?;
        set_array(&mut ebpf, "NEW_SITE", SiteTotals::ZERO)?;
        let mut kernel = Self {
            ebpf,
            programs,
            link_generation: config.generation,
            config,
            next_instance: 1,
        };
        kernel.write_config()?;
        Ok(kernel)
    }

    /// One of the kernel side's maps.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        self.ebpf
            .map(name)
            .and_then(map_fd)
            .with_context(|| format!("the kernel side has no map {name}"))
    }

    /// The same, for who keeps it open without borrowing the kernel side.
    pub fn own_map(&self, name: &str) -> Result<OwnedFd> {
        self.map(name)?
            .try_clone_to_owned()
            .with_context(|| format!("cannot keep the map {name} open"))
    }

    /// Watches fork, exec and exit.
    pub fn attach_lifecycle(&mut self) -> Result<()> {
        for (name, tracepoint) in LIFECYCLE_PROGRAMS {
            let program: &mut RawTracePoint = self.program(name)?.try_into()?;
            program
                .load()
                .with_context(|| format!("the kernel refused program {name}"))?;
            program
                .attach(tracepoint)
                .with_context(|| format!("cannot attach to tracepoint {tracepoint}"))?;
        }
        Ok(())
    }

    /// Watches the system calls that change mappings.
    pub fn attach_mappings(&mut self) -> Result<()> {
        for (name, tracepoints) in MAPPING_PROGRAMS {
            let program: &mut TracePoint = self.program(name)?.try_into()?;
            program
                .load()
                .with_context(|| format!("the kernel refused program {name}"))?;
            tracefs::with(|| {
                for tracepoint in tracepoints {
                    let attached = program.attach("syscalls", tracepoint);
                    attached.with_context(|| format!("cannot attach to tracepoint syscalls:{tracepoint}"))?;
                }
                anyhow::Ok(())
            })??;
        }
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut aya::programs::Program> {
        self.ebpf
            .program_mut(name)
            .with_context(|| format!("the kernel side has no program {name}"))
    }

    /// From now on this process counts, once the gate is open. Gives its instance number.
    pub fn watch(&mut self, pid: u32, flags: u32) -> Result<u32> {
        let full =
            || format!("cannot watch process {pid}: the table of processes is full (raise --max-processes)");
        let instance = self.free_instance()?.with_context(full)?;
        self.set_state(instance, &ProcessState::new(instance, flags))?;
        batch::set(self.map("PROCESSES")?, &pid, &instance).with_context(full)?;
        self.reserve_unknown_site(instance)?;
        Ok(instance)
    }

    /// The next instance number whose place is free.
    fn free_instance(&mut self) -> Result<Option<u32>> {
        for _ in 0..self.config.state_places {
            let instance = self.next_instance;
            self.next_instance = (instance + 1) % FIRST_KERNEL_INSTANCE;
            if instance != 0 && self.state_at(instance)?.is_none_or(|state| state.instance == 0) {
                return Ok(Some(instance));
            }
        }
        Ok(None)
    }

    /// What the kernel side knows of an instance.
    pub fn state(&self, instance: u32) -> Result<Option<ProcessState>> {
        Ok(self
            .state_at(instance)?
            .filter(|state| state.instance == instance))
    }

    /// Makes room for another. Nothing runs any more that would write to it.
    pub fn free_state(&self, instance: u32) -> Result<()> {
        self.set_state(instance, &ProcessState::new(0, 0))
    }

    fn state_at(&self, instance: u32) -> Result<Option<ProcessState>> {
        let place = state_place(instance, self.config.state_places);
        batch::get(self.map("STATES")?, &place).context("cannot read the state of a process")
    }

    fn set_state(&self, instance: u32, state: &ProcessState) -> Result<()> {
        let place = state_place(instance, self.config.state_places);
        batch::set(self.map("STATES")?, &place, state).context("cannot write the state of a process")
    }

    /// Makes the sites that take allocations for which there is no room elsewhere.
    pub fn reserve_unknown_site(&mut self, instance: u32) -> Result<()> {
        let mut sites: HashMap<&mut MapData, SiteKey, SiteTotals> =
            HashMap::try_from(self.ebpf.map_mut("SITES").context("no map SITES")?)?;
        for domain in [0, UNKNOWN_SMALL] {
            let key = SiteKey {
                instance,
                domain,
                stack: memwatch_common::stack::STACK_UNKNOWN,
            };
            // It may be there already: the kernel side makes it when it needs it.
            let _ = sites.insert(key, SiteTotals::ZERO, 1);
        }
        Ok(())
    }

    /// Opens or closes the gate: the instant from which, or up to which, everything counts.
    pub fn set_gate(&mut self, open: bool) -> Result<()> {
        self.config.gate = if open { GATE_OPEN } else { GATE_CLOSED };
        self.write_config()
    }

    /// Nothing is recorded yet, but how often CPython's functions are called is counted.
    pub fn set_counting(&mut self) -> Result<()> {
        self.config.gate = GATE_COUNTING;
        self.write_config()
    }

    pub fn set_tick(&mut self, tick: u64) -> Result<()> {
        self.config.tick = tick;
        self.write_config()
    }

    /// Links made from now on carry the next generation and do not count yet.
    pub fn prepare_generation(&mut self) {
        self.link_generation = (self.config.generation + 1) % Cookie::GENERATIONS;
    }

    /// Links of the prepared generation count from now on, and no others.
    pub fn commit_generation(&mut self) -> Result<()> {
        self.config.generation = self.link_generation;
        self.write_config()
    }

    pub fn link_generation(&self) -> u32 {
        self.link_generation
    }

    fn write_config(&mut self) -> Result<()> {
        set_array(&mut self.ebpf, "CONFIG", self.config)
    }
}

fn set_array<T: aya::Pod>(ebpf: &mut Ebpf, name: &str, value: T) -> Result<()> {
    let mut array: Array<&mut MapData, T> =
        Array::try_from(ebpf.map_mut(name).with_context(|| format!("no map {name}"))?)?;
    array
        .set(0, value, 0)
        .with_context(|| format!("cannot write map {name}"))
}
