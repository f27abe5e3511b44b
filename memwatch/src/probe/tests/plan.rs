use memwatch_common::cookie::FLAG_GLIBC;
use memwatch_common::{Cookie, Domain, Function};

use super::elf::{self, GLOBAL_FUNCTION, Symbol, TEXT_OFFSET};
use super::symbols::TINY;
use crate::probe::placer::Cost;
use crate::probe::plan::{Abilities, ModulePlan, plan_file};
use crate::probe::price::Prices;

const X86_64: u16 = 62;
const ABILITIES: Abilities = Abilities::of_kernel(6, 18, true);

fn planned(text: &[u8], symbols: &[Symbol<'_>]) -> ModulePlan {
    plan_file(&elf::program(X86_64, text, symbols, ""), "made-up", &ABILITIES).unwrap()
}

fn names(plan: &ModulePlan) -> Vec<&str> {
    plan.points.iter().map(|point| point.symbol).collect()
}

fn skipped(plan: &ModulePlan) -> Vec<&str> {
    plan.skipped
        .iter()
        .map(|skipped| skipped.symbol.as_str())
        .collect()
}

#[test]
fn a_library_is_planned_once_per_function() {
    let plan = plan_file(TINY, "/lib/libtiny.so", &ABILITIES).unwrap();
    assert!(plan.is_allocator());
    assert_eq!(names(&plan), ["malloc", "free", "aligned_alloc"]);
    assert_eq!(skipped(&plan), ["calloc", "_Znwm", "_ZdlPv"]);
    assert!(plan.notes.is_empty());
    let free = &plan.points[1];
    assert_eq!((free.address, free.offset), (0x400, 0x403));
    assert_eq!(
        (free.aliases.as_slice(), free.function, free.needs_return),
        (&["cfree"][..], Function::Free, false)
    );
    assert_eq!(
        (free.placement.cost, free.nanoseconds(&Prices::default())),
        (Cost::Emulated, 510)
    );
    assert_eq!(
        free.cookie(7),
        Cookie::new(Function::Free, Domain::Native, 0, free.id, 7, 0x403)
    );
    let notes: Vec<_> = plan.probe_notes().collect();
    assert_eq!(notes.len(), 3);
    assert_eq!(
        (notes[1].symbol.as_str(), notes[1].module.as_str()),
        ("_Znwm", "/lib/libtiny.so")
    );
    assert_eq!(
        notes[1].reason,
        "always leads to malloc, which is watched where it is"
    );
}

#[test]
fn glibc_is_flagged_on_its_own_names_only() {
    let text = [&[0x55, 0xc3].repeat(8)[..], b"munmap_chunk(): invalid pointer\0"].concat();
    let plan = planned(
        &text,
        &[
            ("malloc", GLOBAL_FUNCTION, 0, 2),
            ("free", GLOBAL_FUNCTION, 2, 2),
            ("mi_malloc", GLOBAL_FUNCTION, 4, 2),
        ],
    );
    let flags: Vec<_> = plan
        .points
        .iter()
        .map(|point| (point.symbol, point.flags))
        .collect();
    assert_eq!(
        flags,
        [("malloc", FLAG_GLIBC), ("free", FLAG_GLIBC), ("mi_malloc", 0)]
    );
}

#[test]
fn go_programs_get_no_probes() {
    let symbols = [("malloc", GLOBAL_FUNCTION, 0, 2), ("free", GLOBAL_FUNCTION, 2, 2)];
    let file = elf::program(X86_64, &[0x55, 0xc3].repeat(8), &symbols, ".gopclntab");
    let plan = plan_file(&file, "go", &ABILITIES).unwrap();
    assert!(plan.points.is_empty() && !plan.is_allocator());
    assert_eq!(skipped(&plan), ["malloc", "free"]);
    assert!(plan.skipped[0].reason.contains("Go"));
}

#[test]
fn without_safe_return_probes_nothing_is_planned() {
    let plan = plan_file(TINY, "tiny", &Abilities::of_kernel(6, 12, false)).unwrap();
    assert!(plan.points.is_empty());
    assert!(
        plan.skipped
            .iter()
            .any(|skipped| skipped.reason.contains("return probes"))
    );
}

#[test]
fn other_machines_get_no_probes() {
    let symbols = [("malloc", GLOBAL_FUNCTION, 0, 2)];
    let plan = plan_file(&elf::program(183, &[0x55, 0xc3], &symbols, ""), "arm", &ABILITIES).unwrap();
    assert!(plan.points.is_empty());
    assert_eq!(skipped(&plan), ["malloc"]);
}

#[test]
fn half_an_allocator_is_noted() {
    let plan = planned(&[0x55, 0xc3], &[("malloc", GLOBAL_FUNCTION, 0, 2)]);
    assert_eq!(plan.notes.len(), 1);
    assert!(plan.is_allocator());
    let plan = planned(&[0x55, 0xc3], &[("free", GLOBAL_FUNCTION, 0, 2)]);
    assert_eq!(plan.notes.len(), 1);
    assert!(!plan.is_allocator());
    assert!(planned(&[0x55, 0xc3], &[]).notes.is_empty());
}

#[test]
fn kinds_that_share_one_address_are_told_apart() {
    let symbols = [
        ("malloc", GLOBAL_FUNCTION, 0, 2),
        ("calloc", GLOBAL_FUNCTION, 0, 2),
    ];
    let plan = planned(&[0x55, 0xc3], &symbols);
    assert_eq!(names(&plan), ["malloc"]);
    assert!(plan.points[0].aliases.is_empty());
    assert_eq!(skipped(&plan), ["calloc"]);
}

#[test]
fn what_cannot_be_probed_is_skipped_with_the_reason() {
    let plan = planned(&[0xf4, 0xc3], &[("malloc", GLOBAL_FUNCTION, 0, 2)]);
    assert!(plan.points.is_empty());
    assert!(plan.skipped[0].reason.contains("hlt"), "{:?}", plan.skipped);
}

/// Code of several functions, 16 bytes each.
fn slots(functions: &[&[u8]]) -> Vec<u8> {
    functions
        .iter()
        .flat_map(|code| [code, &[0xcc; 16][code.len()..]].concat())
        .collect()
}

const FREE: &[u8] = &[0x48, 0x89, 0x3f, 0xc3]; // mov [rdi], rdi; ret

#[test]
fn a_name_that_jumps_to_another_hands_on_its_importance() {
    // As in static musl: free is a jump to __libc_free.
    let text = slots(&[&[0xe9, 0x0b, 0, 0, 0], FREE, &[0x55, 0xc3]]);
    let plan = planned(
        &text,
        &[
            ("free", GLOBAL_FUNCTION, 0, 5),
            ("__libc_free", GLOBAL_FUNCTION, 16, 4),
            ("malloc", GLOBAL_FUNCTION, 32, 2),
        ],
    );
    assert_eq!(names(&plan), ["__libc_free", "malloc"]);
    assert!(plan.points[0].required);
    assert_eq!(plan.points[0].offset, TEXT_OFFSET + 16);
}

/// The code of an `operator delete` beside a `free`, and whether it is left out.
#[rustfmt::skip]
const DELETES: &[(&str, &[u8], bool)] = &[
    ("a jump", &[0xe9, 0x0b, 0, 0, 0], true),
    ("endbr64 and a jump", &[0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0x07, 0, 0, 0], true),
    // sub rsp, 8; call free; add rsp, 8; ret
    ("a call", &[0x48, 0x83, 0xec, 8, 0xe8, 7, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3], true),
    // test rdi, rdi; je +5; jmp free; ret
    ("a check for null", &[0x48, 0x85, 0xff, 0x74, 5, 0xe9, 6, 0, 0, 0, 0xc3], true),
    // jne free; ret
    ("a conditional jump out", &[0x0f, 0x85, 0x0a, 0, 0, 0, 0xc3], true),
    // test sil, sil; je +4; mov [rdi], rdi; ret; jmp free
    ("a cache of its own", &[0x40, 0x84, 0xf6, 0x74, 4, 0x48, 0x89, 0x3f, 0xc3, 0xeb, 5], false),
    // jmp rax
    ("an unknown place", &[0xff, 0xe0], false),
    // jmp to itself
    ("nowhere", &[0xeb, 0xfe], false),
    // syscall; jmp free
    ("a system call first", &[0x0f, 0x05, 0xe9, 9, 0, 0, 0], true),
];

#[test]
fn operators_that_wrap_free_are_left_out_and_others_are_not() {
    for (what, delete, left_out) in DELETES {
        let text = slots(&[delete, FREE, &[0x55, 0xc3]]);
        let plan = planned(
            &text,
            &[
                ("_ZdlPv", GLOBAL_FUNCTION, 0, delete.len() as u64),
                ("free", GLOBAL_FUNCTION, 16, 4),
                ("malloc", GLOBAL_FUNCTION, 32, 2),
            ],
        );
        let expected: &[&str] = if *left_out {
            &["free", "malloc"]
        } else {
            &["_ZdlPv", "free", "malloc"]
        };
        assert_eq!(names(&plan), expected, "{what}: {:?}", plan.skipped);
    }
}

/// The same for a `cfree`, which may have changed the pointer on the way.
#[rustfmt::skip]
const OTHER_FREES: &[(&str, &[u8], bool)] = &[
    ("a jump", &[0xe9, 0x0b, 0, 0, 0], true),
    // lea rdi, [rdi - 16]; jmp free
    ("another pointer", &[0x48, 0x8d, 0x7f, 0xf0, 0xe9, 7, 0, 0, 0], false),
    // sub rsp, 8; call free; add rsp, 8; ret
    ("a call", &[0x48, 0x83, 0xec, 8, 0xe8, 7, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3], false),
    // mov [rdi], rdi; jmp free
    ("work before", &[0x48, 0x89, 0x3f, 0xe9, 8, 0, 0, 0], false),
];

#[test]
fn other_functions_are_left_out_only_if_they_hand_on_the_same_block() {
    for (what, code, left_out) in OTHER_FREES {
        let text = slots(&[code, FREE, &[0x55, 0xc3]]);
        let plan = planned(
            &text,
            &[
                ("cfree", GLOBAL_FUNCTION, 0, code.len() as u64),
                ("free", GLOBAL_FUNCTION, 16, 4),
                ("malloc", GLOBAL_FUNCTION, 32, 2),
            ],
        );
        let expected: &[&str] = if *left_out {
            &["free", "malloc"]
        } else {
            &["cfree", "free", "malloc"]
        };
        assert_eq!(names(&plan), expected, "{what}: {:?}", plan.skipped);
    }
}

#[test]
fn an_allocation_that_ends_in_another_is_left_out_and_a_wrapped_one_is_not() {
    // mov rsi, rdi; mov edi, 4096; jmp memalign (as musl's valloc), and sub rsp; call; add rsp; ret
    let jump = [0x48, 0x89, 0xfe, 0xbf, 0, 0x10, 0, 0, 0xe9, 3, 0, 0, 0];
    let call = [0x48, 0x83, 0xec, 8, 0xe8, 7, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3];
    for (valloc, expected) in [
        (&jump[..], &["memalign", "free"][..]),
        (&call, &["valloc", "memalign", "free"]),
    ] {
        let plan = planned(
            &slots(&[valloc, &[0x55, 0xc3], FREE]),
            &[
                ("valloc", GLOBAL_FUNCTION, 0, valloc.len() as u64),
                ("memalign", GLOBAL_FUNCTION, 16, 2),
                ("free", GLOBAL_FUNCTION, 32, 4),
            ],
        );
        assert_eq!(names(&plan), expected);
    }
}

#[test]
fn the_direction_has_to_be_the_same() {
    // A realloc that ends in free, as one of its ways: it is no free.
    let plan = planned(
        &slots(&[&[0xe9, 0x0b, 0, 0, 0], FREE]),
        &[
            ("realloc", GLOBAL_FUNCTION, 0, 5),
            ("free", GLOBAL_FUNCTION, 16, 4),
        ],
    );
    assert_eq!(names(&plan), ["realloc", "free"]);
}

#[test]
fn functions_that_lead_to_each_other_do_not_both_go() {
    // free: jmp cfree; cfree: jmp free.
    let plan = planned(
        &slots(&[&[0xe9, 0x0b, 0, 0, 0], &[0xe9, 0xeb, 0xff, 0xff, 0xff]]),
        &[("free", GLOBAL_FUNCTION, 0, 5), ("cfree", GLOBAL_FUNCTION, 16, 5)],
    );
    assert_eq!(plan.points.len(), 1);
    assert_eq!(plan.skipped.len(), 1);
}

#[test]
fn a_throw_after_a_failed_allocation_is_no_way_of_its_own() {
    // operator new: push rbx; call malloc; test rax, rax; je +2; pop rbx; ret; call __cxa_throw
    let new = [
        0x53, 0xe8, 0x1a, 0, 0, 0, 0x48, 0x85, 0xc0, 0x74, 2, 0x5b, 0xc3, 0xe8, 0x1e, 0, 0, 0,
    ];
    // A size check that throws before anything is allocated: cmp rdi, rsi; ja to the throw.
    let checked = [
        0x48, 0x39, 0xf7, 0x77, 5, 0xe9, 0x16, 0, 0, 0, 0xe8, 0x21, 0, 0, 0,
    ];
    for new in [&new[..], &checked] {
        let mut text = [new, &[0xcc; 32][new.len()..]].concat();
        text.extend(slots(&[&[0x55, 0xc3], &[0x55, 0xc3], FREE]));
        let plan = planned(
            &text,
            &[
                ("_Znwm", GLOBAL_FUNCTION, 0, new.len() as u64),
                ("malloc", GLOBAL_FUNCTION, 32, 2),
                ("__cxa_throw", GLOBAL_FUNCTION, 48, 2),
                ("free", GLOBAL_FUNCTION, 64, 4),
            ],
        );
        assert_eq!(names(&plan), ["malloc", "free"], "{:?}", plan.skipped);
    }
}

#[test]
fn the_kernel_version_decides_over_long_no_ops() {
    assert!(!Abilities::of_kernel(6, 17, true).emulation.long_nops);
    assert!(Abilities::of_kernel(6, 18, true).emulation.long_nops);
    assert!(Abilities::of_kernel(7, 0, true).emulation.long_nops);
    assert!(!Abilities::of_kernel(5, 19, true).emulation.long_nops);
}
