//! Taking the stack of the current thread, with the compact unwind tables of its files. Everything else sees only
//! `walk`.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{
    bpf_find_vma, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user,
};
use memwatch_common::{
    Config, Counter, ProcessState, Stack,
    limits::{CACHED_RULES_BITS, KNOWN_STACKS_BITS, MAX_FRAMES, MAX_FRAMES_AT_ONCE, STACK_CHUNK},
    stack::{STACK_BROKEN, STACK_COMPLETE, STACK_TRUNCATED, STACK_UNKNOWN},
    unwind::{
        BLOCK_ROWS, CachedRule, MAX_RANGES, PAGE_SHIFT, Page, PageKey, RULE_ENTRY, RULE_FRAME_POINTER,
        RULE_NONE, RULE_UNMAPPED, Rule, SEARCH_STEPS, Space, code_place,
        x86_64::{CFA_RBP, CFA_RSP, FRAME_NO_RBP, Frame, RA_AT_CFA, RA_END, RBP_AT_CFA, RBP_SAME, Step},
    },
};

use crate::{
    arch::Registers,
    bound::mask,
    maps::{
        ENOMEM, KNOWN_STACKS, PAGES, PC_RULES, ROWS, RULES, SPACE_VERSIONS, SPACES, STACKS, config, count,
    },
    python, repeat,
    slot::Slot,
};

/// Where a walk begins.
pub struct Start {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
}

impl Start {
    /// Where a probe was hit.
    #[inline(always)]
    pub fn at(registers: Registers<'_>) -> Self {
        Self {
            ip: registers.instruction(),
            sp: registers.stack(),
            fp: registers.frame(),
        }
    }
}

const CHUNK_WORDS: usize = STACK_CHUNK / 8;
pub const CHUNK_MASK: i32 = CHUNK_WORDS as i32 - 1;
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
    let mut value = 0_u64;
    // Whether it could be read is not asked: where not, the helper leaves zeros, and one way less through a loop makes
    // the difference to Linux 6.1's verifier.
    // SAFETY: writes one word of the program's own stack; the helper fails on bad addresses.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _) };
    value
}

#[inline(always)]
fn read(to: *mut u64, bytes: u32, from: u64) -> bool {
    // SAFETY: `to` points at `bytes` writable bytes of a map value; the helper checks `from`.
    unsafe { bpf_probe_read_user(to.cast(), bytes, from as *const _) == 0 }
}

/// Walks the stack and gives back its hash, by which it stands in `STACKS` from now on.
#[inline(always)]
pub fn walk(config: &Config, state: &ProcessState, slot: &mut Slot, start: &Start) -> u64 {
    let version = SPACE_VERSIONS.get(code_place(state.instance)).copied();
    let seed = CachedRule::seed(state.instance, version.unwrap_or(0));
    slot.chunk_bytes = 0;
    if !repeat::known(slot, start, seed) {
        frames(config, state, slot, start, seed);
    }
    let flags = slot.stack.flags;
    if flags & STACK_TRUNCATED != 0 {
        count(Counter::StackTruncated);
    } else if flags & STACK_BROKEN != 0 {
        count(Counter::StackBroken);
    }
    slot.stack.python = if python::may_run_in(state) {
        python::walk(config, state)
    } else {
        0
    };
    slot.hash ^= slot.stack.python;
    keep(slot)
}

#[inline(always)]
fn frames(config: &Config, state: &ProcessState, slot: &mut Slot, start: &Start, seed: u64) {
    slot.stack.count = 0;
    slot.hash = 0x9E37_79B9_7F4A_7C15;
    slot.guessed = 0;
    slot.frame = Frame::first(start.ip, start.sp, start.fp);
    slot.last.begin(start, seed);
    let from = u64::from(state.instance) | u64::from(state.space) << 32;
    slot.stack.flags = walk_frames(slot, seed, from, config.max_frames);
    repeat::keep(slot);
}

/// Frames that one call of [`walk_some`] goes through at most.
const PIECE: u32 = MAX_FRAMES_AT_ONCE;

/// Frames that one call of [`walk_some`] goes through on this kernel. Read-only, so that the verifier sees the loop end.
#[unsafe(no_mangle)]
static FRAMES_AT_ONCE: Global<u32> = Global::new(1);

/// What [`walk_some`] gives when there is more.
const WALK_ON: u32 = u32::MAX;

/// From the slot's frame outwards; gives the stack's flags. `seed` stands for the process's code as it is mapped now.
/// `from` is its instance and, above, the one whose code it began with, or 0.
///
/// A global function, as all below that the loop calls: the verifier looks at it once, with any arguments, instead of
/// once for each state in which it is called. Their pointers may be null as far as the verifier knows. The loop is in
/// two, as older verifiers forget what they have seen of a long one with many ways through it, and give up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_frames(slot: *mut Slot, seed: u64, from: u64, max_frames: u32) -> u32 {
    for _ in 0..=MAX_FRAMES {
        let flags = walk_some(slot, seed, from, max_frames);
        if flags != WALK_ON {
            return flags;
        }
    }
    STACK_TRUNCATED
}

