//! How many bytes pymalloc was asked for when it took a pool into use. Blocks are multiples of 16 bytes, and nobody
//! keeps what was asked for; but who finds that there is no memory for a pool asks libc for the same size instead, and so
//! has it somewhere over the call of `allocate_from_new_pool`.

use std::collections::{BTreeMap, btree_map::Entry};

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Register,
};
use memwatch_common::size_at::{Place, SizeAt};

use super::decode_x86;
use super::file::ElfBytes;
use super::registers::{Held, ONE, Registers, Value};

/// What the call gives.
const OUTCOME: Value = Value::plain(Held::Outcome);

/// Instructions that are followed on one way, on all together, and how often the ways may part.
const STEPS: usize = 48;
const ALL_STEPS: usize = 4_000;
const PARTINGS: usize = 5;

/// More calls than any build has.
const MOST_CALLERS: usize = 4_096;

/// Where those who call a function have the size that they were asked for, by the addresses that it returns to; `None`
/// where it could not be told.
pub type PoolCallers = BTreeMap<u64, Option<SizeAt>>;

/// What is read of a file.
trait Code {
    fn bytes_at(&self, address: u64) -> Option<&[u8]>;
    /// The function that code at an address does nothing but go on to.
    fn behind_stub(&self, address: u64) -> Option<&str>;
    /// The function whose address is put at a place.
    fn import(&self, pointer: u64) -> Option<&str>;
}

impl Code for ElfBytes<'_> {
    fn bytes_at(&self, address: u64) -> Option<&[u8]> {
        self.bytes_at(address)
    }

    fn behind_stub(&self, address: u64) -> Option<&str> {
        self.behind_stub(address)
    }

    fn import(&self, pointer: u64) -> Option<&str> {
        self.import(pointer)
    }
}

/// How CPython asks libc: its functions for a block and for a cleared one, and the pointers to these.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub functions: [Option<u64>; 2],
    pub slots: [Option<u64>; 2],
}

/// What is called for memory where there is no pool: functions, and pointers to them, by their addresses.
fn allocators(elf: &ElfBytes<'_>, raw: Raw) -> BTreeMap<u64, Given> {
    let exported = ["PyMem_RawMalloc", "PyMem_RawCalloc"].map(|name| Some(elf.symbol(name)?.address));
    let context = [Allocator::Malloc, Allocator::Calloc].map(Allocator::given);
    let known = [
        (raw.functions, context),
        (raw.slots, context),
        (exported, [PLAIN, COUNTED]),
    ];
    let known = known
        .into_iter()
        .flat_map(|(addresses, given)| addresses.into_iter().zip(given));
    known.filter_map(|(at, given)| Some((at?, given))).collect()
}

pub fn find(elf: &ElfBytes<'_>, function: u64, raw: Raw) -> PoolCallers {
    let allocators = allocators(elf, raw);
    elf.code_sections()
        .flat_map(|(address, bytes, _)| decode_x86::calls(address, bytes, function))
        .take(MOST_CALLERS)
        .map(|back| (back, after_call(elf, &allocators, back)))
        .collect()
}

/// Where code has the size of a block that it would ask another allocator for; `next` is where it goes then.
pub fn by_other(elf: &ElfBytes<'_>, next: u64, kind: Allocator) -> Option<SizeAt> {
    let allocators = BTreeMap::new();
    Ways::new(elf, &allocators, Some(kind.given())).size(next, Registers::new())
}

/// Where a function of pymalloc has the size at the given addresses in it.
pub fn within(elf: &ElfBytes<'_>, function: u64, kind: Allocator, addresses: &[u64]) -> PoolCallers {
    let held = |register: &Register| Value::plain(Held::In(Place::Register(register.number() as u8)));
    let given: Vec<Value> = kind.given().iter().map(held).collect();
    let states = states(elf, function);
    let size_at = |address: &u64| {
        let state = states.get(address)?;
        let place = |value| state.place_of(value);
        match given[..] {
            [size] => place(size).map(SizeAt::In),
            [number, size] => {
                let product = number.times(size).and_then(place).map(SizeAt::In);
                product.or_else(|| Some(SizeAt::Product(place(number)?, place(size)?)))
            }
            _ => None,
        }
    };
    addresses
        .iter()
        .map(|address| (*address, size_at(address)))
        .collect()
}

