//! Unwind information that tests make up, in images that tests make up.

use gimli::constants::{DW_EH_PE_absptr, DW_EH_PE_pcrel, DW_EH_PE_sdata4};
use gimli::write::{
    Address, CallFrameInstruction, CommonInformationEntry, Expression, FrameDescriptionEntry, FrameTable,
};
use gimli::{BaseAddresses, DebugFrame, EhFrame, Encoding, Format, LittleEndian, Register};
use memwatch_common::unwind::x86_64::{CFA_PLT, CFA_RSP, RA_REGISTER, RBP_UNKNOWN};
use memwatch_common::unwind::{PAGE_SHIFT, RULE_NONE, RULE_UNSUPPORTED, Row, Rule};
use proptest::prelude::*;

use super::image::{CODE, EH_FRAME, Layout, debug_frame, eh_frame, image};
use super::oracle::{Tally, compare_section};
use crate::unwind::{Dropped, Table, build};

const EH: Layout = Layout::Section(".eh_frame");
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RIP: Register = Register(16);
const NOPS: usize = 0x4_0000;

fn group() -> CommonInformationEntry {
    group_of(Format::Dwarf32)
}

fn group_of(format: Format) -> CommonInformationEntry {
    let encoding = Encoding {
        format,
        version: 1,
        address_size: 8,
    };
    let mut group = CommonInformationEntry::new(encoding, 1, -8, RIP);
    group.fde_address_encoding = DW_EH_PE_absptr;
    group.add_instruction(CallFrameInstruction::Cfa(RSP, 8));
    group.add_instruction(CallFrameInstruction::Offset(RIP, -8));
    group
}

pub type Program = Vec<(u32, CallFrameInstruction)>;

pub fn frames(functions: &[(u64, u32, Program)]) -> FrameTable {
    let mut frames = FrameTable::default();
    let group = frames.add_cie(group());
    for (start, length, program) in functions {
        let mut function = FrameDescriptionEntry::new(Address::Constant(*start), *length);
        for (at, instruction) in program {
            function.add_instruction(*at, instruction.clone());
        }
        frames.add_fde(group, function);
    }
    frames
}

/// A section of one function, another for each number.
pub fn small_section(which: u32) -> Vec<u8> {
    let offset = CallFrameInstruction::CfaOffset(16 + 8 * which as i32);
    eh_frame(&frames(&[(CODE, 0x100, vec![(1, offset)])]))
}

fn table_of(functions: &[(u64, u32, Program)]) -> Table {
    let unwind = eh_frame(&frames(functions));
    let table = build(&image(&vec![0x90; NOPS], 0, &unwind, EH)).expect("a table");
    assert_eq!(table.check(), Ok(()));
    table
}

fn rules(table: &Table) -> Vec<(u64, Rule)> {
    let rows = |page: &crate::unwind::table::TablePage| {
        let rows = &table.rows[page.rows.first_row as usize..][..page.rows.count as usize];
        let page = u64::from(page.page) << PAGE_SHIFT;
        rows.iter()
            .map(move |row| (page | u64::from(row.pc_low), *row))
            .collect::<Vec<(u64, Row)>>()
    };
    table
        .pages
        .iter()
        .flat_map(rows)
        .map(|(at, row)| (at, table.rules[usize::from(row.rule)]))
        .collect()
}

#[test]
fn neighbours_with_one_rule_share_a_row_and_gaps_have_none() {
    let push = vec![
        (1, CallFrameInstruction::CfaOffset(16)),
        (9, CallFrameInstruction::CfaOffset(8)),
    ];
    // Not in the order of their addresses.
    let table = table_of(&[
        (0x1100, 0x10, vec![]),
        (0x1000, 0x10, push),
        (0x1010, 0x20, vec![]),
    ]);
    let entry = Rule::ENTRY;
    let expected = [
        (0x1000, entry),
        (0x1001, Rule::new(CFA_RSP, 16)),
        (0x1009, entry),
        (0x1030, Rule::default()),
        (0x1100, entry),
        (0x1110, Rule::default()),
    ];
    assert_eq!(rules(&table), expected);
    assert_eq!(table.stats.covered_bytes, 0x40);
    assert_eq!(table.stats.source_rows, 5);
}

