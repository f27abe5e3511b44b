//! Which unwind rule holds at an address: remembered, or looked up in the tables.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_find_vma, bpf_get_current_task_btf},
};
use memwatch_common::{
    limits::CACHED_RULES_BITS,
    unwind::{
        BLOCK_ROWS, CachedRule, MAX_RANGES, PAGE_SHIFT, Page, PageKey, RULE_NONE, RULE_UNMAPPED,
        SEARCH_STEPS, Space,
    },
};

use crate::{
    bound::mask,
    maps::{PAGES, PC_RULES, ROWS, SPACES, config},
    memory::read_kernel,
    slot::Slot,
};

const RANGE_MASK: i32 = MAX_RANGES as i32 - 1;
const _: () = assert!(MAX_RANGES.is_power_of_two());
const BLOCK_MASK: i32 = BLOCK_ROWS as i32 - 1;
const _: () = assert!(BLOCK_ROWS.is_power_of_two());

/// The number of the rule for an address of the process, remembered from the last time or looked up.
#[inline(always)]
pub fn rule_number(slot: *mut Slot, pc: u64, seed: u64, from: u64) -> u16 {
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
