//! A thread's heaps: where they are in its thread state, and which pages they lead to.

use super::Layout;
use crate::python::classes::{self, HEAPS};
use crate::python::memory::{Memory, u64_at};
use crate::python::pymalloc::PoolsError;
use crate::python::thread_state::ThreadState;

/// How far a thread state may have grown since the version that the table was made of.
const MOST_MOVED: i32 = 512;

/// The queues whose pages have blocks of sizes that are known; one for larger ones and one for full pages follow.
const FIRST_QUEUE: u32 = 9;
const QUEUES: u32 = 75;

/// The four heaps of a thread.
pub(super) struct Heaps {
    bytes: Vec<u8>,
    /// Where the list of segments without a thread begins.
    pub abandoned: u64,
}

/// What a thread state is, seen with some layout.
pub(super) enum Seen {
    Heaps(Heaps),
    /// The thread has allocated nothing so far.
    Nothing,
    Implausible,
}

/// So many thread states tell where the heaps are in all of them.
const MOST_TO_FIT: usize = 64;

/// The layout with which thread states have their heaps.
pub(super) fn fitting(
    layout: Layout,
    states: &[ThreadState],
    memory: &impl Memory,
) -> Result<Layout, PoolsError> {
    let fits = |layout: &Layout| {
        let mut heaps = 0;
        for state in states.iter().take(MOST_TO_FIT) {
            match look(layout, state, memory) {
                Seen::Heaps(_) => heaps += 1,
                // Threads begin and end meanwhile.
                Seen::Nothing => {}
                Seen::Implausible => return false,
            }
        }
        heaps > 0
    };
    let moves = (0..=MOST_MOVED).step_by(8).flat_map(|by| [by, -by]);
    moves
        .filter_map(|by| layout.moved(by))
        .find(fits)
        .ok_or(PoolsError::Implausible)
}

/// Looks at the heaps of one thread.
pub(super) fn look(layout: &Layout, state: &ThreadState, memory: &impl Memory) -> Seen {
    let at = |offset: u32| state.address.wrapping_add(offset.into());
    let bytes = layout.heap_bytes as usize * usize::from(HEAPS);
    let Ok(bytes) = memory.read(at(layout.thread_heaps), bytes) else {
        return Seen::Nothing;
    };
    let heaps = || bytes.chunks_exact(layout.heap_bytes as usize);
    if heaps().all(|heap| u64_at(heap, layout.heap_local as usize) == Some(0)) {
        return Seen::Nothing;
    }
    let local = at(layout.thread_local);
    let sound = (0_u8..)
        .zip(heaps())
        .all(|(tag, heap)| is_heap(layout, heap, tag, local, state.thread));
    match memory.u64(at(layout.thread_abandoned)) {
        Ok(abandoned) if sound && abandoned.is_multiple_of(8) => Seen::Heaps(Heaps { bytes, abandoned }),
        _ => Seen::Implausible,
    }
}

fn is_heap(layout: &Layout, heap: &[u8], tag: u8, local: u64, thread: u64) -> bool {
    let word = |offset: u32| u64_at(heap, offset as usize);
    let block_bytes = |queue: u32| word(queue_at(layout, queue) + layout.queue_block_bytes);
    word(layout.heap_local) == Some(local)
        && word(layout.heap_thread) == Some(thread)
        && heap.get(layout.heap_tag as usize) == Some(&tag)
        && (FIRST_QUEUE..)
            .zip(classes::shared_sizes().skip(5))
            .all(|(queue, size)| block_bytes(queue) == Some(size))
}

const fn queue_at(layout: &Layout, queue: u32) -> u32 {
    layout.heap_queues + queue * layout.queue_bytes
}

impl Heaps {
    /// The heads of some pages, from which all others of the heaps can be reached.
    pub fn pages<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = u64> + 'a {
        let ends = (0..QUEUES).flat_map(|queue| {
            let at = queue_at(layout, queue);
            [at + layout.queue_first, at + layout.queue_last]
        });
        let heaps = self.bytes.chunks_exact(layout.heap_bytes as usize);
        heaps
            .flat_map(move |heap| ends.clone().filter_map(|end| u64_at(heap, end as usize)))
            .filter(|&page| page != 0)
    }
}
