//! Blocks that are alive: in, out, and in the hands of a realloc.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use memwatch_common::{Config, Counter, LiveKey, LiveValue, ProcessState, SiteKey, limits::MAX_INNER};

use crate::{
    account, atomic,
    bound::mask,
    maps::{self, ENOMEM, LIVE, count},
    slot::{InFlight, OLD_NONE, OLD_TAKEN, Slot},
};

const INNER_MASK: i32 = MAX_INNER as i32 - 1;
const _: () = assert!(MAX_INNER.is_power_of_two());

const EEXIST: i32 = 17;

/// realloc may give the old block's address to another thread before it returns: the block leaves `LIVE` now and
/// comes back if the call fails. False when it was not there.
#[inline(always)]
pub fn take_old(state: &mut ProcessState, call: &mut InFlight) -> bool {
    let key = LiveKey::new(call.old_address, call.instance);
    // SAFETY: the value is copied before anything else can change it.
    let Some(old) = (unsafe { LIVE.get(&key) }) else {
        return false;
    };
    call.old = *old;
    let taken = LIVE.remove(&key).is_ok();
    if taken {
        call.old_state = OLD_TAKEN;
        atomic::sub(&mut state.live_blocks, 1);
    }
    taken
}

/// The call failed or will never return: the old block lives on.
#[inline(always)]
pub fn restore_old(state: &mut ProcessState, call: &mut InFlight) {
    if call.old_state != OLD_TAKEN || call.instance != state.instance {
        return;
    }
    call.old_state = OLD_NONE;
    let key = LiveKey::new(call.old_address, state.instance);
    if LIVE.insert(&key, &call.old, u64::from(BPF_NOEXIST)).is_err() {
        count(Counter::LiveFull);
    } else {
        atomic::add(&mut state.live_blocks, 1);
    }
}

/// Puts a block into `LIVE`, within the bounds.
#[inline(always)]
pub fn insert(config: &Config, state: &mut ProcessState, address: u64, value: &LiveValue) -> bool {
    let key = LiveKey::new(address, state.instance);
    if state.live_blocks >= config.live_per_process {
        count(Counter::LiveShare);
    } else {
        let mut error = LIVE
            .insert(&key, value, u64::from(BPF_NOEXIST))
            .err()
            .unwrap_or(0);
        if error == -EEXIST {
            replace_missed(config, state, &key);
            error = LIVE.insert(&key, value, u64::from(BPF_ANY)).err().unwrap_or(0);
        } else if error == -ENOMEM {
            error = LIVE.insert(&key, value, u64::from(BPF_ANY)).err().unwrap_or(0);
        }
        if error == 0 {
            atomic::add(&mut state.live_blocks, 1);
            atomic::add(&mut state.live_bytes, value.bytes);
            return true;
        }
        count(if error == -ENOMEM {
            Counter::LiveNoMemory
        } else {
            Counter::LiveFull
        });
    }
    atomic::add(&mut state.unaccounted_objects, 1);
    atomic::add(&mut state.unaccounted_bytes, value.bytes);
    false
}

/// The address was handed out again, so the block that stood there was freed without being seen.
#[inline(always)]
fn replace_missed(config: &Config, state: &mut ProcessState, key: &LiveKey) {
    // SAFETY: the value is copied before anything else can change it.
    let Some(old) = (unsafe { LIVE.get(key) }) else {
        return;
    };
    let old = *old;
    if LIVE.remove(key).is_ok() {
        count(Counter::FreeMissed);
        atomic::sub(&mut state.live_blocks, 1);
        atomic::sub(&mut state.live_bytes, old.bytes);
        account::freed(config, state.instance, &old);
    }
}

/// A block that an inner call made and that the outer one now gives out (the same, or one inside it, when the
/// outer one keeps a header before it) is one block: the outer one's.
#[inline(always)]
pub fn absorb_inner(config: &Config, state: &mut ProcessState, slot: &mut Slot, address: u64) {
    if slot.inner_next == 0 {
        return;
    }
    // First find it, then act: the verifier would look at the second part once for each round.
    let mut found = 0;
    for inner in &mut slot.inner {
        if inner.address != 0 && address.wrapping_sub(inner.address) <= inner.bytes.saturating_sub(1) {
            found = inner.address;
            inner.address = 0;
        }
    }
    if found == 0 {
        return;
    }
    let key = LiveKey::new(found, state.instance);
    // SAFETY: the value is copied before anything else can change it.
    let Some(value) = (unsafe { LIVE.get(&key) }) else {
        return;
    };
    let value = *value;
    if LIVE.remove(&key).is_err() {
        return;
    }
    count(Counter::Absorbed);
    atomic::sub(&mut state.live_blocks, 1);
    atomic::sub(&mut state.live_bytes, value.bytes);
    let key = SiteKey {
        instance: state.instance,
        domain: value.domain,
        stack: value.stack,
    };
    if let Some(site) = maps::existing_site(&key) {
        atomic::sub(&mut site.alloc_bytes, value.bytes);
        atomic::sub(&mut site.alloc_objects, 1);
        atomic::sub(account::size_count(site, value.bytes), 1);
        maps::touch(config, &key, site);
    }
}

#[inline(always)]
pub fn forget_inner(slot: &mut Slot) {
    if slot.inner_next == 0 {
        return;
    }
    slot.inner_next = 0;
    for inner in &mut slot.inner {
        inner.address = 0;
    }
}

/// A call inside another made a block, which may turn out to be the outer one's.
#[inline(always)]
pub fn remember_inner(slot: &mut Slot, address: u64, bytes: u64) {
    // SAFETY: the mask keeps the index inside the array.
    let inner = unsafe {
        slot.inner
            .get_unchecked_mut(mask::<INNER_MASK>(u64::from(slot.inner_next)))
    };
    inner.address = address;
    inner.bytes = bytes;
    slot.inner_next = slot.inner_next.wrapping_add(1);
}
