//! Atomic additions. `core::sync::atomic` has no read-modify-write for BPF targets, so these are the two
//! instructions themselves.

use core::arch::asm;

/// `*target += value`, not tearing against other CPUs.
#[inline(always)]
pub fn add(target: &mut u64, value: u64) {
    // SAFETY: `target` is a live, aligned u64 in a map value; the instruction touches nothing else.
    unsafe {
        asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) core::ptr::from_mut(target), v = in(reg) value, options(nostack));
    }
}

/// `*target -= value`.
#[inline(always)]
pub fn sub(target: &mut u64, value: u64) {
    add(target, value.wrapping_neg());
}

/// `*target = value` if it is 0; whether it was. Linux 5.12.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn claim(target: &mut u64, value: u64) -> bool {
    let mut found = 0_u64;
    // SAFETY: as in `add`.
    unsafe {
        asm!("r0 = cmpxchg_64({p} + 0, r0, {v})", p = in(reg) core::ptr::from_mut(target), v = in(reg) value, inout("r0") found, options(nostack));
    }
    found == 0
}

/// Never runs: other processors have no register of that name, and the code is checked for one of them too.
#[cfg(not(target_arch = "bpf"))]
pub fn claim(target: &mut u64, value: u64) -> bool {
    let free = *target == 0;
    if free {
        *target = value;
    }
    free
}

/// `*target += value`, giving back what was there before. Linux 5.12.
#[inline(always)]
pub fn fetch_add(target: &mut u64, value: u64) -> u64 {
    let mut v = value;
    // SAFETY: as in `add`.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) core::ptr::from_mut(target), v = inout(reg) v, options(nostack));
    }
    v
}
