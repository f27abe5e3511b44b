//! What is in registers, followed through x86-64 code from a place at which each holds something of its own.

use std::collections::BTreeMap;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister};
use memwatch_common::size_at::Place;

/// rbx, rbp, r12 to r15 are as before after a call.
pub const KEPT_BY_CALLS: [u8; 6] = [3, 5, 12, 13, 14, 15];

const STACK_POINTER: usize = 4;

/// What the stack pointer held.
const STACK: Held = Held::In(Place::Register(STACK_POINTER as u8));

/// Bytes of a register.
const WORD: i64 = 8;

/// What a register has to do with what was anywhere at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    In(Place),
    Product(Place, Place),
    Constant(u64),
    /// Of something in the file.
    Address(u64),
    /// What a call gave.
    Outcome,
}

/// That, and so much more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub held: Held,
    pub plus: i64,
}

impl Value {
    pub const fn plain(held: Held) -> Self {
        Self { held, plus: 0 }
    }

    const fn and(self, more: i64) -> Self {
        Self {
            plus: self.plus.wrapping_add(more),
            ..self
        }
    }

    /// What is a constant comes last.
    pub fn times(self, other: Self) -> Option<Self> {
        match (self, other) {
            (value, ONE) | (ONE, value) => Some(value),
            (_, NOTHING) | (NOTHING, _) => Some(NOTHING),
            _ if self.plus != 0 || other.plus != 0 => None,
            _ => {
                let held = match (self.held, other.held) {
                    (Held::In(one), Held::In(other)) => Held::Product(one, other),
                    (Held::In(one), Held::Constant(by)) | (Held::Constant(by), Held::In(one)) => {
                        Held::Product(one, Place::Constant(u16::try_from(by).ok()?))
                    }
                    (Held::Constant(one), Held::Constant(other)) => Held::Constant(one.saturating_mul(other)),
                    _ => return None,
                };
                Some(Self::plain(held))
            }
        }
    }
}

const NOTHING: Value = Value::plain(Held::Constant(0));
pub const ONE: Value = Value::plain(Held::Constant(1));

/// All registers.
#[derive(Clone)]
pub struct Registers {
    values: [Option<Value>; 16],
    /// Memory that is not as it was, as far as it is told from the rest by register and distance, and what is there.
    stored: BTreeMap<(u8, i64), Option<Value>>,
    /// What the flags say whether it is 0.
    tested: Option<Value>,
}

impl Registers {
    /// Each holds what it holds.
    pub fn new() -> Self {
        Self {
            values: std::array::from_fn(|number| Some(Value::plain(Held::In(Place::Register(number as u8))))),
            stored: BTreeMap::new(),
            tested: None,
        }
    }

    pub fn forget_after_call(&mut self) {
        for (number, value) in self.values.iter_mut().enumerate() {
            if !KEPT_BY_CALLS.contains(&(number as u8)) && number != STACK_POINTER {
                *value = None;
            }
        }
    }

    /// What is the same here and there. Says whether that is less than it was here.
    pub fn join(&mut self, there: &Self) -> bool {
        let mut less = false;
        let mut same = |here: &mut Option<Value>, there: Option<Value>| {
            if here.is_some() && *here != there {
                *here = None;
                less = true;
            }
        };
        for (here, there) in self.values.iter_mut().zip(there.values) {
            same(here, there);
        }
        same(&mut self.tested, there.tested);
        for (place, here) in &mut self.stored {
            same(here, there.stored.get(place).copied().flatten());
        }
        for place in there.stored.keys() {
            if !self.stored.contains_key(place) {
                self.stored.insert(*place, None);
                less = true;
            }
        }
        less
    }

    /// Where a value is now: in a register, or on the stack.
    pub fn place_of(&self, value: Value) -> Option<Place> {
        let register = self.values.iter().position(|held| *held == Some(value));
        if let Some(register) = register {
            return Some(Place::Register(register as u8));
        }
        let stack = self.values[STACK_POINTER].filter(|stack| stack.held == STACK)?;
        let mut stored = self.stored.iter();
        let ((_, at), _) = stored
            .find(|((register, _), held)| usize::from(*register) == STACK_POINTER && **held == Some(value))?;
        let distance = i16::try_from(at.wrapping_sub(stack.plus)).ok()?;
        Some(Place::Memory(STACK_POINTER as u8, distance))
    }

