//! Index bounds that the verifier can see.

use core::arch::asm;

/// `value & MASK`, as an instruction that the compiler cannot prove away: it would, after a comparison, and the
/// verifier then no longer knows the bound in the register that is used.
#[inline(always)]
pub fn mask<const MASK: i32>(value: u64) -> usize {
    let mut value = value;
    // SAFETY: one arithmetic instruction on its own operand.
    unsafe {
        asm!("{v} &= {mask}", v = inout(reg) value, mask = const MASK, options(pure, nomem, nostack));
    }
    value as usize
}
