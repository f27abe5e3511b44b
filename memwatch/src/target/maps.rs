//! `/proc/PID/maps`: what a process has in its address space.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf, str};

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub perms: Perms,
    /// Where in the file the mapping begins, in bytes.
    pub offset: u64,
    pub device: Device,
    /// 0 when there is no file behind the mapping.
    pub inode: u64,
    /// The file as the kernel names it, or a name in brackets such as `[vdso]`.
    pub path: Option<PathBuf>,
    /// The file no longer has this name.
    pub deleted: bool,
}

impl Mapping {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The path, if it is one: names in brackets and nameless mappings have none.
    pub fn file(&self) -> Option<&PathBuf> {
        self.path
            .as_ref()
            .filter(|path| self.inode != 0 && path.is_absolute())
    }

    pub fn is_vdso(&self) -> bool {
        self.special() == Some("[vdso]")
    }

    /// The name in brackets (`[heap]`, `[vdso]`, `[anon:v8]`), brackets included.
    pub fn special(&self) -> Option<&str> {
        let name = self.path.as_ref().filter(|_| self.inode == 0)?.to_str()?;
        name.starts_with('[').then_some(name)
    }
}

/// The file system's device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl Device {
    /// From the `st_dev` of `stat`, which packs both numbers into one.
    pub fn from_stat(dev: u64) -> Self {
        Self {
            major: libc::major(dev),
            minor: libc::minor(dev),
        }
    }
}

/// Access rights, as the letters `rwxp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perms(u8);

impl Perms {
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    const EXECUTE: u8 = 4;
    const SHARED: u8 = 8;

    fn parse(text: &[u8]) -> Option<Self> {
        let &[read, write, execute, shared] = text else {
            return None;
        };
        let mut bits = 0;
        for (letter, set, clear, bit) in [
            (read, b'r', b'-', Self::READ),
            (write, b'w', b'-', Self::WRITE),
            (execute, b'x', b'-', Self::EXECUTE),
            (shared, b's', b'p', Self::SHARED),
        ] {
            if letter == set {
                bits |= bit;
            } else if letter != clear {
                return None;
            }
        }
        Some(Self(bits))
    }

    pub fn readable(self) -> bool {
        self.0 & Self::READ != 0
    }

    pub fn writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    pub fn executable(self) -> bool {
        self.0 & Self::EXECUTE != 0
    }

    pub fn shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of /proc/PID/maps has no valid {field}: {line:?}")]
pub struct MapsError {
    pub field: &'static str,
    /// The line as it was, bytes that are no text replaced.
    pub line: String,
}

/// The whole file. One bad line fails it: a map with a hole would name wrong functions.
pub fn parse(bytes: &[u8]) -> Result<Vec<Mapping>, MapsError> {
    bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(parse_line)
        .collect()
}

/// One line, without its end.
pub fn parse_line(line: &[u8]) -> Result<Mapping, MapsError> {
    parse_fields(line).map_err(|field| MapsError {
        field,
        line: String::from_utf8_lossy(line).into_owned(),
    })
}

fn parse_fields(line: &[u8]) -> Result<Mapping, &'static str> {
    // Five fields with one space after each; the rest, after more spaces, is the path, which may hold spaces.
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let range = fields.next().unwrap_or_default();
    let (start, end) = pair(range, b'-').ok_or("address range")?;
    let (start, end) = (hex(start).ok_or("start address")?, hex(end).ok_or("end address")?);
    if start > end {
        return Err("address range (it ends before it starts)");
    }
    let perms = fields.next().and_then(Perms::parse).ok_or("permissions")?;
    let offset = fields.next().and_then(hex).ok_or("file offset")?;
    let (major, minor) = fields
        .next()
        .and_then(|field| pair(field, b':'))
        .ok_or("device")?;
    let device = Device {
        major: hex32(major).ok_or("device")?,
        minor: hex32(minor).ok_or("device")?,
    };
    let inode = fields.next().and_then(decimal).ok_or("inode")?;
    let (path, deleted) = path(fields.next().unwrap_or_default());
    Ok(Mapping {
        start,
        end,
        perms,
        offset,
        device,
        inode,
        path,
        deleted,
    })
}

fn path(field: &[u8]) -> (Option<PathBuf>, bool) {
    let begin = field.iter().position(|&byte| byte != b' ').unwrap_or(field.len());
    let (name, deleted) = strip_deleted(&field[begin..]);
    if name.is_empty() {
        return (None, deleted);
    }
    (Some(PathBuf::from(OsStr::from_bytes(&unescape(name)))), deleted)
}

/// Takes off what the kernel puts after the name of a file that was unlinked.
pub(super) fn strip_deleted(name: &[u8]) -> (&[u8], bool) {
    match name.strip_suffix(b" (deleted)") {
        Some(name) => (name, true),
        None => (name, false),
    }
}

