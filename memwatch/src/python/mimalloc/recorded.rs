//! What real interpreters had in memory.

use super::*;
use crate::python::classes;
use crate::python::memory::Recorded;
use crate::python::pymalloc::{Pool, PoolsError};
use crate::python::thread_state::ThreadState;
use crate::python::version::Version;

const fn build(minor: u8) -> Build {
    Build {
        version: Version::new(minor, 5),
        debug: false,
        free_threaded: true,
    }
}

/// What a free-threaded CPython had in memory while it waited: its thread state, the list of segments without a thread,
/// and the heads of all segments, one of which a thread left that had ended. In the file: address of the thread state, the
/// thread, what `sys.getallocatedblocks()` said; for each piece its address, how long it is, and all of it that is not 0.
struct OfACPython {
    memory: Recorded,
    state: ThreadState,
    blocks: u64,
}

impl OfACPython {
    fn read(mut file: &[u8]) -> Self {
        fn take<const N: usize>(file: &mut &[u8]) -> [u8; N] {
            let (first, rest) = file.split_first_chunk().unwrap();
            *file = rest;
            *first
        }
        let word = |file: &mut &[u8]| u64::from_le_bytes(take(file));
        let half = |file: &mut &[u8]| u32::from_le_bytes(take(file)) as usize;
        let state = ThreadState {
            address: word(&mut file),
            thread: word(&mut file),
        };
        let blocks = word(&mut file);
        let mut memory = Recorded::default();
        while !file.is_empty() {
            let address = word(&mut file);
            let mut bytes = vec![0; half(&mut file)];
            for _ in 0..half(&mut file) {
                let (at, length) = (half(&mut file), half(&mut file));
                let (run, rest) = file.split_at(length);
                bytes[at..at + length].copy_from_slice(run);
                file = rest;
            }
            memory.pieces.push((address, bytes));
        }
        Self {
            memory,
            state,
            blocks,
        }
    }
}

#[test]
fn the_blocks_of_real_interpreters_are_those_that_they_count() {
    let recorded: [(u8, &[u8]); 2] = [
        (13, include_bytes!("recorded_3_13_5.bin")),
        (14, include_bytes!("recorded_3_14_7.bin")),
    ];
    for (minor, file) in recorded {
        let python = OfACPython::read(file);
        let layout = Layout::of(build(minor)).unwrap();
        let found = read(layout, &[python.state], &[], &python.memory).unwrap();
        assert_eq!((found.arenas, found.odd), (2, 0), "3.{minor}");
        // Telling the number took some blocks.
        let blocks = found.blocks_in_use();
        assert!(
            blocks.abs_diff(python.blocks) <= 20,
            "3.{minor}: {blocks} of {}",
            python.blocks
        );
        let large = |bytes: u64| {
            found
                .pools
                .iter()
                .filter(|pool| pool.block_bytes == bytes)
                .count()
        };
        // 200,000 and 900,000 bytes, each with a page of its own.
        assert!(large(256 << 10) >= 1 && large(1 << 20) >= 1, "3.{minor}");
        // In all four heaps.
        let heaps = (0..4).filter(|heap| {
            let of_heap =
                |pool: &Pool| classes::of_page(*heap, pool.block_bytes) == Some(pool.size_class as u8);
            found
                .pools
                .iter()
                .any(|pool| pool.block_bytes <= 128 << 10 && of_heap(pool))
        });
        assert_eq!(heaps.count(), 4, "3.{minor}");
        // The other version has its heaps elsewhere.
        let other = Layout::of(build(27 - minor)).unwrap();
        assert_eq!(
            read(other, &[python.state], &[], &python.memory),
            Err(PoolsError::Implausible)
        );
    }
}
