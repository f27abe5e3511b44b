//! The placer on real and on made-up code.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register,
};
use memwatch_common::Function;
use proptest::prelude::*;

use crate::probe::placer::{Code, Cost, Emulation, Fallback, PlaceError, Placement, place};
use crate::probe::symbols::Machine;

const NEW: Emulation = Emulation { long_nops: true };
const OLD: Emulation = Emulation { long_nops: false };

fn at_entry(bytes: &[u8], function: Function, emulation: Emulation) -> Result<Placement, PlaceError> {
    let code = Code {
        bytes,
        entry: 0x1000,
        size: Some(bytes.len() as u64),
        limit: None,
    };
    place(Machine::X86_64, &code, function, emulation)
}

fn kind(name: &str) -> Function {
    Function::ALL
        .into_iter()
        .find(|function| format!("{function:?}") == name)
        .unwrap()
}

#[test]
fn real_functions_get_the_place_that_their_disassembly_shows() {
    let mut lines = 0;
    for line in include_str!("../testdata/heads.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let [package, symbol, function, address, size, offset, cost, hex] =
            *line.split(' ').collect::<Vec<_>>()
        else {
            panic!("{line}")
        };
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let code = Code {
            bytes: &bytes,
            entry: u64::from_str_radix(&address[2..], 16).unwrap(),
            size: Some(size.parse().unwrap()),
            limit: None,
        };
        for emulation in [OLD, NEW] {
            let placement = place(Machine::X86_64, &code, kind(function), emulation).unwrap();
            assert_eq!(
                (
                    placement.offset_from_entry.to_string().as_str(),
                    placement.cost.name()
                ),
                (offset, cost),
                "{package} {symbol}: {placement:?}"
            );
        }
        lines += 1;
    }
    assert_eq!(lines, 49);
}

/// Bytes, kind, offset, instruction.
#[rustfmt::skip]
const CHEAP: &[(&[u8], Function, u32, &str)] = &[
    // endbr64; push rbp
    (&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], Function::Malloc, 4, "push rbp"),
    // endbr64; test rdi, rdi; je +1; nop; ret
    (&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x85, 0xff, 0x74, 0x01, 0x90, 0xc3], Function::Free, 7, "je 0x100a"),
    // endbr64; jmp out
    (&[0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 1, 0, 0], Function::Realloc, 4, "jmp 0x1109"),
    // endbr64; call out (before it is done the return address is still on top)
    (&[0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 1, 0, 0, 0xc3], Function::Malloc, 4, "call 0x1109"),
    // bnd jmp out
    (&[0xf2, 0xe9, 0, 1, 0, 0], Function::Free, 0, "bnd jmp 0x1106"),
    // je rel32
    (&[0x0f, 0x84, 0, 1, 0, 0, 0xc3], Function::Free, 0, "je 0x1106"),
    // push r12
    (&[0x41, 0x54, 0xc3], Function::Calloc, 0, "push r12"),
    // nop
    (&[0x90, 0xc3], Function::Free, 0, "nop"),
    // mov esi, edi; push rbx: malloc needs rdi only
    (&[0x89, 0xfe, 0x53, 0xc3], Function::Malloc, 2, "push rbx"),
    // vzeroupper; push rbx
    (&[0xc5, 0xf8, 0x77, 0x53, 0xc3], Function::Malloc, 3, "push rbx"),
    // xchg r8, rax, which some kernels mistake for a no-op; push rbx
    (&[0x49, 0x90, 0x53, 0xc3], Function::Malloc, 2, "push rbx"),
    // test rdi, rdi; je +2; jmp entry: a call of itself hits the entry too
    (&[0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0xf9, 0xc3], Function::Free, 3, "je 0x1007"),
];

#[test]
fn cheap_instructions_are_found() {
    for &(bytes, function, offset, instruction) in CHEAP {
        let expected = Placement {
            offset_from_entry: offset,
            instruction: instruction.to_owned(),
            cost: Cost::Emulated,
            fallback: None,
        };
        assert_eq!(at_entry(bytes, function, OLD), Ok(expected), "{bytes:02x?}");
    }
}

