//! Every map, and the counters.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use memwatch_common::{
    Config, Counter, Event, LiveKey, LiveValue, ProcessKey, ProcessState, SiteKey, SiteTotals, Stack,
    counter::COUNTERS,
    limits,
    process::{PROCESS_EXITED, state_place, state_places},
    python::{CodeCopy, CodeKey, OpenedPool, PoolCaller, PythonProcess, PythonStack},
    size_at::SizeWords,
    unwind::{
        BLOCK_ROWS, CachedRule, KnownPage, MAX_RULES, PageKey, RowBlock, Rule, SPACE_VERSIONS_KEPT, Space,
    },
};

use crate::atomic;

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// The next instance number for a process found by the kernel side.
#[map]
pub static NEXT_INSTANCE: Array<u64> = Array::with_max_entries(1, 0);

/// The instances of the processes that are watched.
#[map]
pub static PROCESSES: HashMap<ProcessKey, u32> =
    HashMap::with_max_entries(limits::DEFAULT_PROCESSES, BPF_F_NO_PREALLOC);

/// What is known of each instance, at its [`state_place`]: a thread that knows its instance finds it without a search.
#[map]
pub static STATES: Array<ProcessState> =
    Array::with_max_entries(2 * state_places(limits::DEFAULT_PROCESSES), 0);

#[map]
pub static LIVE: HashMap<LiveKey, LiveValue> =
    HashMap::with_max_entries(limits::DEFAULT_LIVE_BLOCKS, BPF_F_NO_PREALLOC);

#[map]
pub static SITES: HashMap<SiteKey, SiteTotals> =
    HashMap::with_max_entries(limits::DEFAULT_SITES, BPF_F_NO_PREALLOC);

#[map]
pub static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(limits::DEFAULT_STACKS, BPF_F_NO_PREALLOC);

/// Unwind rules, shared by all files.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES as u32, 0);

/// All unwind rows of all files.
#[map]
pub static ROWS: HashMap<u32, RowBlock> =
    HashMap::with_max_entries(limits::DEFAULT_UNWIND_ROWS / BLOCK_ROWS as u32, BPF_F_NO_PREALLOC);

/// Where the rows of a page of code are.
#[map]
pub static PAGES: HashMap<PageKey, KnownPage> =
    HashMap::with_max_entries(limits::ROW_PAGES, BPF_F_NO_PREALLOC);

/// What each process can execute, by its instance.
#[map]
pub static SPACES: HashMap<u32, Space> =
    HashMap::with_max_entries(limits::DEFAULT_PROCESSES, BPF_F_NO_PREALLOC);

/// Another number whenever code of the process was mapped or unmapped, by the low bits of its instance. Two processes
/// that share a place only look more up than they had to.
#[map]
pub static SPACE_VERSIONS: Array<u32> = Array::with_max_entries(SPACE_VERSIONS_KEPT as u32, 0);

/// What is known of processes that run CPython, by their instance.
#[map]
pub static PYTHONS: HashMap<u32, PythonProcess> =
    HashMap::with_max_entries(limits::DEFAULT_PROCESSES, BPF_F_NO_PREALLOC);

/// Not 0 where a process whose instance has this place (see [`memwatch_common::unwind::code_place`]) runs CPython: saves
/// looking into `PYTHONS` for nearly all others. Several instances share a place, so it is a hint, never taken back.
#[map]
pub static PYTHON_AT: Array<u32> = Array::with_max_entries(SPACE_VERSIONS_KEPT as u32, 0);

#[map]
pub static PYTHON_STACKS: HashMap<u64, PythonStack> =
    HashMap::with_max_entries(limits::DEFAULT_STACKS, BPF_F_NO_PREALLOC);

/// Python code objects seen for the first time since user space last looked; it takes them out.
#[map]
pub static PYTHON_CODES: HashMap<CodeKey, CodeCopy> =
    HashMap::with_max_entries(limits::PYTHON_CODES, BPF_F_NO_PREALLOC);

#[map]
pub static PYTHON_CODES_TOLD: LruHashMap<CodeKey, u32> =
    LruHashMap::with_max_entries(limits::PYTHON_CODES_TOLD, 0);

/// Who took each of pymalloc's pools into use, by its address. How much of it is in use stands in the pool itself.
#[map]
pub static POOLS: HashMap<LiveKey, OpenedPool> =
    HashMap::with_max_entries(limits::PYTHON_POOLS, BPF_F_NO_PREALLOC);

/// Where those who take a pool into use have the size that they were asked for.
#[map]
pub static POOL_CALLERS: HashMap<PoolCaller, SizeWords> =
    HashMap::with_max_entries(limits::POOL_CALLERS, BPF_F_NO_PREALLOC);

/// Stacks that are in `STACKS`, by the high bits of their hash: saves looking there.
#[map]
pub static KNOWN_STACKS: Array<u64> = Array::with_max_entries(1 << limits::KNOWN_STACKS_BITS, 0);

