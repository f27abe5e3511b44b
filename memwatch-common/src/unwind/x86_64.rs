//! One step of the unwinder on x86-64, the same code in the kernel and in user space.
#![expect(
    clippy::inline_always,
    reason = "the kernel's verifier checks calls of other functions without their context"
)]

use super::Rule;

/// Nothing is known; the value of a zeroed [`Rule`].
pub const CFA_NONE: u8 = 0;
/// There is a rule, but not one of the kinds below.
pub const CFA_UNSUPPORTED: u8 = 1;
/// `rsp + cfa_offset`
pub const CFA_RSP: u8 = 2;
/// `rbp + cfa_offset`
pub const CFA_RBP: u8 = 3;
/// `*(rsp + cfa_offset) + cfa_add`: signal frames, and assembly that moved the stack to an aligned buffer.
pub const CFA_RSP_READ: u8 = 4;
/// `*(rbp + cfa_offset) + cfa_add`: gcc's stack realignment for AVX.
pub const CFA_RBP_READ: u8 = 5;
/// `rsp + 8 + (rip & 15 >= cfa_offset ? 8 : 0)`: entries of a lazily bound PLT.
pub const CFA_PLT: u8 = 6;
/// `register + cfa_offset`: assembly, and the first instructions of gcc's stack realignment.
pub const CFA_REGISTER: u8 = 7;

/// The function does not touch rbp.
pub const RBP_SAME: u8 = 0;
/// At `CFA + rbp_offset`.
pub const RBP_AT_CFA: u8 = 1;
/// At `rbp + rbp_offset`.
pub const RBP_AT_RBP: u8 = 2;
/// At `rsp + rbp_offset`.
pub const RBP_AT_RSP: u8 = 3;
/// The caller's rbp cannot be had; good enough while no caller needs it.
pub const RBP_UNKNOWN: u8 = 4;

/// At `CFA + ra_offset`, nearly always -8.
pub const RA_AT_CFA: u8 = 0;
/// A stack begins here.
pub const RA_END: u8 = 1;
/// In `register`: `vfork`.
pub const RA_REGISTER: u8 = 2;
/// At `rsp + ra_offset`, in the signal context that the kernel laid on the stack.
pub const RA_SIGNAL: u8 = 3;

/// DWARF's numbers of the registers that have fields of their own.
pub const DWARF_RBP: u16 = 6;
pub const DWARF_RSP: u16 = 7;
/// The column of the return address.
pub const DWARF_RA: u16 = 16;

/// From the stack pointer in the signal trampoline to the saved general registers (`uc_mcontext.gregs`).
pub const SIGNAL_CONTEXT: u64 = 40;
/// Where `struct sigcontext` has rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 … r15: DWARF's order. A nibble each, in
/// words, so that no table has to be read.
const CONTEXT_WORDS: u64 = 0x7654_3210_fa89_becd;

/// The registers of one frame, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    /// Where all other registers are saved, in the layout of `struct sigcontext`; 0 when they are not. Only the
    /// frame that a signal interrupted has it.
    pub context: u64,
    /// `FRAME_*`
    pub flags: u64,
}

/// `rip` is the next instruction to run, not the one after a call.
pub const FRAME_EXACT: u64 = 1;
/// `rbp` is not the frame's.
pub const FRAME_NO_RBP: u64 = 2;

impl Frame {
    /// The innermost frame.
    pub const fn first(rip: u64, rsp: u64, rbp: u64) -> Self {
        Self {
            rip,
            rsp,
            rbp,
            context: 0,
            flags: FRAME_EXACT,
        }
    }

    /// The address to look up. After a call that does not return, `rip` may belong to the next function.
    #[inline(always)]
    pub const fn lookup_address(&self) -> u64 {
        self.rip.wrapping_sub(1 - (self.flags & FRAME_EXACT))
    }
}

/// How a step went. All but `Next` end the walk and leave the frame as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Step {
    /// The frame now is the caller's.
    Next = 0,
    /// A stack begins here.
    End = 1,
    /// No unwind information for the address.
    NoRule = 2,
    /// Unwind information that the tables cannot hold.
    Unsupported = 3,
    /// The rule needs a register that is not known.
    NoRegister = 4,
    /// The stack could not be read.
    Unreadable = 5,
    /// The caller's frame would not lie above this one.
    NotAbove = 6,
}