#[rustfmt::skip]
const DEAR: &[(&[u8], Function, Fallback)] = &[
    // sub rsp, 8; push rbx
    (&[0x48, 0x83, 0xec, 0x08, 0x53], Function::Malloc, Fallback::StackPointerMoved),
    // pop rax; push rax
    (&[0x58, 0x50], Function::Malloc, Fallback::StackPointerMoved),
    // mov edi, 1; push rbx
    (&[0xbf, 1, 0, 0, 0, 0x53], Function::Malloc, Fallback::ArgumentWritten),
    // mov sil, 1; push rbx
    (&[0x40, 0xb6, 1, 0x53], Function::Calloc, Fallback::ArgumentWritten),
    // mul rsi (writes rdx); push rbx
    (&[0x48, 0xf7, 0xe6, 0x53], Function::Reallocarray, Fallback::ArgumentWritten),
    // cmove rdi, rax; push rbx
    (&[0x48, 0x0f, 0x44, 0xf8, 0x53], Function::Free, Fallback::ArgumentWritten),
    // mov [rsp], rax; push rbx
    (&[0x48, 0x89, 0x04, 0x24, 0x53], Function::Free, Fallback::ReturnAddressAtRisk),
    // ret; push rbx
    (&[0xc3, 0x53], Function::Free, Fallback::LineLeft),
    // jmp rax; push rbx
    (&[0xff, 0xe0, 0x53], Function::Free, Fallback::LineLeft),
    // call rax; push rbx
    (&[0xff, 0xd0, 0x53], Function::Free, Fallback::LineLeft),
    // jrcxz +1; nop; push rbx
    (&[0xe3, 1, 0x90, 0x53], Function::Free, Fallback::LineLeft),
    // test rdi, rdi; and nothing more
    (&[0x48, 0x85, 0xff], Function::Free, Fallback::CodeEnds),
    // test rdi, rdi; half an instruction
    (&[0x48, 0x85, 0xff, 0xe9, 0], Function::Free, Fallback::Undecodable),
    // xor eax, eax; inc eax; jne -4 (to the inc): passed more than once
    (&[0x31, 0xc0, 0xff, 0xc0, 0x75, 0xfc, 0xc3], Function::Free, Fallback::BranchTarget),
    // test eax, eax; push rbx; pop rbx; jmp to the push
    (&[0x85, 0xc0, 0x53, 0x5b, 0xeb, 0xfc], Function::Free, Fallback::BranchTarget),
    // test eax, eax; push rbx; jmp [rax * 8 + table]
    (&[0x85, 0xc0, 0x53, 0xff, 0x24, 0xc5, 0, 0, 0, 0], Function::Free, Fallback::JumpTable),
    // endbr64; push with a superfluous prefix (40 55) is not emulated; ret
    (&[0xf3, 0x0f, 0x1e, 0xfa, 0x40, 0x55, 0xc3], Function::Free, Fallback::StackPointerMoved),
];

#[test]
fn what_stands_in_the_way_is_told() {
    for &(bytes, function, fallback) in DEAR {
        let placement = at_entry(bytes, function, NEW).unwrap();
        assert_eq!(
            (placement.offset_from_entry, placement.cost, placement.fallback),
            (0, Cost::SingleStepped, Some(fallback)),
            "{bytes:02x?}"
        );
        assert!(!fallback.to_string().is_empty());
    }
}

#[test]
fn another_entry_bounds_the_search() {
    // endbr64; push rbp
    let bytes = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3];
    let find = |limit| {
        let code = Code {
            bytes: &bytes,
            entry: 0,
            size: Some(6),
            limit,
        };
        place(Machine::X86_64, &code, Function::Free, NEW).unwrap()
    };
    assert_eq!(find(Some(5)).offset_from_entry, 4);
    assert_eq!(find(Some(4)).fallback, Some(Fallback::OtherEntry));
    assert_eq!(find(Some(4)).offset_from_entry, 0);
}

#[test]
fn branches_behind_the_end_matter_only_while_the_end_is_unknown() {
    // test rdi, rdi; je +1; ret; | jmp to the je
    let bytes = [0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xeb, 0xfb];
    let find = |size| {
        let code = Code {
            bytes: &bytes,
            entry: 0x40,
            size,
            limit: None,
        };
        place(Machine::X86_64, &code, Function::Free, NEW).unwrap()
    };
    assert_eq!(find(Some(6)).offset_from_entry, 3);
    assert_eq!(find(None).fallback, Some(Fallback::BranchTarget));
}

#[test]
fn long_no_ops_are_cheap_on_new_kernels_only() {
    let no_ops: [&[u8]; 8] = [
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0x00],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        // Measured on 6.18: single-stepped.
        &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    ];
    for no_op in no_ops {
        let bytes = [no_op, &[0x53, 0xc3]].concat();
        let (old, new) = (
            at_entry(&bytes, Function::Free, OLD).unwrap(),
            at_entry(&bytes, Function::Free, NEW).unwrap(),
        );
        assert_eq!(
            (old.offset_from_entry as usize, old.cost),
            (no_op.len(), Cost::Emulated),
            "{no_op:02x?}"
        );
        match no_op.len() {
            5 => assert_eq!((new.offset_from_entry, new.cost), (0, Cost::Nop5Optimised)),
            9 => assert_eq!(new.offset_from_entry, 9),
            _ => assert_eq!(
                (new.offset_from_entry, new.cost),
                (0, Cost::Emulated),
                "{no_op:02x?}"
            ),
        }
    }
    // A five-byte no-op over the end of a page is not optimised.
    let code = Code {
        bytes: no_ops[3],
        entry: 0x1ffc,
        size: Some(5),
        limit: None,
    };
    assert_eq!(
        place(Machine::X86_64, &code, Function::Free, NEW).unwrap().cost,
        Cost::Emulated
    );
}

