//! The Python frames of the current thread, and which of CPython's domains asks for memory. No version is known here:
//! user space says where everything is.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_user};
use memwatch_common::{
    Config, Counter, Domain, ProcessState, PythonLayout,
    limits::{MAX_PYTHON_FRAMES, MAX_PYTHON_RANGES},
    python::{
        CodeCopy, CodeKey, FRAME_SHIM, GLIBC_KEYS_IN_BLOCK, INSTRUCTION_POINTER, MAX_CODE_BYTES,
        MAX_FRAME_BYTES, NO_FIELD, PythonFrame, PythonProcess, PythonStack, TLS_GLIBC_KEY, TLS_MODULE,
        TLS_MUSL_KEY, TLS_STATIC, fingerprint,
    },
    stack::{STACK_BROKEN, STACK_COMPLETE, STACK_TRUNCATED},
    unwind::code_place,
};

use crate::{
    bound::mask,
    maps::{PYTHON_AT, PYTHON_CODES, PYTHON_CODES_TOLD, PYTHON_STACKS, PYTHONS, count},
    memory::read_kernel,
    slot::{Slot, TaskStorage},
};

const FRAME_WORDS: usize = MAX_FRAME_BYTES / 8;
const CODE_WORDS: usize = MAX_CODE_BYTES / 8;
const _: () = assert!(FRAME_WORDS == 16 && CODE_WORDS == 16);
const WORD_MASK: i32 = 15;

/// Room for one walk. Per thread, as the slot, but only threads that run Python have it.
#[repr(C)]
struct Walk {
    /// The frame that the walk is at, and its code object.
    frame: [u64; FRAME_WORDS],
    code: [u64; CODE_WORDS],
    at: u64,
    hash: u64,
    stack: PythonStack,
    /// The frame after the last, which the verifier believes to be written.
    beyond: PythonFrame,
    copy: CodeCopy,
}

#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "PYTHON_WALKS")]
static WALKS: TaskStorage<Walk> = TaskStorage::NEW;

/// Whether the process may run CPython; `PYTHONS` knows. Costs nothing to speak of where it does not.
#[inline(always)]
pub fn may_run_in(state: &ProcessState) -> bool {
    PYTHON_AT
        .get(code_place(state.instance))
        .is_some_and(|hint| *hint != 0)
}

/// The child of a Python program runs the same Python.
#[inline(always)]
pub fn inherit(parent: &ProcessState, child: u32) {
    if !may_run_in(parent) || process(parent.instance, parent.space).is_none() {
        return;
    }
    if let Some(place) = PYTHON_AT.get_ptr_mut(code_place(child)) {
        // SAFETY: a live map value, one aligned word.
        unsafe { *place = 1 };
    }
}

/// Takes the thread's Python frames; gives the hash by which they stand in `PYTHON_STACKS`, 0 for none.
#[inline(always)]
pub fn walk(config: &Config, state: &ProcessState) -> u64 {
    if config.task_fsbase == 0 {
        return 0;
    }
    // SAFETY: the helper gives the current task; its field is read with a check.
    let thread = unsafe {
        let task = bpf_get_current_task_btf() as u64;
        read_kernel(task + u64::from(config.task_fsbase))
    };
    take_frames(state.instance, state.space, thread, config.max_frames)
}

/// The process's layout, or that of the process whose code it began with.
#[inline(always)]
pub fn process(instance: u32, parent: u32) -> Option<&'static PythonProcess> {
    // SAFETY: a live map value; user space replaces entries as a whole.
    unsafe { PYTHONS.get(&instance).or_else(|| PYTHONS.get(&parent)) }
}

