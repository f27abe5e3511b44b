//! The uprobe programs. One program serves every allocation function: the cookie of the hit says which.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, generated::bpf_get_func_ip},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use memwatch_common::{
    Cookie, Counter, Function,
    config::{GATE_CLOSED, GATE_COUNTING, GATE_OPEN},
};

use crate::{
    alloc::{self, Caller},
    arch::Registers,
    maps::{self, count},
    small,
};

/// What a session's entry gives back to have no return probe put in place.
const SKIP_RETURN: u32 = 1;
const SEE_RETURN: u32 = 0;

/// `uprobe.session`: entry and return in one program (Linux 6.13).
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn alloc_session(context: *mut core::ffi::c_void) -> u32 {
    // SAFETY: the context of a uprobe program.
    let (registers, cookie) = unsafe {
        let cookie = Cookie(bpf_get_attach_cookie(context));
        (Registers::from_context(context), cookie)
    };
    // The return of a free is never asked for, nor that of what is no function.
    // SAFETY: as above.
    let entry = cookie.function() == Function::Free as u8
        || cookie.function() == Function::PythonSmall as u8
        || unsafe { bpf_get_func_ip(context) } == registers.instruction();
    if entry {
        enter(cookie, registers)
    } else {
        leave(cookie, registers, true);
        SEE_RETURN
    }
}

/// `uprobe.multi` and perf events: the entry.
#[uprobe]
pub fn alloc_entry(context: ProbeContext) -> u32 {
    // SAFETY: the context of a uprobe program.
    let (registers, cookie) = unsafe {
        let cookie = Cookie(bpf_get_attach_cookie(context.as_ptr()));
        (Registers::from_context(context.as_ptr()), cookie)
    };
    enter(cookie, registers);
    0
}

/// `uprobe.multi` and perf events: the return.
#[uretprobe]
pub fn alloc_return(context: RetProbeContext) -> u32 {
    // SAFETY: the context of a uprobe program.
    let (registers, cookie) = unsafe {
        let cookie = Cookie(bpf_get_attach_cookie(context.as_ptr()));
        (Registers::from_context(context.as_ptr()), cookie)
    };
    leave(cookie, registers, false);
    0
}

/// The price of a hit and nothing else, for measuring: what no tool can be below.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn empty_session(context: *mut core::ffi::c_void) -> u32 {
    // SAFETY: the context of a uprobe program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(context) });
    u32::from(cookie.function() == Function::Free as u8)
}

#[inline(always)]
fn caller() -> Caller {
    let id = bpf_get_current_pid_tgid();
    Caller {
        tgid: (id >> 32) as u32,
        thread: id as u32,
    }
}

#[inline(always)]
fn enter(cookie: Cookie, registers: Registers<'_>) -> u32 {
    let Some(config) = maps::config() else {
        return SKIP_RETURN;
    };
    if config.gate == GATE_CLOSED {
        return SKIP_RETURN;
    }
    if cookie.generation() != config.generation {
        count(Counter::OldGeneration);
        return SKIP_RETURN;
    }
    let caller = caller();
    let Some(state) = maps::process(caller.tgid) else {
        count(Counter::ForeignHits);
        return SKIP_RETURN;
    };
    if config.gate == GATE_COUNTING {
        small::try_out(cookie, registers);
        return SKIP_RETURN;
    }
    count(Counter::Hits);
    if cookie.function() == Function::PythonSmall as u8 {
        small::handed_out(config, state, cookie, registers);
        return SKIP_RETURN;
    }
    if cookie.function() == Function::Free as u8 {
        alloc::free(config, state, cookie, registers.argument_0());
        return SKIP_RETURN;
    }
    if alloc::begin(config, state, &caller, cookie, registers) {
        SEE_RETURN
    } else {
        SKIP_RETURN
    }
}

#[inline(always)]
fn leave(cookie: Cookie, registers: Registers<'_>, every_call_seen: bool) {
    let Some(config) = maps::config() else { return };
    if config.gate != GATE_OPEN {
        return;
    }
    let caller = caller();
    let Some(state) = maps::process(caller.tgid) else {
        return;
    };
    alloc::finish(config, state, &caller, cookie, registers, every_call_seen);
}