impl Step {
    pub const ALL: [Self; 7] = [
        Self::Next,
        Self::End,
        Self::NoRule,
        Self::Unsupported,
        Self::NoRegister,
        Self::Unreadable,
        Self::NotAbove,
    ];

    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Next),
            1 => Some(Self::End),
            2 => Some(Self::NoRule),
            3 => Some(Self::Unsupported),
            4 => Some(Self::NoRegister),
            5 => Some(Self::Unreadable),
            6 => Some(Self::NotAbove),
            _ => None,
        }
    }
}

impl Rule {
    /// The rule at the first instruction of every function.
    pub const ENTRY: Self = Self::new(CFA_RSP, 8);

    /// See [`super::RULE_UNSUPPORTED`].
    pub const UNSUPPORTED: Self = Self::new(CFA_UNSUPPORTED, 0);

    /// Where a stack begins.
    pub const END: Self = Self {
        ra_kind: RA_END,
        ra_offset: 0,
        ..Self::new(CFA_RSP, 0)
    };

    /// What holds after the prologue of code that keeps frame pointers. For code that has no table, such as V8's
    /// and Go's; wrong in code that uses rbp otherwise, where it mostly ends the walk.
    pub const FRAME_POINTER: Self = Self {
        rbp_kind: RBP_AT_CFA,
        rbp_offset: -16,
        ..Self::new(CFA_RBP, 16)
    };

    /// What runs when a signal handler returns (`__restore_rt`): the interrupted registers lie on the stack.
    pub const SIGNAL: Self = Self {
        cfa_kind: CFA_RSP_READ,
        rbp_kind: RBP_AT_RSP,
        ra_kind: RA_SIGNAL,
        register: 0,
        cfa_offset: 160,
        cfa_add: 0,
        rbp_offset: 120,
        ra_offset: 168,
        reserved: 0,
    };

    /// Return address just below the CFA, rbp untouched.
    pub const fn new(cfa_kind: u8, cfa_offset: i32) -> Self {
        Self {
            cfa_kind,
            rbp_kind: RBP_SAME,
            ra_kind: RA_AT_CFA,
            register: 0,
            cfa_offset,
            cfa_add: 0,
            rbp_offset: 0,
            ra_offset: -8,
            reserved: 0,
        }
    }

    /// Goes from `frame` to its caller. `read` gives the eight bytes of user memory at an address.
    #[inline(always)]
    pub fn step(&self, frame: &mut Frame, mut read: impl FnMut(u64) -> Option<u64>) -> Step {
        if self.ra_kind == RA_END {
            return Step::End;
        }
        let cfa = match self.cfa(frame, &mut read) {
            Ok(cfa) => cfa,
            Err(step) => return step,
        };
        // A signal handler may run on a stack of its own, below or above. `vfork` has popped its return address.
        let above = match self.ra_kind {
            RA_SIGNAL => true,
            RA_REGISTER => cfa >= frame.rsp,
            _ => cfa > frame.rsp,
        };
        if !above || cfa & 7 != 0 {
            return Step::NotAbove;
        }
        let rip = match self.return_address(frame, cfa, &mut read) {
            Ok(0) => return Step::End,
            Ok(rip) => rip,
            Err(step) => return step,
        };
        let offset = i64::from(self.rbp_offset) as u64;
        let mut flags = frame.flags & FRAME_NO_RBP;
        let rbp = match self.rbp_kind {
            RBP_SAME => Some(frame.rbp),
            RBP_AT_CFA => {
                flags = 0;
                read(cfa.wrapping_add(offset))
            }
            RBP_AT_RSP => {
                flags = 0;
                read(frame.rsp.wrapping_add(offset))
            }
            RBP_AT_RBP if flags == 0 => read(frame.rbp.wrapping_add(offset)),
            _ => {
                flags = FRAME_NO_RBP;
                Some(0)
            }
        };
        let Some(rbp) = rbp else { return Step::Unreadable };
        let mut context = 0;
        if self.ra_kind == RA_SIGNAL {
            flags |= FRAME_EXACT;
            context = frame.rsp.wrapping_add(SIGNAL_CONTEXT);
        }
        *frame = Frame {
            rip,
            rsp: cfa,
            rbp,
            context,
            flags,
        };
        Step::Next
    }

