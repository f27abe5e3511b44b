//! The uprobe programs. One program serves every allocation function: the cookie of the hit says which.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, generated::bpf_get_func_ip},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use memwatch_common::{
    Config, Cookie, Counter, Function, ProcessState,
    config::{GATE_CLOSED, GATE_COUNTING, GATE_OPEN},
};

use crate::{
    alloc,
    arch::Registers,
    free,
    maps::{self, count},
    pool,
    slot::{self, Slot},
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
    // Elsewhere than at the probe it is a return; nearly always that much is seen without asking the kernel where the
    // probe is.
    let here = registers.instruction();
    // SAFETY: as above.
    let entry = cookie.may_sit_at(here) && unsafe { bpf_get_func_ip(context) } == here;
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

/// As [`empty_session`], for what has no return.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn empty_entry(context: *mut core::ffi::c_void) -> u32 {
    // SAFETY: the context of a uprobe program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(context) });
    // 0 in the end: anything else is a wish to the kernel.
    u32::from(cookie.function() == 0)
}

/// The price of a hit and nothing else, for measuring: what no tool can be below.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn empty_session(context: *mut core::ffi::c_void) -> u32 {
    // SAFETY: the context of a uprobe program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(context) });
    u32::from(cookie.function() == 0)
}

/// The state of the process that this thread belongs to, when it is watched. A thread that has allocated before knows
/// it.
#[inline(always)]
fn watched(config: &Config, slot: Option<&Slot>) -> Option<&'static mut ProcessState> {
    let known = slot.and_then(|slot| maps::state(config, slot.instance));
    match known {
        Some(state) => Some(state),
        None => maps::process(config, (bpf_get_current_pid_tgid() >> 32) as u32),
    }
}

/// The thread's slot, which belongs to this program from now on; the loss is counted when there is none to be had.
#[inline(always)]
fn slot_of(state: &ProcessState) -> Option<&'static mut Slot> {
    let slot = slot::current()?;
    // The kernel may have found it busy a moment ago.
    if slot.instance != state.instance {
        slot.begin(state.instance, bpf_get_current_pid_tgid() as u32);
    }
    Some(slot)
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
    let slot = slot::existing();
    let Some(state) = watched(config, slot.as_deref()) else {
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
        free::free(config, state, cookie, registers.argument_0());
        return SKIP_RETURN;
    }
    let own = slot.filter(|slot| slot.instance == state.instance);
    let Some(slot) = own.or_else(|| slot_of(state)) else {
        return SKIP_RETURN;
    };
    if cookie.function() == Function::PythonPoolSite as u8 {
        pool::begins(config, state, slot, cookie, registers);
        return SKIP_RETURN;
    }
    if alloc::begin(config, state, slot, cookie, registers) {
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
    let Some(slot) = slot::existing() else { return };
    let Some(state) = watched(config, Some(slot)) else {
        return;
    };
    alloc::finish(config, state, slot, cookie, registers, every_call_seen);
}
