//! The parts of an ELF file that unwinding needs.

use std::borrow::Cow;

use object::LittleEndian;
use object::elf::{
    ELF_NOTE_GNU, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_GNU_EH_FRAME, PT_LOAD,
    ProgramHeader64, SHF_COMPRESSED, SHF_EXECINSTR, SHT_NOBITS, SectionHeader64,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable};

use super::table::BuildError;

/// Real files have one to three executable segments.
const MAX_SEGMENTS: usize = 64;

/// The largest unwind section that is unpacked when it is compressed.
const MAX_UNPACKED: u64 = 256 << 20;

/// Addresses above are not user space's; [`memwatch_common::unwind::PageKey`] has room up to here.
const MAX_ADDRESS: u64 = 1 << 47;

/// A piece of code: how places in the file correspond to addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub file_offset: u64,
    pub address: u64,
    pub size: u64,
}

impl Segment {
    pub const fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// A section's bytes and the address that they have when the file is mapped.
pub(super) struct Section<'a> {
    pub bytes: Cow<'a, [u8]>,
    pub address: u64,
}

pub(super) struct Elf<'a> {
    /// Executable, by address, without overlaps.
    pub code: Vec<(Segment, &'a [u8])>,
    /// Without the constants that older linkers put beside it.
    pub code_bytes: u64,
    pub eh_frame: Option<Section<'a>>,
    pub debug_frame: Option<Section<'a>>,
    pub text: Option<u64>,
    pub got: Option<u64>,
    pub entry: u64,
    /// Empty when it has none.
    pub build_id: Vec<u8>,
}

type Header = FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

impl<'a> Elf<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BuildError> {
        let header = Header::parse(bytes)?;
        let kind = header.e_type.get(LE);
        if !header.is_little_endian() || header.e_machine.get(LE) != EM_X86_64 {
            return Err(BuildError::Machine);
        }
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(BuildError::Kind);
        }
        let programs = header.program_headers(LE, bytes)?;
        let mut elf = Self {
            code: code_segments(programs, bytes)?,
            code_bytes: 0,
            eh_frame: None,
            debug_frame: None,
            text: None,
            got: None,
            entry: header.e_entry.get(LE),
            build_id: build_id(programs, bytes),
        };
        let sections = header.sections(LE, bytes).unwrap_or_default();
        elf.read_sections(&sections, bytes);
        let mapped = elf.code.iter().map(|(segment, _)| segment.size).sum();
        if elf.code_bytes == 0 || elf.code_bytes > mapped {
            elf.code_bytes = mapped;
        }
        // A file may have lost its section headers and still run; what the program headers say is then enough. In
        // debug files they speak of bytes that are not there.
        if sections.is_empty() {
            elf.eh_frame = eh_frame_from_programs(programs, bytes);
        }
        Ok(elf)
    }

    fn read_sections(&mut self, sections: &SectionTable<'a, Header>, bytes: &'a [u8]) {
        for section in sections.iter() {
            let Ok(name) = sections.section_name(LE, section) else {
                continue;
            };
            let address = section.sh_addr.get(LE);
            if section.sh_flags.get(LE).contains(SHF_EXECINSTR) {
                self.code_bytes = self.code_bytes.saturating_add(section.sh_size.get(LE));
            }
            match name {
                b".text" => self.text = Some(address),
                b".got" => self.got = Some(address),
                b".eh_frame" if self.eh_frame.is_none() => self.eh_frame = contents(section, bytes),
                b".debug_frame" if self.debug_frame.is_none() => self.debug_frame = contents(section, bytes),
                _ => {}
            }
        }
    }
}

fn build_id(programs: &[ProgramHeader64<LittleEndian>], bytes: &[u8]) -> Vec<u8> {
    for program in programs {
        // One that cannot be read has no notes: files are told apart by their content too.
        let Ok(Some(mut notes)) = program.notes(LE, bytes) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == ELF_NOTE_GNU && note.n_type(LE) == NT_GNU_BUILD_ID {
                return note.desc().to_vec();
            }
        }
    }
    Vec::new()
}