#[test]
fn every_page_stands_alone() {
    let program = vec![
        (0x1_8000, CallFrameInstruction::CfaOffset(16)),
        (0x2_0000, CallFrameInstruction::CfaOffset(8)),
    ];
    let table = table_of(&[(0x8000, 0x2_8000, program), (0x4_0000, 0x800, vec![])]);
    let sixteen = Rule::new(CFA_RSP, 16);
    let expected = [
        (0x0_8000, Rule::ENTRY),
        (0x1_0000, Rule::ENTRY),
        (0x2_0000, sixteen),
        (0x2_8000, Rule::ENTRY),
        (0x4_0000, Rule::ENTRY),
        (0x4_0800, Rule::default()),
    ];
    assert_eq!(
        rules(&table),
        expected,
        "a function that ends with its page leaves no row in the next"
    );
    let pages: Vec<u32> = table.pages.iter().map(|page| page.page).collect();
    assert_eq!(pages, [0, 1, 2, 4]);
    for (address, rule) in [
        (0x7fff, None),
        (0x2_ffff, Some(Rule::ENTRY)),
        (0x3_0000, None),
        (0x3_ffff, None),
    ] {
        assert_eq!(table.rule(address), rule.unwrap_or_default(), "{address:#x}");
    }
}

#[test]
fn overlapping_functions_are_cut_and_counted() {
    let other = || vec![(0, CallFrameInstruction::CfaOffset(32))];
    let table = table_of(&[
        (0x1000, 0x100, vec![]),
        (0x1080, 0x10, other()),
        (0x1000, 0x20, other()),
        (0, 0x40, other()),
        (0x100_0000, 0x40, other()),
    ]);
    let inner = Rule::new(CFA_RSP, 32);
    assert_eq!(
        rules(&table),
        [(0x1000, Rule::ENTRY), (0x1080, inner), (0x1090, Rule::default())]
    );
    assert_eq!(table.stats.dropped(Dropped::Overlap).count, 2);
    assert_eq!(table.stats.dropped(Dropped::NoCode).count, 2);
}

#[test]
fn discarded_functions_are_left_out_even_where_there_is_code() {
    let mut bytes = image(
        &[0x90; 0x1000],
        0,
        &eh_frame(&frames(&[(0, 0x40, vec![]), (0x80, 0x40, vec![])])),
        EH,
    );
    // The address of the only segment.
    bytes[64 + 16..64 + 24].fill(0);
    let table = build(&bytes).expect("a table");
    assert_eq!(rules(&table), [(0x80, Rule::ENTRY), (0xc0, Rule::default())]);
    assert_eq!(table.stats.dropped(Dropped::NoCode).bytes, 0x40);
}

#[test]
fn what_does_not_fit_is_unsupported_and_counted() {
    let mut many = Expression::new();
    (0..12).for_each(|_| many.op(gimli::constants::DW_OP_nop));
    let expression = |register, offset| {
        let mut expression = Expression::new();
        expression.op_breg(register, offset);
        expression
    };
    let programs: [(CallFrameInstruction, Option<Dropped>); 8] = [
        (
            CallFrameInstruction::CfaExpression(many),
            Some(Dropped::CfaExpression),
        ),
        (
            CallFrameInstruction::Cfa(Register(17), 8),
            Some(Dropped::CfaExpression),
        ),
        (
            CallFrameInstruction::Offset(RSP, -16),
            Some(Dropped::StackPointer),
        ),
        (CallFrameInstruction::ValOffset(RSP, 0), None),
        (
            CallFrameInstruction::Offset(RIP, -0x8_0000),
            Some(Dropped::ReturnAddress),
        ),
        (
            CallFrameInstruction::Expression(RIP, expression(RSP, 8)),
            Some(Dropped::ReturnAddress),
        ),
        (CallFrameInstruction::Register(RIP, Register(5)), None),
        (CallFrameInstruction::CfaOffset(1 << 20), None),
    ];
    for (instruction, reason) in programs {
        let table = table_of(&[(0x1000, 0x10, vec![(4, instruction.clone())])]);
        assert_eq!(table.rule(0x1003), Rule::ENTRY);
        assert_eq!(
            table.rule_number(0x1008) == RULE_UNSUPPORTED,
            reason.is_some(),
            "{instruction:?}"
        );
        for dropped in Dropped::ALL {
            let expected = if reason == Some(dropped) { (1, 12) } else { (0, 0) };
            let found = table.stats.dropped(dropped);
            assert_eq!(
                (found.count, found.bytes),
                expected,
                "{instruction:?}: {dropped:?}"
            );
        }
    }
}

