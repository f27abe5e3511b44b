//! mmap, munmap, mremap and brk, by their system calls: what a process maps beside what its allocators hand out.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    macros::tracepoint,
    programs::TracePointContext,
};
use memwatch_common::{
    Config, Counter, Event, EventKind, ProcessState,
    config::GATE_OPEN,
    event::{MAPPING_ALLOCATOR, MAPPING_ANONYMOUS, MAPPING_EXECUTABLE, MAPPING_NO_ACCESS},
    stack::STACK_UNKNOWN,
};

use crate::{
    arch::{BRK, MMAP, MREMAP, MUNMAP},
    maps::{self, count, send, send_quietly},
    memory,
    slot::{self, MappingCall, Slot},
    unwind,
};

/// Where the call's number, the arguments and the result stand in a system call tracepoint's record; the same on every
/// kernel.
const NUMBER: usize = 8;
const ARGUMENTS: usize = 16;
const RESULT: usize = 16;

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// A result from here on is an error number.
const ERRORS: u64 = (-4095_i64) as u64;

#[inline(always)]
fn system_call(context: &TracePointContext) -> u32 {
    // SAFETY: within the record of every system call.
    unsafe { context.read_at(NUMBER) }.unwrap_or(u32::MAX)
}

#[inline(always)]
fn argument(context: &TracePointContext, index: usize) -> u64 {
    // SAFETY: within the record of every system call that has this argument.
    unsafe { context.read_at(ARGUMENTS + 8 * index) }.unwrap_or(0)
}

#[inline(always)]
fn result(context: &TracePointContext) -> u64 {
    // SAFETY: within the record of every system call's end.
    unsafe { context.read_at(RESULT) }.unwrap_or(ERRORS)
}

/// The configuration and state when this process is being recorded.
#[inline(always)]
fn watched() -> Option<(&'static Config, &'static mut ProcessState)> {
    let config = maps::config()?;
    if config.gate != GATE_OPEN {
        return None;
    }
    let state = maps::process(config, (bpf_get_current_pid_tgid() >> 32) as u32)?;
    Some((config, state))
}

/// What a call asks for.
struct Call {
    address: u64,
    bytes: u64,
    new_bytes: u64,
    flags: u32,
    with_stack: bool,
}

/// Notes a call at its entry, with its stack.
#[inline(always)]
fn begin(config: &Config, state: &ProcessState, call: &Call) {
    let Some(slot) = slot::current() else { return };
    count(Counter::MappingCalls);
    let (inside_allocator, stack) = context(config, state, slot, call.with_stack);
    let mapping = &mut slot.mapping;
    mapping.active = 1;
    mapping.address = call.address;
    mapping.bytes = call.bytes;
    mapping.new_bytes = call.new_bytes;
    mapping.flags = if inside_allocator {
        call.flags | MAPPING_ALLOCATOR
    } else {
        call.flags
    };
    mapping.stack = stack;
    // SAFETY: no arguments.
    mapping.begin_ns = unsafe { bpf_ktime_get_ns() };
}

/// Whether an allocator makes the call, and if not, the stack.
#[inline(always)]
fn context(config: &Config, state: &ProcessState, slot: &mut Slot, with_stack: bool) -> (bool, u64) {
    if slot.depth > 0 {
        return (true, STACK_UNKNOWN);
    }
    if !with_stack && slot.passed_over_sp == 0 {
        return (false, STACK_UNKNOWN);
    }
    let Some(start) = user_registers() else {
        count(Counter::StackUnreadable);
        return (false, STACK_UNKNOWN);
    };
    if slot.in_passed_over(start.sp) {
        (true, STACK_UNKNOWN)
    } else if with_stack {
        (false, unwind::walk(config, state, slot, &start))
    } else {
        (false, STACK_UNKNOWN)
    }
}

/// Where the thread was in user space when it made the system call.
#[inline(always)]
fn user_registers() -> Option<unwind::Start> {
    // SAFETY: the helper takes the current task and gives its saved user registers; they are copied with a
    // checked read.
    let registers = unsafe {
        let task = bpf_get_current_task_btf();
        let at = bpf_task_pt_regs(task) as *const pt_regs;
        bpf_probe_read_kernel(at)
    }
    .ok()?;
    Some(unwind::Start {
        ip: registers.rip,
        sp: registers.rsp,
        fp: registers.rbp,
    })
}

