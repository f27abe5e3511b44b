use std::collections::BTreeMap;

use super::made_up::{self, MadePage, page_head};
use super::segment::{SEGMENT_BYTES, SLICE_BYTES};
use super::*;
use crate::python::classes;
use crate::python::memory::Recorded;
use crate::python::pymalloc::{Pools, PoolsError};
use crate::python::thread_state::ThreadState;
use crate::python::version::Version;
use crate::random::Random;

const STATE: u64 = 0x10_0000;
const THREAD: u64 = 0x7f00_1234_5000;
const LISTS: u64 = 0x20_0000;
const A: u64 = 10 * SEGMENT_BYTES;
const B: u64 = 20 * SEGMENT_BYTES;
const C: u64 = 30 * SEGMENT_BYTES;
const SECRET: u64 = 0x1234_5678_9abc_def0;

fn build(minor: u8) -> Build {
    Build {
        version: Version::new(minor, 5),
        debug: false,
        free_threaded: true,
    }
}

fn layout() -> Layout {
    Layout::of(build(13)).unwrap()
}

fn page(heap: u8, block_bytes: u32, used: u32) -> MadePage {
    MadePage {
        slices: 1,
        heap,
        block_bytes,
        used,
        ..MadePage::default()
    }
}

/// A process with one thread whose heaps lead to A.
struct Process {
    memory: Recorded,
    states: Vec<ThreadState>,
}

impl Process {
    fn new(layout: &Layout, pages: &[MadePage]) -> Self {
        let first = page_head(layout, A, 1);
        let state = made_up::thread_state(layout, STATE, THREAD, LISTS, first);
        let segment = made_up::segment(layout, A, SECRET, 0, pages);
        Self {
            memory: Recorded {
                pieces: vec![(STATE, state), (LISTS, vec![0; 128]), (A, segment)],
            },
            states: vec![ThreadState {
                address: STATE,
                thread: THREAD,
            }],
        }
    }

    fn with(mut self, address: u64, bytes: Vec<u8>) -> Self {
        self.memory.pieces.retain(|(at, _)| *at != address);
        self.memory.pieces.push((address, bytes));
        self
    }

