//! gimli's unwind information evaluated as the DWARF standard says, against a table's.
//!
//! Registers and memory are made up, so that two rules that differ give different results.

use gimli::{
    BaseAddresses, CfaRule, Encoding, EndianSlice, EvaluationResult, Expression, LittleEndian, Location,
    Register, RegisterRule, UnwindSection, UnwindTableRow, Value,
};
use memwatch_common::unwind::x86_64::{FRAME_NO_RBP, Frame, Step};
use memwatch_common::unwind::{RULE_NONE, RULE_UNSUPPORTED};

use crate::unwind::Table;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

const RSP: u64 = 0x1000_0000_1000;
const RBP: u64 = 0x1000_0000_3000;
const CONTEXT: u64 = 0x2000_0000_0000;

/// What the standard's rules give for one row.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    cfa: u64,
    /// None when a stack begins here.
    rip: Option<u64>,
    /// None when it cannot be had.
    rbp: Option<u64>,
}

/// Counts of compared addresses.
#[derive(Debug, Default)]
pub struct Tally {
    pub same: u64,
    pub unsupported: u64,
}

/// A register's made-up value, by DWARF's number.
fn register(number: u16, rip: u64) -> u64 {
    match number {
        6 => RBP,
        7 => RSP,
        16 => rip,
        other => 0x1000_0100_0000 + u64::from(other) * 0x1_0000,
    }
}

/// Made-up memory: addresses above all registers, a different one everywhere.
fn memory(address: u64) -> u64 {
    let mixed = (address ^ (address >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    0x4000_0000_0000 | ((mixed >> 20) & !7)
}

/// The same memory, with the registers where a signal leaves them.
fn memory_with_context(address: u64, rip: u64) -> u64 {
    const FIELDS: [(i32, u16); 14] = [
        (libc::REG_RAX, 0),
        (libc::REG_RDX, 1),
        (libc::REG_RCX, 2),
        (libc::REG_RBX, 3),
        (libc::REG_RSI, 4),
        (libc::REG_RDI, 5),
        (libc::REG_R8, 8),
        (libc::REG_R9, 9),
        (libc::REG_R10, 10),
        (libc::REG_R11, 11),
        (libc::REG_R12, 12),
        (libc::REG_R13, 13),
        (libc::REG_R14, 14),
        (libc::REG_R15, 15),
    ];
    let field = FIELDS
        .iter()
        .find(|(index, _)| CONTEXT + *index as u64 * 8 == address);
    field.map_or_else(|| memory(address), |(_, number)| register(*number, rip))
}

fn evaluate(
    expression: Expression<Bytes<'_>>,
    encoding: Encoding,
    rip: u64,
    cfa: Option<u64>,
) -> Option<u64> {
    let mut evaluation = expression.evaluation(encoding);
    if let Some(cfa) = cfa {
        evaluation.set_initial_value(cfa);
    }
    let mut state = evaluation.evaluate().ok()?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register: wanted, .. } => evaluation
                .resume_with_register(Value::Generic(register(wanted.0, rip)))
                .ok()?,
            EvaluationResult::RequiresMemory { address, .. } => evaluation
                .resume_with_memory(Value::Generic(memory(address)))
                .ok()?,
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [
            gimli::Piece {
                location: Location::Address { address },
                ..
            },
        ] => Some(*address),
        _ => None,
    }
}

/// Evaluates one row at `rip`; none where the standard gives no answer.
pub fn expected<'a, S, T>(
    row: &UnwindTableRow<usize, T>,
    section: &S,
    encoding: Encoding,
    rip: u64,
) -> Option<Expected>
where
    S: UnwindSection<Bytes<'a>>,
    T: gimli::UnwindContextStorage<usize>,
{
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset {
            register: base,
            offset,
        } => register(base.0, rip).wrapping_add(*offset as u64),
        CfaRule::Expression(expression) => evaluate(expression.get(section).ok()?, encoding, rip, None)?,
    };
    let value = |number: u16| {
        Some(match row.register(Register(number)) {
            None | Some(RegisterRule::SameValue) => Some(register(number, rip)),
            Some(RegisterRule::Undefined) => None,
            Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add(offset as u64))),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add(offset as u64)),
            Some(RegisterRule::Register(other)) => Some(register(other.0, rip)),
            Some(RegisterRule::Expression(expression)) => Some(memory(evaluate(
                expression.get(section).ok()?,
                encoding,
                rip,
                Some(cfa),
            )?)),
            Some(RegisterRule::ValExpression(expression)) => {
                Some(evaluate(expression.get(section).ok()?, encoding, rip, Some(cfa))?)
            }
            Some(_) => return None,
        })
    };
    // The caller's rsp is the CFA unless a rule says otherwise.
    if row.register(Register(7)).is_some() && value(7)? != Some(cfa) {
        return None;
    }
    Some(Expected {
        cfa,
        rip: value(16)?,
        rbp: value(6)?,
    })
}

/// Compares the table's answer at one address.
fn compare(table: &Table, rip: u64, expected: Option<Expected>, tally: &mut Tally) {
    let number = table.rule_number(rip);
    assert_ne!(number, RULE_NONE, "{rip:#x} has unwind information");
    if number == RULE_UNSUPPORTED {
        tally.unsupported += 1;
        return;
    }
    let rule = table.rule(rip);
    let Some(expected) = expected else {
        panic!("{rip:#x}: {rule:?} where the standard gives nothing")
    };
    let mut frame = Frame {
        context: CONTEXT,
        ..Frame::first(rip, RSP, RBP)
    };
    let step = rule.step(&mut frame, |address| Some(memory_with_context(address, rip)));
    let Some(caller) = expected.rip else {
        assert_eq!(step, Step::End, "{rip:#x}: {rule:?}");
        tally.same += 1;
        return;
    };
    if expected.cfa & 7 != 0 || expected.cfa <= RSP && step == Step::NotAbove {
        assert_eq!(step, Step::NotAbove, "{rip:#x}: {rule:?}, {expected:?}");
        tally.same += 1;
        return;
    }
    assert_eq!(step, Step::Next, "{rip:#x}: {rule:?}, {expected:?}");
    assert_eq!(
        (frame.rip, frame.rsp),
        (caller, expected.cfa),
        "{rip:#x}: {rule:?}"
    );
    if frame.flags & FRAME_NO_RBP == 0 {
        assert_eq!(Some(frame.rbp), expected.rbp, "{rip:#x}: {rule:?}");
    }
    tally.same += 1;
}

/// Compares at the first, a middle and the last address of every row of a section's functions. Returns the
/// functions' ranges, by address.
pub fn compare_section<'a, S: UnwindSection<Bytes<'a>>>(
    table: &Table,
    section: &S,
    bases: &BaseAddresses,
    tally: &mut Tally,
) -> Vec<(u64, u64)> {
    let mut context = gimli::UnwindContext::new();
    let mut ranges = Vec::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let function = partial.parse(S::cie_from_offset).expect("valid entry");
        // What linkers discard has address 0 or no length.
        if function.initial_address() == 0 || function.len() == 0 {
            continue;
        }
        ranges.push((function.initial_address(), function.end_address()));
        let encoding = function.cie().encoding();
        let mut rows = function.rows(section, bases, &mut context).expect("valid group");
        while let Ok(Some(row)) = rows.next_row() {
            let (from, to) = (row.start_address(), row.end_address().min(function.end_address()));
            if from >= to {
                continue;
            }
            for rip in [from, from + (to - from) / 2, to - 1] {
                compare(table, rip, expected(row, section, encoding, rip), tally);
            }
        }
    }
    ranges.sort_unstable();
    ranges
}
