//! Where pymalloc was inlined: the places at which code asks whether the allocator of a domain is pymalloc, and goes on
//! by itself if so. A probe on the branch that follows sees each small allocation there, but not its address.

use std::ops::ControlFlow;

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use memwatch_common::python::SizeAt;

use super::allocator::PythonDomain;
use super::file::ElfBytes;
use super::pymalloc::SIZE_CLASSES;

/// Instructions between naming the function and comparing with it, and from there to the branch.
const TO_COMPARE: usize = 24;
const TO_BRANCH: usize = 5;

/// Instructions before the comparison in which the allocator is read.
const TO_READ: usize = 16;

/// Bytes of the head of a list of pools of one size class.
const LIST: u64 = 16;

/// How the call of `__tls_get_addr` begins, by which a shared library finds its interpreter: linkers know it by these
/// prefixes.
const THREAD_LOCAL: &[u8] = &[0x66, 0x66, 0x48, 0xe8];

/// rbx, rbp, r12 to r15 are as before after a call.
const KEPT_BY_CALLS: [usize; 6] = [3, 5, 12, 13, 14, 15];

/// Instructions after the branch in which the size is looked at.
const TO_SIZE: usize = 16;

/// A size less 1 is compared with this.
const LARGEST: u64 = 511;

/// By so many bits a size less 1 is moved to get its class.
const CLASS_SHIFT: u64 = 4;

/// A branch that is taken one way for pymalloc and the other for any other allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlinedSite {
    /// Of the branch.
    pub address: u64,
    /// `None`: it could not be told which domain asks.
    pub domain: Option<PythonDomain>,
    /// `None`: it could not be told.
    pub size: Option<SizeAt>,
}

impl InlinedSite {
    /// For whom and how much; none where the latter is not known. Where it could not be told for whom, it is for an
    /// object, as most often.
    pub fn counted(&self) -> Option<(PythonDomain, SizeAt)> {
        Some((self.domain.unwrap_or(PythonDomain::Object), self.size?))
    }
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InlinedSites {
    pub sites: Vec<InlinedSite>,
    /// Places that name pymalloc's function and whose branch was not found.
    pub unresolved: usize,
}

/// A function of pymalloc that allocates, and the pointers to it of the mem and the object domain.
#[derive(Clone, Copy, Debug)]
pub struct Allocating {
    pub function: u64,
    pub slots: [Option<u64>; 2],
}

/// `pools` is where an interpreter has its pools (since 3.12).
pub fn find(elf: &ElfBytes<'_>, functions: &[Allocating], pools: Option<u32>) -> InlinedSites {
    let mut found = InlinedSites::default();
    for allocating in functions {
        for (address, code) in elf.pieces_with_reference(allocating.function) {
            find_in(elf, allocating, address, code, pools, &mut found);
        }
    }
    found.sites.sort_by_key(|site| site.address);
    found.sites.dedup_by_key(|site| site.address);
    found
}

fn find_in(
    elf: &ElfBytes<'_>,
    allocating: &Allocating,
    address: u64,
    code: &[u8],
    pools: Option<u32>,
    found: &mut InlinedSites,
) {
    let code: Vec<Instruction> = decoder(address, code).into_iter().collect();
    let runtime = elf.symbol("_PyRuntime").map(|symbol| symbol.address);
    for (at, instruction) in code.iter().enumerate() {
        if !names(instruction, allocating.function) {
            continue;
        }
        match branch_after(&code, at) {
            Some(branch) => found.sites.push(InlinedSite {
                address: code[branch].ip(),
                domain: domain(
                    &code[at.saturating_sub(TO_READ)..branch],
                    allocating.slots,
                    runtime,
                ),
                size: size(elf, &code[branch], pools),
            }),
            None => found.unresolved += 1,
        }
    }
}

fn decoder(address: u64, code: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE)
}

/// Whether an instruction names the function as data: calls and jumps do not.
fn names(instruction: &Instruction, function: u64) -> bool {
    let plainly = (0..instruction.op_count()).any(|operand| {
        matches!(
            instruction.op_kind(operand),
            OpKind::Immediate32 | OpKind::Immediate32to64
        ) && instruction.immediate(operand) == function
    });
    let by_distance = instruction.mnemonic() == Mnemonic::Lea
        && instruction.is_ip_rel_memory_operand()
        && instruction.memory_displacement64() == function;
    plainly || by_distance
}

/// The branch that depends on the comparison with what the instruction at `at` names.
fn branch_after(code: &[Instruction], at: usize) -> Option<usize> {
    let compare = if code[at].mnemonic() == Mnemonic::Cmp {
        at
    } else {
        let register = code[at].op0_register().full_register();
        let compares = |instruction: &Instruction| {
            instruction.mnemonic() == Mnemonic::Cmp
                && [instruction.op0_register(), instruction.op1_register()]
                    .iter()
                    .any(|operand| operand.full_register() == register && register != Register::None)
        };
        straight(code, at + 1, TO_COMPARE).find(|&at| compares(&code[at]))?
    };
    let branch = straight(code, compare + 1, TO_BRANCH).find(|&at| {
        let equality = matches!(code[at].condition_code(), ConditionCode::e | ConditionCode::ne);
        equality && code[at].is_jcc_short_or_near()
    })?;
    // What is compared in between decides the branch instead.
    let decides = code[compare + 1..branch]
        .iter()
        .all(|instruction| instruction.rflags_modified() == 0);
    decides.then_some(branch)
}