    pub fn get(&self, register: Register) -> Option<Value> {
        let whole = register.is_gpr64() || register.is_gpr32();
        whole.then(|| self.values[register.number()])?
    }

    /// `None` for any part of a register says that the rest is not known either.
    pub fn set(&mut self, register: Register, value: Option<Value>) {
        let whole = register.full_register();
        if whole.is_gpr64() {
            self.values[whole.number()] = value;
        }
    }

    /// Where the first operand is, if that is in memory and the program always has it there.
    pub fn fixed(&self, instruction: &Instruction) -> Option<u64> {
        let distance = instruction.memory_displacement64();
        if instruction.op0_kind() != OpKind::Memory {
            return None;
        }
        if instruction.is_ip_rel_memory_operand() {
            return Some(distance);
        }
        match (instruction.memory_base(), instruction.memory_index()) {
            (Register::None, Register::None) => Some(distance),
            (base, Register::None) => match self.get(base)? {
                Value {
                    held: Held::Address(address) | Held::Constant(address),
                    plus,
                } => Some(address.wrapping_add_signed(plus.wrapping_add(signed(instruction, distance)))),
                _ => None,
            },
            _ => None,
        }
    }

    /// What was compared with 0 last.
    pub const fn tested(&self) -> Option<Value> {
        self.tested
    }

    /// Follows one instruction that goes on to the next.
    pub fn step(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let value = self.result(instruction);
        if is_test(instruction) {
            self.tested = self.get(instruction.op0_register());
        } else if instruction.rflags_modified() != 0 {
            self.tested = None;
        }
        self.note_store(instruction);
        for register in written(instruction, info) {
            self.set(register, None);
        }
        let to = instruction.op0_register();
        if value.is_some() && (to.is_gpr64() || to.is_gpr32()) {
            self.set(to, value);
        }
        self.push_or_pop(instruction);
    }

    /// What an instruction leaves in its first operand, if that is a register.
    fn result(&self, instruction: &Instruction) -> Option<Value> {
        let to = instruction.op0_register();
        let number = instruction.try_immediate(1).ok();
        let from_register = instruction.op1_kind() == OpKind::Register;
        let from = instruction.op1_register();
        match (instruction.mnemonic(), number) {
            (Mnemonic::Lea, _) if instruction.is_ip_rel_memory_operand() => {
                Some(Value::plain(Held::Address(instruction.memory_displacement64())))
            }
            (Mnemonic::Lea, _) if instruction.memory_index() == Register::None => {
                let more = instruction.memory_displacement64();
                Some(
                    self.get(instruction.memory_base())?
                        .and(signed(instruction, more)),
                )
            }
            (Mnemonic::Add, Some(more)) => Some(self.get(to)?.and(more as i64)),
            (Mnemonic::Sub, Some(less)) => Some(self.get(to)?.and((less as i64).wrapping_neg())),
            (Mnemonic::Inc, _) => Some(self.get(to)?.and(1)),
            (Mnemonic::Dec, _) => Some(self.get(to)?.and(-1)),
            (Mnemonic::Imul, None) if from_register && instruction.op_count() == 2 => {
                self.get(to)?.times(self.get(from)?)
            }
            (Mnemonic::Mov, Some(constant)) => Some(Value::plain(Held::Constant(constant))),
            (Mnemonic::Mov, None) if from_register => self.get(from),
            (Mnemonic::Mov, None) if instruction.op1_kind() == OpKind::Memory => self.in_memory(instruction),
            (Mnemonic::Xor, None) if from_register && from == to => Some(Value::plain(Held::Constant(0))),
            // Nobody is given 0 bytes: where it would be, 1 is put in its place.
            (Mnemonic::Cmovne, None) if from_register && self.get(to) == Some(ONE) => {
                self.get(from).filter(|_| self.tested.is_some())
            }
            (Mnemonic::Cmove, None) if from_register && self.get(from) == Some(ONE) => {
                self.get(to).filter(|_| self.tested.is_some())
            }
            _ => None,
        }
    }