/// The kernel escapes the newline only, and nothing else, not even the backslash.
fn unescape(name: &[u8]) -> Vec<u8> {
    const NEWLINE: &[u8] = b"\\012";
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(NEWLINE) {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn pair(field: &[u8], by: u8) -> Option<(&[u8], &[u8])> {
    let at = field.iter().position(|&byte| byte == by)?;
    Some((&field[..at], &field[at + 1..]))
}

fn hex(field: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(field).ok().filter(|text| !text.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok()
}

fn hex32(field: &[u8]) -> Option<u32> {
    hex(field).and_then(|value| value.try_into().ok())
}

fn decimal(field: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(field).ok().filter(|text| !text.starts_with('+'))?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &[u8] =
        b"561dd7000000-561dd7006000 r-xp 00002000 fe:00 247282                     /usr/bin/head
561dd700b000-561dd702c000 rw-p 00000000 00:00 0                          [heap]
7f1000000000-7f1000021000 rw-p 00000000 00:00 0 
7f1000021000-7f1000022000 rwxs 0001f000 103:02 18446744073709551615      /opt/a b/lib (deleted)
7f1000022000-7f1000023000 r-xp 00000000 00:01 7                          /memfd:jit code (deleted)
7f1000023000-7f1000024000 ---p 00000000 00:01 8                          /tmp/new\\012line\\x
7ffd8cbd5000-7ffd8cbd7000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn a_file_with_every_kind_of_line_is_read() {
        let maps = parse(SAMPLE).unwrap();
        assert_eq!(maps.len(), 8);
        assert_eq!(
            maps[0],
            Mapping {
                start: 0x561d_d700_0000,
                end: 0x561d_d700_6000,
                perms: Perms(Perms::READ | Perms::EXECUTE),
                offset: 0x2000,
                device: Device {
                    major: 0xfe,
                    minor: 0
                },
                inode: 247_282,
                path: Some("/usr/bin/head".into()),
                deleted: false,
            }
        );
        assert_eq!(maps[0].len(), 0x6000);
        assert_eq!(maps[1].special(), Some("[heap]"));
        assert_eq!(maps[1].file(), None);
        assert_eq!((&maps[2].path, maps[2].perms.writable()), (&None, true));
        assert_eq!(
            maps[3].file().map(PathBuf::as_path),
            Some(Path::new("/opt/a b/lib"))
        );
        assert_eq!(
            maps[3].device,
            Device {
                major: 0x103,
                minor: 2
            }
        );
        assert_eq!(maps[3].inode, u64::MAX);
        assert!(maps[3].deleted && maps[3].perms.shared() && maps[3].perms.executable());
        assert_eq!(maps[4].path.as_deref(), Some(Path::new("/memfd:jit code")));
        assert_eq!(maps[5].path.as_deref(), Some(Path::new("/tmp/new\nline\\x")));
        assert!(!maps[5].perms.readable() && !maps[5].deleted);
        assert_eq!(maps[6].special(), Some("[vdso]"));
        assert_eq!(maps[7].start, 0xffff_ffff_ff60_0000);
    }

    #[test]
    fn paths_need_not_be_text() {
        let mapping = parse_line(b"1000-2000 r--p 00000000 08:01 5 /\xff\xfe").unwrap();
        assert_eq!(mapping.path.unwrap().as_os_str().as_bytes(), b"/\xff\xfe");
    }

    #[test]
    fn malformed_lines_are_errors_that_show_the_line() {
        for (line, field) in [
            ("", "address range"),
            ("1000", "address range"),
            ("10002000 r--p 0 08:01 5", "address range"),
            ("x-2000 r--p 0 08:01 5", "start address"),
            ("1000- r--p 0 08:01 5", "end address"),
            ("1000-+2000 r--p 0 08:01 5", "end address"),
            ("1000-11112222333344445 r--p 0 08:01 5", "end address"),
            (
                "2000-1000 r--p 0 08:01 5",
                "address range (it ends before it starts)",
            ),
            ("1000-2000", "permissions"),
            ("1000-2000 r--", "permissions"),
            ("1000-2000 r--q 0 08:01 5", "permissions"),
            ("1000-2000 wr-p 0 08:01 5", "permissions"),
            ("1000-2000 r--p", "file offset"),
            ("1000-2000 r--p zz 08:01 5", "file offset"),
            ("1000-2000 r--p 0 0801 5", "device"),
            ("1000-2000 r--p 0 08:123456789 5", "device"),
            ("1000-2000 r--p 0 08:01", "inode"),
            ("1000-2000 r--p 0 08:01 -5", "inode"),
            ("1000-2000 r--p 0 08:01  5", "inode"),
        ] {
            let error = parse_line(line.as_bytes()).unwrap_err();
            assert_eq!((error.field, error.line.as_str()), (field, line));
            assert!(error.to_string().contains(&format!("{line:?}")), "{error}");
        }
    }

    #[test]
    fn one_bad_line_fails_the_file() {
        assert_eq!(parse(b"1000-2000 r--p 0 08:01 5\nbad\n").unwrap_err().line, "bad");
    }

    #[test]
    fn the_own_maps_hold_this_very_function() {
        let maps = parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let here = parse_line as *const () as u64;
        let own = maps
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(&here))
            .unwrap();
        assert!(own.perms.executable());
        assert_eq!(own.file(), Some(&std::env::current_exe().unwrap()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_line_of_plausible_fields_makes_it_panic(
            line in "[0-9a-f]{0,17}-?[0-9a-f]{0,17} ?[rwxsp-]{0,5} ?[0-9a-f]{0,9} ?[0-9a-f:]{0,6} ?[0-9]{0,21} {0,9}.{0,30}",
        ) {
            let _ = parse_line(line.as_bytes());
        }

        #[test]
        fn what_was_written_is_read(
            start in 0_u64..1 << 47, len in 0_u64..1 << 40, offset: u32, major in 0_u32..4096, minor: u32,
            inode in 1_u64.., path in "/[a-z \n]{0,20}[a-z]",
        ) {
            let line = format!(
                "{start:08x}-{:08x} r-xp {offset:08x} {major:02x}:{minor:02x} {inode}     {}",
                start + len, path.replace('\n', "\\012"),
            );
            let mapping = parse_line(line.as_bytes()).unwrap();
            prop_assert_eq!((mapping.start, mapping.len(), mapping.offset), (start, len, u64::from(offset)));
            prop_assert_eq!((mapping.device, mapping.inode), (Device { major, minor }, inode));
            prop_assert_eq!(mapping.path, Some(PathBuf::from(path)));
        }
    }
}
