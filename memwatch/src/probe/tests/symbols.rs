use proptest::prelude::*;

use super::elf::{self, GLOBAL_FUNCTION, INDIRECT_FUNCTION, LOCAL_FUNCTION, TEXT_ADDRESS, TEXT_OFFSET};
use crate::probe::plan::{Abilities, plan_file};
use crate::probe::symbols::{Import, Machine, ModuleSymbols, SymbolError};

const X86_64: u16 = 62;
const AARCH64: u16 = 183;
pub const TINY: &[u8] = include_bytes!("../testdata/tiny.so");

#[test]
fn a_library_tells_its_names_and_functions() {
    let module = ModuleSymbols::parse(TINY).unwrap();
    assert_eq!(module.machine, Machine::X86_64);
    assert_eq!(module.soname.as_deref(), Some("libtiny.so.1"));
    assert_eq!(module.build_id.as_ref().map(Vec::len), Some(20));
    assert_eq!((module.interpreter.as_deref(), module.needed.len()), (None, 0));
    assert!(!module.glibc && !module.go && !module.is_static());
    let functions: Vec<_> = module
        .functions
        .iter()
        .map(|f| {
            (
                f.names
                    .iter()
                    .map(|known| known.name)
                    .collect::<Vec<_>>()
                    .join(" "),
                f.address,
                f.size,
            )
        })
        .collect();
    assert_eq!(
        functions,
        [
            ("malloc".to_owned(), 0x3d0, Some(39)),
            ("free cfree".to_owned(), 0x400, Some(23)),
            ("_Znwm".to_owned(), 0x420, Some(5)),
            ("_ZdlPv".to_owned(), 0x430, Some(5)),
            ("aligned_alloc memalign".to_owned(), 0x440, Some(36)),
        ]
    );
    assert_eq!(module.unusable.len(), 1);
    assert_eq!(module.unusable[0].symbol, "calloc");
    let mut imports: Vec<_> = module
        .imports
        .iter()
        .filter_map(|(slot, import)| match import {
            Import::Allocator(known) => Some((*slot, known.name)),
            Import::NeverReturns => None,
        })
        .collect();
    imports.sort_unstable();
    assert_eq!(imports, [(0x2000, "malloc"), (0x2008, "free")]);
}

