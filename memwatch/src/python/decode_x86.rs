//! Reading facts out of x86-64 code.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

fn instructions(address: u64, code: &[u8]) -> impl Iterator<Item = Instruction> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE)
        .into_iter()
        .take_while(|instruction| !instruction.is_invalid())
}

/// The addresses that the code reads or writes directly, in its order.
pub fn data_addresses(address: u64, code: &[u8]) -> Vec<u64> {
    instructions(address, code)
        .filter(|instruction| instruction.is_ip_rel_memory_operand() || has_absolute_operand(instruction))
        .map(|instruction| instruction.memory_displacement64())
        .collect()
}

/// The same, and numbers that may be addresses: programs at fixed addresses name data so.
pub fn named_addresses(address: u64, code: &[u8]) -> Vec<u64> {
    let plain = instructions(address, code)
        .filter(|instruction| instruction.mnemonic() == Mnemonic::Mov)
        .filter(|instruction| {
            matches!(
                instruction.op1_kind(),
                OpKind::Immediate32 | OpKind::Immediate32to64
            )
        })
        .map(|instruction| u64::from(instruction.immediate32()));
    let mut named = data_addresses(address, code);
    named.extend(plain);
    named
}

/// Programs at fixed addresses name them plainly.
fn has_absolute_operand(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None
}

/// Where direct jumps of the code lead that leave it.
pub fn jumps_out(address: u64, code: &[u8]) -> Vec<u64> {
    let own = address..address.saturating_add(code.len() as u64);
    instructions(address, code)
        .filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            )
        })
        .map(|instruction| instruction.near_branch_target())
        .filter(|target| !own.contains(target))
        .collect()
}

/// Where direct calls and unconditional jumps of the code lead.
pub fn branches(address: u64, code: &[u8]) -> Vec<u64> {
    instructions(address, code)
        .filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::UnconditionalBranch
            )
        })
        .map(|instruction| instruction.near_branch_target())
        .collect()
}

/// Where the code stores a 32-bit constant at a small offset from a register. Looks at every byte, as it is meant for
/// whole programs: what only looks like such an instruction can be among the answers.
pub fn stores(address: u64, code: &[u8], offset: u8, value: u32) -> Vec<u64> {
    let [a, b, c, d] = value.to_le_bytes();
    // mov dword [register + offset], value; with rsp as the register it is a local variable.
    let is_store = |window: &[u8]| {
        window[0] == 0xc7
            && (0x40..=0x47).contains(&window[1])
            && window[1] != 0x44
            && window[2..] == [offset, a, b, c, d]
    };
    let places = code.windows(7).enumerate().filter(|(_, window)| is_store(window));
    places.map(|(at, _)| address.wrapping_add(at as u64)).collect()
}

/// Instructions that store a 32-bit 1 where a register points to, and the numbers of these registers.
pub fn stores_of_one(address: u64, code: &[u8]) -> Vec<(u64, u8)> {
    instructions(address, code)
        .filter(|instruction| {
            instruction.code() == Code::Mov_rm32_imm32
                && instruction.op0_kind() == OpKind::Memory
                && instruction.immediate32() == 1
                && instruction.memory_displacement64() == 0
                && instruction.memory_index() == Register::None
                && instruction.memory_base().is_gpr64()
                && instruction.memory_base() != Register::RSP
        })
        .map(|instruction| (instruction.ip(), instruction.memory_base().number() as u8))
        .collect()
}

/// Calls and jumps through the pointer at `slot`, and through one that is `distance` bytes after what a register holds.
pub fn calls_through(address: u64, code: &[u8], slot: u64, distance: Option<u32>) -> usize {
    // `call` and `jmp` are `0xff` with 2 or 4 in the middle of the next byte.
    let calls = |(at, window): (usize, &[u8])| {
        let &[0xff, how, ref rest @ ..] = window else {
            return false;
        };
        let number = |from: usize| Some(u32::from_le_bytes(*rest.get(from..)?.first_chunk()?));
        match how {
            0x15 | 0x25 => number(0).is_some_and(|distance| {
                let next = address.wrapping_add(at as u64 + 6);
                next.wrapping_add_signed(distance.cast_signed().into()) == slot
            }),
            0x14 | 0x24 => rest[0] == 0x25 && number(1).map(u64::from) == Some(slot),
            0x90..=0x93 | 0x95..=0x97 | 0xa0..=0xa3 | 0xa5..=0xa7 => {
                distance.is_some() && number(0) == distance
            }
            _ => false,
        }
    };
    code.windows(7)
        .enumerate()
        .filter(|window| calls(*window))
        .count()
}

