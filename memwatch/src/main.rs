//! The `memwatch` command.

use std::process::ExitCode;

/// memwatch watches libc host-wide when that costs the others nothing; its own blocks come from elsewhere, so that
/// it never hits its own probes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// mimalloc: gives back what is free now, also what is kept for a while.
    fn mi_collect(force: bool);
}

fn give_back_memory() {
    // SAFETY: callable at any time; linked in with the allocator.
    unsafe { mi_collect(true) }
}

fn main() -> ExitCode {
    let _ = memwatch::watch::start::GIVE_BACK_MEMORY.set(give_back_memory);
    memwatch::cli::run::main(std::env::args_os()).into()
}
