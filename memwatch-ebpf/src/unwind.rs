//! Taking the stack of the current thread, with the compact unwind tables of its files. Everything else sees only
//! `walk`.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_loop, bpf_probe_read_user},
};
use memwatch_common::{
    Config, Counter, ProcessState,
    limits::{CACHED_RULES_BITS, MAX_FRAMES, MAX_IN_FLIGHT, STACK_CHUNK},
    stack::{STACK_BROKEN, STACK_COMPLETE, STACK_TRUNCATED, STACK_UNKNOWN},
    unwind::{
        BLOCK_ROWS, CachedRule, MAX_RANGES, PAGE_SHIFT, Page, PageKey, Rule, SEARCH_STEPS, Space, UNMAPPED,
        x86_64::{CFA_NONE, CFA_RBP, CFA_RSP, FRAME_NO_RBP, Frame, RA_AT_CFA, RBP_AT_CFA, RBP_SAME, Step},
    },
};

use crate::{
    bound::mask,
    maps::{PAGES, PC_RULES, ROWS, RULES, SPACES, STACKS, count},
    slot::Slot,
};

/// Where a walk begins.
pub struct Start {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
}

const CHUNK_WORDS: usize = STACK_CHUNK / 8;
const CHUNK_MASK: i32 = CHUNK_WORDS as i32 - 1;
const _: () = assert!(CHUNK_WORDS.is_power_of_two());
const RANGE_MASK: i32 = MAX_RANGES as i32 - 1;
const _: () = assert!(MAX_RANGES.is_power_of_two());
const BLOCK_MASK: i32 = BLOCK_ROWS as i32 - 1;
const _: () = assert!(BLOCK_ROWS.is_power_of_two());

/// A word of kernel memory, 0 when it cannot be read.
///
/// # Safety
/// Any address is allowed; the helper checks it.
#[inline(always)]
pub unsafe fn read_kernel(address: u64) -> u64 {
    // SAFETY: the helper fails on bad addresses.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
}

#[inline(always)]
fn read(to: *mut u64, bytes: u32, from: u64) -> bool {
    // SAFETY: `to` points at `bytes` writable bytes of a map value; the helper checks `from`.
    unsafe { bpf_probe_read_user(to.cast(), bytes, from as *const _) == 0 }
}

