//! What is kept per thread: the calls in flight, and room for one stack. In task storage, so that no two threads
//! ever share it, whatever preempts what.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_map_type},
    helpers::generated::{bpf_get_current_task_btf, bpf_task_storage_get},
};
use memwatch_common::{
    Config, Cookie, Counter, LiveValue, Stack,
    limits::{MAX_IN_FLIGHT, MAX_INNER, STACK_CHUNK},
    unwind::x86_64::Frame,
};

use crate::{bound::mask, maps::count, memory::read_word, repeat::LastWalk, rules::Search};

/// A call that has begun and not returned.
#[repr(C)]
pub struct InFlight {
    /// The stack pointer at the function's entry: what its return is recognised by.
    pub sp: u64,
    pub cookie: u64,
    pub bytes: u64,
    /// Who asked for the block, see [`memwatch_common::Domain`].
    pub domain: u64,
    /// posix_memalign: where the result will stand.
    pub result_at: u64,
    /// realloc: the block given.
    pub old_address: u64,
    /// What the block was, while it is out of `LIVE`.
    pub old: LiveValue,
    pub stack: u64,
    /// `OLD_*`
    pub old_state: u32,
    pub instance: u32,
}

/// There is no known old block.
pub const OLD_NONE: u32 = 0;
/// The old block is out of `LIVE` until the call returns.
pub const OLD_TAKEN: u32 = 1;
/// An inner call freed the old block.
pub const OLD_FREED: u32 = 2;
/// The same block is the old one of a call further out, which settles what becomes of it.
pub const OLD_OUTER: u32 = 3;

/// A block that an inner call made.
#[repr(C)]
pub struct Inner {
    pub address: u64,
    pub bytes: u64,
}

/// A system call that changes mappings, between its entry and its return.
#[repr(C)]
pub struct MappingCall {
    pub begin_ns: u64,
    pub address: u64,
    pub bytes: u64,
    pub new_bytes: u64,
    pub stack: u64,
    pub flags: u32,
    pub active: u32,
}

#[repr(C)]
pub struct Slot {
    pub depth: u32,
    pub inner_next: u32,
    pub calls: [InFlight; MAX_IN_FLIGHT],
    pub inner: [Inner; MAX_INNER],
    /// The block that this thread gave back last, until it allocates again.
    pub last_freed: u64,
    pub mapping: MappingCall,
    /// The latest call whose size is out of bounds, so that its return is not seen: its stack pointer at entry (0 for
    /// none) and where it returns to.
    pub passed_over_sp: u64,
    pub passed_over_return: u64,
    pub stack: Stack,
    /// Where the walk is.
    pub frame: Frame,
    /// The frame was found by its frame pointer, without a rule that says so.
    pub guessed: u32,
    /// The program that the thread runs, see [`memwatch_common::process`]; 0 when it is not known.
    pub instance: u32,
    pub search: Search,
    /// The hash of the frames so far.
    pub hash: u64,
    /// Where in the target the piece of stack in `chunk` begins, and how much of it is there.
    pub chunk_at: u64,
    pub chunk_bytes: u32,
    /// The thread's id.
    pub thread: u32,
    pub chunk: [u64; STACK_CHUNK / 8],
    pub last: LastWalk,
}

/// aya-ebpf 0.2 has no task storage; a BTF map definition is a struct of this shape.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers describe a type to the loader and are never followed.
unsafe impl<T> Sync for TaskStorage<T> {}

#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "SLOTS")]
static SLOTS: TaskStorage<Slot> = TaskStorage::NEW;

const CREATE: u64 = 1;

impl<T> TaskStorage<T> {
    pub const NEW: Self = Self {
        r#type: core::ptr::null(),
        key: core::ptr::null(),
        value: core::ptr::null(),
        max_entries: core::ptr::null(),
        map_flags: core::ptr::null(),
    };

    #[expect(
        clippy::mut_from_ref,
        reason = "the kernel gives each thread a value of its own"
    )]
    #[inline(always)]
    fn get(&'static self, flags: u64) -> Option<&'static mut T> {
        // SAFETY: the helpers take the map and the current task; the result is null or a live value that only this
        // thread touches.
        unsafe {
            let task = bpf_get_current_task_btf();
            let value = bpf_task_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                task,
                core::ptr::null_mut(),
                flags,
            );
            value.cast::<T>().as_mut()
        }
    }

    /// The thread's value, zeroed when it is new; none when there is no memory for it.
    #[inline(always)]
    pub fn of_this_thread(&'static self) -> Option<&'static mut T> {
        self.get(CREATE)
    }
}

/// The thread's slot, if it has one.
#[inline(always)]
pub fn existing() -> Option<&'static mut Slot> {
    SLOTS.get(0)
}

