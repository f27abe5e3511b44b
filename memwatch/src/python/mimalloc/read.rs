//! All pages of a process that have blocks in use, while it runs.

use std::collections::HashSet;

use super::Layout;
use super::heaps::{self, Seen};
use super::segment::{Page, SLICE_BYTES, Segment, segment_of};
use crate::python::classes;
use crate::python::memory::{Memory, u64_at};
use crate::python::pymalloc::{Pool, Pools, PoolsError};
use crate::python::thread_state::ThreadState;

/// More segments than any process has: 2 TiB.
const MOST_SEGMENTS: usize = 1 << 16;

/// A segment that changes while it is read gets so many tries.
const TRIES: usize = 3;

/// What is read of pages themselves in one look, for the blocks that other threads have freed in them.
const MOST_FREED_BYTES: u64 = 64 << 20;

/// All pages with blocks in use, and those that mimalloc keeps for more blocks of their size. `known` are heads of pages
/// that were taken into use: very large blocks are in no list of mimalloc's own.
pub fn read(
    layout: Layout,
    states: &[ThreadState],
    known: &[u64],
    memory: &impl Memory,
) -> Result<Pools, PoolsError> {
    let layout = heaps::fitting(layout, states, memory)?;
    let mut walk = Walk {
        layout,
        memory,
        seen: HashSet::new(),
        todo: Vec::new(),
        secret: None,
        found: Pools::default(),
        freed_bytes: 0,
    };
    let abandoned = walk.add_threads(states);
    walk.follow()?;
    // These must have what all have; whatever else is named may be gone.
    for list in &abandoned {
        walk.add_abandoned(*list);
    }
    for head in known {
        walk.add(*head);
    }
    walk.follow()?;
    // Threads that ended meanwhile left theirs.
    for list in &abandoned {
        walk.add_abandoned(*list);
    }
    walk.follow()?;
    let mut found = walk.found;
    found.pools.sort_unstable_by_key(|pool| pool.address);
    if found.odd > found.pools.len() as u64 + found.free_pools {
        return Err(PoolsError::Implausible);
    }
    Ok(found)
}

struct Walk<'a, M> {
    layout: Layout,
    memory: &'a M,
    seen: HashSet<u64>,
    todo: Vec<u64>,
    /// What the segments of this process have in common.
    secret: Option<u64>,
    found: Pools,
    freed_bytes: u64,
}

impl<M: Memory> Walk<'_, M> {
    /// Gives where the lists of segments without a thread begin: one for each interpreter.
    fn add_threads(&mut self, states: &[ThreadState]) -> HashSet<u64> {
        let mut abandoned = HashSet::new();
        for state in states {
            if let Seen::Heaps(heaps) = heaps::look(&self.layout, state, self.memory) {
                abandoned.insert(heaps.abandoned);
                let layout = self.layout;
                for head in heaps.pages(&layout) {
                    self.add(head);
                }
            }
        }
        abandoned
    }

    fn add_abandoned(&mut self, list: u64) {
        for first in [self.layout.abandoned_first, self.layout.abandoned_visited] {
            if let Ok(segment) = self.memory.pointer(list, first) {
                self.add(segment);
            }
        }
    }

    /// What lies in a segment leads to it.
    fn add(&mut self, address: u64) {
        let segment = segment_of(address);
        // A segment that was no segment when it was looked at is not looked at again.
        if segment != 0 && self.seen.len() < MOST_SEGMENTS && self.seen.insert(segment) {
            self.todo.push(segment);
        }
    }

    /// Reads all that is to be read, and what that leads to.
    fn follow(&mut self) -> Result<(), PoolsError> {
        while let Some(address) = self.todo.pop() {
            // It may be gone by now.
            let Some(segment) = self.segment(address) else {
                continue;
            };
            self.take(&segment);
        }
        // Every thread has a segment.
        self.secret.map(drop).ok_or(PoolsError::Implausible)
    }

    fn segment(&mut self, address: u64) -> Option<Segment> {
        let mut last = None;
        for _ in 0..TRIES {
            let segment = Segment::read(address, self.layout, self.memory).ok()?;
            let pages = segment.pages()?;
            let even = pages.odd == 0;
            last = Some(segment);
            if even {
                break;
            }
        }
        let segment = last?;
        (*self.secret.get_or_insert(segment.secret()) == segment.secret()).then_some(segment)
    }

    fn take(&mut self, segment: &Segment) {
        let Some(pages) = segment.pages() else { return };
        self.found.arenas += 1;
        self.found.arena_bytes = self.found.arena_bytes.saturating_add(segment.size());
        self.found.free_pools += pages.empty;
        self.found.odd += pages.odd;
        self.add(segment.next_abandoned());
        for page in &pages.used {
            for neighbour in page.neighbours {
                self.add(neighbour);
            }
            match self.pool(page) {
                Some(pool) => {
                    self.found.free_pools += u64::from(pool.in_use == 0);
                    self.found.pools.push(pool);
                }
                None => self.found.odd += 1,
            }
        }
    }

    fn pool(&mut self, page: &Page) -> Option<Pool> {
        let size_class = classes::of_page(page.heap, page.block_bytes)?;
        let sound = if classes::is_shared(size_class) {
            page.bytes <= classes::pool_bytes(size_class)
        } else {
            page.used <= 1
        };
        if !sound {
            return None;
        }
        let in_use = page.used - self.freed_by_others(page).min(page.used);
        Some(Pool {
            address: page.head,
            size_class: size_class.into(),
            block_bytes: page.block_bytes,
            in_use,
        })
    }

    /// Blocks of a page that other threads have freed and its own has not taken back so far. They are in a list.
    fn freed_by_others(&mut self, page: &Page) -> u64 {
        if page.thread_free == 0 || self.freed_bytes >= MOST_FREED_BYTES {
            return 0;
        }
        // Larger pages have few blocks.
        let read = if page.bytes > SLICE_BYTES { 0 } else { page.bytes };
        self.freed_bytes += SLICE_BYTES;
        let Ok(bytes) = self.memory.read(page.start, read as usize) else {
            return 0;
        };
        let next = |block: u64| {
            let inside = block
                .checked_sub(page.start)
                .filter(|inside| *inside < page.bytes)?;
            if read == 0 {
                return self.memory.u64(block).ok();
            }
            u64_at(&bytes, usize::try_from(inside).ok()?)
        };
        let (mut count, mut block) = (0, page.thread_free);
        while block != 0 && count < page.used {
            let Some(after) = next(block) else { break };
            count += 1;
            block = after;
        }
        count
    }
}