    #[inline(always)]
    fn cfa(&self, frame: &Frame, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<u64, Step> {
        let offset = i64::from(self.cfa_offset) as u64;
        if matches!(self.cfa_kind, CFA_RBP | CFA_RBP_READ) && frame.flags & FRAME_NO_RBP != 0 {
            return Err(Step::NoRegister);
        }
        let address = match self.cfa_kind {
            CFA_NONE => return Err(Step::NoRule),
            CFA_RSP => return Ok(frame.rsp.wrapping_add(offset)),
            CFA_RBP => return Ok(frame.rbp.wrapping_add(offset)),
            CFA_PLT => {
                let pushed = u64::from(frame.rip & 15 >= offset) * 8;
                return Ok(frame.rsp.wrapping_add(8 + pushed));
            }
            CFA_REGISTER => return Ok(self.saved_register(frame, read)?.wrapping_add(offset)),
            CFA_RSP_READ => frame.rsp.wrapping_add(offset),
            CFA_RBP_READ => frame.rbp.wrapping_add(offset),
            _ => return Err(Step::Unsupported),
        };
        match read(address) {
            Some(value) => Ok(value.wrapping_add(i64::from(self.cfa_add) as u64)),
            None => Err(Step::Unreadable),
        }
    }

    #[inline(always)]
    fn return_address(
        &self,
        frame: &Frame,
        cfa: u64,
        read: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Step> {
        let base = match self.ra_kind {
            RA_AT_CFA => cfa,
            RA_SIGNAL => frame.rsp,
            RA_REGISTER => return self.saved_register(frame, read),
            _ => return Err(Step::Unsupported),
        };
        read(base.wrapping_add(i64::from(self.ra_offset) as u64)).ok_or(Step::Unreadable)
    }

    /// A register other than rip, rsp and rbp.
    #[inline(always)]
    fn saved_register(&self, frame: &Frame, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<u64, Step> {
        if frame.context == 0 {
            return Err(Step::NoRegister);
        }
        let word = (CONTEXT_WORDS >> (u32::from(self.register & 15) * 4)) & 15;
        read(frame.context.wrapping_add(word * 8)).ok_or(Step::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack of words from 0x1000 on.
    fn reader(words: &[u64]) -> impl FnMut(u64) -> Option<u64> {
        move |address| {
            words
                .get(usize::try_from(address.checked_sub(0x1000)? / 8).ok()?)
                .copied()
        }
    }

    #[test]
    fn the_entry_of_a_function_has_its_caller_on_top_of_the_stack() {
        let mut frame = Frame::first(0x40_0000, 0x1000, 7);
        assert_eq!(frame.lookup_address(), 0x40_0000);
        assert_eq!(Rule::ENTRY.step(&mut frame, reader(&[0x40_1234])), Step::Next);
        assert_eq!(
            frame,
            Frame {
                rip: 0x40_1234,
                rsp: 0x1008,
                rbp: 7,
                context: 0,
                flags: 0
            }
        );
        assert_eq!(
            frame.lookup_address(),
            0x40_1233,
            "a return address belongs to the call before it"
        );
    }

    #[test]
    fn frame_pointers_are_followed() {
        let mut frame = Frame::first(0x40_0000, 0x1000, 0x1010);
        let stack = [0, 0, 0x1030, 0x40_1111, 0, 0, 0, 0x40_2222];
        assert_eq!(Rule::FRAME_POINTER.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!((frame.rip, frame.rsp, frame.rbp), (0x40_1111, 0x1020, 0x1030));
        assert_eq!(Rule::FRAME_POINTER.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!((frame.rip, frame.rsp, frame.rbp), (0x40_2222, 0x1040, 0));
        assert_eq!(
            Rule::FRAME_POINTER.step(&mut frame, reader(&stack)),
            Step::NotAbove
        );
    }

    #[test]
    fn plt_entries_have_pushed_a_word_from_their_threshold_on() {
        let stack = [1, 2, 3];
        for (rip, expected) in [(0x10, 1), (0x1a, 1), (0x1b, 2), (0x1f, 2)] {
            let mut frame = Frame::first(rip, 0x1000, 0);
            assert_eq!(
                Rule::new(CFA_PLT, 11).step(&mut frame, reader(&stack)),
                Step::Next
            );
            assert_eq!(frame.rip, expected, "{rip:#x}");
        }
    }

    #[test]
    fn realigned_stacks_keep_the_cfa_in_memory() {
        let rule = Rule {
            rbp_kind: RBP_AT_RBP,
            cfa_add: 8,
            ra_offset: -16,
            ..Rule::new(CFA_RBP_READ, -8)
        };
        let mut frame = Frame::first(0x40_0000, 0x1000, 0x1010);
        assert_eq!(
            rule.step(&mut frame, reader(&[0, 0x1020, 0xabc, 0x40_1111, 0])),
            Step::Next
        );
        assert_eq!((frame.rip, frame.rsp, frame.rbp), (0x40_1111, 0x1028, 0xabc));
    }

    #[test]
    fn a_lost_rbp_stops_the_walk_only_where_it_is_needed() {
        let lost = Rule {
            rbp_kind: RBP_UNKNOWN,
            ..Rule::ENTRY
        };
        let found = Rule {
            rbp_kind: RBP_AT_CFA,
            rbp_offset: 0,
            ..Rule::ENTRY
        };
        let stack = [0x40_0001, 0x40_0002, 0x40_0003, 0x40_0004];
        let mut frame = Frame::first(0x40_0000, 0x1000, 0x1000);
        assert_eq!(lost.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!(Rule::ENTRY.step(&mut frame, reader(&stack)), Step::Next);
        let before = frame;
        assert_eq!(
            Rule::FRAME_POINTER.step(&mut frame, reader(&stack)),
            Step::NoRegister
        );
        assert_eq!(frame, before, "a step that fails changes nothing");
        assert_eq!(found.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!((frame.rbp, frame.flags), (0x40_0004, 0));
    }

    #[test]
    fn walks_end_where_they_should() {
        let start = Frame::first(0x40_0000, 0x1000, 0x1000);
        let end = |rule: Rule, stack: &[u64]| {
            let mut frame = start;
            let step = rule.step(&mut frame, reader(stack));
            assert_eq!(frame, start);
            step
        };
        assert_eq!(end(Rule::END, &[5]), Step::End);
        assert_eq!(
            end(Rule::ENTRY, &[0]),
            Step::End,
            "threads begin with a return address of zero"
        );
        assert_eq!(end(Rule::default(), &[5]), Step::NoRule);
        assert_eq!(end(Rule::UNSUPPORTED, &[5]), Step::Unsupported);
        assert_eq!(
            end(
                Rule {
                    cfa_kind: 200,
                    ..Rule::ENTRY
                },
                &[5]
            ),
            Step::Unsupported
        );
        assert_eq!(
            end(
                Rule {
                    ra_kind: 200,
                    ..Rule::ENTRY
                },
                &[5]
            ),
            Step::Unsupported
        );
        assert_eq!(end(Rule::ENTRY, &[]), Step::Unreadable);
        assert_eq!(end(Rule::new(CFA_RSP, 0), &[5]), Step::NotAbove);
        assert_eq!(
            end(Rule::new(CFA_RSP, 12), &[5, 5, 5]),
            Step::NotAbove,
            "frames are aligned"
        );
        assert_eq!(
            end(
                Rule {
                    register: 10,
                    ..Rule::new(CFA_REGISTER, 8)
                },
                &[5]
            ),
            Step::NoRegister
        );
    }

    #[test]
    fn an_interrupted_frame_has_all_registers_and_an_exact_address() {
        // The handler's stack: five words, then the saved registers, here r8 first with 100, rsp with 0x2000.
        let mut stack = [0; 64];
        for (n, word) in stack[5..21].iter_mut().enumerate() {
            *word = 100 + n as u64;
        }
        (stack[20], stack[21]) = (0x2000, 0x40_5678);
        let mut frame = Frame::first(0x40_0000, 0x1000, 0);
        frame.flags = FRAME_NO_RBP;
        assert_eq!(Rule::SIGNAL.step(&mut frame, reader(&stack)), Step::Next);
        let interrupted = Frame {
            rip: 0x40_5678,
            rsp: 0x2000,
            rbp: 110,
            context: 0x1028,
            flags: FRAME_EXACT,
        };
        assert_eq!(frame, interrupted);
        assert_eq!(frame.lookup_address(), 0x40_5678);

        // vfork, just after it took its return address from the stack into rdi.
        let vfork = Rule {
            ra_kind: RA_REGISTER,
            register: 5,
            ..Rule::new(CFA_RSP, 0)
        };
        assert_eq!(vfork.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!(
            frame,
            Frame {
                rip: 108,
                rsp: 0x2000,
                rbp: 110,
                context: 0,
                flags: 0
            }
        );
        assert_eq!(
            vfork.step(&mut frame, reader(&stack)),
            Step::NoRegister,
            "only known once"
        );
    }

    #[test]
    fn a_handler_may_run_on_a_stack_above_the_interrupted_one() {
        let mut stack = [0; 64];
        (stack[20], stack[21]) = (0x800, 0x40_5678);
        let mut frame = Frame::first(0x40_0000, 0x1000, 0);
        assert_eq!(Rule::SIGNAL.step(&mut frame, reader(&stack)), Step::Next);
        assert_eq!(frame.rsp, 0x800);
    }

    #[test]
    fn steps_cross_the_border_as_numbers() {
        for step in Step::ALL {
            assert_eq!(Step::from_u32(step as u32), Some(step));
        }
        assert_eq!(Step::from_u32(Step::ALL.len() as u32), None);
    }
}
