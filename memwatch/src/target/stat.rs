//! `/proc/PID/stat`: one line of numbers about a process.

use std::str;

/// Set in the flags of threads that run only in the kernel.
const PF_KTHREAD: u32 = 0x0020_0000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: u32,
    /// At most 15 bytes for ordinary processes; any byte but NUL can be in it.
    pub comm: String,
    pub state: char,
    pub ppid: u32,
    pub flags: u32,
    /// Clock ticks in user and kernel mode together.
    pub cpu_ticks: u64,
    pub threads: u64,
    /// Clock ticks from boot to the start of the process.
    pub start_ticks: u64,
    /// A rough count of resident pages.
    pub rss_pages: u64,
}

impl Stat {
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Ended, and only its entry in the table is left.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/proc/PID/stat has no valid {field}: {text:?}")]
pub struct StatError {
    pub field: &'static str,
    pub text: String,
}

pub fn parse(bytes: &[u8]) -> Result<Stat, StatError> {
    parse_fields(bytes).map_err(|field| StatError {
        field,
        text: String::from_utf8_lossy(bytes).trim_end().to_owned(),
    })
}

fn parse_fields(bytes: &[u8]) -> Result<Stat, &'static str> {
    // The name stands in parentheses and may hold parentheses, spaces and newlines itself; all that follows it
    // is numbers, so the last closing parenthesis ends it.
    let open = bytes.iter().position(|&byte| byte == b'(').ok_or("name")?;
    let close = bytes
        .iter()
        .rposition(|&byte| byte == b')')
        .filter(|&close| close > open)
        .ok_or("name")?;
    let pid = number(bytes[..open].trim_ascii()).ok_or("pid")?;
    let rest = str::from_utf8(&bytes[close + 1..]).map_err(|_| "text after the name")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field numbers as in proc(5), where the state is number 3.
    let field = |index: usize| fields.get(index - 3).copied().unwrap_or_default();
    let count = |index: usize, name| field(index).parse::<u64>().map_err(|_| name);
    Ok(Stat {
        pid,
        comm: String::from_utf8_lossy(&bytes[open + 1..close]).into_owned(),
        state: field(3).chars().next().ok_or("state")?,
        ppid: field(4).parse().map_err(|_| "parent's pid")?,
        flags: field(9).parse().map_err(|_| "flags")?,
        cpu_ticks: count(14, "user time")?.saturating_add(count(15, "system time")?),
        threads: count(20, "number of threads")?,
        start_ticks: count(22, "start time")?,
        rss_pages: count(24, "resident pages")?,
    })
}

/// The second at which the host booted, from the text of `/proc/stat`.
pub fn boot_seconds(bytes: &[u8]) -> Option<u64> {
    let line = bytes
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"btime "))?;
    str::from_utf8(line).ok()?.trim().parse().ok()
}

fn number(field: &[u8]) -> Option<u32> {
    str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(comm: &str, flags: u32) -> String {
        format!(
            "1234 ({comm}) S 1 1234 1234 0 -1 {flags} 100 0 0 0 7 5 0 0 20 0 3 0 4567 8000000 250 18446744073709551615 1 1 0 0\n"
        )
    }

    #[test]
    fn the_fields_are_where_proc_5_says() {
        assert_eq!(
            parse(line("cat", 0x0040_0000).as_bytes()).unwrap(),
            Stat {
                pid: 1234,
                comm: "cat".to_owned(),
                state: 'S',
                ppid: 1,
                flags: 0x0040_0000,
                cpu_ticks: 12,
                threads: 3,
                start_ticks: 4567,
                rss_pages: 250,
            }
        );
    }

    #[test]
    fn names_may_hold_parentheses_spaces_and_newlines() {
        for comm in ["(sd-pam)", "a) S 1 (b", "two words", "new\nline", "", ")", "("] {
            let stat = parse(line(comm, 0).as_bytes()).unwrap();
            assert_eq!((stat.comm.as_str(), stat.ppid), (comm, 1), "{comm:?}");
        }
    }

    #[test]
    fn kernel_threads_and_zombies_are_told_apart() {
        assert!(
            parse(line("kworker/0:1", 0x0420_8060).as_bytes())
                .unwrap()
                .is_kernel_thread()
        );
        let user = parse(line("bash", 0x0040_0000).as_bytes()).unwrap();
        assert!(!user.is_kernel_thread() && !user.is_dead());
        assert!(
            parse(line("sh", 0).replace(") S", ") Z").as_bytes())
                .unwrap()
                .is_dead()
        );
    }

    #[test]
    fn malformed_text_is_an_error_that_shows_it() {
        for (text, field) in [
            ("", "name"),
            ("12 cat S 1", "name"),
            ("12 )cat( S 1", "name"),
            ("x (cat) S 1", "pid"),
            ("12 (cat)", "state"),
            ("12 (cat) S", "parent's pid"),
            ("12 (cat) S 1 2 3 4 5 x", "flags"),
            ("12 (cat) S 1 2 3 4 5 6 7", "user time"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!((error.field, error.text.as_str()), (field, text));
        }
    }

    #[test]
    fn the_boot_time_is_found_among_the_other_lines() {
        assert_eq!(
            boot_seconds(b"cpu 1 2\nbtime 1700000000\nprocesses 3\n"),
            Some(1_700_000_000)
        );
        assert_eq!(boot_seconds(b"cpu 1 2\nbtime x\n"), None);
        assert_eq!(boot_seconds(b""), None);
    }

    #[test]
    fn the_own_process_is_read() {
        let stat = parse(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(stat.pid, std::process::id());
        assert_eq!(stat.ppid, std::os::unix::process::parent_id());
        assert!(stat.threads >= 1 && stat.rss_pages > 0 && stat.start_ticks > 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = boot_seconds(&bytes);
        }

        #[test]
        fn any_name_comes_back(comm in "[^\0]{0,15}") {
            prop_assert_eq!(parse(line(&comm, 0).as_bytes()).unwrap().comm, comm);
        }
    }
}
