//! Bytes that nobody should make, but somebody will.

use proptest::prelude::*;

use super::image::{Layout, image};
use crate::target::vdso;
use crate::unwind::{BuildError, Dropped, build, fuzz_entry};

const EH: Layout = Layout::Section(".eh_frame");

/// A group of functions whose program is `program`.
fn group(augmentation: &[u8], program: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0, 1];
    body.extend(augmentation);
    body.extend([0, 1, 0x78, 16]);
    body.extend(program);
    let mut entry = (body.len() as u32).to_le_bytes().to_vec();
    entry.extend(body);
    entry
}

/// A function of the group at `group`, with its entry at `at`.
fn function(at: usize, group: usize, start: u64, length: u64, program: &[u8]) -> Vec<u8> {
    let mut entry = (20 + program.len() as u32).to_le_bytes().to_vec();
    entry.extend(((at + 4 - group) as u32).to_le_bytes());
    entry.extend(start.to_le_bytes());
    entry.extend(length.to_le_bytes());
    entry.extend(program);
    entry
}

#[test]
fn files_of_other_kinds_are_refused_by_name() {
    let good = image(&[0x90; 64], 0, &[], EH);
    assert!(build(&good).is_ok());
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        build(&bytes)
    };
    assert!(matches!(build(b"#!/bin/sh\n"), Err(BuildError::Elf(_))));
    assert!(matches!(with(18, 183), Err(BuildError::Machine)), "aarch64");
    assert!(matches!(with(16, 1), Err(BuildError::Kind)), "an object file");
    assert!(matches!(with(4, 1), Err(BuildError::Elf(_))), "32 bits");
    // The address of the only segment.
    assert!(matches!(with(64 + 16 + 7, 0xff), Err(BuildError::Layout)));
}

#[test]
fn many_functions_with_one_long_group_cost_a_bounded_number_of_steps() {
    // The group's program would run once for each function: 20,000 times 100,000 instructions.
    let mut unwind = group(&[], &vec![0; 100_000]);
    for _ in 0..20_000 {
        unwind.extend(function(unwind.len(), 0, 0x1000, 0x10, &[]));
    }
    let table = build(&image(&[0x90; 0x1000], 0, &unwind, EH)).expect("a table");
    assert_eq!(table.stats.dropped(Dropped::Limit).count, 1);
    assert!(table.stats.functions < 100, "{:?}", table.stats);
}

#[test]
fn long_augmentations_are_not_read_again_and_again() {
    let mut unwind = group(&vec![b'S'; 100_000], &[0x0c, 7, 8, 0x90, 1]);
    for _ in 0..1000 {
        unwind.extend(function(unwind.len(), 0, 0x1000, 0x10, &[]));
    }
    let table = build(&image(&[0x90; 0x1000], 0, &unwind, EH)).expect("a table");
    assert_eq!(table.stats.dropped(Dropped::Limit).count, 1);
}

#[test]
fn a_program_that_goes_wrong_keeps_its_first_rows() {
    let mut unwind = group(&[], &[0x0c, 7, 8, 0x90, 1]);
    let at = unwind.len();
    // advance 4; CFA offset 16; advance 4; an instruction that does not exist.
    unwind.extend(function(at, 0, 0x1000, 0x40, &[0x44, 0x0e, 16, 0x44, 0x3f]));
    let table = build(&image(&[0x90; 0x1000], 0, &unwind, EH)).expect("a table");
    let offsets: Vec<i32> = [0x1003, 0x1007, 0x1008, 0x103f]
        .map(|at| table.rule(at).cfa_offset)
        .to_vec();
    assert_eq!(offsets, [8, 16, 0, 0]);
    let dropped = table.stats.dropped(Dropped::Program);
    assert_eq!((dropped.count, dropped.bytes), (1, 0x38));
    assert_eq!(table.stats.covered_bytes, 8);
}

#[test]
fn a_section_that_is_cut_short_keeps_what_came_before() {
    let mut unwind = group(&[], &[0x0c, 7, 8, 0x90, 1]);
    let at = unwind.len();
    unwind.extend(function(at, 0, 0x1000, 0x40, &[]));
    unwind.extend([0xf0, 0xff, 0xff, 0]);
    let table = build(&image(&[0x90; 0x1000], 0, &unwind, EH)).expect("a table");
    assert_eq!(table.rule(0x1000).cfa_offset, 8);
    assert_eq!(table.stats.dropped(Dropped::Entry).count, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        fuzz_entry(&bytes);
        fuzz_entry(&image(&[0x90; 0x1000], 0x1000, &bytes, EH));
        fuzz_entry(&image(&[0x90; 0x1000], 0x1000, &bytes, Layout::Section(".debug_frame")));
        fuzz_entry(&image(&[0x90; 0x1000], 0x1000, &bytes, Layout::Programs));
    }

    #[test]
    fn any_programs_are_survived(
        shared in proptest::collection::vec(any::<u8>(), 0..40),
        programs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..20),
    ) {
        let mut unwind = group(&[], &shared);
        for (n, program) in programs.iter().enumerate() {
            let at = unwind.len();
            unwind.extend(function(at, 0, 0x1000 + n as u64 * 0x80, 0x90, program));
        }
        fuzz_entry(&image(&[0x90; 0x1000], 0, &unwind, EH));
    }

    #[test]
    fn real_images_with_changed_bytes_are_survived(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = vdso::image().expect("a vdso");
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz_entry(&bytes);
    }
}
