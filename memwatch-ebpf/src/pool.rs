//! Pools of small Python objects, when pymalloc takes them into use.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use memwatch_common::{Config, Cookie, Counter, LiveKey, ProcessState, python::OpenedPool};

use crate::{
    arch::Registers,
    maps::{POOLS, count},
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
    opened(state.instance, stack, registers.numbered(cookie.id()), 0);
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
