//! The placer for x86-64, after the kernel's arch/x86/kernel/uprobes.c.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfo, InstructionInfoFactory,
    Mnemonic, NasmFormatter, OpAccess, OpKind, Register,
};
use memwatch_common::Function;

use super::placer::{Code, Cost, Emulation, Fallback, PlaceError, Placement};

/// Bytes after the entry that are searched for a place. Prologues are shorter.
const MAX_LINE: usize = 192;

/// Bytes after the entry that are searched for branches when the function's size is not known.
const MAX_SWEEP: usize = 4096;

/// Integer arguments in the System V calling convention.
const ARGUMENTS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];

/// What the kernel does with an instruction under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Emulated,
    Optimised,
    Stepped,
    /// Refused, or done wrongly by some versions.
    Refused,
}

pub(super) fn place(
    code: &Code<'_>,
    function: Function,
    emulation: Emulation,
) -> Result<Placement, PlaceError> {
    let body = body(code);
    if body.is_empty() {
        return Err(PlaceError::NoCode);
    }
    let line = walk(code, body, function, emulation);
    let branches = Branches::of(code.entry, body);
    let mut fallback = line.end;
    if let Some((offset, instruction, cost)) = line.cheap {
        match branches.obstacle(offset) {
            None => return Ok(placement(offset, &instruction, cost, None)),
            Some(obstacle) => fallback = obstacle,
        }
    }
    match line.stepped {
        Some((offset, instruction)) if branches.obstacle(offset).is_none() => Ok(placement(
            offset,
            &instruction,
            Cost::SingleStepped,
            Some(fallback),
        )),
        _ => Err(line
            .first
            .map_or(PlaceError::Undecodable, |first| PlaceError::Refused {
                instruction: text(&first),
            })),
    }
}

/// The bytes that belong to the function, as far as is known.
fn body<'a>(code: &Code<'a>) -> &'a [u8] {
    let most = match code.size {
        Some(size) => usize::try_from(size).unwrap_or(usize::MAX),
        None => MAX_SWEEP,
    };
    &code.bytes[..most.min(code.bytes.len())]
}

fn placement(offset: u32, instruction: &Instruction, cost: Cost, fallback: Option<Fallback>) -> Placement {
    Placement {
        offset_from_entry: offset,
        instruction: text(instruction),
        cost,
        fallback,
    }
}

fn text(instruction: &Instruction) -> String {
    let mut formatter = NasmFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_space_after_operand_separator(true);
    let mut out = String::new();
    formatter.format(instruction, &mut out);
    out
}

/// The straight line from the entry.
struct Line {
    first: Option<Instruction>,
    /// The first instruction that is cheap to probe.
    cheap: Option<(u32, Instruction, Cost)>,
    /// The first instruction that can be probed at all.
    stepped: Option<(u32, Instruction)>,
    /// Why the line ended without a cheap instruction.
    end: Fallback,
}