#[test]
fn a_lost_frame_pointer_keeps_the_rule() {
    for instruction in [
        CallFrameInstruction::Register(RBP, Register(9)),
        CallFrameInstruction::Offset(RBP, -0x10_0000),
        CallFrameInstruction::ValOffset(RBP, -8),
    ] {
        let table = table_of(&[(0x1000, 0x10, vec![(4, instruction)])]);
        assert_eq!(
            table.rule(0x1004),
            Rule {
                rbp_kind: RBP_UNKNOWN,
                ..Rule::ENTRY
            }
        );
        assert_eq!(table.stats.dropped(Dropped::FramePointer).bytes, 12);
        assert_eq!(table.stats.covered_bytes, 16);
    }
}

#[test]
fn return_addresses_in_registers_and_ends_are_kept() {
    let vfork = vec![
        (1, CallFrameInstruction::Register(RIP, Register(5))),
        (1, CallFrameInstruction::CfaOffset(0)),
        (8, CallFrameInstruction::Undefined(RIP)),
    ];
    let table = table_of(&[(0x1000, 0x10, vfork)]);
    let rule = table.rule(0x1001);
    assert_eq!(
        (rule.ra_kind, rule.register, rule.cfa_offset),
        (RA_REGISTER, 5, 0)
    );
    assert_eq!(table.rule(0x1008), Rule::END);
}

#[test]
fn plt_expressions_keep_their_threshold() {
    for (threshold, supported) in [(10, true), (11, true), (16, true), (17, false)] {
        let mut plt = Expression::new();
        plt.op_breg(RSP, 8);
        plt.op_breg(RIP, 0);
        for (value, operation) in [
            (15, gimli::constants::DW_OP_and),
            (threshold, gimli::constants::DW_OP_ge),
            (3, gimli::constants::DW_OP_shl),
        ] {
            plt.op_constu(value);
            plt.op(operation);
        }
        plt.op(gimli::constants::DW_OP_plus);
        let table = table_of(&[(0x1000, 0x10, vec![(0, CallFrameInstruction::CfaExpression(plt))])]);
        let expected = if supported {
            Rule::new(CFA_PLT, threshold as i32)
        } else {
            Rule::UNSUPPORTED
        };
        assert_eq!(table.rule(0x1000), expected);
    }
}

#[test]
fn all_ways_to_find_the_section_give_the_same_rows() {
    let functions = [
        (0x1000, 0x40, vec![(1, CallFrameInstruction::CfaOffset(16))]),
        (0x1080, 0x40, vec![]),
    ];
    let code = vec![0x90; NOPS];
    let expected = table_of(&functions);
    let mut unwind = eh_frame(&frames(&functions));
    let debug = debug_frame(&frames(&functions));
    let debug = build(&image(&code, 0, &debug, Layout::Section(".debug_frame"))).expect("a table");
    // Without section headers, the end of .eh_frame is a zero word.
    unwind.extend([0; 4]);
    unwind.extend([0xff; 32]);
    let programs = build(&image(&code, 0, &unwind, Layout::Programs)).expect("a table");
    for table in [debug, programs] {
        assert_eq!(
            (&table.rows, &table.pages, &table.rules),
            (&expected.rows, &expected.pages, &expected.rules)
        );
        assert_eq!(table.stats.dropped(Dropped::Entry).count, 0);
    }
}