/// The numbers of the rules of addresses that were looked up before.
#[map]
pub static PC_RULES: Array<CachedRule> = Array::with_max_entries(1 << limits::CACHED_RULES_BITS, 0);

/// An untouched site to copy from: a site is larger than a program's stack.
#[map]
static NEW_SITE: Array<SiteTotals> = Array::with_max_entries(1, 0);

/// The keys of sites that changed. Apart from `EVENTS`, so that many of them cost no event.
#[map]
static CHANGES: RingBuf = RingBuf::with_byte_size(limits::CHANGES_BYTES, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::RING_BYTES, 0);

#[map]
static COUNTS: PerCpuArray<[u64; COUNTERS]> = PerCpuArray::with_max_entries(1, 0);

/// Adds one to a counter. Per CPU, with an atomic addition all the same: a program can be preempted by another
/// on its CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(counts) = COUNTS.get_ptr_mut(0) {
        // SAFETY: the pointer is a live map value and the index is a constant below its length.
        atomic::add(unsafe { &mut (*counts)[counter as usize] }, 1);
    }
}

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The state of a watched process that has not ended.
#[inline(always)]
pub fn process(config: &Config, tgid: u32) -> Option<&'static mut ProcessState> {
    // SAFETY: a copy of one aligned word.
    let instance = unsafe { PROCESSES.get(&tgid).copied() }?;
    state(config, instance)
}

/// The state of an instance that has not ended.
#[inline(always)]
pub fn state(config: &Config, instance: u32) -> Option<&'static mut ProcessState> {
    let state = STATES.get_ptr_mut(state_place(instance, config.state_places))?;
    // SAFETY: a live map value; all concurrent writes to it are atomic additions.
    let state = unsafe { &mut *state };
    (instance != 0 && state.instance == instance && state.flags & PROCESS_EXITED == 0).then_some(state)
}

/// Puts the state of a new instance into its place, which is free.
#[inline(always)]
pub fn put_state(config: &Config, new: &ProcessState) {
    if let Some(state) = STATES.get_ptr_mut(state_place(new.instance, config.state_places)) {
        // SAFETY: a live map value that nobody else uses: the instance was given to this caller.
        unsafe { *state = *new };
    }
}

/// What an insert says when the kernel's per-CPU reserve was empty for a moment; it is being refilled, so a second try
/// is worth it.
pub const ENOMEM: i32 = 12;

/// Finds or makes the site.
#[inline(always)]
pub fn site(key: &SiteKey) -> Option<&'static mut SiteTotals> {
    if let Some(site) = SITES.get_ptr_mut(key) {
        // SAFETY: a live map value; all concurrent writes to it are atomic additions.
        return Some(unsafe { &mut *site });
    }
    let empty = NEW_SITE.get(0)?;
    // Another CPU may have made it in between: then this insert fails and the lookup finds that one.
    if SITES.insert(key, empty, u64::from(BPF_NOEXIST)) == Err(-ENOMEM) {
        let _ = SITES.insert(key, empty, u64::from(BPF_NOEXIST));
    }
    // SAFETY: as above.
    SITES.get_ptr_mut(key).map(|site| unsafe { &mut *site })
}

/// The site, if it is there.
#[inline(always)]
pub fn existing_site(key: &SiteKey) -> Option<&'static mut SiteTotals> {
    // SAFETY: a live map value; all concurrent writes to it are atomic additions.
    SITES.get_ptr_mut(key).map(|site| unsafe { &mut *site })
}

/// Tells user space, once a tick, that a site changed.
#[inline(always)]
pub fn touch(config: &Config, key: &SiteKey, site: &mut SiteTotals) {
    if site.tick == config.tick {
        return;
    }
    site.tick = config.tick;
    match CHANGES.reserve::<SiteKey>(0) {
        Some(mut entry) => {
            entry.write(*key);
            // User space reads these at its next tick.
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => count(Counter::RingFull),
    }
}

/// Puts an event into the ring buffer and wakes user space, or counts its loss.
#[inline(always)]
pub fn send(event: &Event, loss: Counter) {
    // Left to itself, the kernel wakes a reader only when the buffer was empty, and quiet events may lie in it.
    put(event, loss, u64::from(BPF_RB_FORCE_WAKEUP));
}

/// Puts an event into the ring buffer, or counts its loss. User space reads it at its next tick, or when a quarter of
/// the buffer is full.
#[inline(always)]
pub fn send_quietly(event: &Event, loss: Counter) {
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let flags = if waiting > u64::from(limits::RING_WAKE_BYTES) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    put(event, loss, u64::from(flags));
}

#[inline(always)]
fn put(event: &Event, loss: Counter, flags: u64) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(*event);
            entry.submit(flags);
        }
        None => count(loss),
    }
}
