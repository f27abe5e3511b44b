//! Whether a function does its work by handing it to another one that is watched too (x86-64).
//!
//! libstdc++'s `operator new` calls `malloc`, mimalloc's `cfree` is a jump to `mi_free`. Probing both ends would
//! cost twice and would see every `free` twice. An allocator's own `operator new`, on the other hand, mostly takes
//! a block from a cache without calling anything. The code tells which: all ways through it are followed.

use std::collections::HashSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Register};

use super::placer_x86::{direct_target, flow_control, writes};

/// Instructions looked at for one function, its callees included.
const MAX_INSTRUCTIONS: usize = 3000;

/// Callees of callees of callees are looked into, no deeper.
const MAX_DEPTH: u8 = 3;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<T> {
    /// Another function that is watched and has the same direction (allocates, or frees).
    Watched(T),
    NeverReturns,
    Other,
}

/// Which forwarding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Calls and jumps. For operators: a new and a delete that both wrap malloc and free can be left out together,
    /// whatever they do to the pointer in between.
    CallsAndJumps,
    /// Jumps as the last act only: what the other function returns is what this one returns. For all others, which
    /// may hand out a different pointer than the one they get.
    JumpsThatAllocate,
    /// The same, and with the block unchanged in the first argument.
    JumpsThatFree,
}

/// The surroundings of the code.
pub(super) trait Surroundings {
    type Function: Copy;
    /// The code from `address` on.
    fn code(&self, address: u64) -> Option<&[u8]>;
    /// The function that begins at `address`.
    fn function(&self, address: u64) -> Target<Self::Function>;
    /// The function whose address the dynamic linker puts at `slot`.
    fn import(&self, slot: u64) -> Target<Self::Function>;
}

/// The watched function to which the code at `entry` always leads, if it always leads to one. Ways through it that
/// do nothing at all (the check for a null pointer) do not count.
pub(super) fn leads_to<S: Surroundings>(surroundings: &S, entry: u64, mode: Mode) -> Option<S::Function> {
    let mut walk = Walk {
        surroundings,
        mode,
        budget: MAX_INSTRUCTIONS,
        info: InstructionInfoFactory::new(),
    };
    walk.function(entry, MAX_DEPTH)
}

/// What a path has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    at: u64,
    /// It called something or wrote memory: a return now is no trivial one.
    worked: bool,
    /// The first argument register was written.
    argument_written: bool,
}

/// How a path goes on after an instruction.
struct Step<T> {
    next: [Option<State>; 2],
    /// It ended in the watched function.
    leads: Option<T>,
    /// It ended after work of its own, or cannot be followed.
    own: bool,
}

impl<T> Step<T> {
    /// The path ends here without a trace.
    const HARMLESS: Self = Self {
        next: [None; 2],
        leads: None,
        own: false,
    };
    const OWN: Self = Self {
        own: true,
        ..Self::HARMLESS
    };

    fn next(state: State) -> Self {
        Self {
            next: [Some(state), None],
            ..Self::HARMLESS
        }
    }

    fn leads(function: T) -> Self {
        Self {
            leads: Some(function),
            ..Self::HARMLESS
        }
    }
}

struct Walk<'a, S> {
    surroundings: &'a S,
    mode: Mode,
    budget: usize,
    info: InstructionInfoFactory,
}