fn code_segments<'a>(
    programs: &[ProgramHeader64<LittleEndian>],
    bytes: &'a [u8],
) -> Result<Vec<(Segment, &'a [u8])>, BuildError> {
    let mut code = Vec::new();
    for program in programs {
        if program.p_type.get(LE) != PT_LOAD || !program.p_flags.get(LE).contains(PF_X) {
            continue;
        }
        let address = program.p_vaddr.get(LE);
        let file_offset = program.p_offset.get(LE);
        let rest = usize::try_from(file_offset)
            .ok()
            .and_then(|start| bytes.get(start..))
            .unwrap_or(&[]);
        // A file that is cut short ends where it ends.
        let size = program.p_filesz.get(LE).min(rest.len() as u64);
        if size == 0 {
            continue;
        }
        if address > MAX_ADDRESS - size.min(MAX_ADDRESS) || code.len() == MAX_SEGMENTS {
            return Err(BuildError::Layout);
        }
        code.push((
            Segment {
                file_offset,
                address,
                size,
            },
            &rest[..size as usize],
        ));
    }
    code.sort_by_key(|(segment, _)| segment.address);
    if code.windows(2).any(|pair| pair[0].0.end() > pair[1].0.address) {
        return Err(BuildError::Layout);
    }
    Ok(code)
}

fn contents<'a>(section: &SectionHeader64<LittleEndian>, bytes: &'a [u8]) -> Option<Section<'a>> {
    // Debug files keep the header of .eh_frame but not its bytes.
    if section.sh_type.get(LE) == SHT_NOBITS {
        return None;
    }
    let address = section.sh_addr.get(LE);
    if !section.sh_flags.get(LE).contains(SHF_COMPRESSED) {
        let bytes = section.data(LE, bytes).ok()?;
        return Some(Section {
            bytes: Cow::Borrowed(bytes),
            address,
        });
    }
    let (header, offset, size) = section.compression(LE, bytes).ok()??;
    let packed = object::read::CompressedFileRange {
        format: match header.ch_type.get(LE) {
            object::elf::ELFCOMPRESS_ZLIB => object::CompressionFormat::Zlib,
            object::elf::ELFCOMPRESS_ZSTD => object::CompressionFormat::Zstandard,
            _ => return None,
        },
        offset,
        compressed_size: size,
        uncompressed_size: header.ch_size.get(LE),
    };
    if packed.uncompressed_size > MAX_UNPACKED {
        return None;
    }
    let unpacked = packed.data(bytes).ok()?.decompress().ok()?;
    Some(Section {
        bytes: unpacked,
        address,
    })
}

/// Finds .eh_frame through the pointer at the start of .eh_frame_hdr. Its length is not known that way: it ends with
/// a zero word, or with its segment.
fn eh_frame_from_programs<'a>(
    programs: &[ProgramHeader64<LittleEndian>],
    bytes: &'a [u8],
) -> Option<Section<'a>> {
    let header = programs
        .iter()
        .find(|program| program.p_type.get(LE) == PT_GNU_EH_FRAME)?;
    let data = header.data(LE, bytes).ok()?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr.get(LE));
    let parsed = gimli::EhFrameHdr::new(data, gimli::LittleEndian)
        .parse(&bases, 8)
        .ok()?;
    let address = parsed.eh_frame_ptr().direct().ok()?;
    programs
        .iter()
        .filter(|program| program.p_type.get(LE) == PT_LOAD)
        .find_map(|program| {
            let inside = address.checked_sub(program.p_vaddr.get(LE))?;
            let data = program.data(LE, bytes).ok()?;
            let rest = data
                .get(usize::try_from(inside).ok()?..)
                .filter(|rest| !rest.is_empty())?;
            Some(Section {
                bytes: Cow::Borrowed(rest),
                address,
            })
        })
}