/// Where the code names `target` in an operand: by its distance, or plainly in programs at fixed addresses. Calls and
/// jumps do not count.
pub fn references(address: u64, code: &[u8], target: u64) -> Vec<u64> {
    let names = |(at, window): &(usize, &[u8])| {
        let &[before, a, b, c, d] = *window else {
            return false;
        };
        let value = i32::from_le_bytes([a, b, c, d]);
        let next = address.wrapping_add(*at as u64 + 5);
        let relative = next.wrapping_add_signed(value.into()) == target && !matches!(before, 0xe8 | 0xe9);
        relative || u64::from(value.cast_unsigned()) == target
    };
    let places = code.windows(5).enumerate().filter(names);
    places.map(|(at, _)| address.wrapping_add(at as u64)).collect()
}

/// Where calls of `target` return to. Looks at every byte, as `stores` does.
pub fn calls(address: u64, code: &[u8], target: u64) -> Vec<u64> {
    let calls = |(at, window): (usize, &[u8])| {
        let &[0xe8, a, b, c, d] = window else { return None };
        let back = address.wrapping_add(at as u64 + 5);
        let to = back.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into());
        (to == target).then_some(back)
    };
    code.windows(5).enumerate().filter_map(calls).collect()
}

/// The place of the pointer that code jumps through, if it does nothing else.
pub fn jumps_through(address: u64, code: &[u8]) -> Option<u64> {
    instructions(address, code)
        .find(|instruction| instruction.mnemonic() != Mnemonic::Endbr64)
        .filter(|instruction| instruction.flow_control() == FlowControl::IndirectBranch)
        .filter(Instruction::is_ip_rel_memory_operand)
        .map(|instruction| instruction.memory_displacement64())
}

/// A thread-local variable, as code gets at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadLocal {
    /// At a fixed distance from the thread pointer.
    Fixed(i64),
    /// The distance is in this slot of the global offset table.
    Slot(u64),
    /// The module's number is in the first, the offset in the second word of this slot; the variable is so many bytes
    /// after that.
    Module { slot: u64, after: i64 },
    /// The same, made by a resolver: what is there depends on how the library was loaded.
    Descriptor(u64),
}

/// The variable that a function returns which does little else.
pub fn returned_thread_local(address: u64, code: &[u8]) -> Option<ThreadLocal> {
    let mut slot_in: Option<(Register, u64)> = None;
    let mut argument: Option<u64> = None;
    let mut called = false;
    for instruction in instructions(address, code).take(24) {
        let through_fs = instruction.segment_prefix() == Register::FS;
        match instruction.mnemonic() {
            Mnemonic::Mov if through_fs && instruction.op0_register() == Register::RAX => {
                if instruction.memory_base() == Register::None {
                    return Some(ThreadLocal::Fixed(displacement(&instruction)));
                }
                let (register, slot) = slot_in?;
                return (register == instruction.memory_base()).then_some(ThreadLocal::Slot(slot));
            }
            Mnemonic::Mov if instruction.is_ip_rel_memory_operand() => {
                slot_in = Some((instruction.op0_register(), instruction.memory_displacement64()));
            }
            Mnemonic::Mov if called && instruction.memory_base() == Register::RAX => {
                let slot = argument?;
                let after = instruction.memory_displacement64() as i64;
                return Some(ThreadLocal::Module { slot, after });
            }
            Mnemonic::Lea if instruction.op0_register() == Register::RDI => {
                argument = Some(instruction.memory_displacement64());
            }
            Mnemonic::Lea if instruction.op0_register() == Register::RAX => {
                return Some(ThreadLocal::Descriptor(instruction.memory_displacement64()));
            }
            Mnemonic::Call => called = true,
            _ => {}
        }
        if instruction.flow_control() == FlowControl::Return {
            break;
        }
    }
    None
}