impl<S: Surroundings> Walk<'_, S> {
    fn function(&mut self, entry: u64, depth: u8) -> Option<S::Function> {
        let mut found = None;
        let mut seen = HashSet::new();
        let mut open = vec![State {
            at: entry,
            worked: false,
            argument_written: false,
        }];
        while let Some(state) = open.pop() {
            if !seen.insert(state) {
                continue;
            }
            self.budget = self.budget.checked_sub(1)?;
            let step = self.step(state, depth);
            if step.own {
                return None;
            }
            found = found.or(step.leads);
            open.extend(step.next.into_iter().flatten());
        }
        found
    }

    fn step(&mut self, state: State, depth: u8) -> Step<S::Function> {
        let Some(code) = self.surroundings.code(state.at) else {
            return Step::OWN;
        };
        let instruction = Decoder::with_ip(64, code, state.at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Step::OWN;
        }
        let next = self.after(&instruction, state);
        match flow_control(&instruction) {
            FlowControl::Next => Step::next(next),
            FlowControl::Return if state.worked => Step::OWN,
            FlowControl::Return | FlowControl::Exception => Step::HARMLESS,
            FlowControl::Call | FlowControl::IndirectCall => self.call(&instruction, next, depth),
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => self.jump(&instruction, state),
            FlowControl::ConditionalBranch => {
                let mut step = self.jump(&instruction, state);
                step.next[1] = Some(next);
                step
            }
            FlowControl::Interrupt | FlowControl::XbeginXabortXend => Step::OWN,
        }
    }

    fn after(&mut self, instruction: &Instruction, mut state: State) -> State {
        let info = self.info.info(instruction);
        state.argument_written |= info
            .used_registers()
            .iter()
            .any(|used| writes(used.access()) && used.register().full_register() == Register::RDI);
        // Saving registers on the stack is no work.
        state.worked |= info
            .used_memory()
            .iter()
            .any(|memory| writes(memory.access()) && memory.base() != Register::RSP);
        state.at = instruction.next_ip();
        state
    }

    fn call(&mut self, instruction: &Instruction, mut next: State, depth: u8) -> Step<S::Function> {
        match self.target(instruction) {
            (Target::Watched(function), _) if self.mode == Mode::CallsAndJumps => {
                return Step::leads(function);
            }
            (Target::NeverReturns, _) => return Step::HARMLESS,
            (Target::Other, Some(address)) if self.mode == Mode::CallsAndJumps && depth > 0 => {
                if let Some(function) = self.function(address, depth - 1) {
                    return Step::leads(function);
                }
            }
            _ => {}
        }
        next.worked = true;
        Step::next(next)
    }

    fn jump(&mut self, instruction: &Instruction, state: State) -> Step<S::Function> {
        match self.target(instruction) {
            (Target::Watched(function), _) => {
                let unchanged = self.mode == Mode::CallsAndJumps
                    || !state.worked && (self.mode == Mode::JumpsThatAllocate || !state.argument_written);
                if unchanged {
                    Step::leads(function)
                } else {
                    Step::OWN
                }
            }
            (Target::NeverReturns, _) => Step::HARMLESS,
            (Target::Other, Some(address)) => Step::next(State { at: address, ..state }),
            (Target::Other, None) => Step::OWN,
        }
    }

    /// Where a call or jump goes, and the address if it is in this module.
    fn target(&self, instruction: &Instruction) -> (Target<S::Function>, Option<u64>) {
        let Some(address) = direct_target(instruction) else {
            return (
                slot(instruction).map_or(Target::Other, |slot| self.surroundings.import(slot)),
                None,
            );
        };
        match self.surroundings.function(address) {
            Target::Other => match self.stub(address) {
                Some(slot) => (self.surroundings.import(slot), None),
                None => (Target::Other, Some(address)),
            },
            known => (known, Some(address)),
        }
    }

    /// The slot through which the stub at `address` jumps, if there is a stub of the procedure linkage table.
    fn stub(&self, address: u64) -> Option<u64> {
        let code = self.surroundings.code(address)?;
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let first = decoder.decode();
        if first.code() == Code::Endbr64 {
            slot(&decoder.decode())
        } else {
            slot(&first)
        }
    }
}

/// The slot of `call [rip + x]` and `jmp [rip + x]`.
fn slot(instruction: &Instruction) -> Option<u64> {
    (matches!(
        instruction.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall
    ) && instruction.is_ip_rel_memory_operand())
    .then(|| instruction.ip_rel_memory_address())
}