#[test]
fn entries_with_64_bit_lengths_are_read() {
    let expected = table_of(&[(0x1000, 0x40, vec![])]);
    let mut long = FrameTable::default();
    let group = long.add_cie(group_of(Format::Dwarf64));
    long.add_fde(group, FrameDescriptionEntry::new(Address::Constant(0x1000), 0x40));
    let code = vec![0x90; NOPS];
    let in_debug_frame = image(&code, 0, &debug_frame(&long), Layout::Section(".debug_frame"));
    for bytes in [image(&code, 0, &eh_frame(&long), EH), in_debug_frame] {
        let table = build(&bytes).expect("a table");
        assert_eq!(table.stats.dropped(Dropped::Entry).count, 0);
        assert_eq!((&table.rows, &table.rules), (&expected.rows, &expected.rules));
    }
}

#[test]
fn code_that_is_known_by_its_bytes_fills_gaps_only() {
    let mut code = vec![0x90; 0x1000];
    code[0x200..0x209].copy_from_slice(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]);
    let inside = code[0x200..0x209].to_vec();
    code[0x310..0x319].copy_from_slice(&inside);
    let unwind = eh_frame(&frames(&[
        (0x1100, 0x100, vec![]),
        (0x1300, 0x40, vec![]),
        (0x1410, 0x20, vec![]),
    ]));
    let table = build(&image(&code, 0x1400, &unwind, EH)).expect("a table");
    let expected = [
        (0x1100, Rule::ENTRY),
        (0x11ff, Rule::SIGNAL),
        (0x1209, Rule::default()),
        (0x1300, Rule::ENTRY),
        (0x1340, Rule::default()),
        (0x1400, Rule::END),
        (0x1410, Rule::ENTRY),
        (0x1430, Rule::default()),
    ];
    assert_eq!(rules(&table), expected);
    assert_eq!(table.check(), Ok(()));
}

#[test]
fn a_bad_entry_does_not_hide_those_after_it() {
    let good = eh_frame(&frames(&[(0x1000, 0x40, vec![])]));
    let mut other = frames(&[]);
    let group = other.add_cie(group());
    other.add_fde(group, FrameDescriptionEntry::new(Address::Constant(0x1100), 0x40));
    let mut unwind = eh_frame(&other);
    // An augmentation that nobody knows: its functions cannot be read.
    unwind[9] = b'?';
    unwind.extend(good);
    let table = build(&image(&[0x90; 0x1000], 0, &unwind, EH)).expect("a table");
    assert_eq!(table.rule(0x1000), Rule::ENTRY);
    assert_eq!(table.rule_number(0x1100), RULE_NONE);
    assert_eq!(table.stats.dropped(Dropped::Entry).count, 1);
}

fn instruction() -> impl Strategy<Value = CallFrameInstruction> {
    let words = |range: std::ops::Range<i32>| range.prop_map(|n| n * 8);
    let read = |register: Register, add: bool| {
        (-200_i64..200, 0_u64..64).prop_map(move |(offset, plus)| {
            let mut expression = Expression::new();
            expression.op_breg(register, offset * 8);
            expression.op_deref();
            if add {
                expression.op_plus_uconst(plus * 8);
            }
            CallFrameInstruction::CfaExpression(expression)
        })
    };
    let saved = (0_usize..2, -200_i64..200).prop_map(|(which, offset)| {
        let mut expression = Expression::new();
        expression.op_breg([RBP, RSP][which], offset * 8);
        CallFrameInstruction::Expression(RBP, expression)
    });
    prop_oneof![
        4 => (0_u16..16, words(0..5000)).prop_map(|(r, n)| CallFrameInstruction::Cfa(Register(r), n)),
        4 => words(1..100).prop_map(|n| CallFrameInstruction::Cfa(RSP, n)),
        2 => words(1..100).prop_map(|n| CallFrameInstruction::Cfa(RBP, n)),
        3 => words(-20..0).prop_map(|n| CallFrameInstruction::Offset(RBP, n)),
        1 => words(-5000..5000).prop_map(|n| CallFrameInstruction::Offset(RBP, n)),
        1 => Just(CallFrameInstruction::SameValue(RBP)),
        1 => Just(CallFrameInstruction::Restore(RBP)),
        1 => Just(CallFrameInstruction::Undefined(RBP)),
        1 => (0_u16..16).prop_map(|r| CallFrameInstruction::Register(RBP, Register(r))),
        1 => (0_u16..16).prop_map(|r| CallFrameInstruction::Register(RIP, Register(r))),
        1 => words(-10..10).prop_map(|n| CallFrameInstruction::Offset(RIP, n)),
        1 => Just(CallFrameInstruction::Undefined(RIP)),
        1 => Just(CallFrameInstruction::Restore(RIP)),
        1 => words(-2..2).prop_map(|n| CallFrameInstruction::ValOffset(RSP, n)),
        1 => Just(CallFrameInstruction::Restore(RSP)),
        1 => saved,
        1 => read(RSP, false),
        1 => read(RSP, true),
        1 => read(RBP, true),
        1 => Just(CallFrameInstruction::RememberState),
    ]
}