/// What one step of the walk needs, beside the slot. The body of `bpf_loop` is verified once, whatever the number
/// of rounds (Linux 5.17).
#[repr(C)]
struct Walk {
    slot: *mut Slot,
    /// Null when the process's code is not known.
    space: *const Space,
    space_id: u32,
    version: u32,
    max_frames: u32,
    flags: u32,
    /// The frame was found by its frame pointer, without a rule that says so.
    guessed: u32,
    reserved: u32,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// Walks the stack and gives back its hash, by which it stands in `STACKS` from now on.
#[inline(always)]
pub fn walk(config: &Config, state: &ProcessState, slot: &mut Slot, start: &Start) -> u64 {
    slot.stack.count = 0;
    slot.hash = 0x9E37_79B9_7F4A_7C15;
    slot.chunk_bytes = 0;
    slot.frame = Frame::first(start.ip, start.sp, start.fp);
    let flags = frames(config, state, slot);
    slot.stack.flags = flags;
    if flags & STACK_TRUNCATED != 0 {
        count(Counter::StackTruncated);
    } else if flags & STACK_BROKEN != 0 {
        count(Counter::StackBroken);
    }
    keep(slot)
}

#[inline(always)]
fn frames(config: &Config, state: &ProcessState, slot: &mut Slot) -> u32 {
    let mut walk = Walk {
        slot,
        space: core::ptr::null(),
        space_id: state.instance,
        version: 0,
        max_frames: config.max_frames,
        flags: STACK_TRUNCATED,
        guessed: 0,
        reserved: 0,
    };
    let mut space = SPACES.get_ptr(&state.instance);
    if space.is_none() && state.space != 0 {
        walk.space_id = state.space;
        space = SPACES.get_ptr(&state.space);
    }
    if let Some(space) = space {
        walk.space = space;
        // SAFETY: a live map value.
        walk.version = unsafe { (*space).version };
    }
    // SAFETY: the helper calls `step` with the pointer to `walk`, which outlives the call.
    unsafe {
        bpf_loop(
            MAX_FRAMES as u32 + 1,
            step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
    }
    walk.flags
}

/// One frame: keeps its address and goes to its caller.
unsafe extern "C" fn step(index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `bpf_loop` hands on the pointer that `frames` gave it; the slot in it is this thread's.
    let (walk, slot) = unsafe {
        let walk = &mut *walk;
        let slot = &mut *walk.slot;
        (walk, slot)
    };
    if slot.stack.count >= walk.max_frames {
        return STOP;
    }
    let frame = slot.frame;
    let key = u64::from(walk.space_id) | u64::from(walk.version) << 32;
    let mut rule = Rule::default();
    rule_at(walk.slot, walk.space, frame.lookup_address(), key, &raw mut rule);
    let known = rule.cfa_kind != CFA_NONE;
    if !known && rule.reserved == UNMAPPED && walk.guessed != 0 {
        // What the frame pointer led to is no code: it was not one.
        return stop(walk, STACK_BROKEN, Counter::StackNoRule);
    }
    push(slot, frame.rip);
    if !known {
        if index == 0 {
            // Probes sit where nothing has been pushed yet.
            rule = Rule::ENTRY;
        } else if frame.rbp == 0 {
            walk.flags = STACK_COMPLETE;
            return STOP;
        } else {
            rule = Rule::FRAME_POINTER;
        }
    }
    walk.guessed = u32::from(!known && index != 0);
    match take_step(slot, &raw const rule) {
        NEXT => GO_ON,
        END => {
            walk.flags = STACK_COMPLETE;
            STOP
        }
        UNSUPPORTED => stop(walk, STACK_BROKEN, Counter::StackUnsupported),
        NO_REGISTER => stop(walk, STACK_BROKEN, Counter::StackNoRegister),
        UNREADABLE => stop(walk, STACK_BROKEN, Counter::StackUnreadable),
        NOT_ABOVE if known => stop(walk, STACK_BROKEN, Counter::StackNotAbove),
        _ => stop(walk, STACK_BROKEN, Counter::StackNoRule),
    }
}

const NEXT: u32 = Step::Next as u32;
const END: u32 = Step::End as u32;
const UNSUPPORTED: u32 = Step::Unsupported as u32;
const NO_REGISTER: u32 = Step::NoRegister as u32;
const UNREADABLE: u32 = Step::Unreadable as u32;
const NOT_ABOVE: u32 = Step::NotAbove as u32;

/// Goes from the slot's frame to its caller; a [`Step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_step(slot: *mut Slot, rule: *const Rule) -> u32 {
    // SAFETY: null or this thread's slot, and null or a live rule on the caller's stack.
    let (Some(slot), Some(rule)) = (unsafe { slot.as_mut() }, unsafe { rule.as_ref() }) else {
        return Step::NoRule as u32;
    };
    let mut frame = slot.frame;
    let result = if is_simple(rule) {
        simple_step(slot, rule, &mut frame)
    } else {
        rule.step(&mut frame, read_word)
    };
    if let Step::Next = result {
        slot.frame = frame;
    }
    result as u32
}

#[inline(always)]
fn stop(walk: &mut Walk, flags: u32, reason: Counter) -> i64 {
    walk.flags = flags;
    count(reason);
    STOP
}

/// Adds a frame. The number of frames lives in the slot, not in a register: the verifier would follow each number
/// as a case of its own.
#[inline(always)]
fn push(slot: &mut Slot, address: u64) {
    // SAFETY: reads the slot; volatile, so that the compiler does not keep the number in a register.
    let n = unsafe { core::ptr::read_volatile(&raw const slot.stack.count) };
    if n as usize >= MAX_FRAMES {
        return;
    }
    // SAFETY: n is below MAX_FRAMES, and the mask tells the verifier so (index 127 is still inside the slot).
    unsafe { *slot.stack.frames.as_mut_ptr().add(mask::<127>(u64::from(n))) = address };
    slot.stack.count = n + 1;
    let hash = (slot.hash ^ address).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    slot.hash = hash ^ hash >> 32;
}

/// The rule for an address of the process, remembered from the last time or looked up.
///
/// A global function, as `look_up` and `take_step` are: the verifier looks at it once, with any arguments, instead of
/// once for each state in which it is called. Its pointers may be null as far as the verifier knows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_at(slot: *mut Slot, space: *const Space, pc: u64, key: u64, rule: *mut Rule) -> u32 {
    // SAFETY: null or a live rule on the caller's stack.
    let Some(rule) = (unsafe { rule.as_mut() }) else {
        return 0;
    };
    let entry = PC_RULES.get_ptr_mut(CachedRule::slot(pc, key, CACHED_RULES_BITS));
    // SAFETY: a live map value; what another processor is writing meanwhile is found by its check.
    let Some(entry) = entry.map(|entry| unsafe { &mut *entry }) else {
        return 0;
    };
    if let Some(known) = entry.rule_for(pc, key) {
        *rule = known;
        return 1;
    }
    if space.is_null() || look_up(slot, space, pc, rule) == 0 {
        rule.reserved = UNMAPPED;
    }
    *entry = CachedRule::new(pc, key, *rule);
    1
}

