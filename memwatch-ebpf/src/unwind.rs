//! Taking the stack of the current thread, with the compact unwind tables of its files. Everything else sees only
//! `walk`.

use aya_ebpf::Global;
use memwatch_common::{
    Config, Counter, ProcessState, Stack,
    limits::{KNOWN_STACKS_BITS, MAX_FRAMES, MAX_FRAMES_AT_ONCE},
    stack::{STACK_BROKEN, STACK_COMPLETE, STACK_TRUNCATED, STACK_UNKNOWN},
    unwind::{
        CachedRule, RULE_ENTRY, RULE_FRAME_POINTER, RULE_NONE, RULE_UNMAPPED, Rule, code_place,
        x86_64::{CFA_RBP, CFA_RSP, FRAME_NO_RBP, Frame, RA_AT_CFA, RA_END, RBP_AT_CFA, RBP_SAME, Step},
    },
};

use crate::{
    arch::Registers,
    bound::mask,
    maps::{ENOMEM, KNOWN_STACKS, RULES, SPACE_VERSIONS, STACKS, count},
    memory::{PAGE, behind_probe, read_word, word},
    python, repeat,
    rules::rule_number,
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