/// Some frames more. The loop itself calls nothing for a frame whose rule is remembered: each return costs dearly
/// where the kernel guards returns.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_some(slot_at: *mut Slot, seed: u64, from: u64, max_frames: u32) -> u32 {
    for index in 0..PIECE {
        if index >= FRAMES_AT_ONCE.load() {
            return WALK_ON;
        }
        // SAFETY: null or this thread's slot.
        let Some(slot) = (unsafe { slot_at.as_mut() }) else {
            return STACK_BROKEN;
        };
        if slot.stack.count >= max_frames {
            return STACK_TRUNCATED;
        }
        let first = slot.stack.count == 0;
        let number = rule_number(slot_at, slot.frame.lookup_address(), seed, from);
        if number == RULE_UNMAPPED && slot.guessed != 0 {
            // What the frame pointer led to is no code: it was not one.
            return stop(Counter::StackNoRule);
        }
        push(slot);
        let known = number != RULE_NONE && number != RULE_UNMAPPED;
        let number = if known {
            number
        } else if first {
            // Probes sit where nothing has been pushed yet.
            RULE_ENTRY
        } else if slot.frame.rbp == 0 {
            return STACK_COMPLETE;
        } else {
            RULE_FRAME_POINTER
        };
        slot.guessed = u32::from(!known && !first);
        let Some(rule) = RULES.get(u32::from(number)) else {
            return stop(Counter::StackNoRule);
        };
        if simple_step(slot_at, slot, rule) {
            continue;
        }
        match take_step(slot_at, rule) {
            NEXT => {}
            END => return STACK_COMPLETE,
            UNSUPPORTED => return stop(Counter::StackUnsupported),
            NO_REGISTER => return stop(Counter::StackNoRegister),
            UNREADABLE => return stop(Counter::StackUnreadable),
            NOT_ABOVE if known => return stop(Counter::StackNotAbove),
            _ => return stop(Counter::StackNoRule),
        }
    }
    WALK_ON
}

const NEXT: u32 = Step::Next as u32;
const END: u32 = Step::End as u32;
const UNSUPPORTED: u32 = Step::Unsupported as u32;
const NO_REGISTER: u32 = Step::NoRegister as u32;
const UNREADABLE: u32 = Step::Unreadable as u32;
const NOT_ABOVE: u32 = Step::NotAbove as u32;

/// The step of nearly all frames, whose rules need the two words below the canonical frame address at most. False, and
/// nothing has changed, when it is not that simple.
#[inline(always)]
fn simple_step(slot_at: *mut Slot, slot: &mut Slot, rule: &Rule) -> bool {
    let base = if rule.cfa_kind == CFA_RSP {
        slot.frame.rsp
    } else if rule.cfa_kind == CFA_RBP && slot.frame.flags & FRAME_NO_RBP == 0 {
        slot.frame.rbp
    } else {
        return false;
    };
    if rule.ra_kind != RA_AT_CFA || rule.rbp_kind > RBP_AT_CFA {
        return false;
    }
    let cfa = base.wrapping_add(i64::from(rule.cfa_offset) as u64);
    if cfa <= slot.frame.rsp || cfa & 7 != 0 {
        return false;
    }
    let at = cfa.wrapping_add(i64::from(rule.ra_offset) as u64);
    let with_rbp = rule.rbp_kind == RBP_AT_CFA;
    let rbp_at = cfa.wrapping_add(i64::from(rule.rbp_offset) as u64);
    // The lower word first: a chunk that begins there holds both.
    let rbp = if with_rbp {
        let Some(rbp) = word(slot_at, slot, rbp_at) else {
            return false;
        };
        rbp
    } else {
        slot.frame.rbp
    };
    let Some(mut rip) = word(slot_at, slot, at) else {
        return false;
    };
    if rip & (PAGE - 1) == 0 {
        slot.last.never_again();
        rip = behind_probe(at, rip);
        if rip == 0 {
            return false;
        }
    }
    if with_rbp {
        slot.frame.flags = 0;
    } else {
        slot.frame.flags &= FRAME_NO_RBP;
    }
    slot.frame.rbp = rbp;
    slot.frame.rip = rip;
    slot.frame.rsp = cfa;
    slot.frame.context = 0;
    true
}
const _: () = assert!(RBP_SAME < RBP_AT_CFA);

