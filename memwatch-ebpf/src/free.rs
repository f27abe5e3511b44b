//! A block is given back.

use aya_ebpf::helpers::bpf_probe_read_user;
use memwatch_common::{Config, Cookie, LiveKey, ProcessState, cookie::FLAG_GLIBC};

use crate::{
    account, atomic,
    maps::LIVE,
    slot::{self, OLD_FREED, OLD_NONE, OLD_TAKEN},
};

/// A block is given back.
#[inline(always)]
pub fn free(config: &Config, state: &mut ProcessState, cookie: Cookie, address: u64) {
    if address == 0 {
        return;
    }
    // glibc's hands no block on to another free.
    let glibc = cookie.has_flag(FLAG_GLIBC);
    let key = LiveKey::new(address, state.instance);
    // SAFETY: the value is copied before anything else can change it.
    if let Some(value) = unsafe { LIVE.get(&key) } {
        let value = *value;
        if LIVE.remove(&key).is_ok() {
            atomic::sub(&mut state.live_blocks, 1);
            atomic::sub(&mut state.live_bytes, value.bytes);
            account::freed(config, state.instance, &value);
        }
        if !glibc {
            remember_freed(address);
        }
        return;
    }
    if freed_by_inner_call(config, state, address, glibc) || remember_freed(address) {
        return;
    }
    unknown(config, state, address, glibc);
}

/// One free function may hand its block on to another: the second call is not another free. True when this thread
/// has given back the same block just before.
#[inline(always)]
fn remember_freed(address: u64) -> bool {
    let Some(slot) = slot::current() else {
        return false;
    };
    let known = slot.last_freed == address;
    slot.last_freed = address;
    known
}

/// A realloc in flight may free its old block through `free`: that is its end, whatever the realloc gives back.
#[inline(always)]
fn freed_by_inner_call(config: &Config, state: &mut ProcessState, address: u64, glibc: bool) -> bool {
    let Some(slot) = slot::existing() else {
        return false;
    };
    let Some(index) = slot.holding(address, state.instance) else {
        return false;
    };
    let call = slot.call(index);
    let (old, old_state) = (call.old, call.old_state);
    call.old_state = OLD_FREED;
    if old_state == OLD_TAKEN {
        atomic::sub(&mut state.live_bytes, old.bytes);
        account::freed(config, state.instance, &old);
    } else if old_state == OLD_NONE {
        unknown(config, state, address, glibc);
    }
    true
}

/// A block that was not seen being born: the parent's, or one from before recording began.
#[inline(always)]
pub fn unknown(config: &Config, state: &mut ProcessState, address: u64, glibc: bool) {
    if let Some(bytes) = inherited(state, address) {
        atomic::add(&mut state.inherited_frees, 1);
        atomic::add(&mut state.inherited_freed_bytes, bytes);
        return;
    }
    if config.min_bytes > 0 || config.max_bytes < u64::MAX {
        // With a filter on sizes, unknown says nothing.
        return;
    }
    atomic::add(&mut state.untracked_frees, 1);
    if glibc {
        // SAFETY: the helper checks the address.
        if let Ok(header) = unsafe { bpf_probe_read_user(address.wrapping_sub(8) as *const u64) } {
            atomic::add(&mut state.untracked_freed_bytes, usable(header));
        }
    }
}

/// The size of a block that this process holds a copy of, since it was forked.
#[inline(always)]
fn inherited(state: &ProcessState, address: u64) -> Option<u64> {
    let mut found = born_before(state.parent_instance, state.forked_ns, address);
    for ancestor in &state.ancestors {
        if found.is_none() {
            found = born_before(ancestor.instance, ancestor.forked_ns, address);
        }
    }
    found
}

#[inline(always)]
fn born_before(instance: u32, fork_ns: u64, address: u64) -> Option<u64> {
    if instance == 0 {
        return None;
    }
    let key = LiveKey::new(address, instance);
    // SAFETY: only a copy of two words is used.
    let value = unsafe { LIVE.get(&key) }?;
    (value.born_ns < fork_ns).then_some(value.bytes)
}

/// The usable bytes of a glibc block by its header: the chunk less one word, less two when it was mapped.
#[inline(always)]
fn usable(header: u64) -> u64 {
    const IS_MMAPPED: u64 = 2;
    let chunk = header & !7;
    chunk.saturating_sub(if header & IS_MMAPPED != 0 { 16 } else { 8 })
}
