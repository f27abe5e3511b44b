//! Reading the target's stack, and the kernel's own words.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user};
use memwatch_common::limits::STACK_CHUNK;

use crate::{bound::mask, maps::config, slot::Slot};

const CHUNK_WORDS: usize = STACK_CHUNK / 8;
pub const CHUNK_MASK: i32 = CHUNK_WORDS as i32 - 1;
const _: () = assert!(CHUNK_WORDS.is_power_of_two());

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
pub fn word(slot_at: *mut Slot, slot: &mut Slot, address: u64) -> Option<u64> {
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
pub const PAGE: u64 = 4096;

/// Return probes that can be pending in one thread; the kernel's own bound.
const MAX_RETURN_PROBES: usize = 64;

/// A pending return probe, of ours or of another tool, has put the trampoline's address in place of the caller's. The
/// kernel's list of them has what stood there. Anything else at a page's beginning is given back as it is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn behind_probe(address: u64, found: u64) -> u64 {
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
