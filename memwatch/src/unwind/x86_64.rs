//! From a row of DWARF's unwind information to a [`Rule`], on x86-64.

use gimli::{
    CfaRule, Encoding, EndianSlice, LittleEndian, Operation, Register, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow,
};
use memwatch_common::unwind::Rule;
use memwatch_common::unwind::x86_64::{
    CFA_PLT, CFA_RBP, CFA_RBP_READ, CFA_REGISTER, CFA_RSP, CFA_RSP_READ, DWARF_RA, DWARF_RBP, DWARF_RSP,
    RA_AT_CFA, RA_END, RA_REGISTER, RA_SIGNAL, RBP_AT_CFA, RBP_AT_RBP, RBP_AT_RSP, RBP_SAME, RBP_UNKNOWN,
};

use super::entries::Storage;
use super::stats::Dropped;

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

const RBP: Register = Register(DWARF_RBP);
const RSP: Register = Register(DWARF_RSP);
const RIP: Register = Register(DWARF_RA);

/// `mov $15, %rax; syscall`, which is all of a signal trampoline. musl's and Go's have no unwind information;
/// libgcc and gdb know them by these bytes too.
pub(super) const SIGNAL_TRAMPOLINE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Longer expressions are none that is known.
const MAX_OPERATIONS: usize = 9;

/// An expression of a form that a rule can hold.
enum Form {
    /// `register + offset`
    Sum(Register, i64),
    /// `*(register + offset) + add`
    Read(Register, i64, u64),
    /// `rsp + 8 + (rip & 15 >= threshold) * 8`
    Plt(u64),
}

pub(super) struct Converter<'s, S> {
    pub section: &'s S,
    pub encoding: Encoding,
    /// The entry describes a signal trampoline.
    pub signal: bool,
}

