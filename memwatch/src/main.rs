//! The `memwatch` command.

use std::process::ExitCode;

/// memwatch watches libc host-wide when that costs the others nothing; its own blocks come from elsewhere, so that
/// it never hits its own probes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// mimalloc: gives back what is free now, also what is kept for a while.
    fn mi_collect(force: bool);
    fn mi_option_set(option: core::ffi::c_int, value: core::ffi::c_long);
}

/// Options of mimalloc by their numbers: memory is not taken before it is used, and given back as soon as it is free. The peak
/// of a large report is a third less, in the same time.
const LITTLE_MEMORY: [(core::ffi::c_int, core::ffi::c_long); 2] = [(ARENA_EAGER_COMMIT, 0), (PURGE_DELAY, 0)];
const ARENA_EAGER_COMMIT: core::ffi::c_int = 4;
const PURGE_DELAY: core::ffi::c_int = 15;

fn give_back_memory() {
    // SAFETY: callable at any time; linked in with the allocator.
    unsafe { mi_collect(true) }
}

fn main() -> ExitCode {
    for (option, value) in LITTLE_MEMORY {
        // SAFETY: callable at any time; linked in with the allocator.
        unsafe { mi_option_set(option, value) }
    }
    let _ = memwatch::watch::start::GIVE_BACK_MEMORY.set(give_back_memory);
    memwatch::cli::run::main(std::env::args_os()).into()
}