    /// What is read from memory, where that is as it was or as it was stored.
    fn in_memory(&self, instruction: &Instruction) -> Option<Value> {
        let (register, distance) = self.points_at(instruction)?;
        if !instruction.op0_register().is_gpr64() {
            return None;
        }
        if let Some(stored) = self.stored.get(&(register, distance)) {
            return *stored;
        }
        let partly = distance.saturating_sub(WORD - 1)..distance.saturating_add(WORD);
        let keys = (register, partly.start)..(register, partly.end);
        let distance = i16::try_from(distance).ok()?;
        let same = self.stored.range(keys).next().is_none();
        same.then_some(Value::plain(Held::In(Place::Memory(register, distance))))
    }

    /// Where an operand in memory is, from where a register pointed to.
    fn points_at(&self, instruction: &Instruction) -> Option<(u8, i64)> {
        let base = self
            .get(instruction.memory_base())
            .filter(|_| instruction.memory_index() == Register::None)?;
        let Held::In(Place::Register(register)) = base.held else {
            return None;
        };
        let distance = signed(instruction, instruction.memory_displacement64());
        Some((register, base.plus.wrapping_add(distance)))
    }

    fn note_store(&mut self, instruction: &Instruction) {
        let stores = instruction.op0_kind() == OpKind::Memory
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
        let Some((register, distance)) = self.points_at(instruction).filter(|_| stores) else {
            return;
        };
        let bytes = instruction.memory_size().size() as i64;
        let moves = instruction.mnemonic() == Mnemonic::Mov && bytes == WORD;
        let value = match instruction.try_immediate(1) {
            _ if !moves => None,
            Ok(constant) => Some(Value::plain(Held::Constant(constant))),
            Err(_) => self.get(instruction.op1_register()),
        };
        let end = distance.saturating_add(bytes.max(1));
        let partly = (register, distance.saturating_sub(WORD - 1))..(register, end);
        for (_, stored) in self.stored.range_mut(partly) {
            *stored = None;
        }
        for at in (distance..end).step_by(WORD as usize) {
            self.stored.insert((register, at), None);
        }
        self.stored.insert((register, distance), value);
    }

    fn push_or_pop(&mut self, instruction: &Instruction) {
        let by = match instruction.mnemonic() {
            Mnemonic::Push => -WORD,
            Mnemonic::Pop => WORD,
            _ => return,
        };
        let moved = self.get(Register::RSP).map(|stack| stack.and(by));
        self.set(Register::RSP, moved);
        if by < 0
            && let Some(Value {
                held: Held::In(Place::Register(register)),
                plus,
            }) = moved
        {
            self.stored.insert((register, plus), None);
        }
    }
}

/// Distances may be written in 32 bits.
fn signed(instruction: &Instruction, distance: u64) -> i64 {
    if instruction.memory_displ_size() == 8 {
        distance as i64
    } else {
        i64::from((distance as u32).cast_signed())
    }
}

/// Whether it compares a register with 0.
fn is_test(instruction: &Instruction) -> bool {
    let register = instruction.op0_kind() == OpKind::Register;
    match instruction.mnemonic() {
        Mnemonic::Test => register && instruction.op0_register() == instruction.op1_register(),
        Mnemonic::Cmp => register && instruction.try_immediate(1).is_ok_and(|number| number == 0),
        _ => false,
    }
}

