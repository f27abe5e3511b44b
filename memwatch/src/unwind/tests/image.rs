//! Small ELF images around unwind sections that tests make.

use gimli::LittleEndian;
use gimli::write::{DebugFrame, EhFrame, EndianVec, FrameTable};

pub const CODE: u64 = 0x1000;
const EH_FRAME_HDR: u64 = 0x80_0000;
pub const EH_FRAME: u64 = 0x80_0010;

/// How the image says where its unwind information is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A section of this name.
    Section(&'static str),
    /// Program headers only.
    Programs,
}

/// An image with `code` at [`CODE`], and `unwind` as its unwind information.
pub fn image(code: &[u8], entry: u64, unwind: &[u8], layout: Layout) -> Vec<u8> {
    let code_at = 0x1000;
    let unwind_at = code_at + code.len().next_multiple_of(16);
    // .eh_frame_hdr: version, pointer to .eh_frame as udata8, no table.
    let mut data = vec![1, 4, 0xff, 0xff];
    data.extend(EH_FRAME.to_le_bytes());
    data.resize(16, 0);
    data.extend(unwind);

    let with_programs = layout == Layout::Programs;
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let sections_at = unwind_at + data.len().next_multiple_of(8);
    half(&mut bytes, &[3, 62]);
    word(&mut bytes, &[1]);
    let sections = if with_programs { 0 } else { sections_at as u64 };
    long(&mut bytes, &[entry, 64, sections]);
    word(&mut bytes, &[0]);
    let (programs, section_count) = if with_programs { (3, 0) } else { (1, 4) };
    half(
        &mut bytes,
        &[
            64,
            56,
            programs,
            64,
            section_count,
            if with_programs { 0 } else { 3 },
        ],
    );

    let program = |bytes: &mut Vec<u8>, kind: u32, flags: u32, offset: usize, address: u64, size: usize| {
        word(bytes, &[kind, flags]);
        long(
            bytes,
            &[offset as u64, address, address, size as u64, size as u64, 0x1000],
        );
    };
    program(&mut bytes, 1, 5, code_at, CODE, code.len());
    if with_programs {
        program(&mut bytes, 1, 4, unwind_at, EH_FRAME_HDR, data.len());
        program(&mut bytes, 0x6474_e550, 4, unwind_at, EH_FRAME_HDR, 12);
    }
    bytes.resize(code_at, 0);
    bytes.extend(code);
    bytes.resize(unwind_at, 0);
    bytes.extend(&data);
    bytes.resize(sections_at, 0);
    if let Layout::Section(name) = layout {
        let names = format!("\0.text\0{name}\0");
        let names_at = sections_at + 4 * 64;
        let mut section = |name: u32, kind: u32, flags: u64, address: u64, offset: usize, size: usize| {
            word(&mut bytes, &[name, kind]);
            long(&mut bytes, &[flags, address, offset as u64, size as u64, 0, 8, 0]);
        };
        section(0, 0, 0, 0, 0, 0);
        section(1, 1, 6, CODE, code_at, code.len());
        section(7, 1, 2, EH_FRAME, unwind_at + 16, unwind.len());
        section(0, 3, 0, 0, names_at, names.len());
        bytes.extend(names.as_bytes());
    }
    bytes
}

fn half(bytes: &mut Vec<u8>, values: &[u16]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn word(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn long(bytes: &mut Vec<u8>, values: &[u64]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

pub fn eh_frame(frames: &FrameTable) -> Vec<u8> {
    let mut section = EhFrame::from(EndianVec::new(LittleEndian));
    frames.write_eh_frame(&mut section).expect("valid frames");
    section.0.into_vec()
}

pub fn debug_frame(frames: &FrameTable) -> Vec<u8> {
    let mut section = DebugFrame::from(EndianVec::new(LittleEndian));
    frames.write_debug_frame(&mut section).expect("valid frames");
    section.0.into_vec()
}
