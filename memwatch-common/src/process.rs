//! Watched processes.

/// The process id in the initial pid namespace.
pub type ProcessKey = u32;

/// Instance numbers from here on are given by the kernel side, those below by user space, so that neither waits for
/// the other.
pub const FIRST_KERNEL_INSTANCE: u32 = 1 << 20;

/// Where the state of an instance stands, among so many (a power of two, of 2^20 at most) places for those of
/// either side. A place is taken as long as its state has an instance number; who gives a number takes one whose place is
/// free. Scattered: processes that live long often come one after the other, and with their places side by side a
/// later number would meet them all.
pub const fn state_place(instance: u32, places: u32) -> u32 {
    let half = if instance < FIRST_KERNEL_INSTANCE {
        0
    } else {
        places
    };
    half + (instance.wrapping_mul(0x9E37_79B1) >> 12 & places.wrapping_sub(1))
}

const MOST_PLACES: u32 = 1 << 20;

/// Places for the states of either side, when so many processes can be watched: twice as many, as those that have ended
/// keep theirs until they are read.
pub const fn state_places(processes: u32) -> u32 {
    if processes > MOST_PLACES / 2 {
        MOST_PLACES
    } else {
        processes.next_power_of_two() * 2
    }
}

/// Watch the children of this process too.
pub const PROCESS_FOLLOW: u32 = 1;
/// It was found by the kernel side at a fork.
pub const PROCESS_FORKED: u32 = 2;
/// The program has ended, or another has taken its place; user space frees the place of the state.
pub const PROCESS_EXITED: u32 = 4;

/// Ancestors beyond the parent whose blocks a process may hold copies of.
pub const MAX_ANCESTORS: usize = 3;

/// An ancestor beyond the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ancestor {
    /// 0 for none.
    pub instance: u32,
    pub reserved: u32,
    /// When the branch of the family that leads here was forked from it.
    pub forked_ns: u64,
}

/// A watched process. A new instance number is given at every fork and exec, so that a reused pid or a new
/// program under the same pid never mixes with what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessState {
    pub instance: u32,
    /// `PROCESS_*`
    pub flags: u32,
    /// The instance this one was forked from, 0 for none.
    pub parent_instance: u32,
    /// The instance whose code this process began with, while it has no list of its own; 0 for none.
    pub space: u32,
    /// When it was forked, `CLOCK_MONOTONIC` nanoseconds.
    pub forked_ns: u64,
    /// Blocks in `LIVE`.
    pub live_blocks: u64,
    /// Bytes of the blocks in `LIVE`.
    pub live_bytes: u64,
    /// What the parent held at the fork: the child's copies of it.
    pub inherited_objects: u64,
    pub inherited_bytes: u64,
    pub inherited_frees: u64,
    pub inherited_freed_bytes: u64,
    /// Frees of blocks born before recording began.
    pub untracked_frees: u64,
    /// Their usable sizes, where the allocator tells.
    pub untracked_freed_bytes: u64,
    /// Calls that returned no block.
    pub failed_allocations: u64,
    /// Blocks (and bytes) that are alive but not in `LIVE`, because a map was full.
    pub unaccounted_objects: u64,
    pub unaccounted_bytes: u64,
    /// The parent's parent first.
    pub ancestors: [Ancestor; MAX_ANCESTORS],
}

impl ProcessState {
    pub const fn new(instance: u32, flags: u32) -> Self {
        Self {
            instance,
            flags,
            parent_instance: 0,
            space: 0,
            forked_ns: 0,
            live_blocks: 0,
            live_bytes: 0,
            inherited_objects: 0,
            inherited_bytes: 0,
            inherited_frees: 0,
            inherited_freed_bytes: 0,
            untracked_frees: 0,
            untracked_freed_bytes: 0,
            failed_allocations: 0,
            unaccounted_objects: 0,
            unaccounted_bytes: 0,
            ancestors: [Ancestor {
                instance: 0,
                reserved: 0,
                forked_ns: 0,
            }; MAX_ANCESTORS],
        }
    }
}

const _: () = assert!(size_of::<ProcessState>() == 16 + 8 * 12 + 16 * MAX_ANCESTORS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_always_there() {
        for processes in [1, 2, 3, 64, 8192, 1 << 19, u32::MAX] {
            let places = state_places(processes);
            assert!(places.is_power_of_two() && places <= MOST_PLACES);
            for instance in [1, 7, FIRST_KERNEL_INSTANCE - 1] {
                assert!(state_place(instance, places) < places);
            }
            for instance in [FIRST_KERNEL_INSTANCE, u32::MAX] {
                assert!((places..2 * places).contains(&state_place(instance, places)));
            }
        }
    }

    #[test]
    fn a_run_of_processes_that_live_long_is_met_here_and_there_only() {
        let places = state_places(64);
        let first = FIRST_KERNEL_INSTANCE + 5;
        let taken: [u32; 60] = core::array::from_fn(|n| state_place(first + n as u32, places));
        let most_in_a_row = (first + 60..first + 100_000).fold((0_u32, 0_u32), |(row, most), n| {
            let row = if taken.contains(&state_place(n, places)) {
                row + 1
            } else {
                0
            };
            (row, most.max(row))
        });
        assert!(most_in_a_row.1 < 64, "{most_in_a_row:?}");
    }
}
