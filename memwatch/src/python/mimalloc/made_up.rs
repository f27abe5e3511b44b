//! Bytes as mimalloc has them, for tests and fuzzers.

use super::Layout;
use super::segment::{SEGMENT_BYTES, SLICE_BYTES};
use crate::python::classes::{self, HEAPS};

/// A page to be made up.
#[derive(Clone, Copy, Debug, Default)]
pub struct MadePage {
    pub slices: u64,
    pub heap: u8,
    pub block_bytes: u32,
    pub used: u32,
    pub thread_free: u64,
    pub next: u64,
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// The thread state at `address`, with `first` as the first page of one of its queues.
pub fn thread_state(layout: &Layout, address: u64, thread: u64, abandoned: u64, first: u64) -> Vec<u8> {
    let mut bytes = vec![0; layout.thread_abandoned as usize + 8];
    put(
        &mut bytes,
        layout.thread_abandoned as usize,
        &abandoned.to_le_bytes(),
    );
    let local = address + u64::from(layout.thread_local);
    for tag in 0..HEAPS {
        let heap = layout.thread_heaps as usize + usize::from(tag) * layout.heap_bytes as usize;
        put(
            &mut bytes,
            heap + layout.heap_local as usize,
            &local.to_le_bytes(),
        );
        put(
            &mut bytes,
            heap + layout.heap_thread as usize,
            &thread.to_le_bytes(),
        );
        put(&mut bytes, heap + layout.heap_tag as usize, &[tag]);
        for (queue, size) in (9..).zip(classes::shared_sizes().skip(5)) {
            let queue = heap + layout.heap_queues as usize + queue * layout.queue_bytes as usize;
            put(
                &mut bytes,
                queue + layout.queue_block_bytes as usize,
                &size.to_le_bytes(),
            );
            if size == 80 && tag == 1 {
                put(
                    &mut bytes,
                    queue + layout.queue_first as usize,
                    &first.to_le_bytes(),
                );
            }
        }
    }
    bytes
}

/// The heads of a segment at `address`, of pages one after the other; what follows is free.
pub fn segment(
    layout: &Layout,
    address: u64,
    secret: u64,
    next_abandoned: u64,
    pages: &[MadePage],
) -> Vec<u8> {
    let slices = SEGMENT_BYTES / SLICE_BYTES;
    let heads = layout.segment_pages as usize;
    let mut bytes = vec![0; heads + (slices as usize + 1) * layout.page_bytes as usize];
    let fields = [
        (layout.segment_cookie, secret ^ address),
        (layout.segment_next_abandoned, next_abandoned),
        (layout.segment_slice_count, slices),
        (layout.segment_own_slices, 1),
        (layout.segment_entries, slices),
    ];
    for (at, value) in fields {
        put(&mut bytes, at as usize, &value.to_le_bytes());
    }
    put(
        &mut bytes,
        heads + layout.page_slice_count as usize,
        &1_u32.to_le_bytes(),
    );
    let mut at = 1;
    for page in pages {
        let head = (page_head(layout, address, at) - address) as usize;
        let mut field = |offset: u32, value: &[u8]| put(&mut bytes, head + offset as usize, value);
        field(layout.page_slice_count, &(page.slices as u32).to_le_bytes());
        field(layout.page_tag, &[page.heap << layout.page_tag_bit]);
        field(layout.page_capacity, &(page.used as u16).to_le_bytes());
        field(layout.page_reserved, &u16::MAX.to_le_bytes());
        field(layout.page_used, &page.used.to_le_bytes());
        field(layout.page_block_bytes, &page.block_bytes.to_le_bytes());
        field(layout.page_thread_free, &page.thread_free.to_le_bytes());
        field(layout.page_next, &page.next.to_le_bytes());
        at += page.slices;
    }
    let rest = (page_head(layout, address, at) - address) as usize;
    let free = (slices - at.min(slices)) as u32;
    put(
        &mut bytes,
        rest + layout.page_slice_count as usize,
        &free.to_le_bytes(),
    );
    bytes
}

/// Where the head of the page stands that begins at a slice.
pub fn page_head(layout: &Layout, segment: u64, slice: u64) -> u64 {
    segment + u64::from(layout.segment_pages) + slice * u64::from(layout.page_bytes)
}