/// A global function, verified once: see `unwind`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_frames(instance: u32, parent: u32, thread: u64, max_frames: u32) -> u64 {
    let Some(process) = process(instance, parent) else {
        return 0;
    };
    let layout = &process.layout;
    let Some(first) = innermost(layout, thread) else {
        count(Counter::PythonUnreadable);
        return 0;
    };
    if first == 0 {
        return 0;
    }
    let Some(walk) = WALKS.of_this_thread() else {
        count(Counter::SlotUnavailable);
        return 0;
    };
    walk.at = first;
    walk.hash = 0x2545_F491_4F6C_DD1D;
    walk.stack.count = 0;
    walk.stack.flags = STACK_TRUNCATED;
    for _ in 0..=MAX_PYTHON_FRAMES {
        if walk.at == 0 {
            walk.stack.flags = STACK_COMPLETE;
            break;
        }
        if walk.stack.count >= max_frames {
            break;
        }
        if python_step(process, walk) == 0 {
            count(Counter::PythonUnreadable);
            walk.stack.flags = STACK_BROKEN;
            break;
        }
    }
    if walk.stack.flags == STACK_TRUNCATED {
        count(Counter::PythonTruncated);
    }
    keep(walk, instance, parent)
}

/// The address of the innermost frame, 0 where the thread runs no Python, none where it could not be read.
#[inline(always)]
fn innermost(layout: &PythonLayout, thread: u64) -> Option<u64> {
    let state = thread_state(layout, thread)?;
    if state == 0 {
        return Some(0);
    }
    let frame = word(state + u64::from(layout.tstate_frame))?;
    if layout.cframe_frame == NO_FIELD || frame == 0 {
        return Some(frame);
    }
    word(frame + u64::from(layout.cframe_frame))
}

/// See [`PythonLayout`].
#[inline(always)]
fn thread_state(layout: &PythonLayout, thread: u64) -> Option<u64> {
    match layout.tls_kind {
        TLS_GLIBC_KEY => {
            let key = word(layout.key_address)? as u32;
            let block = if key < GLIBC_KEYS_IN_BLOCK {
                thread + u64::from(layout.tls_first)
            } else {
                word(thread + u64::from(layout.tls_table) + u64::from(key / GLIBC_KEYS_IN_BLOCK) * 8)?
            };
            if block == 0 {
                return Some(0);
            }
            word(block + u64::from(key % GLIBC_KEYS_IN_BLOCK) * 16 + 8)
        }
        TLS_MUSL_KEY => {
            let key = word(layout.key_address)? as u32;
            let table = word(thread + u64::from(layout.tls_table))?;
            if table == 0 {
                return Some(0);
            }
            word(table + u64::from(key) * 8)
        }
        TLS_STATIC => word(thread.wrapping_add(layout.tls_offset as u64)),
        TLS_MODULE => {
            let table = word(thread + u64::from(layout.tls_table))?;
            let module = word(layout.key_address)?;
            let block = word(table + module * u64::from(layout.tls_first))?;
            if block == u64::MAX {
                return Some(0);
            }
            word(block.wrapping_add(layout.tls_offset as u64))
        }
        _ => Some(0),
    }
}

#[inline(always)]
fn word(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: writes one word of the program's own stack; the helper checks the address.
    let failed = unsafe { bpf_probe_read_user((&raw mut value).cast(), 8, address as *const _) };
    (failed == 0).then_some(value)
}

#[inline(always)]
fn copy(to: &mut [u64; FRAME_WORDS], bytes: u16, from: u64) -> bool {
    let bytes = u32::from(bytes);
    if bytes > MAX_FRAME_BYTES as u32 {
        return false;
    }
    // SAFETY: at most as many bytes as there is room for; the helper checks the address.
    unsafe { bpf_probe_read_user(to.as_mut_ptr().cast(), bytes, from as *const _) == 0 }
}

/// The aligned word that holds the byte at `offset`.
#[inline(always)]
fn field(words: &[u64; FRAME_WORDS], offset: u16) -> u64 {
    // SAFETY: the mask keeps the index inside the array.
    unsafe { *words.get_unchecked(mask::<WORD_MASK>(u64::from(offset) >> 3)) }
}

/// The 32 bits at `offset`.
#[inline(always)]
fn half(words: &[u64; FRAME_WORDS], offset: u16) -> u32 {
    (field(words, offset) >> (u64::from(offset & 4) * 8)) as u32
}