/// Looks a rule up in the tables: not 0 when a known file is mapped at `pc`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_up(slot: *mut Slot, space: *const Space, pc: u64, rule: *mut Rule) -> u32 {
    // SAFETY: each is null or what the caller has: this thread's slot, a live map value, a rule on its stack.
    let (Some(slot), Some(space), Some(rule)) =
        (unsafe { slot.as_mut() }, unsafe { space.as_ref() }, unsafe {
            rule.as_mut()
        })
    else {
        return 0;
    };
    let Some((object, address)) = place(&mut slot.search, space, pc) else {
        return 0;
    };
    let key = PageKey {
        object,
        page: (address >> PAGE_SHIFT) as u32,
    };
    // SAFETY: a live map value; pages are never changed.
    let Some(page) = (unsafe { PAGES.get(&key) }) else {
        return 1;
    };
    let number = row_at(&mut slot.search, page, address as u16);
    if let Some(found) = RULES.get(number) {
        *rule = *found;
    }
    1
}

/// The state of a binary search, in memory: in registers the verifier would follow every way through it.
#[repr(C)]
pub struct Search {
    low: u64,
    high: u64,
    rule: u64,
}

impl Search {
    #[inline(always)]
    fn begin(&mut self, low: u64, high: u64) {
        // SAFETY: writes of live fields, volatile so that they stay in memory.
        unsafe {
            core::ptr::write_volatile(&raw mut self.low, low);
            core::ptr::write_volatile(&raw mut self.high, high);
            core::ptr::write_volatile(&raw mut self.rule, 0);
        }
    }

    /// The middle of what is left.
    #[inline(always)]
    fn middle(&self) -> Option<u64> {
        // SAFETY: reads of live fields, volatile so that they come from memory.
        let (low, high) = unsafe {
            (
                core::ptr::read_volatile(&raw const self.low),
                core::ptr::read_volatile(&raw const self.high),
            )
        };
        (low < high).then(|| low + (high - low) / 2)
    }

    #[inline(always)]
    fn go_up(&mut self, middle: u64) {
        // SAFETY: as in `begin`.
        unsafe { core::ptr::write_volatile(&raw mut self.low, middle + 1) };
    }

    #[inline(always)]
    fn go_down(&mut self, middle: u64) {
        // SAFETY: as in `begin`.
        unsafe { core::ptr::write_volatile(&raw mut self.high, middle) };
    }
}

/// Which file shows at an address, and at which of the file's addresses.
#[inline(always)]
fn place(search: &mut Search, space: &Space, pc: u64) -> Option<(u32, u64)> {
    /// 2^10 ranges.
    const STEPS: usize = 11;
    search.begin(0, u64::from(space.count));
    for _ in 0..STEPS {
        let middle = search.middle()?;
        // SAFETY: the mask keeps the index inside the array.
        let range = unsafe { space.ranges.get_unchecked(mask::<RANGE_MASK>(middle)) };
        if pc < range.start {
            search.go_down(middle);
        } else if pc - range.start >= u64::from(range.bytes) {
            search.go_up(middle);
        } else {
            return Some((range.object, pc.wrapping_sub(range.bias)));
        }
    }
    None
}

/// The number of the rule that holds at `pc_low` in a page; the search of [`memwatch_common::unwind::search`].
#[inline(always)]
fn row_at(search: &mut Search, page: &Page, pc_low: u16) -> u32 {
    let first = u64::from(page.first_row);
    search.begin(first, first + u64::from(page.count));
    for _ in 0..SEARCH_STEPS {
        let Some(middle) = search.middle() else { break };
        // SAFETY: a live map value; blocks only ever gain rows.
        let Some(block) = (unsafe { ROWS.get(&((middle / BLOCK_ROWS as u64) as u32)) }) else {
            return 0;
        };
        // SAFETY: the mask keeps the index inside the block.
        let row = unsafe { block.rows.get_unchecked(mask::<BLOCK_MASK>(middle)) };
        if row.pc_low <= pc_low {
            // SAFETY: a write of a live field, volatile so that it stays in memory.
            unsafe { core::ptr::write_volatile(&raw mut search.rule, u64::from(row.rule)) };
            search.go_up(middle);
        } else {
            search.go_down(middle);
        }
    }
    // SAFETY: a read of a live field.
    unsafe { core::ptr::read_volatile(&raw const search.rule) as u32 }
}