/// Goes from the slot's frame to its caller by any rule; a [`Step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_step(slot: *mut Slot, rule: *const Rule) -> u32 {
    // SAFETY: null or this thread's slot, and null or a live map value.
    let (Some(slot), Some(rule)) = (unsafe { slot.as_mut() }, unsafe { rule.as_ref() }) else {
        return Step::NoRule as u32;
    };
    if rule.ra_kind != RA_END {
        slot.last.never_again();
    }
    let mut frame = slot.frame;
    let result = rule.step(&mut frame, read_word);
    if let Step::Next = result {
        slot.frame = frame;
    }
    result as u32
}

#[inline(always)]
fn stop(reason: Counter) -> u32 {
    count(reason);
    STACK_BROKEN
}

/// Adds the slot's frame. The number of frames lives in the slot, not in a register: the verifier would follow each number
/// as a case of its own.
#[inline(always)]
fn push(slot: &mut Slot) {
    let address = slot.frame.rip;
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

/// The number of the rule for an address of the process, remembered from the last time or looked up.
#[inline(always)]
fn rule_number(slot: *mut Slot, pc: u64, seed: u64, from: u64) -> u16 {
    let hash = CachedRule::hash(pc, seed);
    let entry = PC_RULES.get(CachedRule::place(hash, CACHED_RULES_BITS));
    match entry.and_then(|entry| entry.rule_for(hash)) {
        Some(number) => number,
        None => new_rule_number(slot, pc, hash, from) as u16,
    }
}

/// Looks the number of an address's rule up, and remembers it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn new_rule_number(slot: *mut Slot, pc: u64, hash: u64, from: u64) -> u32 {
    let space = SPACES
        .get_ptr(&(from as u32))
        .or_else(|| SPACES.get_ptr(&((from >> 32) as u32)));
    let mut number = match space {
        Some(space) => look_up(slot, space, pc),
        None => u32::from(RULE_UNMAPPED),
    };
    if number == u32::from(RULE_UNMAPPED) {
        match is_code(pc) {
            CODE => number = u32::from(RULE_NONE),
            NO_CODE => {}
            _ => return number,
        }
    }
    if let Some(entry) = PC_RULES.get_ptr_mut(CachedRule::place(hash, CACHED_RULES_BITS)) {
        // SAFETY: a live map value, one aligned word.
        unsafe { *entry = CachedRule::new(hash, number as u16) };
    }
    number
}

/// Whether this kernel has `bpf_find_vma` (Linux 5.17). Read-only, so that the verifier leaves out what would call it.
#[unsafe(no_mangle)]
static FINDS_MAPPINGS: Global<u8> = Global::new(0);

const NO_CODE: u32 = 0;
const CODE: u32 = 1;
/// The process's mappings are being changed.
const BUSY: u32 = 2;

/// Whether the process can execute what lies at an address: code that was made at run time lies in no file.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_code(pc: u64) -> u32 {
    const VM_EXEC: u64 = 4;
    /// No mapping.
    const ENOENT: i64 = -2;
    if FINDS_MAPPINGS.load() == 0 {
        return NO_CODE;
    }
    let mut flags = 0_u64;
    // SAFETY: the helper calls `vma_flags` with the pointer to `flags`, which outlives the call.
    let result = unsafe {
        bpf_find_vma(
            bpf_get_current_task_btf(),
            pc,
            vma_flags as *mut c_void,
            (&raw mut flags).cast(),
            0,
        )
    };
    match result {
        0 if flags & VM_EXEC != 0 => CODE,
        0 | ENOENT => NO_CODE,
        _ => BUSY,
    }
}

unsafe extern "C" fn vma_flags(_task: *mut c_void, vma: *mut c_void, flags: *mut u64) -> i64 {
    let Some(config) = config().filter(|config| config.vma_flags != 0) else {
        return 0;
    };
    // SAFETY: `bpf_find_vma` gives a mapping that is locked meanwhile, and hands on the pointer that it was given.
    unsafe { *flags = read_kernel(vma as u64 + u64::from(config.vma_flags)) };
    0
}

/// Looks the number of a rule up in the tables.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_up(slot: *mut Slot, space: *const Space, pc: u64) -> u32 {
    // SAFETY: each is null or what the caller has: this thread's slot, a live map value.
    let (Some(slot), Some(space)) = (unsafe { slot.as_mut() }, unsafe { space.as_ref() }) else {
        return u32::from(RULE_UNMAPPED);
    };
    let Some((object, address)) = place(&mut slot.search, space, pc) else {
        return u32::from(RULE_UNMAPPED);
    };
    let key = PageKey {
        object,
        page: (address >> PAGE_SHIFT) as u32,
    };
    let Some(known) = PAGES.get_ptr_mut(&key) else {
        return u32::from(RULE_NONE);
    };
    // SAFETY: a live map value, whose page is never changed: user space puts another value in its place. Two processors
    // may count as one, which is near enough to tell files that are used from those that are not.
    let page = unsafe {
        (*known).looked_up += 1;
        &(*known).page
    };
    row_at(&mut slot.search, page, address as u16)
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
        // SAFETY: a live map value. A block is written before a page leads to it, and goes when no program runs any more
        // that may have seen such a page.
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

