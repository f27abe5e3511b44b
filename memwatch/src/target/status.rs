//! `/proc/PID/status`: named values about a process.

use std::str;

/// What memwatch needs of it. A line that this kernel does not have (or a kernel thread has not) is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The process that a thread belongs to.
    pub tgid: Option<u32>,
    /// Who traces it by ptrace; 0 for nobody.
    pub tracer_pid: u32,
    pub uid: Option<Uid>,
    /// The pid in each pid namespace, from the one `/proc` shows to the innermost.
    pub namespace_pids: Vec<u32>,
    pub rss_bytes: Option<u64>,
    pub peak_rss_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub threads: Option<u32>,
    pub seccomp: Option<Seccomp>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uid {
    pub real: u32,
    pub effective: u32,
}

/// How the process's system calls are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    Off,
    /// Only read, write, exit and sigreturn.
    Strict,
    Filter,
    /// A mode that this version does not know.
    Other(u32),
}

/// Lines that are not understood are left out: the kernel adds new ones now and then.
pub fn parse(bytes: &[u8]) -> Status {
    let mut status = Status::default();
    // The name, the only free text in the file, has its newlines escaped by the kernel.
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(line) = str::from_utf8(line) else { continue };
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key {
            "Tgid" => status.tgid = first(value),
            "TracerPid" => status.tracer_pid = first(value).unwrap_or_default(),
            "Uid" => status.uid = uid(value),
            "NSpid" => status.namespace_pids = value.split_ascii_whitespace().flat_map(str::parse).collect(),
            "VmRSS" => status.rss_bytes = kibibytes(value),
            "VmHWM" => status.peak_rss_bytes = kibibytes(value),
            "VmSwap" => status.swap_bytes = kibibytes(value),
            "Threads" => status.threads = first(value),
            "Seccomp" => {
                status.seccomp = first(value).map(|mode| match mode {
                    0 => Seccomp::Off,
                    1 => Seccomp::Strict,
                    2 => Seccomp::Filter,
                    other => Seccomp::Other(other),
                });
            }
            _ => {}
        }
    }
    status
}

fn first(value: &str) -> Option<u32> {
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn uid(value: &str) -> Option<Uid> {
    let mut ids = value.split_ascii_whitespace().map(str::parse);
    Some(Uid {
        real: ids.next()?.ok()?,
        effective: ids.next()?.ok()?,
    })
}

/// A size as `status` and `smaps_rollup` write it: `123 kB`.
pub(super) fn kibibytes(value: &str) -> Option<u64> {
    let mut words = value.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    (words.next() == Some("kB")).then(|| number.checked_mul(1024))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "Name:\tpy\\nVmRSS: 1 kB
Umask:\t0022
State:\tS (sleeping)
Tgid:\t4242
Pid:\t4243
PPid:\t1
TracerPid:\t77
Uid:\t1000\t1001\t1002\t1003
NSpid:\t4242\t17\t1
VmPeak:\t   99999 kB
VmHWM:\t   20000 kB
VmRSS:\t   12345 kB
VmSwap:\t       8 kB
Threads:\t5
Seccomp:\t2
Seccomp_filters:\t1
";

    #[test]
    fn every_value_is_taken_from_its_own_line() {
        assert_eq!(
            parse(SAMPLE.as_bytes()),
            Status {
                tgid: Some(4242),
                tracer_pid: 77,
                uid: Some(Uid {
                    real: 1000,
                    effective: 1001
                }),
                namespace_pids: vec![4242, 17, 1],
                rss_bytes: Some(12345 * 1024),
                peak_rss_bytes: Some(20000 * 1024),
                swap_bytes: Some(8 * 1024),
                threads: Some(5),
                seccomp: Some(Seccomp::Filter),
            }
        );
    }

    #[test]
    fn what_is_missing_is_none_and_not_zero() {
        let status = parse(b"Name:\tkthreadd\nUid:\t0\nVmRSS:\t12 MB\nSeccomp:\t9\n");
        assert_eq!(
            status,
            Status {
                seccomp: Some(Seccomp::Other(9)),
                ..Status::default()
            }
        );
    }

    #[test]
    fn a_size_that_does_not_fit_is_none() {
        assert_eq!(kibibytes(" 18446744073709551615 kB"), None);
        assert_eq!(kibibytes("0 kB"), Some(0));
    }

    #[test]
    fn the_own_process_is_read() {
        let status = parse(&std::fs::read("/proc/self/status").unwrap());
        assert_eq!(status.tgid, Some(std::process::id()));
        assert!(status.rss_bytes.unwrap() > 0);
        assert!(status.peak_rss_bytes >= status.rss_bytes);
        assert_eq!(status.namespace_pids.first(), Some(&std::process::id()));
        assert!(status.threads.unwrap() >= 1 && status.seccomp.is_some() && status.uid.is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_value_makes_it_panic(value in ".{0,40}") {
            for key in ["Tgid", "Uid", "NSpid", "VmRSS", "Threads", "Seccomp"] {
                let _ = parse(format!("{key}:{value}").as_bytes());
            }
        }
    }
}