/// What registers hold before each instruction of a function, on whichever way it is come to.
fn states(code: &impl Code, function: u64) -> BTreeMap<u64, Registers> {
    let mut info = InstructionInfoFactory::new();
    let mut states = BTreeMap::from([(function, Registers::new())]);
    let mut due = vec![function];
    for _ in 0..ALL_STEPS * 4 {
        let Some(at) = due.pop() else { return states };
        let (Some(instruction), Some(state)) = (instruction(code, at), states.get(&at)) else {
            continue;
        };
        let mut state = state.clone();
        let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
        let ways = match instruction.flow_control() {
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => [Some(next), None],
            FlowControl::ConditionalBranch => [Some(next), Some(target)],
            FlowControl::UnconditionalBranch => [Some(target), None],
            _ => continue,
        };
        if matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        ) {
            state.forget_after_call();
        } else {
            state.step(&instruction, &mut info);
        }
        for way in ways.into_iter().flatten() {
            let changed = match states.entry(way) {
                Entry::Vacant(entry) => {
                    entry.insert(state.clone());
                    true
                }
                Entry::Occupied(mut known) => known.get_mut().join(&state),
            };
            if changed {
                due.push(way);
            }
        }
    }
    // There is more to it than was followed.
    BTreeMap::new()
}

fn instruction(code: &impl Code, at: u64) -> Option<Instruction> {
    let decoder = Decoder::with_ip(64, code.bytes_at(at)?, at, DecoderOptions::NONE);
    let instruction = decoder.into_iter().next()?;
    (!instruction.is_invalid()).then_some(instruction)
}

/// In which of the arguments a function is told how much memory to give.
type Given = &'static [Register];

const PLAIN: Given = &[Register::RDI];
const COUNTED: Given = &[Register::RDI, Register::RSI];

/// What a function of an allocator does. Each is given the allocator's context first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// `f(context, size)`
    Malloc,
    /// `f(context, number, size)`
    Calloc,
    /// `f(context, block, size)`
    Realloc,
}

impl Allocator {
    const fn given(self) -> Given {
        match self {
            Self::Malloc => &[Register::RSI],
            Self::Calloc => &[Register::RSI, Register::RDX],
            Self::Realloc => &[Register::RDX],
        }
    }
}

fn by_name(name: &str) -> Option<Given> {
    match name {
        "malloc" | "PyMem_RawMalloc" => Some(PLAIN),
        "calloc" | "PyMem_RawCalloc" => Some(COUNTED),
        _ => None,
    }
}

/// Where the code to which a call returns that gave no pool has the size.
fn after_call(code: &impl Code, allocators: &BTreeMap<u64, Given>, back: u64) -> Option<SizeAt> {
    let mut registers = Registers::new();
    registers.forget_after_call();
    registers.set(Register::RAX, Some(OUTCOME));
    Ways::new(code, allocators, None).size(back, registers)
}

/// All ways that the code can go where it gets no memory from pymalloc.
struct Ways<'a, C> {
    code: &'a C,
    allocators: &'a BTreeMap<u64, Given>,
    /// What functions are told that are called by a pointer of the program's.
    unnamed: Option<Given>,
    info: InstructionInfoFactory,
    steps: usize,
    /// What each way that asks for memory asks for.
    found: Vec<Option<SizeAt>>,
}

impl<'a, C: Code> Ways<'a, C> {
    fn new(code: &'a C, allocators: &'a BTreeMap<u64, Given>, unnamed: Option<Given>) -> Self {
        Self {
            code,
            allocators,
            unnamed,
            info: InstructionInfoFactory::new(),
            steps: 0,
            found: Vec::new(),
        }
    }