#[inline(always)]
fn byte(words: &[u64; FRAME_WORDS], offset: u16) -> u8 {
    (field(words, offset) >> (u64::from(offset & 7) * 8)) as u8
}

/// [`step`], as a global function: within the loop, older verifiers would follow it again and again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn python_step(process: *const PythonProcess, walk: *mut Walk) -> u32 {
    // SAFETY: each is null or what the caller has: a live map value, this thread's walk.
    match unsafe { (process.as_ref(), walk.as_mut()) } {
        (Some(process), Some(walk)) => step(&process.layout, walk),
        _ => 0,
    }
}

/// Notes the frame that the walk is at and goes to its caller; 0 when something cannot be read.
#[inline(always)]
fn step(layout: &PythonLayout, walk: &mut Walk) -> u32 {
    if !copy(&mut walk.frame, layout.frame_bytes, walk.at) {
        return 0;
    }
    let kind = if layout.frame_mark == NO_FIELD {
        layout.frame_kind(0)
    } else {
        layout.frame_kind(byte(&walk.frame, layout.frame_mark))
    };
    let mut found = PythonFrame {
        code: 0,
        instruction: 0,
        fingerprint: 0,
        kind: u32::from(kind),
    };
    if kind != FRAME_SHIM {
        found.code = field(&walk.frame, layout.frame_code) & layout.code_mask;
        found.instruction = if layout.instruction_kind == INSTRUCTION_POINTER {
            field(&walk.frame, layout.frame_instruction)
        } else {
            u64::from(half(&walk.frame, layout.frame_instruction))
        };
        let begin = found.code + u64::from(layout.code_start);
        if !copy(&mut walk.code, layout.code_bytes, begin) {
            return 0;
        }
        let at = |offset: u16| offset.wrapping_sub(layout.code_start);
        found.fingerprint = fingerprint(
            field(&walk.code, at(layout.code_file_name)),
            field(&walk.code, at(layout.code_name)),
            field(&walk.code, at(layout.code_line_table)),
            half(&walk.code, at(layout.code_first_line)) as i32,
        );
    }
    push(walk, &found);
    walk.at = field(&walk.frame, layout.frame_previous);
    1
}

#[inline(always)]
fn push(walk: &mut Walk, frame: &PythonFrame) {
    let n = walk.stack.count;
    if n as usize >= MAX_PYTHON_FRAMES {
        return;
    }
    // SAFETY: n is below the number of frames; by the mask it could be that number, which is still inside the walk.
    unsafe { *walk.stack.frames.as_mut_ptr().add(mask::<127>(u64::from(n))) = *frame };
    walk.stack.count = n + 1;
    let parts = [
        frame.code,
        frame.instruction,
        u64::from(frame.fingerprint) << 8 | u64::from(frame.kind),
    ];
    for part in parts {
        let hash = (walk.hash ^ part).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        walk.hash = hash ^ hash >> 32;
    }
}

/// Puts the frames into `PYTHON_STACKS` unless they are there already.
#[inline(always)]
fn keep(walk: &Walk, instance: u32, parent: u32) -> u64 {
    let hash = if walk.hash == 0 { 1 } else { walk.hash };
    if PYTHON_STACKS.get_ptr(&hash).is_some() {
        return hash;
    }
    if PYTHON_STACKS.insert(&hash, &walk.stack, 0).is_ok() {
        tell_codes(instance, parent, walk.stack.count);
        return hash;
    }
    count(Counter::PythonStacksFull);
    0
}

/// Keeps what the code objects of a new stack hold, unless that was done before.
#[inline(always)]
fn tell_codes(instance: u32, parent: u32, count: u32) {
    for n in 0..MAX_PYTHON_FRAMES as u32 {
        if n >= count {
            break;
        }
        tell_code(instance, parent, n);
    }
}

