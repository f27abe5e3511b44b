//! Where pymalloc was inlined: the places at which code asks whether the allocator of a domain is pymalloc, and goes on
//! by itself if so. A probe on the branch that follows sees each small allocation there, but not its address.

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use memwatch_common::python::SMALL_BYTES;
use memwatch_common::size_at::{Place, SizeAt};

use super::allocator::PythonDomain;
use super::asked::{self, Allocator};
use super::file::ElfBytes;

/// Instructions between naming the function and comparing with it, and from there to the branch.
const TO_COMPARE: usize = 24;
const TO_BRANCH: usize = 5;

/// Instructions before the comparison in which the allocator is read.
const TO_READ: usize = 16;

/// A branch that is taken one way for pymalloc and the other for any other allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlinedSite {
    /// Of the branch.
    pub address: u64,
    /// `None`: it could not be told which domain asks.
    pub domain: Option<PythonDomain>,
    /// At the branch. `None`: it could not be told.
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
    pub kind: Allocator,
    pub slots: [Option<u64>; 2],
}

pub fn find(elf: &ElfBytes<'_>, functions: &[Allocating]) -> InlinedSites {
    let mut found = InlinedSites::default();
    for allocating in functions {
        for (address, code) in elf.pieces_with_reference(allocating.function) {
            find_in(elf, allocating, address, code, &mut found);
        }
    }
    found.sites.sort_by_key(|site| site.address);
    found.sites.dedup_by_key(|site| site.address);
    found
}

fn find_in(elf: &ElfBytes<'_>, allocating: &Allocating, address: u64, code: &[u8], found: &mut InlinedSites) {
    let code: Vec<Instruction> = decoder(address, code).into_iter().collect();
    let runtime = elf.symbol("_PyRuntime").map(|symbol| symbol.address);
    for (at, instruction) in code.iter().enumerate() {
        if !names(instruction, allocating.function) {
            continue;
        }
        let Some(branch) = branch_after(&code, at) else {
            found.unresolved += usize::from(!is_written_down(&code, at));
            continue;
        };
        let size = asked::by_other(elf, other_way(&code[branch]), allocating.kind);
        if size.is_some_and(|size| !may_be_small(size)) {
            continue;
        }
        found.sites.push(InlinedSite {
            address: code[branch].ip(),
            domain: domain(
                &code[at.saturating_sub(TO_READ)..branch],
                allocating.slots,
                runtime,
            ),
            size,
        });
    }
}

/// Compilers leave places that always want nothing, or more than pymalloc gives.
fn may_be_small(size: SizeAt) -> bool {
    match size {
        SizeAt::In(Place::Constant(bytes)) => (1..=SMALL_BYTES).contains(&bytes.into()),
        _ => true,
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

/// Whether what an instruction names is next put into a table of functions.
fn is_written_down(code: &[Instruction], at: usize) -> bool {
    let named = &code[at];
    if named.op0_kind() == OpKind::Memory {
        return named.mnemonic() == Mnemonic::Mov;
    }
    let register = named.op0_register().full_register();
    let first = straight(code, at + 1, TO_COMPARE)
        .map(|at| &code[at])
        .find(|next| next.op1_kind() == OpKind::Register && next.op1_register().full_register() == register);
    first.is_some_and(|next| {
        let to_memory = next.mnemonic() == Mnemonic::Mov && next.op0_kind() == OpKind::Memory;
        to_memory || next.op0_register().is_xmm()
    })
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

/// Where the code goes on if the allocator is another.
fn other_way(branch: &Instruction) -> u64 {
    if matches!(branch.condition_code(), ConditionCode::ne) {
        branch.near_branch_target()
    } else {
        branch.next_ip()
    }
}