/// `fs:[0xffffffffffffffd8]` is a distance of -40; it may be written in 32 bits.
fn displacement(instruction: &Instruction) -> i64 {
    match instruction.memory_displ_size() {
        8 => instruction.memory_displacement64() as i64,
        _ => i64::from(instruction.memory_displacement32().cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_through_a_pointer_are_counted_in_every_model() {
        let count = |code: &[u8], distance| {
            let code = [code, &[0x90; 8]].concat();
            calls_through(0x1000, &code, 0x2006, distance)
        };
        // call [rip + 0x1000], jmp [rip + 0x1000]
        assert_eq!(count(&[0xff, 0x15, 0, 0x10, 0, 0], None), 1);
        assert_eq!(count(&[0xff, 0x25, 0, 0x10, 0, 0], None), 1);
        // call [rip + 0x1001]; mov rax, [rip + 0x1000]
        assert_eq!(count(&[0xff, 0x15, 1, 0x10, 0, 0], None), 0);
        assert_eq!(count(&[0x48, 0x8b, 0x05, 0xff, 0x0f, 0, 0], None), 0);
        // call [0x2006], jmp [0x2006], call [0x2007]
        assert_eq!(count(&[0xff, 0x14, 0x25, 6, 0x20, 0, 0], None), 1);
        assert_eq!(count(&[0xff, 0x24, 0x25, 6, 0x20, 0, 0], None), 1);
        assert_eq!(count(&[0xff, 0x14, 0x25, 7, 0x20, 0, 0], None), 0);
        // call [rax + 0x318], jmp [r15 + 0x318]
        assert_eq!(count(&[0xff, 0x90, 0x18, 3, 0, 0], Some(0x318)), 1);
        assert_eq!(count(&[0x41, 0xff, 0xa7, 0x18, 3, 0, 0], Some(0x318)), 1);
        assert_eq!(count(&[0xff, 0x90, 0x18, 3, 0, 0], None), 0);
        assert_eq!(count(&[0xff, 0x90, 0x20, 3, 0, 0], Some(0x318)), 0);
        // inc dword ptr [rax + 0x318]
        assert_eq!(count(&[0xff, 0x80, 0x18, 3, 0, 0], Some(0x318)), 0);
    }

    #[test]
    fn a_thread_local_variable_is_found_in_every_model() {
        // mov rax, fs:[-0x28]; ret
        let fixed = [0x64, 0x48, 0x8b, 0x04, 0x25, 0xd8, 0xff, 0xff, 0xff, 0xc3];
        assert_eq!(
            returned_thread_local(0x1000, &fixed),
            Some(ThreadLocal::Fixed(-0x28))
        );
        // mov rax, [rip + 0x100]; mov rax, fs:[rax]; ret
        let slot = [0x48, 0x8b, 0x05, 0, 1, 0, 0, 0x64, 0x48, 0x8b, 0x00, 0xc3];
        assert_eq!(
            returned_thread_local(0x1000, &slot),
            Some(ThreadLocal::Slot(0x1107))
        );
        // lea rdi, [rip + 0x100]; call ..; mov rax, [rax + 0x28]; ret
        let module = [
            0x48, 0x8d, 0x3d, 0, 1, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x40, 0x28, 0xc3,
        ];
        assert_eq!(
            returned_thread_local(0x1000, &module),
            Some(ThreadLocal::Module {
                slot: 0x1107,
                after: 0x28
            })
        );
        assert_eq!(returned_thread_local(0x1000, &[0x31, 0xc0, 0xc3]), None);
    }

    #[test]
    fn stubs_and_calls_of_one_function_are_found() {
        // endbr64; jmp [rip + 0x100]
        let stub = [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 1, 0, 0];
        assert_eq!(jumps_through(0x1000, &stub), Some(0x110a));
        assert_eq!(jumps_through(0x1000, &stub[4..]), Some(0x1106));
        // mov rdi, rbx; jmp [rip + 0x100]: more than a stub.
        assert_eq!(
            jumps_through(0x1000, &[0x48, 0x89, 0xdf, 0xff, 0x25, 0, 1, 0, 0]),
            None
        );
        // nop; call +0x200; call +0x300
        let code = [0x90, 0xe8, 0, 2, 0, 0, 0xe8, 0, 3, 0, 0];
        assert_eq!(calls(0x1000, &code, 0x1206), [0x1006]);
    }

    #[test]
    fn jumps_calls_and_stores_are_found() {
        // je +0x100; call +0x200; jmp -2
        let code = [0x0f, 0x84, 0, 1, 0, 0, 0xe8, 0, 2, 0, 0, 0xeb, 0xfe];
        assert_eq!(jumps_out(0x1000, &code), [0x1106]);
        assert_eq!(branches(0x1000, &code), [0x120b, 0x100b]);
        // mov dword [rdx + 0x24], 0xffff; mov dword [rsp + ..], ..
        let code = [
            0x90, 0xc7, 0x42, 0x24, 0xff, 0xff, 0, 0, 0xc7, 0x44, 0x24, 0xff, 0xff, 0, 0,
        ];
        assert_eq!(stores(0x1000, &code, 0x24, 0xffff), [0x1001]);
        // mov dword [rdx], 1; mov dword [r12], 1; mov dword [rdx], 2; mov dword [rsp], 1
        let code = [
            0xc7, 0x02, 1, 0, 0, 0, 0x41, 0xc7, 0x04, 0x24, 1, 0, 0, 0, 0xc7, 0x02, 2, 0, 0, 0, 0xc7, 0x04,
            0x24, 1, 0, 0, 0,
        ];
        assert_eq!(stores_of_one(0x1000, &code), [(0x1000, 2), (0x1006, 12)]);
    }
}
