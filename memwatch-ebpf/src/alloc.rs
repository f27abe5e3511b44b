//! One allocation, from its call to its end: begin, commit, cancel, and the free.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use memwatch_common::{
    Config, Cookie, Counter, Domain, Function, LiveKey, LiveValue, ProcessState, SiteKey, SiteTotals,
    cookie::FLAG_GLIBC,
    hist,
    limits::{LIFETIME_BUCKETS, MAX_IN_FLIGHT, MAX_INNER, SIZE_BUCKETS},
    python::{OpenedPool, POOL_BYTES},
    stack::STACK_UNKNOWN,
};

use crate::{
    arch::Registers,
    atomic,
    bound::mask,
    maps::{self, ENOMEM, LIVE, POOLS, count},
    python,
    slot::{self, InFlight, OLD_FREED, OLD_NONE, OLD_OUTER, OLD_TAKEN, Slot},
    unwind,
};

const CALLOC: u8 = Function::Calloc as u8;
const REALLOC: u8 = Function::Realloc as u8;
const REALLOCARRAY: u8 = Function::Reallocarray as u8;
const MEMALIGN: u8 = Function::Memalign as u8;
const POSIX_MEMALIGN: u8 = Function::PosixMemalign as u8;
const PVALLOC: u8 = Function::Pvalloc as u8;
const PYTHON_POOL: u8 = Function::PythonPool as u8;

/// What the arguments ask for: bytes, the old block, where the result will stand.
struct Request {
    bytes: u64,
    old_address: u64,
    result_at: u64,
}

#[inline(always)]
fn request(function: u8, registers: Registers<'_>) -> Request {
    let (a, b, c) = (
        registers.argument_0(),
        registers.argument_1(),
        registers.argument_2(),
    );
    let mut request = Request {
        bytes: a,
        old_address: 0,
        result_at: 0,
    };
    match function {
        CALLOC => request.bytes = product(a, b),
        REALLOC => {
            request.old_address = a;
            request.bytes = b;
        }
        REALLOCARRAY => {
            request.old_address = a;
            request.bytes = product(b, c);
        }
        MEMALIGN => request.bytes = b,
        POSIX_MEMALIGN => {
            request.result_at = a;
            request.bytes = c;
        }
        PVALLOC => request.bytes = a.wrapping_add(4095) & !4095,
        PYTHON_POOL => request.bytes = 0,
        _ => {}
    }
    request
}

/// `a * b`, or a size that no call can get: the call will fail then. By halves, since BPF has no wide product.
#[inline(always)]
fn product(a: u64, b: u64) -> u64 {
    if (a | b) >> 32 == 0 {
        return a * b;
    }
    let (large, small) = if a > b { (a, b) } else { (b, a) };
    if small >> 32 != 0 {
        return u64::MAX;
    }
    let high = (large >> 32) * small;
    let low = (large & 0xffff_ffff) * small;
    let sum = (high << 32).wrapping_add(low);
    if high >> 32 != 0 || sum < low {
        u64::MAX
    } else {
        sum
    }
}

