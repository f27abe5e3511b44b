//! Which function of mimalloc takes a page into use. It returns the page's head.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

use crate::python::file::ElfBytes;

/// Either is called for each such page, and for nothing else. The first is told the size of its blocks as its third
/// argument.
const NAMES: [&str; 2] = ["mi_page_fresh_alloc", "_mi_segment_page_alloc"];

/// The largest blocks in small, medium and large pages: what decides how large a page is.
const LARGEST: [u64; 3] = [0x4000, 0x2_0000, 0x100_0000];

/// The function, as linked: by its symbol, else by what only it does.
pub(in crate::python) fn fresh_page(elf: &ElfBytes<'_>) -> Option<u64> {
    NAMES
        .iter()
        .find_map(|name| by_name(elf, name))
        .or_else(|| by_code(elf))
}

/// Compilers put parts of functions elsewhere, and make variants for some callers.
fn by_name(elf: &ElfBytes<'_>, wanted: &str) -> Option<u64> {
    let mut variants = elf.symbols_from(wanted).filter(|(name, _)| {
        let rest = &name[wanted.len()..];
        !rest.contains("cold") && !rest.contains("part") && (rest.is_empty() || rest.starts_with('.'))
    });
    let (_, function) = variants.next()?;
    // Of several none would be called for all pages.
    variants.next().is_none().then_some(function.address)
}

/// It compares one number with all three sizes.
fn by_code(elf: &ElfBytes<'_>) -> Option<u64> {
    let pieces: BTreeSet<(u64, u64)> = elf
        .code_sections()
        .flat_map(|(address, bytes, _)| comparisons(address, bytes))
        .filter_map(|place| elf.piece_of(place))
        .map(|piece| (piece.start, piece.end))
        .collect();
    let mut functions = pieces.into_iter().filter(|&(start, end)| {
        let code = usize::try_from(end - start)
            .ok()
            .and_then(|size| elf.bytes_at(start)?.get(..size));
        code.is_some_and(|code| tells_pages_apart(start, code)) && elf.part_of_function(start).is_none()
    });
    let (only, _) = functions.next()?;
    functions.next().is_none().then_some(only)
}

/// Where the code may compare a register with the last of the sizes. What only looks so can be among them.
fn comparisons(address: u64, code: &[u8]) -> impl Iterator<Item = u64> {
    let is_comparison = |window: &[u8]| {
        let register = window[0] == 0x81 && window[1] >= 0xf8 || window[1] == 0x3d;
        register && window[2] <= 1 && window[3..] == [0, 0, 1]
    };
    let places = code
        .windows(6)
        .enumerate()
        .filter(move |(_, window)| is_comparison(window));
    places.map(move |(at, _)| address.wrapping_add(at as u64))
}

/// "Above" is compared with the size itself, "at least" with the next number.
fn tells_pages_apart(address: u64, code: &[u8]) -> bool {
    let mut compared: BTreeMap<Register, BTreeSet<usize>> = BTreeMap::new();
    for instruction in &mut Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        let with_number = matches!(
            instruction.op1_kind(),
            OpKind::Immediate32 | OpKind::Immediate32to64
        );
        if instruction.mnemonic() != Mnemonic::Cmp
            || instruction.op0_kind() != OpKind::Register
            || !with_number
        {
            continue;
        }
        let number = u64::from(instruction.immediate32());
        if let Some(size) = LARGEST
            .iter()
            .position(|size| number == *size || number == size + 1)
        {
            compared
                .entry(instruction.op0_register())
                .or_default()
                .insert(size);
        }
    }
    compared.values().any(|sizes| sizes.len() == LARGEST.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cmp register, number
    fn cmp(rex: u8, register: u8, number: u32) -> Vec<u8> {
        let mut code = vec![rex, 0x81, 0xf8 + register];
        code.extend(number.to_le_bytes());
        code
    }

    /// cmp rax, number
    fn cmp_rax(number: u32) -> Vec<u8> {
        let mut code = vec![0x48, 0x3d];
        code.extend(number.to_le_bytes());
        code
    }

    #[test]
    fn a_number_that_is_compared_with_all_three_sizes_tells_the_function() {
        // In rdx, as in 3.13 made with all optimisations; in r13, as in one without; and the other way round.
        let rdx = [
            cmp(0x48, 2, 0x4000),
            cmp(0x48, 2, 0x2_0000),
            cmp(0x48, 2, 0x100_0000),
        ]
        .concat();
        let r13 = [
            cmp(0x49, 5, 0x100_0000),
            cmp(0x49, 5, 0x4000),
            cmp(0x49, 5, 0x2_0000),
        ]
        .concat();
        let next = [cmp_rax(0x4001), cmp_rax(0x2_0001), cmp_rax(0x100_0001)].concat();
        for code in [&rdx, &r13, &next] {
            assert!(tells_pages_apart(0x1000, code));
            assert_eq!(comparisons(0x1000, code).count(), 1);
        }
        assert_eq!(comparisons(0x1000, &rdx).next(), Some(0x1000 + 15));
        // `mi_find_page` has all three, of different numbers.
        let other = [cmp(0x48, 6, 0x2_0000), cmp_rax(0x100_0000), cmp_rax(0x4000)].concat();
        assert!(!tells_pages_apart(0x1000, &other));
        assert!(!tells_pages_apart(0x1000, &rdx[..14]));
        assert!(!tells_pages_apart(0x1000, &[]));
    }
}
