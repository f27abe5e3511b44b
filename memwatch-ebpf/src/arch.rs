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

    /// The stack pointer that the function's entry had, seen from its return: `ret` has popped 8 bytes.
    #[inline(always)]
    pub fn stack_at_entry(self) -> u64 {
        self.0.rsp.wrapping_sub(8)
    }
}