/// A call begins. True when its return must be seen.
#[inline(always)]
pub fn begin(
    config: &Config,
    state: &mut ProcessState,
    slot: &mut Slot,
    cookie: Cookie,
    registers: Registers<'_>,
) -> bool {
    let request = request(cookie.function(), registers);
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
        restore_old(state, slot.call(dropped));
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
    if request.old_address != 0 && !take_old(state, call) {
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

/// realloc may give the old block's address to another thread before it returns: the block leaves `LIVE` now and
/// comes back if the call fails. False when it was not there.
#[inline(always)]
fn take_old(state: &mut ProcessState, call: &mut InFlight) -> bool {
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
fn restore_old(state: &mut ProcessState, call: &mut InFlight) {
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
            pool_opened(state.instance, call.stack, block & !(POOL_BYTES - 1));
        }
        if index == 0 {
            forget_inner(slot);
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
        forget_inner(slot);
    }
}

/// A pool is about to be in use: its head is being written.
#[inline(always)]
pub fn pool_begins(
    config: &Config,
    state: &ProcessState,
    slot: &mut Slot,
    cookie: Cookie,
    registers: Registers<'_>,
) {
    let stack = unwind::walk(config, state, slot, &unwind::Start::at(registers));
    pool_opened(state.instance, stack, registers.numbered(cookie.id()));
}

/// A pool is in use from here on. It need not be empty of old blocks' traces: one that had blocks of the same size before
/// is used as it was left.
#[inline(always)]
fn pool_opened(instance: u32, stack: u64, address: u64) {
    let key = LiveKey::new(address, instance);
    let pool = OpenedPool {
        stack,
        // SAFETY: no arguments.
        born_ns: unsafe { bpf_ktime_get_ns() },
    };
    if POOLS.insert(&key, &pool, u64::from(BPF_ANY)).is_err() {
        count(Counter::PoolsFull);
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
    restore_old(state, call);
}

/// The old block of a realloc is gone.
#[inline(always)]
fn release_old(config: &Config, state: &mut ProcessState, call: &mut InFlight) {
    if call.old_state == OLD_TAKEN {
        let old = call.old;
        account_free(config, state.instance, &old);
        atomic::sub(&mut state.live_bytes, old.bytes);
    } else if call.old_state == OLD_NONE {
        // The header may be another block's by now, so its size is not read.
        unknown_free(config, state, call.old_address, false);
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
    absorb_inner(config, state, slot, address);
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
    if !insert_live(config, state, address, &value) {
        return;
    }
    account_allocation(config, state.instance, &value);
    if index > 0 {
        // SAFETY: the mask keeps the index inside the array.
        let inner = unsafe {
            slot.inner
                .get_unchecked_mut(mask::<INNER_MASK>(u64::from(slot.inner_next)))
        };
        inner.address = address;
        inner.bytes = bytes;
        slot.inner_next = slot.inner_next.wrapping_add(1);
    }
}

const INNER_MASK: i32 = MAX_INNER as i32 - 1;
const _: () = assert!(MAX_INNER.is_power_of_two());

/// Puts a block into `LIVE`, within the bounds.
#[inline(always)]
fn insert_live(config: &Config, state: &mut ProcessState, address: u64, value: &LiveValue) -> bool {
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

const EEXIST: i32 = 17;

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
        account_free(config, state.instance, &old);
    }
}

/// A block that an inner call made and that the outer one now gives out (the same, or one inside it, when the
/// outer one keeps a header before it) is one block: the outer one's.
#[inline(always)]
fn absorb_inner(config: &Config, state: &mut ProcessState, slot: &mut Slot, address: u64) {
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
        atomic::sub(size_count(site, value.bytes), 1);
        maps::touch(config, &key, site);
    }
}

#[inline(always)]
fn forget_inner(slot: &mut Slot) {
    if slot.inner_next == 0 {
        return;
    }
    slot.inner_next = 0;
    for inner in &mut slot.inner {
        inner.address = 0;
    }
}

/// Where a process's blocks are counted when there is no room for their site.
const fn unknown(instance: u32) -> SiteKey {
    SiteKey {
        instance,
        domain: Domain::Native as u32,
        stack: STACK_UNKNOWN,
    }
}

#[inline(always)]
fn account_allocation(config: &Config, instance: u32, value: &LiveValue) {
    let mut key = SiteKey {
        instance,
        domain: value.domain,
        stack: value.stack,
    };
    let site = if let Some(site) = maps::site(&key) {
        site
    } else {
        count(Counter::SitesFull);
        // Every process has had its place for unknown stacks since it is watched.
        key = unknown(instance);
        let Some(site) = maps::site(&key) else {
            count(Counter::SiteLost);
            return;
        };
        site
    };
    atomic::add(&mut site.alloc_bytes, value.bytes);
    atomic::add(&mut site.alloc_objects, 1);
    atomic::add(size_count(site, value.bytes), 1);
    maps::touch(config, &key, site);
}

#[inline(always)]
fn account_free(config: &Config, instance: u32, value: &LiveValue) {
    let mut key = SiteKey {
        instance,
        domain: value.domain,
        stack: value.stack,
    };
    let site = if let Some(site) = maps::existing_site(&key) {
        site
    } else {
        key = unknown(instance);
        let Some(site) = maps::existing_site(&key) else {
            count(Counter::SiteLost);
            return;
        };
        site
    };
    // SAFETY: no arguments.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(value.born_ns);
    atomic::add(&mut site.freed_bytes, value.bytes);
    atomic::add(&mut site.freed_objects, 1);
    atomic::add(lifetime_count(site, age), 1);
    maps::touch(config, &key, site);
}

#[inline(always)]
pub fn size_count(site: &mut SiteTotals, bytes: u64) -> &mut u64 {
    const MASK: i32 = SIZE_BUCKETS as i32 - 1;
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        site.sizes
            .get_unchecked_mut(mask::<MASK>(hist::size_bucket(bytes) as u64))
    }
}

#[inline(always)]
fn lifetime_count(site: &mut SiteTotals, age_ns: u64) -> &mut u64 {
    const MASK: i32 = LIFETIME_BUCKETS as i32 - 1;
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        site.lifetimes
            .get_unchecked_mut(mask::<MASK>(hist::lifetime_bucket(age_ns) as u64))
    }
}

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
            account_free(config, state.instance, &value);
        }
        if !glibc {
            remember_freed(address);
        }
        return;
    }
    if freed_by_inner_call(config, state, address, glibc) || remember_freed(address) {
        return;
    }
    unknown_free(config, state, address, glibc);
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
        account_free(config, state.instance, &old);
    } else if old_state == OLD_NONE {
        unknown_free(config, state, address, glibc);
    }
    true
}

/// A block that was not seen being born: the parent's, or one from before recording began.
#[inline(always)]
fn unknown_free(config: &Config, state: &mut ProcessState, address: u64, glibc: bool) {
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
