//! What naming needs of an ELF file: where its segments go and its build id.

use std::fmt::Write as _;

use object::elf::PF_X;
use object::read::{File, Object as _, ObjectSegment as _, ReadRef, SegmentFlags};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    file_bytes: u64,
    address: u64,
    executable: bool,
}

/// The part of a file that says where it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    segments: Vec<Segment>,
    /// In hex.
    pub build_id: Option<String>,
}

impl Layout {
    /// None for what is no ELF file.
    pub fn read<'data, R: ReadRef<'data>>(data: R) -> Option<Self> {
        let file = File::parse(data).ok()?;
        let segments = file.segments().map(|segment| {
            let (file_offset, file_bytes) = segment.file_range();
            let executable =
                matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(PF_X));
            Segment {
                file_offset,
                file_bytes,
                address: segment.address(),
                executable,
            }
        });
        let segments = segments.collect();
        let build_id = file.build_id().ok().flatten().map(hex);
        Some(Self { segments, build_id })
    }

    /// The virtual address that `objdump` shows for this place in the file. Segments can share a page of the
    /// file; code is in the executable one.
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        let holds = |segment: &&Segment| {
            file_offset
                .checked_sub(segment.file_offset)
                .is_some_and(|into| into < segment.file_bytes)
        };
        let holding = || self.segments.iter().filter(holds);
        let segment = holding()
            .find(|segment| segment.executable)
            .or_else(|| holding().next())?;
        Some(segment.address.wrapping_add(file_offset - segment.file_offset))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_segment_wins_where_two_hold_the_same_bytes() {
        let segment = |file_offset, file_bytes, address, executable| Segment {
            file_offset,
            file_bytes,
            address,
            executable,
        };
        let layout = Layout {
            segments: vec![
                segment(0, 0x2000, 0, false),
                segment(0x1000, 0x1000, 0x40_1000, true),
            ],
            build_id: None,
        };
        assert_eq!(layout.address_of(0x10), Some(0x10));
        assert_eq!(layout.address_of(0x1010), Some(0x40_1010));
        assert_eq!(layout.address_of(0x2000), None);
    }

    #[test]
    fn this_very_program_has_a_layout() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let layout = Layout::read(&bytes[..]).unwrap();
        assert!(layout.segments.iter().any(|segment| segment.executable));
        assert!(
            layout
                .build_id
                .is_none_or(|id| id.len() >= 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }

    #[test]
    fn other_files_have_none() {
        assert_eq!(Layout::read(&b"#!/bin/sh\n"[..]), None);
        assert_eq!(Layout::read(&b""[..]), None);
        assert_eq!(Layout::read(&b"\x7fELF\x02\x01\x01"[..]), None);
    }
}