/// The thread's slot; the loss is counted when there is none to be had.
#[inline(always)]
pub fn current() -> Option<&'static mut Slot> {
    let slot = SLOTS.of_this_thread();
    if slot.is_none() {
        count(Counter::SlotUnavailable);
    }
    slot
}

const MASK: i32 = MAX_IN_FLIGHT as i32 - 1;
const _: () = assert!(MAX_IN_FLIGHT.is_power_of_two());

impl Slot {
    /// The call at `index`. Masked, so that the verifier sees the bound.
    #[inline(always)]
    pub fn call(&mut self, index: u32) -> &mut InFlight {
        // SAFETY: the mask keeps the index inside the array.
        unsafe { self.calls.get_unchecked_mut(mask::<MASK>(u64::from(index))) }
    }

    /// The thread runs this program from now on.
    #[inline(always)]
    pub fn begin(&mut self, instance: u32, thread: u32) {
        self.forget();
        self.instance = instance;
        self.thread = thread;
    }

    /// The program is gone, and all calls with it.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.instance = 0;
        self.depth = 0;
        self.inner_next = 0;
        self.mapping.active = 0;
    }

    /// A call that is not recorded begins: what it maps is the allocator's all the same.
    #[inline(always)]
    pub fn note_passed_over(&mut self, sp: u64) {
        let return_address = read_word(sp).unwrap_or(0);
        self.passed_over_sp = if return_address == 0 { 0 } else { sp };
        self.passed_over_return = return_address;
    }

    /// Another call begins: one that was passed over deeper in the stack has returned.
    #[inline(always)]
    pub fn forget_passed_over(&mut self, sp: u64) {
        if sp >= self.passed_over_sp {
            self.passed_over_sp = 0;
        }
    }

    /// Whether the thread, now at `sp`, is still inside the call that was passed over: its return address stands where
    /// it stood, under another tool's return probe perhaps. Any call that the same caller makes later has put its own
    /// there.
    #[inline(always)]
    pub fn in_passed_over(&self, sp: u64) -> bool {
        self.passed_over_sp > sp && read_word(self.passed_over_sp) == Some(self.passed_over_return)
    }

    /// Takes out calls that can no longer return: the stack is back above them. Gives the outermost of them.
    #[inline(always)]
    pub fn drop_abandoned(&mut self, config: &Config, sp: u64, cookie: Cookie) -> Option<u32> {
        let before = self.depth;
        let mut depth = before;
        for _ in 0..MAX_IN_FLIGHT {
            if depth == 0 {
                break;
            }
            let call = self.call(depth - 1);
            // Callers stand above. At the same place stands a function that jumped here, unless it is the same
            // function again.
            if call.sp > sp
                || (call.sp == sp && call.cookie != cookie.0)
                || on_other_stack(config, sp, call.sp)
            {
                break;
            }
            depth -= 1;
        }
        self.depth = depth;
        (depth < before).then_some(depth)
    }

    /// The outermost call in flight that was given this block to replace: it settles what becomes of it.
    #[inline(always)]
    pub fn holding(&mut self, address: u64, instance: u32) -> Option<u32> {
        let mut index = self.depth;
        for _ in 0..MAX_IN_FLIGHT {
            if index == 0 {
                break;
            }
            index -= 1;
            let call = self.call(index);
            if call.old_address == address && call.old_state != OLD_OUTER && call.instance == instance {
                return Some(index);
            }
        }
        None
    }

    /// The newest call that entered with this stack pointer, taken out with all above it.
    #[inline(always)]
    pub fn take(&mut self, sp: u64, cookie: u64) -> Option<u32> {
        let mut index = self.depth;
        for _ in 0..MAX_IN_FLIGHT {
            if index == 0 {
                return None;
            }
            index -= 1;
            let call = self.call(index);
            if call.sp == sp && call.cookie == cookie {
                if index + 1 < self.depth {
                    count(Counter::Abandoned);
                }
                self.depth = index;
                return Some(index);
            }
        }
        None
    }
}

/// Whether the thread runs a signal handler on an alternative stack while `below` stands on its ordinary one.
#[inline(always)]
fn on_other_stack(config: &Config, sp: u64, below: u64) -> bool {
    if config.task_sas_sp == 0 {
        return false;
    }
    // SAFETY: reads two words of the current task at offsets from the running kernel's BTF.
    let (start, size) = unsafe {
        let task = bpf_get_current_task_btf() as u64;
        let start = crate::memory::read_kernel(task + u64::from(config.task_sas_sp));
        let size = crate::memory::read_kernel(task + u64::from(config.task_sas_size));
        (start, size)
    };
    let inside = |p: u64| p.wrapping_sub(start) < size;
    inside(sp) && !inside(below)
}