/// One word of user memory, as it is without return probes.
#[inline(always)]
pub fn read_word(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    if !read(&raw mut value, 8, address) {
        return None;
    }
    if value & (PAGE - 1) == 0 {
        value = behind_probe(address, value);
    }
    Some(value)
}

/// A word of the user's stack, out of the chunk when it is in it.
#[inline(always)]
fn word(slot_at: *mut Slot, slot: &mut Slot, address: u64) -> Option<u64> {
    let mut offset = address.wrapping_sub(slot.chunk_at);
    // What lies below the chunk is out of it too, as the difference has no sign. All sizes are multiples of 8.
    if offset >= u64::from(slot.chunk_bytes) || offset & 7 != 0 {
        if load_chunk(slot_at, address) == 0 {
            return None;
        }
        offset = 0;
    }
    let place = mask::<CHUNK_MASK>(offset >> 3);
    // SAFETY: the mask keeps the index inside the chunk.
    let value = unsafe { *slot.chunk.get_unchecked(place) };
    slot.last.read_here(slot.chunk_at, place, value);
    Some(value)
}

/// Copies the piece of the stack from `from` on, less of it near the stack's end. 0 when nothing could be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn load_chunk(slot: *mut Slot, from: u64) -> u32 {
    // SAFETY: null or this thread's slot.
    let Some(slot) = (unsafe { slot.as_mut() }) else {
        return 0;
    };
    let to = slot.chunk.as_mut_ptr();
    slot.chunk_at = from;
    slot.chunk_bytes = 0;
    if read(to, STACK_CHUNK as u32, from) {
        slot.chunk_bytes = STACK_CHUNK as u32;
    } else if read(to, 256, from) {
        slot.chunk_bytes = 256;
    } else if read(to, 8, from) {
        slot.chunk_bytes = 8;
    } else {
        return 0;
    }
    1
}

/// The kernel's trampoline for return probes begins a page.
const PAGE: u64 = 4096;

/// Return probes that can be pending in one thread; the kernel's own bound.
const MAX_RETURN_PROBES: usize = 64;

/// A pending return probe, of ours or of another tool, has put the trampoline's address in place of the caller's. The
/// kernel's list of them has what stood there. Anything else at a page's beginning is given back as it is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn behind_probe(address: u64, found: u64) -> u64 {
    let Some(config) = config().filter(|config| found != 0 && config.task_utask != 0) else {
        return found;
    };
    // SAFETY: follows pointers of the current task at offsets from the running kernel's BTF. Only the thread itself
    // changes the list, and each read is checked.
    unsafe {
        let task = bpf_get_current_task_btf() as u64;
        let pending = read_kernel(task + u64::from(config.task_utask));
        if pending == 0 {
            return found;
        }
        let mut instance = read_kernel(pending + u64::from(config.utask_returns));
        for _ in 0..MAX_RETURN_PROBES {
            if instance == 0 {
                break;
            }
            if read_kernel(instance + u64::from(config.return_stack)) == address {
                return read_kernel(instance + u64::from(config.return_address));
            }
            instance = read_kernel(instance + u64::from(config.return_next));
        }
    }
    found
}

/// Puts the stack into `STACKS` unless it is there already.
#[inline(always)]
fn keep(slot: &mut Slot) -> u64 {
    let stack = &slot.stack;
    let mut hash = slot.hash;
    if hash == STACK_UNKNOWN {
        hash = 1;
    }
    let place = KNOWN_STACKS.get_ptr_mut((hash >> (64 - KNOWN_STACKS_BITS)) as u32);
    // SAFETY: a live map value, one aligned word.
    if place.is_some_and(|place| unsafe { *place } == hash) {
        return hash;
    }
    let stored = store(hash, stack);
    if let Some(place) = place.filter(|_| stored) {
        // SAFETY: as above. Stacks are never taken out.
        unsafe { *place = hash };
    }
    if stored { hash } else { STACK_UNKNOWN }
}

/// True when the stack is in `STACKS` afterwards.
#[inline(always)]
fn store(hash: u64, stack: &Stack) -> bool {
    // SAFETY: a live map value that is never written after it was inserted.
    if let Some(known) = unsafe { STACKS.get(&hash) } {
        if known.count != stack.count || known.frames[1] != stack.frames[1] {
            count(Counter::StackCollision);
        }
        return true;
    }
    let mut result = STACKS.insert(&hash, stack, 0);
    if result == Err(-ENOMEM) {
        result = STACKS.insert(&hash, stack, 0);
    }
    let stored = result.is_ok();
    if !stored {
        count(Counter::StacksFull);
    }
    stored
}
