//! Whole stacks that are made up, in code that is made up: walked with tables as the kernel side does it (its search, its
//! rules, its step), and with the unwind information itself as the DWARF standard says.
//!
//! The second walk makes the stack as it goes: what it reads for the first time gets a value there. So the first walk must
//! read the very same words, or it reads what is not there.

use std::{cell::RefCell, collections::HashMap};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, LittleEndian, Register, RegisterRule, UnwindContext, UnwindSection as _,
    UnwindTableRow, write::CallFrameInstruction,
};
use memwatch_common::unwind::{
    RULE_UNSUPPORTED,
    x86_64::{Frame, Step},
};
use proptest::{prelude::*, test_runner::TestRunner};

use super::{
    image::{CODE, EH_FRAME, Layout, eh_frame, image},
    synthetic::{Program, frames},
};
use crate::unwind::{Table, build, interpret::walk};

const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RIP: Register = Register(16);
const STACK: u64 = 0x7fff_0000_0000;
const DEPTH: usize = 60;

/// What compilers do in functions, in any order.
fn instruction() -> impl Strategy<Value = CallFrameInstruction> {
    let words = |range: std::ops::Range<i32>| range.prop_map(|n| n * 8);
    prop_oneof![
        6 => words(1..40).prop_map(|n| CallFrameInstruction::Cfa(RSP, n)),
        3 => words(1..10).prop_map(|n| CallFrameInstruction::Cfa(RBP, n)),
        4 => words(-30..-1).prop_map(|n| CallFrameInstruction::Offset(RBP, n)),
        1 => Just(CallFrameInstruction::Restore(RBP)),
        1 => Just(CallFrameInstruction::Undefined(RBP)),
        1 => words(-3..0).prop_map(|n| CallFrameInstruction::Offset(RIP, n)),
    ]
}

fn functions() -> impl Strategy<Value = Vec<(u64, u32, Program)>> {
    let function = (
        0_u64..20,
        8_u32..0x3000,
        proptest::collection::vec((0_u32..0x1000, instruction()), 0..8),
    );
    proptest::collection::vec(function, 1..20).prop_map(|functions| {
        let mut next = CODE;
        let place = |(gap, length, mut program): (u64, u32, Program)| {
            let start = next + gap;
            next = start + u64::from(length);
            program.sort_by_key(|(at, _)| *at);
            program.retain(|(at, _)| *at < length);
            (start, length, program)
        };
        functions.into_iter().map(place).collect()
    })
}

/// The stack of one case, and where its values come from.
struct Made<'a> {
    words: HashMap<u64, u64>,
    functions: &'a [(u64, u32, Program)],
    choices: std::iter::Cycle<std::slice::Iter<'a, u32>>,
}

impl Made<'_> {
    fn choose(&mut self) -> u64 {
        self.choices.next().map_or(0, |choice| u64::from(*choice))
    }

    /// Nearly always a place behind a call in some function; else the end, or no code at all.
    fn return_address(&mut self, at: u64) -> u64 {
        let (kind, which, offset) = (self.choose() % 40, self.choose(), self.choose());
        let address = match kind {
            0 => 0,
            1 => 0x40 + offset,
            _ => {
                let (start, length, _) = &self.functions[which as usize % self.functions.len()];
                start + 1 + offset % u64::from(*length)
            }
        };
        *self.words.entry(at).or_insert(address)
    }

    /// Mostly the address of a frame further out, as in code with frame pointers.
    fn saved_rbp(&mut self, at: u64) -> u64 {
        let choice = self.choose();
        let value = if choice.is_multiple_of(9) {
            choice
        } else {
            at + 8 * (2 + choice % 60)
        };
        *self.words.entry(at).or_insert(value)
    }
}

/// One row's answer: the caller's rip, rsp and rbp, or why there is none.
fn up(
    row: &UnwindTableRow<usize>,
    rsp: u64,
    rbp: Option<u64>,
    made: &mut Made<'_>,
) -> Result<(u64, u64, Option<u64>), Step> {
    let return_rule = row.register(RIP);
    if matches!(return_rule, None | Some(RegisterRule::Undefined)) {
        return Err(Step::End);
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset {
            register: RSP,
            offset,
        } => rsp.wrapping_add(*offset as u64),
        CfaRule::RegisterAndOffset {
            register: RBP,
            offset,
        } => rbp.ok_or(Step::NoRegister)?.wrapping_add(*offset as u64),
        other => panic!("nobody made {other:?}"),
    };
    if cfa <= rsp || cfa % 8 != 0 {
        return Err(Step::NotAbove);
    }
    let Some(RegisterRule::Offset(offset)) = return_rule else {
        panic!("nobody made {return_rule:?}");
    };
    let rip = made.return_address(cfa.wrapping_add(offset as u64));
    if rip == 0 {
        return Err(Step::End);
    }
    let rbp = match row.register(RBP) {
        None | Some(RegisterRule::SameValue) => rbp,
        Some(RegisterRule::Undefined) => None,
        Some(RegisterRule::Offset(offset)) => Some(made.saved_rbp(cfa.wrapping_add(offset as u64))),
        Some(other) => panic!("nobody made {other:?}"),
    };
    Ok((rip, cfa, rbp))
}