impl<'a, S: UnwindSection<Bytes<'a>>> Converter<'_, S> {
    /// The rule of a row, and whether something of it had to be left out.
    pub fn rule(&self, row: &UnwindTableRow<usize, Storage>) -> Result<(Rule, Option<Dropped>), Dropped> {
        let mut rule = self.cfa(row.cfa())?;
        let mut lost = None;
        let mut has_return_address = false;
        for &(register, ref value) in row.registers() {
            match register {
                RIP => {
                    has_return_address = true;
                    self.return_address(&mut rule, value)?;
                }
                RBP => lost = self.rbp(&mut rule, value),
                RSP if !self.is_cfa(value, row.cfa()) => return Err(Dropped::StackPointer),
                _ => {}
            }
        }
        if !has_return_address {
            return Err(Dropped::ReturnAddress);
        }
        if rule.ra_kind == RA_END {
            return Ok((Rule::END, None));
        }
        Ok((rule, lost))
    }

    fn cfa(&self, cfa: &CfaRule<usize>) -> Result<Rule, Dropped> {
        let (kind, register, offset, add) = match cfa {
            CfaRule::RegisterAndOffset { register, offset } => sum(*register, *offset)?,
            CfaRule::Expression(expression) => match self.form(expression).ok_or(Dropped::CfaExpression)? {
                Form::Sum(register, offset) => sum(register, offset)?,
                Form::Read(RSP, offset, add) => (CFA_RSP_READ, 0, offset, add),
                Form::Read(RBP, offset, add) => (CFA_RBP_READ, 0, offset, add),
                Form::Plt(threshold) => (CFA_PLT, 0, threshold as i64, 0),
                Form::Read(..) => return Err(Dropped::CfaExpression),
            },
        };
        Ok(Rule {
            register,
            cfa_add: i16::try_from(add as i64).map_err(|_| Dropped::CfaOffset)?,
            ..Rule::new(kind, i32::try_from(offset).map_err(|_| Dropped::CfaOffset)?)
        })
    }

    fn return_address(&self, rule: &mut Rule, value: &RegisterRule<usize>) -> Result<(), Dropped> {
        let (kind, offset) = match value {
            RegisterRule::Undefined => (RA_END, 0),
            RegisterRule::Offset(offset) => (RA_AT_CFA, *offset),
            RegisterRule::Register(register) => {
                // The register field is shared.
                let number = general_register(*register).ok_or(Dropped::ReturnAddress)?;
                if rule.cfa_kind == CFA_REGISTER && rule.register != number {
                    return Err(Dropped::ReturnAddress);
                }
                rule.register = number;
                (RA_REGISTER, 0)
            }
            RegisterRule::Expression(expression) if self.signal => match self.form(expression) {
                Some(Form::Sum(RSP, offset)) => (RA_SIGNAL, offset),
                _ => return Err(Dropped::ReturnAddress),
            },
            _ => return Err(Dropped::ReturnAddress),
        };
        rule.ra_kind = kind;
        rule.ra_offset = i16::try_from(offset).map_err(|_| Dropped::ReturnAddress)?;
        Ok(())
    }

    /// A walk can go on without rbp for as long as nobody's CFA is based on it.
    fn rbp(&self, rule: &mut Rule, value: &RegisterRule<usize>) -> Option<Dropped> {
        let found = match value {
            RegisterRule::SameValue => Some((RBP_SAME, 0)),
            RegisterRule::Undefined => Some((RBP_UNKNOWN, 0)),
            RegisterRule::Offset(offset) => Some((RBP_AT_CFA, *offset)),
            RegisterRule::Expression(expression) => match self.form(expression) {
                Some(Form::Sum(RSP, offset)) => Some((RBP_AT_RSP, offset)),
                Some(Form::Sum(RBP, offset)) => Some((RBP_AT_RBP, offset)),
                _ => None,
            },
            _ => None,
        };
        let fitting = found.and_then(|(kind, offset)| Some((kind, i16::try_from(offset).ok()?)));
        (rule.rbp_kind, rule.rbp_offset) = fitting.unwrap_or((RBP_UNKNOWN, 0));
        fitting.is_none().then_some(Dropped::FramePointer)
    }

    /// Whether the rule for rsp only says what holds anyway: that the caller's rsp is the CFA.
    fn is_cfa(&self, value: &RegisterRule<usize>, cfa: &CfaRule<usize>) -> bool {
        match (value, cfa) {
            (RegisterRule::ValOffset(0), _) => true,
            (RegisterRule::Expression(value), CfaRule::Expression(cfa)) => {
                matches!(
                    (self.form(value), self.form(cfa)),
                    (Some(Form::Sum(register, offset)), Some(Form::Read(of, at, 0))) if register == of && offset == at
                )
            }
            _ => false,
        }
    }

    fn form(&self, expression: &UnwindExpression<usize>) -> Option<Form> {
        let mut operations = expression.get(self.section).ok()?.operations(self.encoding);
        let mut found = [const { Operation::Nop }; MAX_OPERATIONS];
        let mut count = 0;
        while let Some(operation) = operations.next().ok()? {
            *found.get_mut(count)? = operation;
            count += 1;
        }
        match_form(found.get(..count)?)
    }
}

fn match_form(operations: &[Operation<Bytes<'_>>]) -> Option<Form> {
    use Operation::{And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant};
    Some(match *operations {
        [RegisterOffset { register, offset, .. }] => Form::Sum(register, offset),
        [
            RegisterOffset { register, offset, .. },
            Deref {
                size: 8,
                space: false,
                ..
            },
        ] => Form::Read(register, offset, 0),
        [
            RegisterOffset { register, offset, .. },
            Deref {
                size: 8,
                space: false,
                ..
            },
            PlusConstant { value },
        ] => Form::Read(register, offset, value),
        [
            RegisterOffset {
                register: RSP,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: RIP,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant {
                value: threshold @ 0..=16,
            },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Form::Plt(threshold),
        _ => return None,
    })
}

/// The kind, register and offset of a CFA that is a sum.
fn sum(register: Register, offset: i64) -> Result<(u8, u8, i64, u64), Dropped> {
    Ok(match register {
        RSP => (CFA_RSP, 0, offset, 0),
        RBP => (CFA_RBP, 0, offset, 0),
        _ => (
            CFA_REGISTER,
            general_register(register).ok_or(Dropped::CfaExpression)?,
            offset,
            0,
        ),
    })
}

/// DWARF's number of a general register other than rsp and rbp.
fn general_register(register: Register) -> Option<u8> {
    u8::try_from(register.0)
        .ok()
        .filter(|&number| number < 16 && register != RSP && register != RBP)
}
