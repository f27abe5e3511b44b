//! What user space tells the kernel side, in a map of one entry.

/// Nothing counts.
pub const GATE_CLOSED: u32 = 0;
/// Recording.
pub const GATE_OPEN: u32 = 1;
/// Only how often CPython's functions are called is counted: to know what recording them would cost.
pub const GATE_COUNTING: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// `GATE_*`. Opened at one instant when every probe is in place.
    pub gate: u32,
    /// Only links of this generation count.
    pub generation: u32,
    /// The number of the current tick; a site tells of its first change in each.
    pub tick: u64,
    /// Most blocks one process may have in `LIVE`.
    pub live_per_process: u64,
    /// Blocks outside these bounds are not recorded.
    pub min_bytes: u64,
    pub max_bytes: u64,
    /// Frames walked.
    pub max_frames: u32,
    /// Offsets into the running kernel's structures, from its BTF; 0 where unknown.
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_signal: u32,
    pub signal_live: u32,
    pub task_sas_sp: u32,
    pub task_sas_size: u32,
    pub task_mm: u32,
    pub mm_brk: u32,
    pub task_utask: u32,
    /// Of `struct uprobe_task`: the return probes that are pending, innermost first.
    pub utask_returns: u32,
    /// Of `struct return_instance`.
    pub return_stack: u32,
    pub return_address: u32,
    pub return_next: u32,
    /// Where the thread pointer of user space is kept.
    pub task_fsbase: u32,
    pub vma_flags: u32,
    /// See [`crate::process::state_place`].
    pub state_places: u32,
    pub task_exit_code: u32,
    /// Of `struct signal_struct`: set in those that were chosen to be killed for want of memory.
    pub signal_oom_mm: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Config>() == 120);
