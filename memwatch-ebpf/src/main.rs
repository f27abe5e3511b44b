//! memwatch's kernel side. `probes`, `mapping` and `lifecycle` have the thin programs; a call of an allocation function goes
//! through `alloc` (or `free`, `small`, `pool`), its stack comes from `unwind`, its thread has a `slot`.
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

mod account;
mod alloc;
mod arch;
mod atomic;
mod bound;
mod free;
mod lifecycle;
mod live;
mod mapping;
mod maps;
mod memory;
mod pool;
mod probes;
mod python;
mod repeat;
mod request;
mod rules;
mod size;
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
