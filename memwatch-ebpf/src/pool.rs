//! Pools of small Python objects, when pymalloc takes them into use.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use memwatch_common::{
    Config, Cookie, Counter, LiveKey, ProcessState,
    python::{OpenedPool, PoolCaller},
};

use crate::{
    arch::Registers,
    maps::{POOL_CALLERS, POOLS, count},
    python, size,
    slot::Slot,
    unwind,
};

/// A pool is about to be in use: its head is being written.
#[inline(always)]
pub fn begins(
    config: &Config,
    state: &ProcessState,
    slot: &mut Slot,
    cookie: Cookie,
    registers: Registers<'_>,
) {
    let stack = unwind::walk(config, state, slot, &unwind::Start::at(registers));
    let asked = asked(state, registers);
    opened(state.instance, stack, registers.numbered(cookie.id()), asked);
}

/// How much was asked for, by the place that the thread is at; 0 where that is not known.
#[inline(always)]
pub fn asked(state: &ProcessState, registers: Registers<'_>) -> u64 {
    let Some(process) = python::process(state.instance, state.space) else {
        return 0;
    };
    let back = registers.instruction().wrapping_sub(process.bias);
    if back >> 32 != 0 {
        return 0; // another interpreter's
    }
    let caller = PoolCaller {
        file: process.file,
        back: back as u32,
    };
    // SAFETY: a live map value; user space writes each once.
    let Some(size) = (unsafe { POOL_CALLERS.get(&caller) }) else {
        return 0;
    };
    size::of(*size, registers).unwrap_or(0)
}

/// A pool is in use from here on. It need not be empty of old blocks' traces: one that had blocks of the same size before
/// is used as it was left.
#[inline(always)]
pub fn opened(instance: u32, stack: u64, address: u64, asked: u64) {
    let key = LiveKey::new(address, instance);
    let pool = OpenedPool {
        stack,
        // SAFETY: no arguments.
        born_ns: unsafe { bpf_ktime_get_ns() },
        asked,
    };
    if POOLS.insert(&key, &pool, u64::from(BPF_ANY)).is_err() {
        count(Counter::PoolsFull);
    }
}