/// Sends the call if it did something. `c` is where a remapped piece went, `b` its new size.
#[inline(always)]
fn end(
    state: &ProcessState,
    call: &mut MappingCall,
    kind: EventKind,
    ok: bool,
    address: u64,
    b: u64,
    c: u64,
) {
    if call.active == 0 {
        return;
    }
    call.active = 0;
    if !ok {
        return;
    }
    let id = bpf_get_current_pid_tgid();
    let mut event = Event::ZERO;
    event.kind = kind as u32;
    event.pid = (id >> 32) as u32;
    event.thread = id as u32;
    event.instance = state.instance;
    event.flags = call.flags;
    event.domain = memwatch_common::Domain::Mmap as u32;
    event.stack = call.stack;
    event.begin_ns = call.begin_ns;
    // SAFETY: no arguments.
    event.end_ns = unsafe { bpf_ktime_get_ns() };
    event.address = address;
    event.a = call.bytes;
    event.b = b;
    event.c = c;
    // New code may hold an allocator that is to be watched at once.
    if event.flags & MAPPING_EXECUTABLE != 0 {
        send(&event, Counter::MappingLost);
    } else {
        send_quietly(&event, Counter::MappingLost);
    }
}

/// At the entry of each of the system calls. One program for all: the verifier goes through the walk of the stack once.
#[tracepoint]
pub fn enter_mapping(context: TracePointContext) -> u32 {
    let Some((config, state)) = watched() else {
        return 0;
    };
    let (a, b, c) = (
        argument(&context, 0),
        argument(&context, 1),
        argument(&context, 2),
    );
    let call = match system_call(&context) {
        MMAP => Call {
            address: a,
            bytes: b,
            new_bytes: 0,
            flags: mmap_flags(c, argument(&context, 3)),
            with_stack: true,
        },
        MUNMAP => Call {
            address: a,
            bytes: b,
            new_bytes: 0,
            flags: 0,
            with_stack: false,
        },
        MREMAP => Call {
            address: a,
            bytes: b,
            new_bytes: c,
            flags: MAPPING_ANONYMOUS,
            with_stack: true,
        },
        // Asking where the break is moves nothing.
        BRK if a != 0 => Call {
            address: program_break(config),
            bytes: 0,
            new_bytes: 0,
            flags: MAPPING_ANONYMOUS,
            with_stack: true,
        },
        _ => return 0,
    };
    begin(config, state, &call);
    0
}

#[inline(always)]
fn mmap_flags(protection: u64, how: u64) -> u32 {
    let mut flags = 0;
    if how & MAP_ANONYMOUS != 0 {
        flags |= MAPPING_ANONYMOUS;
    }
    if protection & PROT_EXEC != 0 {
        flags |= MAPPING_EXECUTABLE;
    }
    if protection == 0 {
        flags |= MAPPING_NO_ACCESS;
    }
    flags
}

/// At the return of each.
#[tracepoint]
pub fn exit_mapping(context: TracePointContext) -> u32 {
    let Some((_, state)) = watched() else { return 0 };
    let Some(slot) = slot::existing() else { return 0 };
    let result = result(&context);
    let call = &mut slot.mapping;
    let (address, new_bytes) = (call.address, call.new_bytes);
    match system_call(&context) {
        MMAP => end(state, call, EventKind::Map, result < ERRORS, result, 0, 0),
        MUNMAP => end(state, call, EventKind::Unmap, result == 0, address, 0, 0),
        MREMAP => end(
            state,
            call,
            EventKind::Remap,
            result < ERRORS,
            address,
            new_bytes,
            result,
        ),
        // The result is the break as it is now; a call that could not move it leaves it where it was.
        BRK => {
            call.bytes = result;
            let moved = address != 0 && result != address;
            end(state, call, EventKind::Break, moved, address, 0, 0);
        }
        _ => {}
    }
    0
}

/// Where the program break is, from the kernel's own books; 0 when that cannot be read.
#[inline(always)]
fn program_break(config: &Config) -> u64 {
    if config.task_mm == 0 || config.mm_brk == 0 {
        return 0;
    }
    // SAFETY: reads two words of the current task at offsets from the running kernel's BTF.
    unsafe {
        let task = bpf_get_current_task_btf() as u64;
        let mm = memory::read_kernel(task + u64::from(config.task_mm));
        memory::read_kernel(mm + u64::from(config.mm_brk))
    }
}