/// That of the thread's walk's frame `n`. What cannot be read now is left to user space.
///
/// A global function, verified once: see `unwind`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_code(instance: u32, parent: u32, n: u32) -> u32 {
    let (Some(process), Some(walk)) = (process(instance, parent), WALKS.of_this_thread()) else {
        return 0;
    };
    // SAFETY: the mask keeps the place inside the walk.
    let frame = unsafe { *walk.stack.frames.as_ptr().add(mask::<127>(u64::from(n))) };
    let key = CodeKey {
        code: frame.code,
        instance,
        fingerprint: frame.fingerprint,
    };
    if frame.kind == u32::from(FRAME_SHIM) || PYTHON_CODES_TOLD.get_ptr(&key).is_some() {
        return 0;
    }
    let (layout, copy) = (&process.layout, &mut walk.copy);
    let pointer = |offset: u16| word(key.code + u64::from(offset)).unwrap_or(0);
    copy.object_bytes = beginning(&mut copy.object, key.code);
    copy.file_bytes = beginning(&mut copy.file, pointer(layout.code_file_name));
    copy.name_bytes = beginning(&mut copy.name, pointer(layout.code_name));
    copy.table_bytes = beginning(&mut copy.table, pointer(layout.code_line_table));
    if PYTHON_CODES.insert(&key, copy, 0).is_err() {
        count(Counter::PythonCodesFull);
        return 0;
    }
    // Where this fails the object is only told again.
    let _ = PYTHON_CODES_TOLD.insert(&key, &1, 0);
    1
}

/// What is at `from`, or what of it is on its page: the next may not be there yet, and then nothing goes on into it.
#[inline(always)]
fn beginning<const N: usize>(to: &mut [u8; N], from: u64) -> u32 {
    const PAGE: u64 = 4096;
    let rest = (PAGE - (from & (PAGE - 1))) as u32;
    // SAFETY: as many bytes as there is room for; the helper checks the address.
    if unsafe { bpf_probe_read_user(to.as_mut_ptr().cast(), N as u32, from as *const _) } == 0 {
        return N as u32;
    }
    if rest >= N as u32 {
        return 0;
    }
    // SAFETY: fewer bytes than there is room for; the helper checks the address.
    if unsafe { bpf_probe_read_user(to.as_mut_ptr().cast(), rest, from as *const _) } == 0 {
        return rest;
    }
    0
}

/// The domain of a block that libc is asked for: that of the outermost of CPython's allocating functions that the call
/// comes through. The frames are in the slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_domain(slot: *const Slot, instance: u32, parent: u32) -> u32 {
    const NATIVE: u32 = Domain::Native as u32;
    /// `PyObject_Realloc`, pymalloc's, `PyMem_RawRealloc`, its default.
    const MOST_CALLERS: usize = 4;
    // SAFETY: null or this thread's slot.
    let (Some(slot), Some(process)) = (unsafe { slot.as_ref() }, process(instance, parent)) else {
        return NATIVE;
    };
    let mut found = NATIVE;
    for caller in 1..=MOST_CALLERS {
        if caller as u32 >= slot.stack.count {
            break;
        }
        let domain = domain_of(process, slot.stack.frames[caller], u32::from(caller == 1));
        if domain == NATIVE {
            break;
        }
        found = domain;
    }
    found
}

/// A global function for the same reason as [`python_step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn domain_of(process: *const PythonProcess, return_address: u64, innermost: u32) -> u32 {
    let mut found = Domain::Native as u32;
    // SAFETY: null or a live map value.
    let Some(process) = (unsafe { process.as_ref() }) else {
        return found;
    };
    let pc = return_address.wrapping_sub(1);
    for n in 0..MAX_PYTHON_RANGES {
        if n as u32 >= process.count {
            break;
        }
        let range = &process.ranges[n];
        let inside = pc.wrapping_sub(range.start) < range.end.wrapping_sub(range.start);
        if inside && (range.inlined == 0 || (innermost != 0 && found == Domain::Native as u32)) {
            found = range.domain;
        }
    }
    found
}