fn functions() -> impl Strategy<Value = Vec<(u64, u32, Program)>> {
    let function = (
        0_u64..40,
        1_u32..0x9000,
        proptest::collection::vec((0_u32..0x4000, instruction()), 0..20),
    );
    proptest::collection::vec(function, 1..12).prop_map(|functions| {
        let mut next = CODE;
        let place = |(gap, length, program): (u64, u32, Program)| {
            let start = next + gap;
            next = start + u64::from(length);
            (start, length, in_order(program, length))
        };
        functions.into_iter().map(place).collect()
    })
}

/// Sorts instructions, and restores every state that was remembered.
fn in_order(mut program: Program, length: u32) -> Program {
    program.sort_by_key(|(at, _)| *at);
    program.retain(|(at, _)| *at < length);
    let mut depth = 0;
    let mut ordered = Vec::new();
    for (at, instruction) in program {
        if matches!(instruction, CallFrameInstruction::RememberState) && depth == 2 {
            ordered.push((at, CallFrameInstruction::RestoreState));
            depth -= 1;
            continue;
        }
        depth += u32::from(matches!(instruction, CallFrameInstruction::RememberState));
        ordered.push((at, instruction));
    }
    ordered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn made_up_programs_mean_what_gimli_says(functions in functions(), pc_relative: bool, debug: bool) {
        let mut made = frames(&functions);
        if pc_relative && !debug {
            made = FrameTable::default();
            let mut relative = group();
            relative.fde_address_encoding = gimli::DwEhPe(DW_EH_PE_pcrel.0 | DW_EH_PE_sdata4.0);
            let id = made.add_cie(relative);
            for (start, length, program) in &functions {
                let address = Address::Constant(start.wrapping_sub(EH_FRAME));
                let mut function = FrameDescriptionEntry::new(address, *length);
                for (at, instruction) in program {
                    function.add_instruction(*at, instruction.clone());
                }
                made.add_fde(id, function);
            }
        }
        let (unwind, layout) =
            if debug { (debug_frame(&made), Layout::Section(".debug_frame")) } else { (eh_frame(&made), EH) };
        let bytes = image(&vec![0x90; 0x8_0000], 0, &unwind, layout);
        let table = build(&bytes).expect("a table");
        prop_assert_eq!(table.check(), Ok(()));

        let mut bases = BaseAddresses::default();
        bases.eh_frame.section = Some(EH_FRAME);
        let mut tally = Tally::default();
        let ranges = if debug {
            let mut section = DebugFrame::new(&unwind, LittleEndian);
            section.set_address_size(8);
            compare_section(&table, &section, &bases, &mut tally)
        } else {
            let mut section = EhFrame::new(&unwind, LittleEndian);
            section.set_address_size(8);
            compare_section(&table, &section, &bases, &mut tally)
        };
        prop_assert_eq!(ranges.len(), functions.len());
        for pair in ranges.windows(2) {
            if pair[0].1 < pair[1].0 {
                prop_assert_eq!(table.rule_number(pair[0].1), RULE_NONE);
                prop_assert_eq!(table.rule_number(pair[1].0 - 1), RULE_NONE);
            }
        }
        let dropped: u64 = Dropped::ALL.iter().map(|reason| table.stats.dropped(*reason).count).sum();
        prop_assert!(tally.unsupported == 0 || dropped > 0);
    }
}