#[test]
fn the_running_program_is_linked_to_a_c_library() {
    let module = ModuleSymbols::parse(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
    assert!(module.interpreter.is_some_and(|path| path.starts_with('/')));
    assert!(module.needed.iter().any(|name| name.starts_with("libc.")));
    assert!(!module.go);
}

/// `xor eax, eax; ret` again and again.
fn text() -> Vec<u8> {
    [0x31, 0xc0, 0xc3, 0x90].repeat(16)
}

#[test]
fn addresses_become_file_offsets() {
    let file = elf::program(X86_64, &text(), &[("malloc", GLOBAL_FUNCTION, 8, 3)], "");
    let module = ModuleSymbols::parse(&file).unwrap();
    assert!(module.is_static());
    assert_eq!(module.functions.len(), 1);
    assert_eq!(module.functions[0].address, TEXT_ADDRESS + 8);
    assert_eq!(module.functions[0].file_offset, TEXT_OFFSET + 8);
    assert_eq!(module.code(&file, TEXT_ADDRESS + 8), Some(&text()[8..]));
    assert_eq!(module.code(&file, TEXT_ADDRESS + 64), None);
    assert_eq!(module.code_offset(TEXT_ADDRESS - 1), None);
}

#[test]
fn symbols_inside_a_function_limit_it() {
    let file = elf::program(
        X86_64,
        &text(),
        &[
            ("malloc", GLOBAL_FUNCTION, 8, 0),
            ("malloc@@V_2", GLOBAL_FUNCTION, 8, 9),
            ("inner", LOCAL_FUNCTION, 12, 0),
            ("later", LOCAL_FUNCTION, 16, 0),
        ],
        "",
    );
    let module = ModuleSymbols::parse(&file).unwrap();
    assert_eq!(module.functions.len(), 1);
    assert_eq!(
        (module.functions[0].size, module.functions[0].limit),
        (Some(9), Some(4))
    );
}

#[test]
fn a_private_function_counts_only_in_a_whole_allocator() {
    let symbols = [
        ("free", LOCAL_FUNCTION, 0, 3),
        ("_rjem_free", LOCAL_FUNCTION, 4, 3),
    ];
    let module = ModuleSymbols::parse(&elf::program(X86_64, &text(), &symbols, "")).unwrap();
    assert_eq!(module.functions.len(), 1);
    assert_eq!(module.functions[0].names[0].name, "_rjem_free");
    assert_eq!(module.unusable[0].symbol, "free");

    let symbols = [("free", LOCAL_FUNCTION, 0, 3), ("malloc", LOCAL_FUNCTION, 4, 3)];
    let module = ModuleSymbols::parse(&elf::program(X86_64, &text(), &symbols, "")).unwrap();
    assert_eq!(module.functions.len(), 2);
}

#[test]
fn what_cannot_be_used_is_told_with_its_reason() {
    let symbols = [
        ("malloc", INDIRECT_FUNCTION, 0, 3),
        // Beyond the code.
        ("realloc", GLOBAL_FUNCTION, 4096, 3),
        // Data.
        ("free", 0x11, 4, 8),
    ];
    let module = ModuleSymbols::parse(&elf::program(X86_64, &text(), &symbols, "")).unwrap();
    assert!(module.functions.is_empty());
    let names: Vec<_> = module.unusable.iter().map(|unusable| unusable.symbol).collect();
    assert_eq!(names, ["malloc", "realloc"]);
}

#[test]
fn go_programs_and_other_machines_are_recognised() {
    for section in [".gopclntab", ".note.go.buildid", ".go.buildinfo"] {
        assert!(
            ModuleSymbols::parse(&elf::program(X86_64, &text(), &[], section))
                .unwrap()
                .go
        );
    }
    assert!(
        !ModuleSymbols::parse(&elf::program(X86_64, &text(), &[], ".data"))
            .unwrap()
            .go
    );
    assert_eq!(
        ModuleSymbols::parse(&elf::program(AARCH64, &text(), &[], ""))
            .unwrap()
            .machine,
        Machine::Other
    );
}

#[test]
fn glibc_in_a_static_program_is_known_by_its_messages() {
    let symbols = [("malloc", GLOBAL_FUNCTION, 0, 3)];
    let with = [&text()[..], b"munmap_chunk(): invalid pointer\0"].concat();
    assert!(
        ModuleSymbols::parse(&elf::program(X86_64, &with, &symbols, ""))
            .unwrap()
            .glibc
    );
    assert!(
        !ModuleSymbols::parse(&elf::program(X86_64, &text(), &symbols, ""))
            .unwrap()
            .glibc
    );
    let prefixed = [("je_malloc", GLOBAL_FUNCTION, 0, 3)];
    assert!(
        !ModuleSymbols::parse(&elf::program(X86_64, &with, &prefixed, ""))
            .unwrap()
            .glibc
    );
}

#[test]
fn files_of_another_kind_are_refused_by_name() {
    assert!(matches!(ModuleSymbols::parse(b""), Err(SymbolError::NotElf)));
    assert!(matches!(
        ModuleSymbols::parse(b"#!/bin/sh\n"),
        Err(SymbolError::NotElf)
    ));
    assert!(matches!(
        ModuleSymbols::parse(b"\x7fELF"),
        Err(SymbolError::NotElf)
    ));
    let mut file = TINY.to_vec();
    file[4] = 1;
    assert!(matches!(
        ModuleSymbols::parse(&file),
        Err(SymbolError::Unsupported("32-bit"))
    ));
    file[4..6].copy_from_slice(&[2, 2]);
    assert!(matches!(
        ModuleSymbols::parse(&file),
        Err(SymbolError::Unsupported("big-endian"))
    ));
    assert!(matches!(
        ModuleSymbols::parse(&TINY[..60]),
        Err(SymbolError::Malformed { .. })
    ));
}

const ABILITIES: Abilities = Abilities::of_kernel(6, 18, true);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_files_give_an_error_or_a_plan_within_the_file(
        changes in proptest::collection::vec((0..TINY.len(), any::<u8>()), 1..12),
        // Headers matter most.
        header in proptest::collection::vec((0..600_usize, any::<u8>()), 0..4),
        length in proptest::option::weighted(0.2, 0..TINY.len()),
    ) {
        let mut file = TINY.to_vec();
        for (at, value) in changes.into_iter().chain(header) {
            file[at] = value;
        }
        file.truncate(length.unwrap_or(file.len()));
        if let Ok(plan) = plan_file(&file, "damaged", &ABILITIES) {
            for point in &plan.points {
                prop_assert!(point.offset < file.len() as u64);
            }
        }
    }

    #[test]
    fn extreme_words_in_a_file_do_no_harm(
        at in 0..TINY.len() / 8, word in proptest::sample::select(vec![0, 1, u64::MAX, 1 << 63, u64::MAX - 7, 0xffff_ffff]),
    ) {
        let mut file = TINY.to_vec();
        file[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        if let Ok(plan) = plan_file(&file, "damaged", &ABILITIES) {
            for point in &plan.points {
                prop_assert!(point.offset < file.len() as u64);
            }
        }
    }
}