fn walk(code: &Code<'_>, body: &[u8], function: Function, emulation: Emulation) -> Line {
    let mut line = Line {
        first: None,
        cheap: None,
        stepped: None,
        end: Fallback::CodeEnds,
    };
    let mut decoder = Decoder::with_ip(64, body, code.entry, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let needed = &ARGUMENTS[..function.arguments().min(ARGUMENTS.len())];
    let limit = code.limit.map_or(MAX_LINE, |limit| {
        MAX_LINE.min(usize::try_from(limit).unwrap_or(MAX_LINE))
    });
    while decoder.can_decode() {
        let start = decoder.position();
        if start >= limit {
            line.end = if limit < MAX_LINE {
                Fallback::OtherEntry
            } else {
                Fallback::CodeEnds
            };
            break;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            line.end = Fallback::Undecodable;
            break;
        }
        line.first.get_or_insert(instruction);
        let offset = start as u32;
        match rule(
            &body[start..start + instruction.len()],
            code.entry.wrapping_add(start as u64),
            emulation,
        ) {
            Rule::Emulated => line.cheap = Some((offset, instruction, Cost::Emulated)),
            Rule::Optimised => line.cheap = Some((offset, instruction, Cost::Nop5Optimised)),
            Rule::Stepped => {
                line.stepped.get_or_insert((offset, instruction));
            }
            Rule::Refused => {}
        }
        if line.cheap.is_some() {
            break;
        }
        if let Some(end) = obstacle(&instruction, info.info(&instruction), needed) {
            line.end = end;
            break;
        }
    }
    line
}

/// Why the places behind `instruction` would not see what the entry sees.
fn obstacle(instruction: &Instruction, info: &InstructionInfo, needed: &[Register]) -> Option<Fallback> {
    if flow_control(instruction) != FlowControl::Next {
        return Some(Fallback::LineLeft);
    }
    for used in info.used_registers() {
        if writes(used.access()) {
            let register = used.register().full_register();
            if register == Register::RSP {
                return Some(Fallback::StackPointerMoved);
            }
            if needed.contains(&register) {
                return Some(Fallback::ArgumentWritten);
            }
        }
    }
    // A store through rsp can hit the return address; one below it lies where the kernel's call for an optimised
    // no-op would write. Compilers move rsp first, so nothing is lost by stopping here.
    let stores_to_stack = info.used_memory().iter().any(|memory| {
        writes(memory.access()) && (memory.base() == Register::RSP || memory.index() == Register::RSP)
    });
    stores_to_stack.then_some(Fallback::ReturnAddressAtRisk)
}

/// `hlt` ends a program: musl uses it so.
pub(super) fn flow_control(instruction: &Instruction) -> FlowControl {
    if instruction.mnemonic() == Mnemonic::Hlt {
        FlowControl::Exception
    } else {
        instruction.flow_control()
    }
}

pub(super) fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// What is known of the jumps inside one function.
struct Branches {
    /// The nearest byte after the entry that a branch goes to, counted from the entry.
    nearest: Option<u64>,
    /// There is a jump whose targets lie in a table or a register.
    table: bool,
}

impl Branches {
    fn of(entry: u64, body: &[u8]) -> Self {
        let mut found = Self {
            nearest: None,
            table: false,
        };
        for instruction in Decoder::with_ip(64, body, entry, DecoderOptions::NONE) {
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => {
                }
                FlowControl::IndirectBranch => found.table |= !instruction.is_ip_rel_memory_operand(),
                FlowControl::UnconditionalBranch
                | FlowControl::ConditionalBranch
                | FlowControl::Call
                | FlowControl::IndirectCall
                | FlowControl::XbeginXabortXend => {
                    if let Some(target) = direct_target(&instruction) {
                        let distance = target.wrapping_sub(entry);
                        if distance != 0 && distance < body.len() as u64 {
                            found.nearest = Some(found.nearest.map_or(distance, |near| near.min(distance)));
                        }
                    }
                }
            }
        }
        found
    }

    /// Why a probe `offset` bytes after the entry would not be passed once for each call.
    fn obstacle(&self, offset: u32) -> Option<Fallback> {
        if offset == 0 {
            None
        } else if self.nearest.is_some_and(|nearest| nearest <= u64::from(offset)) {
            Some(Fallback::BranchTarget)
        } else {
            self.table.then_some(Fallback::JumpTable)
        }
    }
}

pub(super) fn direct_target(instruction: &Instruction) -> Option<u64> {
    (instruction.op_count() > 0
        && matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        ))
    .then(|| instruction.near_branch_target())
}

/// An instruction's bytes, taken apart as far as the kernel's rules look at them.
struct Opcode {
    operand_size: bool,
    repeat: bool,
    rex: Option<u8>,
    /// Without prefixes; the first byte decides.
    rest: [u8; 2],
}

