//! Sizes where compiled code has them.

use memwatch_common::size_at::{CONSTANT, PRODUCT, REGISTER, SCALED, SizeWord, SizeWords};

use crate::{arch::Registers, memory};

/// The size; none where its memory cannot be read.
#[inline(always)]
pub fn of(words: SizeWords, registers: Registers<'_>) -> Option<u64> {
    let first = number(words.first, registers)?;
    if words.second.0 == 0 {
        return Some(first);
    }
    Some(first.wrapping_mul(number(words.second, registers)?))
}

#[inline(always)]
pub fn number(word: SizeWord, registers: Registers<'_>) -> Option<u64> {
    let number = match word.kind() {
        CONSTANT => u64::from(word.constant()),
        REGISTER => registers.numbered(word.register()),
        PRODUCT => {
            let first = registers.numbered(word.first_register());
            first.wrapping_mul(registers.numbered(word.register()))
        }
        SCALED => {
            let number = registers.numbered(word.base());
            number.wrapping_mul(word.factor().into())
        }
        _ => {
            let base = registers.numbered(word.base());
            memory::read_word(base.wrapping_add_signed(word.distance().into()))?
        }
    };
    Some(number)
}