/// The walk by the standard. Makes the stack.
fn by_the_standard(section: &[u8], start: (u64, u64, u64), made: &mut Made<'_>) -> (Vec<u64>, Step) {
    let mut section = EhFrame::new(section, LittleEndian);
    section.set_address_size(8);
    let mut bases = BaseAddresses::default();
    bases.eh_frame.section = Some(EH_FRAME);
    let mut context = UnwindContext::new();
    let (mut rip, mut rsp, rbp) = start;
    let mut rbp = Some(rbp);
    let mut addresses = Vec::new();
    while addresses.len() < DEPTH {
        // After a call the address before belongs to the function.
        let looked_up = rip - u64::from(!addresses.is_empty());
        addresses.push(rip);
        let row = section.unwind_info_for_address(&bases, &mut context, looked_up, EhFrame::cie_from_offset);
        let Ok(row) = row else {
            return (addresses, Step::NoRule);
        };
        match up(row, rsp, rbp, made) {
            Ok(caller) => (rip, rsp, rbp) = caller,
            Err(why) => return (addresses, why),
        }
    }
    (addresses, Step::Next)
}

/// What the walks were like.
#[derive(Debug, Default)]
struct Tally {
    ends: HashMap<Step, u64>,
    /// Of ten frames and more.
    deep: u64,
}

fn compare(
    functions: &[(u64, u32, Program)],
    choices: &[u32],
    tally: &RefCell<Tally>,
) -> Result<(), TestCaseError> {
    let unwind = eh_frame(&frames(functions));
    let bytes = image(&vec![0x90; 0x4_0000], 0, &unwind, Layout::Section(".eh_frame"));
    let table: Table = build(&bytes).expect("a table");
    prop_assert_eq!(table.check(), Ok(()));
    prop_assert!(table.rows.iter().all(|row| row.rule != RULE_UNSUPPORTED));
    for from in &choices[..32] {
        let mut made = Made {
            words: HashMap::new(),
            functions,
            choices: choices.iter().cycle(),
        };
        for _ in 0..*from % 64 {
            made.choose();
        }
        let (function, length, _) = &functions[*from as usize % functions.len()];
        let rip = function + u64::from(from >> 8) % u64::from(*length);
        let rbp = STACK + u64::from(from % 50) * 8;
        let (expected, end) = by_the_standard(&unwind, (rip, STACK, rbp), &mut made);
        let walked = walk(
            Frame::first(rip, STACK, rbp),
            DEPTH,
            |address| table.rule(address),
            |address| made.words.get(&address).copied(),
        );
        prop_assert_eq!(&walked.addresses, &expected);
        prop_assert_eq!(walked.end, end, "{:?}", expected);
        let mut tally = tally.borrow_mut();
        *tally.ends.entry(end).or_default() += 1;
        tally.deep += u64::from(expected.len() >= 10);
    }
    Ok(())
}

#[test]
fn made_up_stacks_are_walked_as_the_standard_says() {
    const CASES: u32 = 300;
    let tally = RefCell::new(Tally::default());
    let strategy = (functions(), proptest::collection::vec(any::<u32>(), 64..256));
    let outcome = TestRunner::new(ProptestConfig::with_cases(CASES))
        .run(&strategy, |(functions, choices)| {
            compare(&functions, &choices, &tally)
        });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    let tally = tally.into_inner();
    println!("{tally:?}");
    for end in [
        Step::Next,
        Step::End,
        Step::NoRule,
        Step::NoRegister,
        Step::NotAbove,
    ] {
        let seen = tally.ends.get(&end).copied().unwrap_or(0);
        assert!(seen > 20, "{seen} walks ended with {end:?}: {tally:?}");
    }
    assert!(tally.deep > 500, "{tally:?}");
}
