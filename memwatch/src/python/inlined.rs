//! Where pymalloc was inlined: the places at which code asks whether the allocator of a domain is pymalloc, and goes on
//! by itself if so. A probe on the branch that follows sees each small allocation there, but not its address.

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

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

/// Instructions after the branch in which the size is looked at.
const TO_SIZE: usize = 12;

/// A branch that is taken one way for pymalloc and the other for any other allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlinedSite {
    /// Of the branch.
    pub address: u64,
    /// `None`: it could not be told which domain asks.
    pub domain: Option<PythonDomain>,
    /// `None`: it could not be told.
    pub size: Option<SiteSize>,
}

/// How many bytes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteSize {
    /// In this register, as x86-64 numbers them.
    Register(u8),
    /// A constant of this size class.
    Class(u8),
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InlinedSites {
    pub sites: Vec<InlinedSite>,
    /// Places that name pymalloc's function and whose branch was not found.
    pub unresolved: usize,
}

/// `slots` are those of the mem and the object domain, `pools` is where an interpreter has its pools (since 3.12).
pub fn find(elf: &ElfBytes<'_>, pymalloc: u64, slots: [Option<u64>; 2], pools: Option<u32>) -> InlinedSites {
    let mut found = InlinedSites::default();
    for (address, code) in elf.pieces_with_reference(pymalloc) {
        let code: Vec<Instruction> = Decoder::with_ip(64, code, address, DecoderOptions::NONE)
            .into_iter()
            .collect();
        for (at, instruction) in code.iter().enumerate() {
            if !names(instruction, pymalloc) {
                continue;
            }
            match branch_after(&code, at) {
                Some(branch) => found.sites.push(InlinedSite {
                    address: code[branch].ip(),
                    domain: domain(&code[at.saturating_sub(TO_READ)..branch], slots),
                    size: size(&code, branch, pools),
                }),
                None => found.unresolved += 1,
            }
        }
    }
    found.sites.sort_by_key(|site| site.address);
    found.sites.dedup_by_key(|site| site.address);
    found
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
fn domain(before: &[Instruction], slots: [Option<u64>; 2]) -> Option<PythonDomain> {
    let domains = [PythonDomain::Mem, PythonDomain::Object];
    before.iter().rev().find_map(|instruction| {
        let read = instruction.is_ip_rel_memory_operand() && instruction.mnemonic() != Mnemonic::Lea;
        let at = slots
            .iter()
            .position(|slot| read && *slot == Some(instruction.memory_displacement64()))?;
        Some(domains[at])
    })
}

/// pymalloc first compares the size less 1 with 511. Where the size is a constant there is nothing to compare, but the
/// list of pools that it looks into belongs to one size class.
fn size(code: &[Instruction], branch: usize, pools: Option<u32>) -> Option<SiteSize> {
    const LARGEST: u64 = 511;
    let begin = if code[branch].condition_code() == ConditionCode::ne {
        branch + 1
    } else {
        let target = code[branch].near_branch_target();
        code.binary_search_by_key(&target, Instruction::ip).ok()?
    };
    let (mut less_one, mut lists) = (None, None);
    for at in straight(code, begin, TO_SIZE) {
        let instruction = &code[at];
        let (to, base) = (
            instruction.op0_register().full_register(),
            instruction.memory_base(),
        );
        let plain = instruction.memory_index() == Register::None;
        let distance = instruction.memory_displacement64();
        match instruction.mnemonic() {
            Mnemonic::Lea if plain && distance == u64::MAX => less_one = Some((to, base)),
            Mnemonic::Cmp if instruction.try_immediate(1).is_ok_and(|number| number == LARGEST) => {
                let (compared, register) = less_one?;
                return (to == compared).then_some(SiteSize::Register(register.number() as u8));
            }
            Mnemonic::Mov
                if plain
                    && base != Register::None
                    && pools.is_some_and(|pools| distance == u64::from(pools)) =>
            {
                lists = Some(to);
            }
            Mnemonic::Mov if lists == Some(base) && base != Register::None && to != Register::None => {
                let class = distance / LIST;
                let sound = plain && distance.is_multiple_of(LIST) && class < SIZE_CLASSES as u64;
                return sound.then_some(SiteSize::Class(class as u8));
            }
            _ => {}
        }
    }
    None
}
