//! Everything the kernel side counts besides allocations: its work and each way in which it can lose something.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $effect:ident;)+) => {
        /// An index into the per-CPU counters. Each variant's text is what users read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// One line for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }

            pub const fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)+ }
            }
        }
    };
}

/// What a counter above zero means for the numbers shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Work done; says nothing bad.
    Work,
    /// Totals are right, some stacks are not whole.
    Stacks,
    /// Totals are too low or too high.
    Totals,
}

counters! {
    /// probe hits of watched processes
    Hits = "hits", Work;
    /// probe hits of processes that are not watched
    ForeignHits = "foreign_hits", Work;
    /// hits that belonged to links being taken out
    OldGeneration = "old_generation", Work;
    /// allocations made inside an allocation function and taken over by the outer call
    Absorbed = "absorbed", Work;
    /// calls left by longjmp, an exception or thread exit before they returned
    Abandoned = "abandoned_calls", Work;
    /// allocations of CPython that were counted before the watch, to know what watching each would cost
    TriedAllocations = "tried_allocations", Work;
    /// the same of its frees
    TriedFrees = "tried_frees", Work;
    /// system calls that changed mappings
    MappingCalls = "mapping_calls", Work;
    /// live blocks not kept because the map of live blocks is full (raise --max-blocks)
    LiveFull = "live_full", Totals;
    /// live blocks not kept because the process used up its share (raise --max-blocks-per-process)
    LiveShare = "live_share", Totals;
    /// live blocks not kept because the kernel had no memory for the entry
    LiveNoMemory = "live_no_memory", Totals;
    /// allocations counted under an unknown stack because the map of sites is full (raise --max-sites)
    SitesFull = "sites_full", Stacks;
    /// allocations not counted at all because no site could be made
    SiteLost = "site_lost", Totals;
    /// allocations counted under an unknown stack because the map of stacks is full (raise --max-stacks)
    StacksFull = "stacks_full", Stacks;
    /// two different stacks with one hash: counted under the first
    StackCollision = "stack_collision", Stacks;
    /// stacks cut at the frame limit (raise --max-depth)
    StackTruncated = "stack_truncated", Stacks;
    /// stacks whose chain of frames broke before the thread's start
    StackBroken = "stack_broken", Stacks;
    /// stacks that reached code of which nothing is known
    StackNoRule = "stack_no_rule", Stacks;
    /// stacks that reached code whose unwind information the tables cannot hold
    StackUnsupported = "stack_unsupported", Stacks;
    /// stacks whose unwinding needs a register that is not known
    StackNoRegister = "stack_no_register", Stacks;
    /// stacks whose next frame would not lie above the last
    StackNotAbove = "stack_not_above", Stacks;
    /// stack memory that could not be read
    StackUnreadable = "stack_unreadable", Stacks;
    /// files whose unwind table had no room: stacks through them end early (raise --max-unwind-rows)
    UnwindRowsFull = "unwind_rows_full", Stacks;
    /// Python frames that could not be read
    PythonUnreadable = "python_unreadable", Stacks;
    /// Python stacks cut at the frame limit (raise --max-depth)
    PythonTruncated = "python_truncated", Stacks;
    /// Python code objects whose content was not kept when it was first seen, because the map of these is full; they are
    /// read later if they are still there
    PythonCodesFull = "python_codes_full", Work;
    /// allocations shown without their Python frames because the map of Python stacks is full (raise --max-stacks)
    PythonStacksFull = "python_stacks_full", Stacks;
    /// pools of small Python objects shown without a stack because the map of pools is full
    PoolsFull = "pools_full", Stacks;
    /// calls not watched because the thread's slot could not be made
    SlotUnavailable = "slot_unavailable", Totals;
    /// calls not watched because too many were in flight in one thread
    InFlightFull = "in_flight_full", Totals;
    /// returns whose call was not seen
    UnknownReturn = "unknown_return", Totals;
    /// results of posix_memalign that could not be read
    ResultUnreadable = "result_unreadable", Totals;
    /// small objects not counted because the memory with their size could not be read
    SizeUnreadable = "size_unreadable", Totals;
    /// blocks that were still alive when their address was handed out again: a free was missed
    FreeMissed = "free_missed", Totals;
    /// events dropped because the ring buffer was full; the next tick reads everything again
    RingFull = "ring_full", Work;
    /// mapping events dropped because the ring buffer was full
    MappingLost = "mapping_lost", Totals;
    /// fork, exec or exit events dropped because the ring buffer was full
    LifecycleLost = "lifecycle_lost", Totals;
    /// children not watched because the map of processes is full
    ProcessesFull = "processes_full", Totals;
}

pub const COUNTERS: usize = Counter::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_dense_and_names_unique() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(
                Counter::ALL
                    .iter()
                    .filter(|other| other.name() == counter.name())
                    .count()
                    == 1
            );
            assert!(!counter.meaning().is_empty());
        }
    }
}
