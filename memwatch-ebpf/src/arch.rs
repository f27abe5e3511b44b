//! What depends on the processor: where arguments, results and the stack are at a probe. x86-64, System V ABI.

use aya_ebpf::bindings::pt_regs;

/// Numbers of system calls.
pub const MMAP: u32 = 9;
pub const MUNMAP: u32 = 11;
pub const BRK: u32 = 12;
pub const MREMAP: u32 = 25;

/// The registers that probes need, read once.
#[derive(Clone, Copy)]
pub struct Registers<'a>(&'a pt_regs);

impl Registers<'_> {
    /// # Safety
    /// `context` is the context of a uprobe program, which is a `pt_regs`.
    #[inline(always)]
    pub unsafe fn from_context(context: *mut core::ffi::c_void) -> Self {
        // SAFETY: by the caller's promise.
        Self(unsafe { &*context.cast::<pt_regs>() })
    }

    #[inline(always)]
    pub fn argument_0(self) -> u64 {
        self.0.rdi
    }

    #[inline(always)]
    pub fn argument_1(self) -> u64 {
        self.0.rsi
    }

    #[inline(always)]
    pub fn argument_2(self) -> u64 {
        self.0.rdx
    }

    #[inline(always)]
    pub fn result(self) -> u64 {
        self.0.rax
    }

    #[inline(always)]
    pub fn instruction(self) -> u64 {
        self.0.rip
    }

    #[inline(always)]
    pub fn stack(self) -> u64 {
        self.0.rsp
    }

    #[inline(always)]
    pub fn frame(self) -> u64 {
        self.0.rbp
    }

    /// A register by the number that the processor has for it. All are read first: the verifier takes no load whose place
    /// depends on something.
    #[inline(always)]
    pub fn numbered(self, number: u8) -> u64 {
        // SAFETY: plain words of a live context.
        let read = |register: &u64| unsafe { core::ptr::read_volatile(register) };
        let all = self.0;
        let (rax, rcx, rdx, rbx) = (read(&all.rax), read(&all.rcx), read(&all.rdx), read(&all.rbx));
        let (rsp, rbp, rsi, rdi) = (read(&all.rsp), read(&all.rbp), read(&all.rsi), read(&all.rdi));
        let (r8, r9, r10, r11) = (read(&all.r8), read(&all.r9), read(&all.r10), read(&all.r11));
        let (r12, r13, r14, r15) = (read(&all.r12), read(&all.r13), read(&all.r14), read(&all.r15));
        match number & 15 {
            0 => rax,
            1 => rcx,
            2 => rdx,
            3 => rbx,
            4 => rsp,
            5 => rbp,
            6 => rsi,
            7 => rdi,
            8 => r8,
            9 => r9,
            10 => r10,
            11 => r11,
            12 => r12,
            13 => r13,
            14 => r14,
            _ => r15,
        }
    }

    /// What was compared last was equal.
    #[inline(always)]
    pub fn was_equal(self) -> bool {
        const ZERO_FLAG: u64 = 1 << 6;
        self.0.eflags & ZERO_FLAG != 0
    }

    /// The stack pointer that the function's entry had, seen from its return: `ret` has popped 8 bytes.
    #[inline(always)]
    pub fn stack_at_entry(self) -> u64 {
        self.0.rsp.wrapping_sub(8)
    }
}
