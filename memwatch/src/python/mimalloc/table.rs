//! Made by `cargo xtask python-layouts` from CPython's headers. Not to be changed by hand.

use super::{Row, row};

/// The fields, in the order of each row's numbers; -1: there is none.
#[rustfmt::skip]
pub(super) const FIELDS: [&str; 32] = [
    "thread_heaps",
    "thread_local",
    "thread_abandoned",
    "abandoned_first",
    "abandoned_visited",
    "heap_bytes",
    "heap_local",
    "heap_queues",
    "heap_thread",
    "heap_tag",
    "queue_bytes",
    "queue_first",
    "queue_last",
    "queue_block_bytes",
    "segment_next_abandoned",
    "segment_cookie",
    "segment_slice_count",
    "segment_own_slices",
    "segment_entries",
    "segment_pages",
    "page_bytes",
    "page_slice_count",
    "page_slice_offset",
    "page_tag",
    "page_tag_bit",
    "page_capacity",
    "page_reserved",
    "page_used",
    "page_block_bytes",
    "page_thread_free",
    "page_next",
    "page_previous",
];

/// Minor version, built for debugging, free-threaded, offsets.
#[rustfmt::skip]
pub(super) const ROWS: [Row; 4] = [
    row(13, false, true, [352, 12608, 13552, 64, 0, 3064, 0, 1040, 2848, 3057, 24, 0, 8, 16, 176, 216, 224, 232, 248, 264, 96, 0, 4, 8, 3, 10, 12, 24, 28, 40, 56, 64]),
    row(13, true, true, [352, 12640, 13584, 64, 0, 3072, 0, 1048, 2856, 3065, 24, 0, 8, 16, 176, 216, 224, 232, 248, 264, 112, 0, 4, 8, 3, 10, 12, 24, 28, 56, 72, 80]),
    row(14, false, true, [944, 13200, 14144, 64, 0, 3064, 0, 1040, 2848, 3057, 24, 0, 8, 16, 176, 216, 224, 232, 248, 264, 96, 0, 4, 8, 3, 10, 12, 24, 28, 40, 56, 64]),
    row(14, true, true, [944, 13232, 14176, 64, 0, 3072, 0, 1048, 2856, 3065, 24, 0, 8, 16, 176, 216, 224, 232, 248, 264, 112, 0, 4, 8, 3, 10, 12, 24, 28, 56, 72, 80]),
];
