//! A stack that stands as it stood at the thread's last walk. A loop that allocates comes from the same place again and
//! again; comparing the words that led the last walk out is several times cheaper than the walk.
//!
//! Where a walk goes depends on where it begins, on what code is mapped where, and on the words that it reads. When all
//! of them are the same, so are its frames.

use memwatch_common::stack::STACK_COMPLETE;

use crate::{
    bound::mask,
    memory::{CHUNK_MASK, load_chunk},
    slot::Slot,
    unwind::Start,
};

/// Words that are remembered: two a frame in code with frame pointers.
const WORDS: usize = 64;
const WORD_MASK: i32 = WORDS as i32 - 1;
const _: () = assert!(WORDS.is_power_of_two());

/// The walk is not one to compare with.
const NEVER: u32 = u32::MAX;

/// The thread's last walk. Its frames still are in the slot.
#[repr(C)]
pub struct LastWalk {
    ip: u64,
    sp: u64,
    fp: u64,
    /// The process's code as it was mapped.
    seed: u64,
    /// Of the frames.
    hash: u64,
    /// Where the piece of stack began that all the words are in, and how much of it there was.
    chunk_at: u64,
    chunk_bytes: u32,
    /// How many words were read, or [`NEVER`].
    count: u32,
    values: [u64; WORDS],
    /// Where each stands in the chunk.
    places: [u8; WORDS],
}

impl LastWalk {
    /// A walk begins that is not known.
    #[inline(always)]
    pub fn begin(&mut self, start: &Start, seed: u64) {
        self.ip = start.ip;
        self.sp = start.sp;
        self.fp = start.fp;
        self.seed = seed;
        self.count = 0;
    }

    /// Whether a walk from here on may be the last one again.
    #[inline(always)]
    fn began_at(&self, start: &Start, seed: u64) -> bool {
        self.sp == start.sp && self.ip == start.ip && self.fp == start.fp && self.seed == seed
    }

    /// The walk depends on more than words of one piece of stack.
    #[inline(always)]
    pub fn never_again(&mut self) {
        // SAFETY: a write of a live field, volatile as in `read_here`.
        unsafe { core::ptr::write_volatile(&raw mut self.count, NEVER) };
    }

    /// The walk has read the word at a place of the chunk. The count lives in memory: the verifier would follow each
    /// number as a case of its own.
    #[inline(always)]
    pub fn read_here(&mut self, chunk_at: u64, place: usize, value: u64) {
        // SAFETY: a read of a live field.
        let n = unsafe { core::ptr::read_volatile(&raw const self.count) };
        if n == 0 {
            self.chunk_at = chunk_at;
        }
        if n as usize >= WORDS || self.chunk_at != chunk_at {
            self.never_again();
            return;
        }
        let index = mask::<WORD_MASK>(u64::from(n));
        // SAFETY: the mask keeps the index inside both arrays; a write of a live field.
        unsafe {
            *self.values.get_unchecked_mut(index) = value;
            *self.places.get_unchecked_mut(index) = place as u8;
            core::ptr::write_volatile(&raw mut self.count, n + 1);
        }
    }
}
const _: () = assert!(CHUNK_MASK <= u8::MAX as i32);

/// The walk has ended: what it takes to know it again.
#[inline(always)]
pub fn keep(slot: &mut Slot) {
    if slot.stack.flags != STACK_COMPLETE {
        slot.last.never_again();
    }
    slot.last.hash = slot.hash;
    slot.last.chunk_bytes = slot.chunk_bytes;
}

/// True when a walk that begins here would give the frames that are in the slot; their hash is there too then.
#[inline(always)]
pub fn known(slot: &mut Slot, start: &Start, seed: u64) -> bool {
    if !slot.last.began_at(start, seed) || stands_as_before(slot) == 0 {
        return false;
    }
    slot.hash = slot.last.hash;
    true
}

/// Whether all words of the last walk are what they were.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stands_as_before(slot_at: *mut Slot) -> u32 {
    // SAFETY: null or this thread's slot.
    let Some(slot) = (unsafe { slot_at.as_mut() }) else {
        return 0;
    };
    let (count, from, bytes) = (slot.last.count, slot.last.chunk_at, slot.last.chunk_bytes);
    if count as usize > WORDS || load_chunk(slot_at, from) == 0 {
        return 0;
    }
    if slot.chunk_bytes < bytes {
        return 0;
    }
    for index in 0..WORDS {
        // Read each time, or the compiler would make this the loop's only bound, which Linux 6.1 cannot follow.
        // SAFETY: a read of a live field.
        if index as u32 >= unsafe { core::ptr::read_volatile(&raw const slot.last.count) } {
            break;
        }
        // Masked, as the compiler counts with pointers otherwise.
        let index = mask::<WORD_MASK>(index as u64);
        // SAFETY: the masks keep the index inside both arrays, and the place inside the chunk.
        let (found, expected) = unsafe {
            let place = mask::<CHUNK_MASK>(u64::from(*slot.last.places.get_unchecked(index)));
            (
                *slot.chunk.get_unchecked(place),
                *slot.last.values.get_unchecked(index),
            )
        };
        if found != expected {
            return 0;
        }
    }
    1
}
