//! How many bytes pymalloc was asked for when it took a pool into use. Blocks are multiples of 16 bytes, and nobody
//! keeps what was asked for; but who finds that there is no memory for a pool asks libc for the same size instead, and so
//! has it somewhere over the call of `allocate_from_new_pool`.

use std::collections::BTreeMap;

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpKind, Register,
};
use memwatch_common::size_at::{Place, SizeAt};

use super::decode_x86;
use super::file::ElfBytes;
use super::registers::{Held, ONE, Registers, Value};

/// What the call gives.
const OUTCOME: Value = Value::plain(Held::Outcome);

/// Instructions that are followed on one way, and how often the ways may part.
const STEPS: usize = 48;
const PARTINGS: usize = 5;

/// By the addresses to which calls of the function return; `None` where it could not be told. `raw` are CPython's own
/// functions that ask libc, for a block and for a cleared one.
pub fn find(
    elf: &ElfBytes<'_>,
    function: u64,
    [raw, raw_calloc]: [Option<u64>; 2],
) -> BTreeMap<u64, Option<SizeAt>> {
    let mut allocators = BTreeMap::new();
    let known = [
        (raw, BEHIND_CONTEXT),
        (raw_calloc, COUNTED_BEHIND_CONTEXT),
        (elf.symbol("PyMem_RawMalloc").map(|symbol| symbol.address), PLAIN),
        (
            elf.symbol("PyMem_RawCalloc").map(|symbol| symbol.address),
            COUNTED,
        ),
    ];
    allocators.extend(known.into_iter().filter_map(|(at, given)| Some((at?, given))));
    elf.code_sections()
        .flat_map(|(address, bytes, _)| decode_x86::calls(address, bytes, function))
        .map(|back| (back, size_at(elf, &allocators, back)))
        .collect()
}

/// Where code has the size of a block that it would ask another allocator for; `next` is where it goes then. `cleared`
/// says that it would ask for a cleared one.
pub fn by_other(elf: &ElfBytes<'_>, next: u64, cleared: bool) -> Option<SizeAt> {
    let mut ways = Ways {
        elf,
        allocators: &BTreeMap::new(),
        unnamed: Some(if cleared {
            COUNTED_BEHIND_CONTEXT
        } else {
            BEHIND_CONTEXT
        }),
        info: InstructionInfoFactory::new(),
        found: Vec::new(),
    };
    ways.follow(next, Registers::new(), PARTINGS);
    ways.agreed()
}

/// In which of the arguments a function is told how much memory to give.
type Given = &'static [Register];

const PLAIN: Given = &[Register::RDI];
const COUNTED: Given = &[Register::RDI, Register::RSI];
const BEHIND_CONTEXT: Given = &[Register::RSI];
const COUNTED_BEHIND_CONTEXT: Given = &[Register::RSI, Register::RDX];

fn by_name(name: &str) -> Option<Given> {
    match name {
        "malloc" | "PyMem_RawMalloc" => Some(PLAIN),
        "calloc" | "PyMem_RawCalloc" => Some(COUNTED),
        _ => None,
    }
}

fn size_at(elf: &ElfBytes<'_>, allocators: &BTreeMap<u64, Given>, back: u64) -> Option<SizeAt> {
    let mut registers = Registers::new();
    registers.forget_after_call();
    registers.set(Register::RAX, Some(OUTCOME));
    let mut ways = Ways {
        elf,
        allocators,
        unnamed: None,
        info: InstructionInfoFactory::new(),
        found: Vec::new(),
    };
    ways.follow(back, registers, PARTINGS);
    ways.agreed()
}

/// All ways that the code can go where it gets no memory from pymalloc.
struct Ways<'a, 'e> {
    elf: &'a ElfBytes<'e>,
    allocators: &'a BTreeMap<u64, Given>,
    /// What functions are told that are called by a pointer of the program's.
    unnamed: Option<Given>,
    info: InstructionInfoFactory,
    found: Vec<SizeAt>,
}

impl Ways<'_, '_> {
    fn agreed(&self) -> Option<SizeAt> {
        // Where nothing was asked for, a single byte is given.
        let nothing = |size: &&SizeAt| matches!(size, SizeAt::In(Place::Constant(0 | 1)));
        let found = self.found.iter();
        let first = *found.clone().find(|size| !nothing(size)).or(self.found.first())?;
        let mut found = found.filter(|size| !nothing(size));
        found.all(|found| *found == first).then_some(first)
    }

    fn follow(&mut self, mut next: u64, mut registers: Registers, partings: usize) {
        // What the flags are of.
        let mut tested = None;
        for _ in 0..STEPS {
            let Some(instruction) = self.instruction(next) else {
                return;
            };
            if let Some(given) = self.allocates(&instruction) {
                self.found.extend(argument(&registers, given));
                return;
            }
            next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::UnconditionalBranch => next = instruction.near_branch_target(),
                FlowControl::ConditionalBranch => {
                    let target = instruction.near_branch_target();
                    let of_outcome = tested == Some(OUTCOME);
                    match instruction.condition_code() {
                        ConditionCode::e if of_outcome => next = target,
                        ConditionCode::ne if of_outcome => {}
                        _ if partings == 0 => return,
                        _ => self.follow(target, registers.clone(), partings - 1),
                    }
                }
                _ => return,
            }
            if is_test(&instruction) {
                tested = registers.get(instruction.op0_register());
            } else if instruction.rflags_modified() != 0 {
                tested = None;
            }
            registers.step(&instruction, &mut self.info);
        }
    }

    /// Whether an instruction goes to a function that asks libc for memory.
    fn allocates(&self, instruction: &Instruction) -> Option<Given> {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                let own = self.allocators.get(&target).copied();
                own.or_else(|| by_name(self.elf.behind_stub(target)?))
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                let named = instruction
                    .is_ip_rel_memory_operand()
                    .then(|| self.elf.import(instruction.memory_displacement64()))
                    .flatten();
                named.map_or(self.unnamed, by_name)
            }
            _ => None,
        }
    }

    fn instruction(&self, at: u64) -> Option<Instruction> {
        let code = self.elf.bytes_at(at)?;
        let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE)
            .into_iter()
            .next()?;
        (!instruction.is_invalid()).then_some(instruction)
    }
}

/// Whether it compares a register with 0.
fn is_test(instruction: &Instruction) -> bool {
    let registers = instruction.op0_kind() == OpKind::Register;
    match instruction.mnemonic() {
        Mnemonic::Test => registers && instruction.op0_register() == instruction.op1_register(),
        Mnemonic::Cmp => registers && instruction.try_immediate(1).is_ok_and(|number| number == 0),
        _ => false,
    }
}

/// The size, or number and size, that a call is given.
fn argument(registers: &Registers, given: Given) -> Option<SizeAt> {
    let mut size = ONE;
    for register in given {
        size = size.times(registers.get(*register)?)?;
    }
    place(size)
}

fn place(value: Value) -> Option<SizeAt> {
    match value.held {
        _ if value.plus != 0 => None,
        Held::In(place) => Some(SizeAt::In(place)),
        Held::Product(number, size) => Some(SizeAt::Product(number, size)),
        Held::Constant(bytes) => {
            let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
            Some(SizeAt::In(Place::Constant(bytes)))
        }
        Held::Outcome => None,
    }
}
