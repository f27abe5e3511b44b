//! fork, exec and exit of watched processes.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use memwatch_common::{
    Config, Counter, Event, EventKind, ProcessState,
    event::{EXIT_OUT_OF_MEMORY, EXIT_STATUS},
    process::{MAX_ANCESTORS, PROCESS_EXITED, PROCESS_FOLLOW, PROCESS_FORKED, state_place},
};

use crate::{
    atomic,
    maps::{self, NEXT_INSTANCE, PROCESSES, SPACES, STATES, count, send},
    memory::read_kernel,
    python, slot,
};

/// Numbers whose places are tried: half of all at least are free, unless very many have ended and were not read yet.
const TRIES: usize = 64;

/// A number for a new process or program, whose place for its state was free and is now its own.
#[inline(always)]
fn next_instance(config: &Config) -> Option<u32> {
    let next = NEXT_INSTANCE.get_ptr_mut(0)?;
    for _ in 0..TRIES {
        // SAFETY: a live map value, only ever changed by this.
        let instance = atomic::fetch_add(unsafe { &mut *next }, 1) as u32;
        let state = STATES.get_ptr_mut(state_place(instance, config.state_places))?;
        // SAFETY: a live map value; its first aligned word is the instance, and the flags of none.
        if atomic::claim(unsafe { &mut *state.cast::<u64>() }, u64::from(instance)) {
            return Some(instance);
        }
    }
    count(Counter::ProcessesFull);
    None
}

#[inline(always)]
fn kernel_u32(address: u64) -> u32 {
    // SAFETY: the helper checks the address.
    unsafe { read_kernel(address) as u32 }
}

#[inline(always)]
fn event(kind: EventKind, pid: u32, instance: u32) -> Event {
    let mut event = Event::ZERO;
    event.kind = kind as u32;
    event.pid = pid;
    event.instance = instance;
    event.thread = bpf_get_current_pid_tgid() as u32;
    // SAFETY: no arguments.
    event.end_ns = unsafe { bpf_ktime_get_ns() };
    event
}

/// `sched_process_fork(parent, child)`: runs in the parent before the child's first instruction.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(context: RawTracePointContext) -> i32 {
    let Some(config) = maps::config() else { return 0 };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(parent) = maps::process(config, tgid) else {
        return 0;
    };
    if parent.flags & PROCESS_FOLLOW == 0 {
        return 0;
    }
    let child: u64 = context.arg(1);
    if let Some(pid) = new_process(config, child) {
        debug!(&context, "fork: {} -> {}", tgid, pid);
        follow(config, tgid, parent, pid);
    }
    0
}

/// The child's process id, unless it is only another thread.
#[inline(always)]
fn new_process(config: &Config, child: u64) -> Option<u32> {
    if config.task_pid == 0 || config.task_tgid == 0 {
        return None;
    }
    let pid = kernel_u32(child + u64::from(config.task_pid));
    (pid == kernel_u32(child + u64::from(config.task_tgid))).then_some(pid)
}

/// A new program counts from here on.
#[inline(always)]
fn begin(config: &Config, pid: u32, state: &ProcessState) -> bool {
    maps::put_state(config, state);
    if PROCESSES.insert(&pid, &state.instance, 0).is_ok() {
        return true;
    }
    count(Counter::ProcessesFull);
    if let Some(state) = maps::state(config, state.instance) {
        state.instance = 0;
    }
    false
}

const _: () = assert!(MAX_ANCESTORS == 3, "the chain in `follow` is written out");

#[inline(always)]
fn follow(config: &Config, tgid: u32, parent: &mut ProcessState, pid: u32) {
    let Some(instance) = next_instance(config) else {
        return;
    };
    let mut state = ProcessState::new(instance, PROCESS_FOLLOW | PROCESS_FORKED);
    state.parent_instance = parent.instance;
    // Until user space has read the child's mappings, its code is where the parent's is.
    state.space = if SPACES.get_ptr(&parent.instance).is_some() {
        parent.instance
    } else {
        parent.space
    };
    // SAFETY: no arguments.
    state.forked_ns = unsafe { bpf_ktime_get_ns() };
    // Its own blocks, and what is left of its copies of others'.
    state.inherited_objects =
        parent.live_blocks + parent.inherited_objects.saturating_sub(parent.inherited_frees);
    state.inherited_bytes = parent.live_bytes
        + parent
            .inherited_bytes
            .saturating_sub(parent.inherited_freed_bytes);
    state.ancestors[0].instance = parent.parent_instance;
    state.ancestors[0].forked_ns = parent.forked_ns;
    state.ancestors[1] = parent.ancestors[0];
    state.ancestors[2] = parent.ancestors[1];
    python::inherit(parent, instance);
    if !begin(config, pid, &state) {
        return;
    }
    let mut event = event(EventKind::Fork, pid, instance);
    event.a = u64::from(parent.instance);
    event.b = u64::from(tgid);
    send(&event, Counter::LifecycleLost);
}

/// `sched_process_exec(task, old_pid, binary)`: the old program's memory is gone.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(context: RawTracePointContext) -> i32 {
    let Some(config) = maps::config() else { return 0 };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(old) = maps::process(config, tgid) else {
        return 0;
    };
    if let Some(slot) = slot::existing() {
        slot.forget();
    }
    let new = next_instance(config).map(|instance| ProcessState::new(instance, old.flags & PROCESS_FOLLOW));
    let new = new.filter(|new| begin(config, tgid, new));
    // It stays in its place until user space has read what it counted last.
    old.flags |= PROCESS_EXITED;
    let Some(state) = new else { return 0 };
    let (instance, old_instance) = (state.instance, old.instance);
    debug!(&context, "exec: {}", tgid);
    let mut event = event(EventKind::Exec, tgid, instance);
    event.a = u64::from(old_instance);
    send(&event, Counter::LifecycleLost);
    0
}

/// `sched_process_exit(task)`: runs for every thread; the process ends with the last.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(context: RawTracePointContext) -> i32 {
    let Some(config) = maps::config() else { return 0 };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(state) = maps::process(config, tgid) else {
        return 0;
    };
    let task: u64 = context.arg(0);
    let mut event = event(EventKind::Exit, tgid, state.instance);
    if config.task_signal != 0 && config.signal_live != 0 {
        // SAFETY: the helper checks the address.
        let signal = unsafe { read_kernel(task + u64::from(config.task_signal)) };
        if kernel_u32(signal + u64::from(config.signal_live)) != 0 {
            return 0;
        }
        // SAFETY: the helper checks the address.
        let chosen = unsafe { read_kernel(signal + u64::from(config.signal_oom_mm)) };
        if config.signal_oom_mm != 0 && chosen != 0 {
            event.flags |= EXIT_OUT_OF_MEMORY;
        }
    } else if tgid != bpf_get_current_pid_tgid() as u32 {
        return 0;
    }
    state.flags |= PROCESS_EXITED;
    debug!(&context, "exit: {}", tgid);
    if config.task_exit_code != 0 {
        event.flags |= EXIT_STATUS;
        event.a = u64::from(kernel_u32(task + u64::from(config.task_exit_code)));
    }
    send(&event, Counter::LifecycleLost);
    0
}