    fn with_lists(self, abandoned: u64, visited: u64) -> Self {
        let layout = layout();
        let mut lists = vec![0; 128];
        for (at, value) in [
            (layout.abandoned_first, abandoned),
            (layout.abandoned_visited, visited),
        ] {
            lists[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
        self.with(LISTS, lists)
    }

    fn read(&self, known: &[u64]) -> Result<Pools, PoolsError> {
        read(layout(), &self.states, known, &self.memory)
    }

    /// Blocks in use by the address of each page's head.
    fn in_use(&self, known: &[u64]) -> BTreeMap<u64, u64> {
        let pools = self.read(known).unwrap().pools;
        let in_use: BTreeMap<_, _> = pools.iter().map(|pool| (pool.address, pool.in_use)).collect();
        assert_eq!(in_use.len(), pools.len(), "no page is there twice");
        in_use
    }
}

#[test]
fn the_fields_stand_in_the_order_of_the_table() {
    assert_eq!(Layout::NAMES, table::FIELDS);
}

#[test]
fn versions_that_are_known_have_a_layout_and_others_none() {
    assert!(Layout::of(build(13)).is_some() && Layout::of(build(14)).is_some());
    assert_eq!(Layout::of(build(12)), None);
    assert_eq!(Layout::of(build(15)), None);
    let debug = Build {
        debug: true,
        ..build(13)
    };
    let ordinary = Build {
        free_threaded: false,
        ..build(13)
    };
    assert_eq!((Layout::of(debug), Layout::of(ordinary)), (None, None));
}

#[test]
fn pages_are_read_with_what_is_in_use() {
    let large = MadePage {
        slices: 4,
        ..page(2, 4 * SLICE_BYTES as u32, 1)
    };
    let process = Process::new(
        &layout(),
        &[page(1, 80, 700), page(0, 2048, 0), large, page(2, 64, 9)],
    );
    let found = process.read(&[]).unwrap();
    assert_eq!((found.arenas, found.free_pools, found.odd), (1, 1, 0));
    assert_eq!(found.arena_bytes, SEGMENT_BYTES);
    let seen: Vec<_> = found
        .pools
        .iter()
        .map(|pool| (pool.address, pool.block_bytes, pool.in_use, pool.bytes_in_use()))
        .collect();
    let head = |slice| page_head(&layout(), A, slice);
    assert_eq!(
        seen,
        [
            (head(1), 80, 700, 56_000),
            (head(3), 4 * SLICE_BYTES, 1, 4 * SLICE_BYTES),
            (head(7), 64, 9, 576)
        ]
    );
    assert_eq!(
        found.pools[0].size_class,
        usize::from(classes::of_page(1, 80).unwrap())
    );
    assert_ne!(
        classes::of_page(1, 64).unwrap(),
        found.pools[2].size_class as u8,
        "heaps share no pages"
    );
}

#[test]
fn an_empty_page_that_can_be_used_again_is_there() {
    let freed = A + SLICE_BYTES;
    let list = MadePage {
        thread_free: freed,
        ..page(1, 80, 1)
    };
    let process = Process::new(&layout(), &[list, page(1, 80, 3)]).with(freed, vec![0; SLICE_BYTES as usize]);
    let found = process.read(&[]).unwrap();
    assert_eq!(
        (found.pools.len(), found.free_pools, found.blocks_in_use()),
        (2, 1, 3)
    );
}

#[test]
fn pages_lead_to_their_neighbours_in_other_segments() {
    let next = MadePage {
        next: page_head(&layout(), B, 1),
        ..page(1, 80, 10)
    };
    let other = made_up::segment(&layout(), B, SECRET, 0, &[page(1, 80, 20)]);
    let process = Process::new(&layout(), &[next]).with(B, other);
    assert_eq!(
        process.in_use(&[]),
        [(page_head(&layout(), A, 1), 10), (page_head(&layout(), B, 1), 20)].into()
    );
}

#[test]
fn what_ended_threads_left_is_there_once() {
    let left = |address, next| made_up::segment(&layout(), address, SECRET, next, &[page(1, 80, 20)]);
    // The low bits count how often the list was changed.
    let process = Process::new(&layout(), &[page(1, 80, 10)])
        .with(B, left(B, C))
        .with(C, left(C, 0));
    let [a, b, c] = [A, B, C].map(|segment| page_head(&layout(), segment, 1));
    assert_eq!(process.in_use(&[]), [(a, 10)].into());
    let process = process.with_lists(B | 0x1234, C);
    assert_eq!(process.in_use(&[]), [(a, 10), (b, 20), (c, 20)].into());
    // Taken over: in the list still, and with the thread.
    let next = MadePage {
        next: c,
        ..page(1, 80, 10)
    };
    let process = process.with(A, made_up::segment(&layout(), A, SECRET, 0, &[next]));
    assert_eq!(process.in_use(&[c, b]), [(a, 10), (b, 20), (c, 20)].into());
}

#[test]
fn very_large_blocks_are_found_by_who_opened_them() {
    let page_of_its_own = MadePage {
        slices: 511,
        ..page(0, 511 * SLICE_BYTES as u32, 1)
    };
    let huge = made_up::segment(&layout(), B, SECRET, 0, &[page_of_its_own]);
    let process = Process::new(&layout(), &[page(1, 80, 10)]).with(B, huge);
    let head = page_head(&layout(), B, 1);
    assert!(!process.in_use(&[]).contains_key(&head));
    assert_eq!(process.in_use(&[head, C + 8]).get(&head), Some(&1));
}

#[test]
fn what_is_no_segment_of_the_process_is_left_out() {
    let other = made_up::segment(&layout(), B, SECRET + 1, 0, &[page(1, 80, 20)]);
    let process = Process::new(&layout(), &[page(1, 80, 10)])
        .with(B, other)
        .with(C, vec![0xff; 64 << 10]);
    let found = process.in_use(&[page_head(&layout(), B, 1), C + 8, 3, u64::MAX]);
    assert_eq!(found, [(page_head(&layout(), A, 1), 10)].into());
}

#[test]
fn blocks_that_other_threads_freed_are_not_in_use() {
    let blocks = A + SLICE_BYTES;
    let freed = |thread_free| {
        let list = MadePage {
            thread_free,
            ..page(1, 80, 10)
        };
        // The page: the block at 240 is followed by the one at 80, which is the last.
        let mut bytes = vec![0xaa; SLICE_BYTES as usize];
        bytes[240..248].copy_from_slice(&(blocks + 80).to_le_bytes());
        bytes[80..88].fill(0);
        // And one that is followed by itself.
        bytes[400..408].copy_from_slice(&(blocks + 400).to_le_bytes());
        let process = Process::new(&layout(), &[list]).with(blocks, bytes);
        process.in_use(&[])[&page_head(&layout(), A, 1)]
    };
    assert_eq!(freed(0), 10);
    // The low bits are flags.
    assert_eq!(freed(1), 10);
    assert_eq!(freed((blocks + 80) | 2), 9);
    assert_eq!(freed(blocks + 240), 8);
    assert_eq!(freed(blocks + 400), 0);
    // Into nowhere.
    assert_eq!(freed(blocks + 8), 9);
    assert_eq!(freed(0x7fff_ffff_f000), 10);
}

#[test]
fn a_thread_state_that_grew_is_found_and_another_mimalloc_is_not() {
    let grown = layout().moved(8).unwrap();
    let process = Process::new(&grown, &[page(1, 80, 10)]);
    assert_eq!(process.in_use(&[]).len(), 1);
    for wrong in [
        Layout {
            heap_bytes: grown.heap_bytes + 8,
            ..grown
        },
        Layout {
            heap_queues: grown.heap_queues + 8,
            ..grown
        },
        Layout {
            heap_thread: grown.heap_thread + 8,
            ..grown
        },
    ] {
        let process = Process::new(&wrong, &[page(1, 80, 10)]);
        assert_eq!(process.read(&[]), Err(PoolsError::Implausible));
    }
    // Another thread's.
    let mut process = Process::new(&layout(), &[page(1, 80, 10)]);
    process.states[0].thread += 8;
    assert_eq!(process.read(&[]), Err(PoolsError::Implausible));
    process.states.clear();
    assert_eq!(process.read(&[]), Err(PoolsError::Implausible));
}

#[test]
fn a_thread_that_has_just_begun_is_no_error() {
    let mut process = Process::new(&layout(), &[page(1, 80, 10)]).with(0x50_0000, vec![0; 64 << 10]);
    process.states.push(ThreadState {
        address: 0x50_0000,
        thread: THREAD + 0x1000,
    });
    process.states.push(ThreadState {
        address: 0x90_0000,
        thread: THREAD + 0x2000,
    });
    assert_eq!(process.in_use(&[]).len(), 1);
}

#[test]
fn heads_that_make_no_sense_are_counted_and_the_rest_is_read() {
    let pages = [
        page(1, 80, 10),
        // No such size, more than fits, no such heap.
        page(1, 72, 10),
        page(1, 80, 820),
        page(4, 80, 10),
        page(1, 80, 30),
        page(1, 80, 40),
        page(1, 80, 50),
    ];
    let found = Process::new(&layout(), &pages).read(&[]).unwrap();
    assert_eq!((found.blocks_in_use(), found.odd), (130, 3));
    let found = Process::new(&layout(), &pages[..4]).read(&[]);
    assert_eq!(found, Err(PoolsError::Implausible));
}

/// What is read while a program runs can be any mixture of what was there before and after.
#[test]
fn whatever_a_segment_holds_no_page_has_more_than_fits() {
    let pages: Vec<MadePage> = (0..200).map(|n| page((n % 4) as u8, 64, n + 1)).collect();
    let whole = made_up::segment(&layout(), A, SECRET, 0, &pages);
    let (mut random, mut read, mut refused) = (Random(0x9E37_79B9_7F4A_7C15), 0, 0);
    for round in 0..400 {
        let mut segment = whole.clone();
        for _ in 0..=round / 4 {
            // Not the head of the segment: that never changes.
            let heads = page_head(&layout(), 0, 1) as usize;
            let at = heads + random.below((segment.len() - heads) as u64) as usize;
            segment[at] = random.below(256) as u8;
        }
        match Process::new(&layout(), &[]).with(A, segment).read(&[]) {
            Ok(found) => {
                read += 1;
                for pool in found.pools {
                    assert!(pool.bytes_in_use() <= SEGMENT_BYTES, "{pool:?}");
                    assert!(pool.in_use <= u16::MAX.into(), "{pool:?}");
                }
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error, PoolsError::Implausible);
            }
        }
    }
    assert!(read > 200, "{read} read, {refused} refused");
}