/// Up to `most` instructions from `from` on, as far as control goes straight on.
fn straight(code: &[Instruction], from: usize, most: usize) -> impl Iterator<Item = usize> {
    let end = code.len().min(from.saturating_add(most));
    (from..end).take_while(|&at| {
        !matches!(
            code[at].flow_control(),
            FlowControl::Return
                | FlowControl::Call
                | FlowControl::IndirectCall
                | FlowControl::UnconditionalBranch
        )
    })
}

/// By the allocator that was read last before.
///
/// In a shared library that is at a distance from the runtime, whose address is in a register.
fn domain(before: &[Instruction], slots: [Option<u64>; 2], runtime: Option<u64>) -> Option<PythonDomain> {
    let domains = [PythonDomain::Mem, PythonDomain::Object];
    before.iter().rev().find_map(|instruction| {
        let read = instruction.mnemonic() != Mnemonic::Lea;
        let distance = instruction.memory_displacement64();
        let address = if instruction.is_ip_rel_memory_operand() || instruction.memory_base() == Register::None
        {
            Some(distance)
        } else {
            runtime.map(|runtime| runtime.wrapping_add(distance))
        };
        let at = slots
            .iter()
            .position(|slot| read && slot.is_some() && *slot == address)?;
        Some(domains[at])
    })
}

/// pymalloc first looks whether the size is small, and then for its size class: the size less 1, divided by 16. Where the
/// size is a constant there is nothing to work out, but the list of pools that is read belongs to one size class.
fn size(elf: &ElfBytes<'_>, branch: &Instruction, pools: Option<u32>) -> Option<SizeAt> {
    let mut next = if branch.condition_code() == ConditionCode::ne {
        branch.next_ip()
    } else {
        branch.near_branch_target()
    };
    let mut registers = Registers::new();
    for _ in 0..TO_SIZE {
        let instruction = decoder(next, elf.bytes_at(next)?).into_iter().next()?;
        next = match instruction.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => instruction.next_ip(),
            FlowControl::UnconditionalBranch => instruction.near_branch_target(),
            FlowControl::Call if elf.bytes_at(next)?.starts_with(THREAD_LOCAL) => {
                registers.forget_after_call();
                next = instruction.next_ip();
                continue;
            }
            _ => return None,
        };
        match lists(elf, pools, &instruction) {
            Lists::Class(class) => return Some(SizeAt::Class(class)),
            Lists::Table => {
                registers.set(instruction.op0_register(), Some(Value::plain(Held::Lists)));
                continue;
            }
            Lists::Nothing => {}
        }
        if let ControlFlow::Break(size) = registers.step(&instruction) {
            return size;
        }
    }
    None
}

/// What an instruction reads of pymalloc's lists of pools.
enum Lists {
    Nothing,
    /// The head of the list of this size class.
    Class(u8),
    /// Where all of them are.
    Table,
}

/// What a register has to do with what was in them at the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Register(u8),
    Product(u8, u8),
    Constant(u64),
    /// The address of the lists of pools.
    Lists,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    held: Held,
    less_one: bool,
}

impl Value {
    const fn plain(held: Held) -> Self {
        Self {
            held,
            less_one: false,
        }
    }

    fn minus_one(self) -> Option<Self> {
        (!self.less_one).then_some(Self {
            less_one: true,
            ..self
        })
    }

    fn times(self, other: Self) -> Option<Self> {
        match (self.held, other.held) {
            (Held::Register(a), Held::Register(b)) if !self.less_one && !other.less_one => {
                Some(Self::plain(Held::Product(a, b)))
            }
            _ => None,
        }
    }

    /// Of a size less 1.
    fn size(self) -> Option<SizeAt> {
        match self.held {
            Held::Register(register) => Some(SizeAt::Register(register)),
            Held::Product(number, size) => Some(SizeAt::Product(number, size)),
            Held::Constant(size) => class_of(size),
            Held::Lists => None,
        }
    }
}

/// All registers, followed from the branch on.
struct Registers {
    values: [Option<Value>; 16],
    info: InstructionInfoFactory,
}

impl Registers {
    fn new() -> Self {
        Self {
            values: std::array::from_fn(|number| Some(Value::plain(Held::Register(number as u8)))),
            info: InstructionInfoFactory::new(),
        }
    }

    fn get(&self, register: Register) -> Option<Value> {
        register.is_gpr().then(|| self.values[register.number() & 15])?
    }

    fn set(&mut self, register: Register, value: Option<Value>) {
        if register.is_gpr() {
            self.values[register.number() & 15] = value;
        }
    }

