//! memwatch's kernel side. One file per probe family: thin programs, everything shared in `alloc`, `unwind`,
//! `slot` and `maps`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "the verifier follows calls one by one; what is inlined is looked at once"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "maps want an address; a key handed over would be one more copy on a small stack"
)]

mod alloc;
mod arch;
mod atomic;
mod bound;
mod lifecycle;
mod mapping;
mod maps;
mod probes;
mod python;
mod repeat;
mod slot;
mod small;
mod unwind;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier rejects a program in which this can be reached.
    loop {}
}

/// The kernel allows the helpers used here to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