    /// What all ways agree on.
    fn size(mut self, next: u64, registers: Registers) -> Option<SizeAt> {
        self.follow(next, registers, PARTINGS);
        if self.steps >= ALL_STEPS {
            return None;
        }
        // Where nothing was asked for, a single byte is given.
        let nothing = |size: &&Option<SizeAt>| matches!(size, Some(SizeAt::In(Place::Constant(0 | 1))));
        let mut found = self.found.iter().filter(|size| !nothing(size));
        match found.next() {
            Some(first) => (*first).filter(|_| found.all(|found| found == first)),
            None => (!self.found.is_empty()).then_some(SizeAt::In(Place::Constant(0))),
        }
    }

    fn follow(&mut self, mut next: u64, mut registers: Registers, partings: usize) {
        for _ in 0..STEPS {
            self.steps += 1;
            if self.steps >= ALL_STEPS {
                return;
            }
            let Some(instruction) = instruction(self.code, next) else {
                return;
            };
            if let Some(given) = self.allocates(&instruction, &registers) {
                self.found.push(argument(&registers, given));
                return;
            }
            next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::UnconditionalBranch => next = instruction.near_branch_target(),
                FlowControl::ConditionalBranch => {
                    let target = instruction.near_branch_target();
                    let of_outcome = registers.tested() == Some(OUTCOME);
                    match instruction.condition_code() {
                        ConditionCode::e if of_outcome => next = target,
                        ConditionCode::ne if of_outcome => {}
                        _ if partings == 0 => return,
                        _ => self.follow(target, registers.clone(), partings - 1),
                    }
                }
                _ => return,
            }
            registers.step(&instruction, &mut self.info);
        }
    }

    /// Whether an instruction goes to a function that asks libc for memory.
    fn allocates(&self, instruction: &Instruction, registers: &Registers) -> Option<Given> {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                let own = self.allocators.get(&target).copied();
                own.or_else(|| by_name(self.code.behind_stub(target)?))
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                let Some(pointer) = registers.fixed(instruction) else {
                    return self.unnamed;
                };
                let own = self.allocators.get(&pointer).copied();
                own.or_else(|| self.code.import(pointer).map_or(self.unnamed, by_name))
            }
            _ => None,
        }
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
        Held::Address(_) | Held::Outcome => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code from 0x1000 on, in which 0x9000 is `malloc` and 0x9100 `calloc`.
    struct Made(Vec<u8>);

    impl Code for Made {
        fn bytes_at(&self, address: u64) -> Option<&[u8]> {
            self.0.get(usize::try_from(address.checked_sub(0x1000)?).ok()?..)
        }

        fn behind_stub(&self, address: u64) -> Option<&str> {
            match address {
                0x9000 => Some("malloc"),
                0x9100 => Some("calloc"),
                _ => None,
            }
        }

        fn import(&self, _: u64) -> Option<&str> {
            None
        }
    }

    fn size(code: &[&[u8]]) -> Option<SizeAt> {
        after_call(&Made(code.concat()), &BTreeMap::new(), 0x1000)
    }

    /// A call from this place on to one of the functions.
    fn call(at: usize, to: u64) -> Vec<u8> {
        let distance = to.wrapping_sub(0x1000 + at as u64 + 5) as u32;
        [&[0xe8][..], &distance.to_le_bytes()].concat()
    }

    const TEST_RAX: &[u8] = &[0x48, 0x85, 0xc0];
    const RDI_IS_RBX: &[u8] = &[0x48, 0x89, 0xdf];
    const RDI_IS_R12: &[u8] = &[0x4c, 0x89, 0xe7];
    const RBX: SizeAt = SizeAt::In(Place::Register(3));

    #[test]
    fn where_there_is_no_pool_libc_is_asked() {
        // test rax, rax; jne +64; mov rdi, rbx; call malloc
        let code: [&[u8]; 4] = [TEST_RAX, &[0x75, 0x40], RDI_IS_RBX, &call(8, 0x9000)];
        assert_eq!(size(&code), Some(RBX));
        // A number and a size.
        let rsi_is_r12: &[u8] = &[0x4c, 0x89, 0xe6];
        let code: [&[u8]; 5] = [TEST_RAX, &[0x75, 0x40], RDI_IS_RBX, rsi_is_r12, &call(11, 0x9100)];
        let product = SizeAt::Product(Place::Register(3), Place::Register(12));
        assert_eq!(size(&code), Some(product));
        // What is called is no allocator.
        let code: [&[u8]; 4] = [TEST_RAX, &[0x75, 0x40], RDI_IS_RBX, &call(8, 0x9200)];
        assert_eq!(size(&code), None);
    }

    #[test]
    fn a_pointer_may_be_found_by_where_its_table_is() {
        let allocators = BTreeMap::from([(0x5008, PLAIN)]);
        let through = |distance: u8| {
            // test rax, rax; jne +64; lea rax, [0x5000]; mov rdi, rbx; call [rax + distance]
            let lea: &[u8] = &[0x48, 0x8d, 0x05, 0xf4, 0x3f, 0, 0];
            let call: &[u8] = &[0xff, 0x50, distance];
            let code = [TEST_RAX, &[0x75, 0x40], lea, RDI_IS_RBX, call].concat();
            after_call(&Made(code), &allocators, 0x1000)
        };
        assert_eq!(through(8), Some(RBX));
        assert_eq!(through(16), None);
    }

    #[test]
    fn ways_that_do_not_agree_tell_nothing() {
        // test rax, rax; jne +64; test r13, r13; je +8 (to the second); mov rdi, rbx; call malloc; mov rdi, r12; call malloc
        let parted = |second: &[u8]| {
            let at = 18 + second.len();
            let code: [&[u8]; 7] = [
                TEST_RAX,
                &[0x75, 0x40],
                &[0x4d, 0x85, 0xed],
                &[0x74, 0x08],
                RDI_IS_RBX,
                &call(13, 0x9000),
                &[second, &call(at, 0x9000)].concat(),
            ];
            size(&code)
        };
        assert_eq!(parted(RDI_IS_RBX), Some(RBX));
        assert_eq!(parted(RDI_IS_R12), None);
        // mov edi, 1: where nothing is asked for.
        assert_eq!(parted(&[0xbf, 1, 0, 0, 0]), Some(RBX));
        // mov rdi, rcx: nobody knows what is in it after a call.
        assert_eq!(parted(&[0x48, 0x89, 0xcf]), None);
    }

    #[test]
    fn a_size_is_followed_through_a_function() {
        let at = |code: &[&[u8]], address| {
            let given = Value::plain(Held::In(Place::Register(6)));
            states(&Made(code.concat()), 0x1000)
                .get(&address)
                .and_then(|state| state.place_of(given))
        };
        // push rbx; mov rbx, rsi; xor esi, esi; call elsewhere; nop
        let code: [&[u8]; 5] = [
            &[0x53],
            &[0x48, 0x89, 0xf3],
            &[0x31, 0xf6],
            &call(6, 0x9200),
            &[0x90],
        ];
        assert_eq!(at(&code, 0x100b), Some(Place::Register(3)));
        // mov [rsp - 8], rsi; sub rsp, 16; xor esi, esi; nop
        let code: [&[u8]; 4] = [
            &[0x48, 0x89, 0x74, 0x24, 0xf8],
            &[0x48, 0x83, 0xec, 0x10],
            &[0x31, 0xf6],
            &[0x90],
        ];
        assert_eq!(at(&code, 0x100b), Some(Place::Memory(4, 8)));
        // test rdi, rdi; je +2; xor esi, esi; nop: it is there on one way only.
        let code: [&[u8]; 4] = [&[0x48, 0x85, 0xff], &[0x74, 0x02], &[0x31, 0xf6], &[0x90]];
        assert_eq!(at(&code, 0x1005), Some(Place::Register(6)));
        assert_eq!(at(&code, 0x1007), None);
        // A loop: dec rsi; jne -5; nop
        let code: [&[u8]; 3] = [&[0x48, 0xff, 0xce], &[0x75, 0xfb], &[0x90]];
        assert_eq!(at(&code, 0x1000), None);
    }

    #[test]
    fn code_that_parts_without_end_is_left() {
        // jne +0, over and over
        let code = [0x75, 0].repeat(10_000);
        assert_eq!(size(&[&code]), None);
        // jmp to itself
        assert_eq!(size(&[&[0xeb, 0xfe]]), None);
    }
}