    /// Follows one instruction. Ends with the size when it is this one that makes a size class of it; without if by
    /// then nobody knows where it was at the branch.
    fn step(&mut self, instruction: &Instruction) -> ControlFlow<Option<SizeAt>> {
        let to = instruction.op0_register();
        let number = instruction.try_immediate(1).ok();
        let from_register = instruction.op1_kind() == OpKind::Register;
        let value = match (instruction.mnemonic(), number) {
            (Mnemonic::Cmp, Some(LARGEST)) | (Mnemonic::Shr, Some(CLASS_SHIFT)) => {
                if let Some(value) = self.get(to).filter(|value| value.less_one) {
                    return ControlFlow::Break(value.size());
                }
                None
            }
            (Mnemonic::Lea, _) if is_base_less_one(instruction) => {
                self.get(instruction.memory_base()).and_then(Value::minus_one)
            }
            (Mnemonic::Sub, Some(1)) | (Mnemonic::Add, Some(u64::MAX)) | (Mnemonic::Dec, _) => {
                self.get(to).and_then(Value::minus_one)
            }
            (Mnemonic::Imul, None) if from_register && instruction.op_count() == 2 => {
                let factors = self.get(to).zip(self.get(instruction.op1_register()));
                factors.and_then(|(a, b)| a.times(b))
            }
            (Mnemonic::Mov, Some(constant)) if instruction.op0_kind() == OpKind::Register => {
                Some(Value::plain(Held::Constant(constant)))
            }
            (Mnemonic::Mov, None) if from_register => self.get(instruction.op1_register()),
            (Mnemonic::Mov, None) if self.reads_lists(instruction) => {
                let plain = instruction.memory_index() == Register::None;
                let class = class_at(instruction.memory_displacement64()).filter(|_| plain);
                return ControlFlow::Break(class.map(SizeAt::Class));
            }
            _ => None,
        };
        self.forget_written(instruction);
        if instruction.op0_kind() == OpKind::Register && value.is_some() {
            self.set(to, value);
        }
        ControlFlow::Continue(())
    }

    fn reads_lists(&self, instruction: &Instruction) -> bool {
        self.get(instruction.memory_base())
            .is_some_and(|value| value.held == Held::Lists)
    }

    fn forget_after_call(&mut self) {
        for (number, value) in self.values.iter_mut().enumerate() {
            if !KEPT_BY_CALLS.contains(&number) {
                *value = None;
            }
        }
    }

    fn forget_written(&mut self, instruction: &Instruction) {
        let used = self.info.info(instruction).used_registers();
        let written = used.iter().filter(|used| {
            use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(used.access(), Write | CondWrite | ReadWrite | ReadCondWrite)
        });
        let written: Vec<Register> = written.map(iced_x86::UsedRegister::register).collect();
        for register in written {
            self.set(register, None);
        }
    }
}

/// The class of a constant size.
fn class_of(size: u64) -> Option<SizeAt> {
    (1..=LARGEST + 1)
        .contains(&size)
        .then(|| SizeAt::Class(((size - 1) >> CLASS_SHIFT) as u8))
}

/// The class whose list is so many bytes after the first.
fn class_at(distance: u64) -> Option<u8> {
    let class = distance / LIST;
    (distance.is_multiple_of(LIST) && class < SIZE_CLASSES as u64).then_some(class as u8)
}

fn is_base_less_one(instruction: &Instruction) -> bool {
    instruction.memory_index() == Register::None
        && instruction.memory_base() != Register::None
        && matches!(instruction.memory_displacement64(), u64::MAX | 0xffff_ffff)
}

/// The lists of pools are in the interpreter (since 3.12), reached by a pointer to it, or in a variable (before). In
/// that variable each list begins as a ring of one, whose head stands a list before the list itself.
fn lists(elf: &ElfBytes<'_>, pools: Option<u32>, instruction: &Instruction) -> Lists {
    let reads = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register().is_gpr64()
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_index() == Register::None;
    if !reads {
        return Lists::Nothing;
    }
    let address = instruction.memory_displacement64();
    let is_fixed = instruction.memory_base() == Register::None || instruction.is_ip_rel_memory_operand();
    match pools {
        Some(pools) if !is_fixed && address == u64::from(pools) => Lists::Table,
        None if is_fixed => class_of_variable(elf, address).map_or(Lists::Nothing, Lists::Class),
        _ => Lists::Nothing,
    }
}

fn class_of_variable(elf: &ElfBytes<'_>, address: u64) -> Option<u8> {
    let is_list = |at: u64| {
        let head = Some(at.wrapping_sub(LIST));
        elf.pointer_at(at) == head && elf.pointer_at(at.wrapping_add(8)) == head
    };
    let before = |class: &u64| is_list(address.wrapping_sub(class * LIST));
    let class = (0..=SIZE_CLASSES as u64)
        .take_while(before)
        .count()
        .checked_sub(1)?;
    class_at(class as u64 * LIST)
}