/// The rules of nearly all frames: they need the two words below the canonical frame address at most. Apart from the
/// others so that the verifier does not follow the reads of all kinds in all orders.
#[inline(always)]
fn is_simple(rule: &Rule) -> bool {
    (rule.cfa_kind == CFA_RSP || rule.cfa_kind == CFA_RBP)
        && rule.ra_kind == RA_AT_CFA
        && (rule.rbp_kind == RBP_SAME || rule.rbp_kind == RBP_AT_CFA)
}

/// [`Rule::step`] for simple rules, with reads out of the chunk.
#[inline(always)]
fn simple_step(slot: &mut Slot, rule: &Rule, frame: &mut Frame) -> Step {
    let base = if rule.cfa_kind == CFA_RSP {
        frame.rsp
    } else {
        frame.rbp
    };
    if rule.cfa_kind == CFA_RBP && frame.flags & FRAME_NO_RBP != 0 {
        return Step::NoRegister;
    }
    let cfa = base.wrapping_add(i64::from(rule.cfa_offset) as u64);
    if cfa <= frame.rsp || cfa & 7 != 0 {
        return Step::NotAbove;
    }
    let mut flags = frame.flags & FRAME_NO_RBP;
    if rule.rbp_kind == RBP_AT_CFA {
        let Some(rbp) = word(slot, cfa.wrapping_add(i64::from(rule.rbp_offset) as u64)) else {
            return Step::Unreadable;
        };
        frame.rbp = rbp;
        flags = 0;
    }
    let at = cfa.wrapping_add(i64::from(rule.ra_offset) as u64);
    let Some(found) = word(slot, at) else {
        return Step::Unreadable;
    };
    let rip = behind_probe(slot, at, found);
    if rip == 0 {
        return Step::End;
    }
    frame.rip = rip;
    frame.rsp = cfa;
    frame.context = 0;
    frame.flags = flags;
    Step::Next
}

/// One word of user memory.
#[inline(always)]
fn read_word(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    read(&raw mut value, 8, address).then_some(value)
}

/// A word of the user's stack, out of the chunk when it is in it.
#[inline(always)]
fn word(slot: &mut Slot, address: u64) -> Option<u64> {
    let mut offset = address.wrapping_sub(slot.chunk_at);
    if offset > STACK_CHUNK as u64 || offset + 8 > slot.chunk_bytes || offset & 7 != 0 {
        slot.chunk_at = address;
        slot.chunk_bytes = load(&mut slot.chunk, address);
        if slot.chunk_bytes == 0 {
            return None;
        }
        offset = 0;
    }
    // SAFETY: the mask keeps the index inside the chunk.
    Some(unsafe { *slot.chunk.get_unchecked(mask::<CHUNK_MASK>(offset >> 3)) })
}

/// A pending return probe of ours has put its own address in place of the caller's; that one was kept.
#[inline(always)]
fn behind_probe(slot: &Slot, address: u64, found: u64) -> u64 {
    // The kernel's trampoline begins a page. Anything else is a true return address: the call was abandoned and
    // something else stands there now.
    const PAGE: u64 = 4096;
    if found & (PAGE - 1) != 0 {
        return found;
    }
    let mut value = found;
    for index in 0..MAX_IN_FLIGHT {
        // SAFETY: reads the slot; volatile, so that the verifier does not follow each depth as a case of its own.
        let depth = unsafe { core::ptr::read_volatile(&raw const slot.depth) };
        let call = &slot.calls[index];
        if (index as u32) < depth && call.sp == address && call.return_address != 0 {
            value = call.return_address;
        }
    }
    value
}

/// Copies a piece of the stack, less of it near the stack's end. Gives back how many bytes are there.
#[inline(always)]
fn load(chunk: &mut [u64; CHUNK_WORDS], from: u64) -> u64 {
    let to = chunk.as_mut_ptr();
    if read(to, STACK_CHUNK as u32, from) {
        return STACK_CHUNK as u64;
    }
    if read(to, 256, from) {
        return 256;
    }
    if read(to, 8, from) {
        return 8;
    }
    0
}

/// Puts the stack into `STACKS` unless it is there already.
#[inline(always)]
fn keep(slot: &mut Slot) -> u64 {
    let stack = &slot.stack;
    let mut hash = slot.hash;
    if hash == STACK_UNKNOWN {
        hash = 1;
    }
    // SAFETY: a live map value that is never written after it was inserted.
    if let Some(known) = unsafe { STACKS.get(&hash) } {
        if known.count != stack.count || known.frames[1] != stack.frames[1] {
            count(Counter::StackCollision);
        }
        return hash;
    }
    if STACKS.insert(&hash, stack, 0).is_err() {
        count(Counter::StacksFull);
        return STACK_UNKNOWN;
    }
    hash
}