#[test]
fn no_probe_where_the_kernel_takes_none() {
    let refused: [&[u8]; 9] = [
        // lock inc [rdi]; ret
        &[0xf0, 0xff, 0x07, 0xc3],
        // cs nop; ret
        &[0x2e, 0x90, 0xc3],
        // jmp with a 16-bit operand; ret
        &[0x66, 0xe9, 0, 0, 0, 0, 0xc3],
        // hlt; int3; ud2
        &[0xf4],
        &[0xcc],
        &[0x0f, 0x0b],
        // mov ss, eax; vzeroupper; xchg r8d, eax (all followed by a write to rsp)
        &[0x8e, 0xd0, 0x5c],
        &[0xc5, 0xf8, 0x77],
        &[0x41, 0x90],
    ];
    for bytes in refused {
        let place = at_entry(bytes, Function::Free, NEW);
        let entry_refused = match &place {
            Err(PlaceError::Refused { instruction }) => !instruction.is_empty(),
            Ok(placement) => placement.offset_from_entry > 0,
            Err(_) => false,
        };
        assert!(entry_refused, "{bytes:02x?}: {place:?}");
    }
    assert_eq!(at_entry(&[], Function::Free, NEW), Err(PlaceError::NoCode));
    assert_eq!(
        at_entry(&[0x06], Function::Free, NEW),
        Err(PlaceError::Undecodable)
    );
    let code = Code {
        bytes: &[0x55],
        entry: 0,
        size: None,
        limit: None,
    };
    assert_eq!(
        place(Machine::Other, &code, Function::Free, NEW),
        Err(PlaceError::Machine)
    );
}

fn written(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Vec<Register> {
    let info = info.info(instruction);
    info.used_registers()
        .iter()
        .filter(|used| {
            !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            )
        })
        .map(|used| used.register().full_register())
        .collect()
}

/// Checks a place against the rules, by a walk of its own.
fn check(bytes: &[u8], function: Function, placement: &Placement) {
    let needed = [Register::RDI, Register::RSI, Register::RDX];
    let needed = &needed[..function.arguments()];
    let mut info = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
    while decoder.position() < placement.offset_from_entry as usize {
        let instruction = decoder.decode();
        assert!(!instruction.is_invalid());
        assert_eq!(instruction.flow_control(), FlowControl::Next, "leaves the line");
        for register in written(&instruction, &mut info) {
            assert_ne!(register, Register::RSP, "moves rsp");
            assert!(!needed.contains(&register), "writes {register:?}");
        }
    }
    assert_eq!(
        decoder.position(),
        placement.offset_from_entry as usize,
        "inside an instruction"
    );
    assert!(!decoder.decode().is_invalid(), "not inside the code");
    let branches = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE)
        .into_iter()
        .map(|instruction| instruction.near_branch_target())
        .filter(|&target| target > 0x1000 && target <= 0x1000 + u64::from(placement.offset_from_entry));
    assert_eq!(branches.count(), 0, "a branch leads in between");
    assert_eq!(
        placement.fallback.is_some(),
        placement.cost == Cost::SingleStepped
    );
}

/// Instructions that prologues are made of, so that random code gets far.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&'static [u8]> = vec![
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x48, 0x85, 0xff],
        &[0x31, 0xc0],
        &[0x48, 0x89, 0xfe],
        &[0x48, 0x89, 0xf7],
        &[0x48, 0x8b, 0x05, 1, 2, 3, 4],
        &[0x48, 0xf7, 0xe6],
        &[0x48, 0x83, 0xec, 0x18],
        &[0x0f, 0x1f, 0x44, 0, 0],
        &[0x66, 0x90],
        &[0x55],
        &[0x41, 0x57],
        &[0x74, 0x05],
        &[0x75, 0xf3],
        &[0xeb, 0xfa],
        &[0xe8, 0xf0, 0xff, 0xff, 0xff],
        &[0xff, 0xe0],
        &[0xc3],
        &[0xf0, 0xff, 0x07],
    ];
    proptest::collection::vec(proptest::sample::select(pieces), 1..12).prop_map(|pieces| pieces.concat())
}

fn any_function() -> impl Strategy<Value = Function> {
    proptest::sample::select(Function::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn places_in_random_bytes_keep_the_rules(
        bytes in proptest::collection::vec(any::<u8>(), 0..80), function in any_function(), new in any::<bool>(),
    ) {
        if let Ok(placement) = at_entry(&bytes, function, Emulation { long_nops: new }) {
            check(&bytes, function, &placement);
        }
    }

    #[test]
    fn places_in_plausible_code_keep_the_rules(
        bytes in plausible(), function in any_function(), new in any::<bool>(),
    ) {
        if let Ok(placement) = at_entry(&bytes, function, Emulation { long_nops: new }) {
            check(&bytes, function, &placement);
        }
    }

    #[test]
    fn odd_sizes_and_addresses_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        entry in any::<u64>(), size in any::<Option<u64>>(), limit in any::<Option<u64>>(), function in any_function(),
    ) {
        let code = Code { bytes: &bytes, entry, size, limit };
        if let Ok(placement) = place(Machine::X86_64, &code, function, NEW) {
            prop_assert!((placement.offset_from_entry as usize) < bytes.len());
        }
    }
}
