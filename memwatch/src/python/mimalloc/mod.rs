//! The mimalloc that free-threaded builds of CPython have their objects in, from outside: its pages, what is in them,
//! and the function that takes one into use.
//!
//! Each thread has four heaps (for memory and three kinds of objects). Memory is in segments of 32 MiB, aligned to that.
//! A segment begins with the heads of its pages. A page has blocks of one size; its head says how many are in use. The
//! segments of threads that have ended are in a list of their own until another thread takes them over.

mod fresh;
mod heaps;
pub mod made_up;
mod read;
mod segment;
mod table;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

use super::offsets::Build;

pub(super) use fresh::fresh_page;
pub use read::read;

/// Minor version, built for debugging, free-threaded, offsets.
type Row = (u8, bool, bool, [u32; table::FIELDS.len()]);

const fn row(minor: u8, debug: bool, free_threaded: bool, offsets: [u32; table::FIELDS.len()]) -> Row {
    (minor, debug, free_threaded, offsets)
}

macro_rules! layout {
    ($($(#[$doc:meta])* $field:ident,)+) => {
        /// In bytes from the beginning of the structure that the name's first part says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Layout { $($(#[$doc])* $field: u32,)+ }

        impl Layout {
            #[cfg(test)]
            const NAMES: &[&str] = &[$(stringify!($field),)+];

            const fn from_row(row: &[u32; table::FIELDS.len()]) -> Self {
                let [$($field,)+] = *row;
                Self { $($field,)+ }
            }
        }
    };
}

layout! {
    thread_heaps,
    /// What the heaps of a thread share.
    thread_local,
    /// The pointer to the list of segments without a thread.
    thread_abandoned,
    /// Its low bits are a count.
    abandoned_first,
    abandoned_visited,
    heap_bytes,
    heap_local,
    heap_queues,
    /// `pthread_self()`
    heap_thread,
    /// Its number among the four.
    heap_tag,
    queue_bytes,
    queue_first,
    queue_last,
    queue_block_bytes,
    segment_next_abandoned,
    /// The segment's address, with a number of the process mixed in.
    segment_cookie,
    segment_slice_count,
    /// Slices with the heads.
    segment_own_slices,
    segment_entries,
    segment_pages,
    page_bytes,
    page_slice_count,
    /// 0 for the first slice of a page.
    page_slice_offset,
    /// The byte with the number of its heap, of which the bit is the lowest one.
    page_tag,
    page_tag_bit,
    /// Blocks that can be used so far, and once all are made.
    page_capacity,
    page_reserved,
    page_used,
    page_block_bytes,
    /// The list of blocks that other threads have freed, its low two bits are flags.
    page_thread_free,
    page_next,
    page_previous,
}

impl Layout {
    /// Newer mimallocs have the number of a version that the table has; what is read tells. Builds for debugging mix
    /// secrets into their lists.
    pub fn of(build: Build) -> Option<Self> {
        let wanted = (build.version.minor(), false, true);
        let fits = build.free_threaded && !build.debug;
        let row = table::ROWS.iter().find(|row| (row.0, row.1, row.2) == wanted)?;
        fits.then(|| Self::from_row(&row.3))
    }

    /// Thread states grew within a minor version: their mimalloc moved as a whole.
    const fn moved(self, by: i32) -> Option<Self> {
        let (Some(thread_heaps), Some(thread_local), Some(thread_abandoned)) = (
            self.thread_heaps.checked_add_signed(by),
            self.thread_local.checked_add_signed(by),
            self.thread_abandoned.checked_add_signed(by),
        ) else {
            return None;
        };
        Some(Self {
            thread_heaps,
            thread_local,
            thread_abandoned,
            ..self
        })
    }
}
