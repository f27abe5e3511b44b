//! A segment: its head, and the heads of its pages.

use super::Layout;
use crate::python::memory::{Memory, Unreadable, u32_at, u64_at};

/// Bytes of a segment, and what its address is a multiple of.
pub(super) const SEGMENT_BYTES: u64 = 32 << 20;

/// Pages are made of so many bytes each.
pub(super) const SLICE_BYTES: u64 = 64 << 10;

const SLICES: u64 = SEGMENT_BYTES / SLICE_BYTES;

/// The block size of larger blocks is their page's.
const LARGEST: u64 = 2 << 30;

/// Processes have no more memory than that.
const LARGEST_PAGE: u64 = 1 << 47;

/// The segment that an address is in.
pub(super) const fn segment_of(address: u64) -> u64 {
    address & !(SEGMENT_BYTES - 1)
}

/// A page that has, or had, blocks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Of its head.
    pub head: u64,
    /// Of its first slice; blocks begin there or a little later.
    pub start: u64,
    pub bytes: u64,
    pub heap: u8,
    pub block_bytes: u64,
    /// With those that other threads have freed.
    pub used: u64,
    /// First of the blocks that other threads have freed; 0 for none.
    pub thread_free: u64,
    /// Heads of its neighbours in a queue; 0 for none.
    pub neighbours: [u64; 2],
}

/// The heads of a segment.
pub(super) struct Segment {
    pub address: u64,
    bytes: Vec<u8>,
    layout: Layout,
}

/// What was found in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    pub used: Vec<Page>,
    /// Pages without blocks in use.
    pub empty: u64,
    /// What can be no page, as when it was being changed.
    pub odd: u64,
}

impl Segment {
    pub fn read(address: u64, layout: Layout, memory: &impl Memory) -> Result<Self, Unreadable> {
        let heads = layout.page_bytes as usize * SLICES as usize;
        let bytes = memory.read(address, layout.segment_pages as usize + heads)?;
        Ok(Self {
            address,
            bytes,
            layout,
        })
    }

    fn word(&self, offset: u32) -> u64 {
        u64_at(&self.bytes, offset as usize).unwrap_or(0)
    }

    /// The same for all segments of a process.
    pub fn secret(&self) -> u64 {
        self.word(self.layout.segment_cookie) ^ self.address
    }

    pub fn next_abandoned(&self) -> u64 {
        self.word(self.layout.segment_next_abandoned)
    }

    pub fn size(&self) -> u64 {
        self.word(self.layout.segment_slice_count)
            .saturating_mul(SLICE_BYTES)
    }

    /// `None` for what is no segment.
    pub fn pages(&self) -> Option<Pages> {
        let own = self.word(self.layout.segment_own_slices);
        let end = self.word(self.layout.segment_entries);
        let sound = own >= 1 && own < end && end <= SLICES;
        if !sound || self.slices(0)? != own {
            return None;
        }
        let mut pages = Pages::default();
        let mut at = own;
        while at < end {
            // In the middle of a page: this was changed while it was read.
            if self.head(at)?.slice_offset()? != 0 {
                pages.odd += 1;
                while at < end && self.head(at)?.slice_offset()? != 0 {
                    at += 1;
                }
                continue;
            }
            match self.page(at)? {
                Seen::Page(page) => pages.used.push(page),
                Seen::Empty => pages.empty += 1,
                Seen::Free => {}
                Seen::Odd => pages.odd += 1,
            }
            at += self.slices(at)?.max(1);
        }
        Some(pages)
    }

    fn slices(&self, at: u64) -> Option<u64> {
        Some(u64::from(self.head(at)?.u32(self.layout.page_slice_count)?))
    }

    fn head(&self, at: u64) -> Option<Head<'_>> {
        let bytes = self.layout.page_bytes as usize;
        let from = self.layout.segment_pages as usize + usize::try_from(at).ok()?.checked_mul(bytes)?;
        Some(Head {
            bytes: self.bytes.get(from..from.checked_add(bytes)?)?,
            layout: &self.layout,
        })
    }

    fn page(&self, at: u64) -> Option<Seen> {
        let (layout, head) = (&self.layout, self.head(at)?);
        let slices = self.slices(at)?.max(1);
        let bytes = slices * SLICE_BYTES;
        if bytes > LARGEST_PAGE {
            return Some(Seen::Odd);
        }
        let block_bytes = match u64::from(head.u32(layout.page_block_bytes)?) {
            // A span of slices that are free, or about to be used.
            0 | 1 => return Some(Seen::Free),
            LARGEST.. => bytes,
            smaller => smaller,
        };
        let used = u64::from(head.u32(layout.page_used)?);
        let (capacity, reserved) = (head.u16(layout.page_capacity)?, head.u16(layout.page_reserved)?);
        // Just being taken into use. Others without a block in use can be used again as they are.
        if used == 0 && capacity == 0 {
            return Some(Seen::Empty);
        }
        // Large blocks lie in segments of their own, which say how large they are in their own way.
        let fits = block_bytes.saturating_mul(used) <= bytes;
        if used > capacity.into() || capacity > reserved || !fits {
            return Some(Seen::Odd);
        }
        let head_at = u64::from(layout.segment_pages) + at * u64::from(layout.page_bytes);
        Some(Seen::Page(Page {
            head: self.address.wrapping_add(head_at),
            start: self.address.wrapping_add(at * SLICE_BYTES),
            bytes,
            heap: head.bytes.get(layout.page_tag as usize)? >> layout.page_tag_bit & 15,
            block_bytes,
            used,
            thread_free: head.u64(layout.page_thread_free)? & !3,
            neighbours: [head.u64(layout.page_next)?, head.u64(layout.page_previous)?],
        }))
    }
}

enum Seen {
    Page(Page),
    Empty,
    Free,
    Odd,
}

/// The head of a page, or of any slice.
struct Head<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
}

impl Head<'_> {
    fn u16(&self, offset: u32) -> Option<u16> {
        let bytes = self.bytes.get(offset as usize..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    }

    fn u32(&self, offset: u32) -> Option<u32> {
        u32_at(self.bytes, offset as usize)
    }

    fn u64(&self, offset: u32) -> Option<u64> {
        u64_at(self.bytes, offset as usize)
    }

    fn slice_offset(&self) -> Option<u32> {
        self.u32(self.layout.page_slice_offset)
    }
}