/// All but the stack pointer where it is only pushed to or popped from.
fn written(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Vec<Register> {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    let used = info.info(instruction).used_registers().iter();
    let moves = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop);
    used.filter(|used| matches!(used.access(), Write | CondWrite | ReadWrite | ReadCondWrite))
        .map(UsedRegister::register)
        .filter(|register| !moves || register.number() != STACK_POINTER)
        .collect()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn after(code: &[u8]) -> Registers {
        let mut registers = Registers::new();
        let mut info = InstructionInfoFactory::new();
        for instruction in Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE) {
            assert!(!instruction.is_invalid());
            registers.step(&instruction, &mut info);
        }
        registers
    }

    fn rdi(code: &[u8]) -> Option<Value> {
        after(code).get(Register::RDI)
    }

    fn held(code: &[u8]) -> Option<Held> {
        rdi(code).filter(|value| value.plus == 0).map(|value| value.held)
    }

    const RBX: Held = Held::In(Place::Register(3));
    const RSI: Held = Held::In(Place::Register(6));

    #[test]
    fn what_was_moved_is_known() {
        // mov rdi, rbx
        assert_eq!(held(&[0x48, 0x89, 0xdf]), Some(RBX));
        // lea rdi, [rbx - 1]; add rdi, 1
        assert_eq!(held(&[0x48, 0x8d, 0x7b, 0xff, 0x48, 0x83, 0xc7, 0x01]), Some(RBX));
        // mov rdi, rsi; imul rdi, rdx
        let product = Held::Product(Place::Register(6), Place::Register(2));
        assert_eq!(held(&[0x48, 0x89, 0xf7, 0x48, 0x0f, 0xaf, 0xfa]), Some(product));
        // mov edi, 1; cmovne rdi, rbx; before it test rbx, rbx
        let chosen = [0xbf, 1, 0, 0, 0, 0x48, 0x0f, 0x45, 0xfb];
        assert_eq!(held(&chosen), None);
        assert_eq!(held(&[&[0x48, 0x85, 0xdb], &chosen[..]].concat()), Some(RBX));
        // shl rdi, 3
        assert_eq!(rdi(&[0x48, 0xc1, 0xe7, 0x03]), None);
    }

    #[test]
    fn words_in_memory_are_counted_from_where_a_register_pointed_to_at_first() {
        // mov rdi, [rsp + 8]
        let slot = Held::In(Place::Memory(4, 8));
        assert_eq!(held(&[0x48, 0x8b, 0x7c, 0x24, 0x08]), Some(slot));
        // push rbx; mov rdi, [rsp + 16]
        assert_eq!(held(&[0x53, 0x48, 0x8b, 0x7c, 0x24, 0x10]), Some(slot));
        // mov rdi, [rbp - 0x38]
        let slot = Held::In(Place::Memory(5, -0x38));
        assert_eq!(held(&[0x48, 0x8b, 0x7d, 0xc8]), Some(slot));
        // mov edi, [rsp + 8]: half of it.
        assert_eq!(rdi(&[0x8b, 0x7c, 0x24, 0x08]), None);
    }

    #[test]
    fn what_was_stored_is_read_again() {
        let read = [0x48, 0x8b, 0x7c, 0x24, 0x08];
        // mov [rsp + 8], rsi
        let mut code = vec![0x48, 0x89, 0x74, 0x24, 0x08];
        code.extend(read);
        assert_eq!(held(&code), Some(RSI));
        // mov dword [rsp + 12], 1: half of it.
        let mut code = vec![0xc7, 0x44, 0x24, 0x0c, 1, 0, 0, 0];
        code.extend(read);
        assert_eq!(rdi(&code), None);
        // mov [rsp + 8], rsi; mov dword [rsp + 12], 1: half of what was stored.
        let mut code = vec![0x48, 0x89, 0x74, 0x24, 0x08, 0xc7, 0x44, 0x24, 0x0c, 1, 0, 0, 0];
        code.extend(read);
        assert_eq!(rdi(&code), None);
        // movups [rsp], xmm0: two words.
        let mut code = vec![0x0f, 0x11, 0x04, 0x24];
        code.extend(read);
        assert_eq!(rdi(&code), None);
        // push rbx; pop rax; then [rsp - 8] is not as it was.
        assert_eq!(rdi(&[0x53, 0x58, 0x48, 0x8b, 0x7c, 0x24, 0xf8]), None);
    }

    #[test]
    fn parts_of_registers_make_the_whole_unknown() {
        // mov edi, 5; mov dil, 1
        assert_eq!(rdi(&[0xbf, 5, 0, 0, 0, 0x40, 0xb7, 1]), None);
        // mov bl, 8; mov rdi, rbx
        assert_eq!(rdi(&[0xb3, 8, 0x48, 0x89, 0xdf]), None);
        // mov ah, 1 leaves rsp alone.
        assert!(after(&[0xb4, 1]).get(Register::RSP).is_some());
        assert_eq!(after(&[0xb4, 1]).get(Register::RAX), None);
    }

    #[test]
    fn calls_keep_what_they_must() {
        let mut registers = after(&[]);
        registers.forget_after_call();
        assert_eq!(registers.get(Register::RBX), Some(Value::plain(RBX)));
        assert_eq!(registers.get(Register::RSI), None);
        assert!(registers.get(Register::RSP).is_some());
    }
}