/// `None` for what the kernel refuses by its prefixes.
fn opcode(bytes: &[u8]) -> Option<Opcode> {
    let mut found = Opcode {
        operand_size: false,
        repeat: false,
        rex: None,
        rest: [0; 2],
    };
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            // is_prefix_bad(): es, cs, ss, ds, lock.
            0x26 | 0x2e | 0x36 | 0x3e | 0xf0 => return None,
            0x66 => found.operand_size = true,
            0xf2 | 0xf3 => found.repeat = true,
            0x64 | 0x65 | 0x67 => {}
            _ => break,
        }
        at += 1;
    }
    if let rex @ 0x40..=0x4f = *bytes.get(at)? {
        found.rex = Some(rex);
        at += 1;
    }
    found.rest = [*bytes.get(at)?, bytes.get(at + 1).copied().unwrap_or(0)];
    Some(found)
}

/// `bytes` is exactly one instruction.
fn rule(bytes: &[u8], address: u64, emulation: Emulation) -> Rule {
    let Some(opcode) = opcode(bytes) else {
        return Rule::Refused;
    };
    match opcode.rest[0] {
        0x50..=0x57 => match (bytes.len(), opcode.rex) {
            (1, None) | (2, Some(0x41)) => Rule::Emulated,
            _ => Rule::Stepped,
        },
        // Some versions take `xchg r8, rax` (41 90) for a no-op. The two-byte no-op was refused before 6.2.
        0x90 if opcode.rex.is_some() => Rule::Refused,
        0x90 if opcode.operand_size && !emulation.long_nops => Rule::Refused,
        0x90 => Rule::Emulated,
        0x70..=0x7f | 0xe8 | 0xe9 | 0xeb => branch(&opcode),
        0x0f => match opcode.rest[1] {
            0x80..=0x8f => branch(&opcode),
            0x1f if emulation.long_nops => long_nop(bytes, address),
            // syscall, sysenter, ud2
            0x05 | 0x34 | 0x0b => Rule::Refused,
            _ => Rule::Stepped,
        },
        // Vector instructions with a VEX, EVEX or XOP prefix: the kernel looks only at the byte behind the prefix
        // and would take `vzeroupper` (c5 f8 77) for `ja`.
        0xc4 | 0xc5 | 0x62 => Rule::Refused,
        0x8f if opcode.rest[1] & 0x38 != 0 => Rule::Refused,
        // Loading ss holds off exceptions.
        0x8e if opcode.rest[1] & 0x38 == 0x10 => Rule::Refused,
        byte if is_bad(byte) => Rule::Refused,
        _ => Rule::Stepped,
    }
}

/// Branches with an operand size of 16 bits are refused: processors differ in what they do.
fn branch(opcode: &Opcode) -> Rule {
    if opcode.operand_size {
        Rule::Refused
    } else {
        Rule::Emulated
    }
}

/// Only the forms that compilers and the kernel itself use are emulated; others are single-stepped.
fn long_nop(bytes: &[u8], address: u64) -> Rule {
    const PAGE: u64 = 4096;
    match *bytes {
        // An optimised no-op must not cross a page; one that does is left as it is and emulated.
        [0x0f, 0x1f, 0x44, 0, 0] if address % PAGE <= PAGE - 5 => Rule::Optimised,
        [0x0f, 0x1f, 0x00 | 0x40 | 0x44 | 0x80 | 0x84, ref rest @ ..]
        | [0x66, 0x0f, 0x1f, 0x44, ref rest @ ..]
            if rest.iter().all(|&byte| byte == 0) =>
        {
            Rule::Emulated
        }
        _ => Rule::Stepped,
    }
}

/// First bytes that the kernel's table for 64-bit programs does not allow.
fn is_bad(byte: u8) -> bool {
    matches!(
        byte,
        0x06 | 0x07
            | 0x0e
            | 0x16
            | 0x17
            | 0x1e
            | 0x1f
            | 0x27
            | 0x2f
            | 0x37
            | 0x3f
            | 0x60..=0x62
            | 0x6c..=0x6f
            | 0x82
            | 0x9a
            | 0xcc..=0xcf
            | 0xd4..=0xd6
            | 0xe4..=0xe7
            | 0xea
            | 0xec..=0xef
            | 0xf1
            | 0xf4
            | 0xfa
            | 0xfb
    )
}
