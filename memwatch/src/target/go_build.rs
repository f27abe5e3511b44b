//! Whether a program was made by Go, and by which version: Go links its allocator in under no name that could be
//! probed, so such programs must be told apart from others that have no allocator.

use std::io::{self, Read, Seek, SeekFrom};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoBuild {
    /// `1.22.3`; not known of programs made before Go 1.18.
    pub version: Option<String>,
}

const CLASS_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
const ELF_HEADER_BYTES: usize = 64;
const SECTION_HEADER_BYTES: usize = 64;
/// Far more than any linker's table of section names.
const MAX_NAMES_BYTES: u64 = 1 << 20;
const MAX_VERSION_BYTES: u64 = 128;

/// From an ELF file. `None` for a program of another language, and for what is no 64-bit little-endian ELF file.
///
/// The section `.go.buildinfo` is in every Go program, stripped or not.
pub fn read(file: &mut (impl Read + Seek)) -> io::Result<Option<GoBuild>> {
    match find_section(file, b".go.buildinfo") {
        Ok(Some((offset, bytes))) => {
            let mut info = Vec::new();
            file.seek(SeekFrom::Start(offset))?;
            file.take(bytes.min(32 + MAX_VERSION_BYTES))
                .read_to_end(&mut info)?;
            Ok(parse(&info))
        }
        Ok(None) => Ok(None),
        // A file that is cut off is not one that runs.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Layout: 14 bytes magic, pointer size, flags, 16 bytes of pointers; then, if the flags say so, the version as a
/// string after its length. See `debug/buildinfo` in Go's library.
fn parse(info: &[u8]) -> Option<GoBuild> {
    const INLINE_STRINGS: u8 = 2;
    if !info.starts_with(b"\xff Go buildinf:") {
        return None;
    }
    let inline = info.get(15)? & INLINE_STRINGS != 0;
    let version = inline.then(|| version(info.get(32..)?)).flatten();
    Some(GoBuild { version })
}

fn version(bytes: &[u8]) -> Option<String> {
    // The length is a variable-length integer; no version needs a second byte for it.
    let (&len, rest) = bytes.split_first()?;
    let text = std::str::from_utf8(rest.get(..usize::from(len))?).ok()?;
    // `go1.22.3`, `go1.22.3 X:experiment`, `devel go1.23-0a1b2c3 Tue …`
    let word = text.split(' ').find_map(|word| word.strip_prefix("go"))?;
    Some(word.to_owned()).filter(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}

/// Offset and size of a section.
fn find_section(file: &mut (impl Read + Seek), wanted: &[u8]) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; ELF_HEADER_BYTES];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut header)?;
    if !header.starts_with(CLASS_64_LITTLE_ENDIAN) {
        return Ok(None);
    }
    let (table, entry_bytes) = (u64_at(&header, 40), u16_at(&header, 58));
    let (count, names) = (u16_at(&header, 60), u16_at(&header, 62));
    if usize::from(entry_bytes) != SECTION_HEADER_BYTES || names >= count {
        return Ok(None);
    }
    let mut sections = vec![0; usize::from(count) * SECTION_HEADER_BYTES];
    file.seek(SeekFrom::Start(table))?;
    file.read_exact(&mut sections)?;
    let sections: Vec<&[u8]> = sections.chunks_exact(SECTION_HEADER_BYTES).collect();
    let place = |section: &[u8]| (u64_at(section, 24), u64_at(section, 32));
    let (offset, bytes) = place(sections[usize::from(names)]);
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(bytes.min(MAX_NAMES_BYTES)).read_to_end(&mut text)?;
    let is_wanted = |section: &&&[u8]| {
        let name = text.get(u32_at(section, 0) as usize..).unwrap_or_default();
        name.strip_prefix(wanted)
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    Ok(sections.iter().find(is_wanted).map(|section| place(section)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Zeros beyond the end; all callers stay within a header of fixed size.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs::File, io::Cursor};

    use proptest::prelude::*;

    use super::*;

    /// An ELF file with one section of the given name and the table of names.
    pub(in crate::target) fn elf(section: &str, content: &[u8]) -> Vec<u8> {
        let names = format!("\0{section}\0.shstrtab\0");
        let content_at = ELF_HEADER_BYTES;
        let names_at = content_at + content.len();
        let table_at = names_at + names.len();
        let mut file = vec![0; ELF_HEADER_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
        file[58..60].copy_from_slice(&64_u16.to_le_bytes());
        file[60..62].copy_from_slice(&3_u16.to_le_bytes());
        file[62..64].copy_from_slice(&2_u16.to_le_bytes());
        file.extend_from_slice(content);
        file.extend_from_slice(names.as_bytes());
        let places = [
            (0, 0, 0),
            (1, content_at, content.len()),
            (section.len() + 2, names_at, names.len()),
        ];
        for (name, offset, bytes) in places {
            let mut header = [0; SECTION_HEADER_BYTES];
            header[..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file
    }

    pub(in crate::target) fn info(flags: u8, version: &str) -> Vec<u8> {
        let mut info = b"\xff Go buildinf:\x08".to_vec();
        info.push(flags);
        info.resize(32, 0);
        info.push(version.len() as u8);
        info.extend_from_slice(version.as_bytes());
        info
    }

    fn read_bytes(bytes: Vec<u8>) -> Option<GoBuild> {
        read(&mut Cursor::new(bytes)).unwrap()
    }

    #[test]
    fn the_version_is_read_from_the_build_info() {
        for (text, expected) in [
            ("go1.22.3", Some("1.22.3")),
            ("go1.21.0 X:rangefunc", Some("1.21.0")),
            ("devel go1.23-0a1b2c3 Tue May 7", Some("1.23-0a1b2c3")),
            ("gopher", None),
            ("", None),
        ] {
            let found = read_bytes(elf(".go.buildinfo", &info(2, text)));
            assert_eq!(
                found,
                Some(GoBuild {
                    version: expected.map(str::to_owned)
                }),
                "{text}"
            );
        }
    }

    #[test]
    fn old_programs_are_go_without_a_version() {
        assert_eq!(
            read_bytes(elf(".go.buildinfo", &info(0, "go1.17"))),
            Some(GoBuild { version: None })
        );
    }

    #[test]
    fn other_programs_and_other_files_are_not_go() {
        let go = elf(".go.buildinfo", &info(2, "go1.22.3"));
        assert_eq!(read_bytes(elf(".go.buildinfos", &info(2, "go1.22.3"))), None);
        assert_eq!(
            read_bytes(elf(".go.buildinfo", b"something else altogether, long enough")),
            None
        );
        assert_eq!(read_bytes(b"#!/bin/sh\n".to_vec()), None);
        assert_eq!(read_bytes(Vec::new()), None);
        for cut in [10, 64, 100, go.len() - 1] {
            assert_eq!(read_bytes(go[..cut].to_vec()), None, "{cut}");
        }
        let mut big_endian = go.clone();
        big_endian[5] = 2;
        assert_eq!(read_bytes(big_endian), None);
        assert_eq!(
            read(&mut File::open(std::env::current_exe().unwrap()).unwrap()).unwrap(),
            None
        );
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..400, byte: u8) {
            let mut file = elf(".go.buildinfo", &info(2, "go1.22.3"));
            let at = at % file.len();
            file[at] = byte;
            let _ = read(&mut Cursor::new(file));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = read(&mut Cursor::new([b"\x7fELF\x02\x01".as_slice(), &bytes].concat()));
        }
    }
}
