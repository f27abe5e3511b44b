//! The snapshot file: what a watch knew at each tick, with all names, so that everything that works on a running
//! process works on the file, also elsewhere and later.
//!
//! ```text
//! file  = "memwatch" version(u32)  frame*
//! frame = length(u32) checksum(u32)  head  packed
//! ```
//! Numbers are little-endian. One frame is one tick (the last may be the end mark): it is written whole, so a file
//! that was cut anywhere is good up to its last whole tick. `head` says the tick's number, its time and its sums without
//! unpacking anything (`frame`). What is packed is one zstd stream over all frames, flushed after each. Unpacked it is a
//! list of sections (`section`): new names (`names`), processes (`processes`), sites (`sites`), and the rest as
//! JSON. A tick holds only what changed since the one before.
//!
//! A reader skips sections that it does not know. Whatever changes the meaning of one that is there raises [`VERSION`],
//! and the reader keeps reading the old ones: `tests/fixtures` has a file of each.
//!
//! [`Recording`] reads, [`writer::Writer`] writes, `thin` keeps the file below a bound, `compare` makes two files
//! comparable. All of these are pure over readers and writers; `file` has the file system.

use std::path::Path;

pub mod compare;
mod error;
pub mod file;
mod frame;
mod header;
mod names;
mod processes;
mod reader;
mod section;
mod sites;
pub mod thin;
pub mod writer;

#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use header::Header;
pub use reader::{Bounds, Ending, Moment, Recording, TickInfo};

/// The version that is written. All older ones can be read.
pub const VERSION: u32 = 2;

/// Opens a recording. At least one whole tick is in it.
///
/// ```no_run
/// # use memwatch::{model::{query::Query, report::Kind}, store};
/// # fn main() -> anyhow::Result<()> {
/// let mut recording = store::open("a.memwatch".as_ref())?;
/// let baseline = recording.at(0)?.model.baseline();
/// let last = recording.ticks().len() - 1;
/// let report = recording.at(last)?.report(&Query::default(), Kind::Diff, Some(&baseline))?;
/// # Ok(())
/// # }
/// ```
pub fn open(path: &Path) -> Result<Recording, StoreError> {
    file::open(path)
}

/// For fuzzers: whatever the bytes are, reading must end soon, within bounded memory, and without a panic.
pub fn fuzz_entry(bytes: &[u8]) {
    let source = std::io::Cursor::new(bytes.to_vec());
    if let Ok(mut recording) = Recording::read(source, &Bounds::SMALL) {
        for index in 0..recording.ticks().len() {
            let Ok(mut moment) = recording.at(index) else {
                return;
            };
            let query = crate::model::query::Query::default();
            let _ = moment.report(&query, crate::model::report::Kind::Top, None);
        }
    }
}

/// For fuzzers: the same for what is packed in the frames, which damaged bytes do not reach: a checksum stands before it. The
/// bytes are cut into ticks of the length that two bytes before each tell.
pub fn fuzz_sections(mut bytes: &[u8]) {
    let mut file = Vec::new();
    frame::write_start(&mut file);
    let Ok(mut packer) = frame::Packer::new() else {
        return;
    };
    let header = serde_json::to_vec(&Header::default()).unwrap_or_default();
    let mut raw = Vec::new();
    section::Section::Header.put(&mut raw, &header);
    for tick in 0..8 {
        let Some((length, rest)) = bytes.split_first_chunk() else {
            break;
        };
        let length = rest.len().min(usize::from(u16::from_le_bytes(*length)));
        raw.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
        let head = frame::Head {
            tick,
            at_ns: tick << 30,
            ..frame::Head::default()
        };
        match packer.frame(&head, &raw) {
            Ok(frame) => file.extend_from_slice(&frame),
            Err(_) => return,
        }
        raw.clear();
    }
    fuzz_entry(&file);
}
