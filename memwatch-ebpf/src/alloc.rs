//! One allocation, from its call to its end: begin, then commit or failure.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_user};
use memwatch_common::{
    Config, Cookie, Counter, Domain, Function, LiveValue, ProcessState, limits::MAX_IN_FLIGHT,
};

use crate::{
    account,
    arch::Registers,
    atomic, free, live,
    maps::count,
    pool, python, request,
    slot::{InFlight, OLD_FREED, OLD_NONE, OLD_OUTER, OLD_TAKEN, Slot},
    unwind,
};

const POSIX_MEMALIGN: u8 = Function::PosixMemalign as u8;
const PYTHON_POOL: u8 = Function::PythonPool as u8;

/// A call begins. True when its return must be seen.
#[inline(always)]
pub fn begin(
    config: &Config,
    state: &mut ProcessState,
    slot: &mut Slot,
    cookie: Cookie,
    registers: Registers<'_>,
) -> bool {
    let request = request::of(cookie.function(), registers);
    // A pool is no block: bounds are for blocks.
    let in_bounds = cookie.function() == PYTHON_POOL
        || (request.bytes >= config.min_bytes && request.bytes <= config.max_bytes);
    let sp = registers.stack();
    if !in_bounds && request.old_address == 0 {
        slot.note_passed_over(sp);
        return false;
    }
    if let Some(dropped) = slot.drop_abandoned(config, sp, cookie) {
        count(Counter::Abandoned);
        live::restore_old(state, slot.call(dropped));
    }
    slot.forget_passed_over(sp);
    slot.last_freed = 0;
    let depth = slot.depth;
    if depth >= MAX_IN_FLIGHT as u32 {
        count(Counter::InFlightFull);
        return false;
    }
    let stack = unwind::walk(config, state, slot, &unwind::Start::at(registers));
    let domain = domain(state, slot, cookie);
    let call = slot.call(depth);
    call.domain = u64::from(domain);
    call.sp = sp;
    call.cookie = cookie.0;
    call.bytes = request.bytes;
    call.result_at = request.result_at;
    call.old_address = request.old_address;
    call.old_state = OLD_NONE;
    call.stack = stack;
    call.instance = state.instance;
    if request.old_address != 0 && !live::take_old(state, call) {
        let (address, instance) = (call.old_address, call.instance);
        if slot.holding(address, instance).is_some() {
            slot.call(depth).old_state = OLD_OUTER;
        }
    }
    slot.depth = depth + 1;
    true
}

/// libc's blocks may be CPython's.
#[inline(always)]
fn domain(state: &ProcessState, slot: &Slot, cookie: Cookie) -> u32 {
    let domain = u32::from(cookie.domain());
    if domain == Domain::Native as u32 && python::may_run_in(state) {
        return python::python_domain(slot, state.instance, state.space);
    }
    domain
}

/// A call returns.
#[inline(always)]
pub fn finish(
    config: &Config,
    state: &mut ProcessState,
    slot: &mut Slot,
    cookie: Cookie,
    registers: Registers<'_>,
    every_call_seen: bool,
) {
    let Some(index) = slot.take(registers.stack_at_entry(), cookie.0) else {
        if every_call_seen {
            count(Counter::UnknownReturn);
        }
        return;
    };
    let call = slot.call(index);
    if call.instance != state.instance {
        return;
    }
    if cookie.function() == PYTHON_POOL {
        let block = registers.result();
        if block != 0 {
            // mimalloc's function is told the size.
            let asked = if cookie.id() == 0 {
                call.bytes
            } else {
                pool::asked(state, registers)
            };
            let pool = block & !0 << (cookie.id() & 63);
            pool::opened(state.instance, call.stack, pool, asked);
        }
        if index == 0 {
            live::forget_inner(slot);
        }
        return;
    }
    let Some(address) = result(cookie.function(), call, registers) else {
        return;
    };
    if address == 0 {
        failed(config, state, call);
    } else {
        commit(config, state, slot, index, address);
    }
    if index == 0 {
        live::forget_inner(slot);
    }
}

/// The block that the call gave, 0 for none.
#[inline(always)]
fn result(function: u8, call: &InFlight, registers: Registers<'_>) -> Option<u64> {
    if function != POSIX_MEMALIGN {
        return Some(registers.result());
    }
    if registers.result() as u32 != 0 {
        return Some(0);
    }
    // SAFETY: the helper checks the address.
    let address = unsafe { bpf_probe_read_user(call.result_at as *const u64) };
    if address.is_err() {
        count(Counter::ResultUnreadable);
    }
    address.ok()
}

#[inline(always)]
fn failed(config: &Config, state: &mut ProcessState, call: &mut InFlight) {
    if call.old_address != 0 && call.bytes == 0 {
        // realloc(p, 0) that gives no block has freed the old one.
        release_old(config, state, call);
        return;
    }
    atomic::add(&mut state.failed_allocations, 1);
    live::restore_old(state, call);
}

/// The old block of a realloc is gone.
#[inline(always)]
fn release_old(config: &Config, state: &mut ProcessState, call: &mut InFlight) {
    if call.old_state == OLD_TAKEN {
        let old = call.old;
        account::freed(config, state.instance, &old);
        atomic::sub(&mut state.live_bytes, old.bytes);
    } else if call.old_state == OLD_NONE {
        // The header may be another block's by now, so its size is not read.
        free::unknown(config, state, call.old_address, false);
    }
    call.old_state = OLD_FREED;
}

/// A block is there: out with what it replaces, in with it.
#[inline(always)]
fn commit(config: &Config, state: &mut ProcessState, slot: &mut Slot, index: u32, address: u64) {
    let thread = slot.thread;
    let call = slot.call(index);
    if call.old_address != 0 {
        release_old(config, state, call);
    }
    let (bytes, stack, domain) = (call.bytes, call.stack, call.domain as u32);
    live::absorb_inner(config, state, slot, address);
    if bytes < config.min_bytes || bytes > config.max_bytes {
        return;
    }
    let value = LiveValue {
        bytes,
        // SAFETY: no arguments.
        born_ns: unsafe { bpf_ktime_get_ns() },
        stack,
        domain,
        thread,
    };
    if !live::insert(config, state, address, &value) {
        return;
    }
    account::allocated(config, state.instance, &value);
    if index > 0 {
        live::remember_inner(slot, address, bytes);
    }
}
