//! How much memory a process takes, and what memwatch itself costs.

use std::{
    fs, io,
    mem::MaybeUninit,
    str,
    time::{Duration, Instant},
};

use super::{
    process::{ProcRoot, is_gone},
    status::kibibytes,
};

/// A value that the kernel does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss_bytes: Option<u64>,
    /// The most that `rss_bytes` has ever been.
    pub peak_rss_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
}

impl ProcRoot {
    pub fn memory(&self, pid: u32) -> io::Result<Memory> {
        let status = self.status(pid)?;
        Ok(Memory {
            rss_bytes: status.rss_bytes,
            peak_rss_bytes: status.peak_rss_bytes,
            swap_bytes: status.swap_bytes,
        })
    }

    /// The resident bytes alone: the cheapest to read of all.
    pub fn rss_bytes(&self, pid: u32) -> io::Result<Option<u64>> {
        Ok(parse_statm(&self.read(pid, "statm")?, page_bytes()))
    }

    /// Resident bytes with each shared page counted in parts. The kernel goes through all pages of the process
    /// for this, which takes long for large ones, and wants the right to trace it: `None` without.
    pub fn pss_bytes(&self, pid: u32) -> io::Result<Option<u64>> {
        match self.read(pid, "smaps_rollup") {
            Ok(bytes) => Ok(parse_pss(&bytes)),
            Err(error) if is_gone(&error) && self.dir(pid).exists() => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The second number of `/proc/PID/statm`, in bytes.
pub fn parse_statm(bytes: &[u8], page_bytes: u64) -> Option<u64> {
    let pages: u64 = str::from_utf8(bytes)
        .ok()?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    pages.checked_mul(page_bytes)
}

/// From `/proc/PID/smaps_rollup`.
pub fn parse_pss(bytes: &[u8]) -> Option<u64> {
    let line = bytes
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Pss:"))?;
    kibibytes(str::from_utf8(line).ok()?)
}

pub fn page_bytes() -> u64 {
    // SAFETY: sysconf reads a number; it has no preconditions.
    let value = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .unwrap_or(4096)
}

/// What memwatch itself has used up to one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfUsage {
    pub at: Instant,
    /// User and kernel mode of all threads.
    pub cpu: Duration,
    pub rss_bytes: Option<u64>,
}

impl SelfUsage {
    pub fn now(at: Instant) -> io::Result<Self> {
        let statm = fs::read("/proc/self/statm").ok();
        let rss_bytes = statm.and_then(|bytes| parse_statm(&bytes, page_bytes()));
        Ok(Self {
            at,
            cpu: own_cpu_time()?,
            rss_bytes,
        })
    }

    /// The share of one core that was used since `before`, in percent. `None` if no time has passed.
    pub fn cpu_percent_since(&self, before: &Self) -> Option<f64> {
        let passed = self
            .at
            .checked_duration_since(before.at)
            .filter(|passed| !passed.is_zero())?;
        let used = self.cpu.saturating_sub(before.cpu);
        Some(100.0 * used.as_secs_f64() / passed.as_secs_f64())
    }
}

fn own_cpu_time() -> io::Result<Duration> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` has room for the one structure that the call writes.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the structure is filled.
    let time = unsafe { time.assume_init() };
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::target::fake::{FakeProc, Kind};

    #[test]
    fn statm_counts_pages() {
        assert_eq!(parse_statm(b"1000 250 100 1 0 50 0\n", 4096), Some(250 * 4096));
        for text in ["", "1000", "1000 x", "1 18446744073709551615"] {
            assert_eq!(parse_statm(text.as_bytes(), 4096), None, "{text}");
        }
    }

    #[test]
    fn pss_is_one_line_among_others() {
        let text = b"1000-2000 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:    5 kB\nPss_Anon: 1 kB\n";
        assert_eq!(parse_pss(text), Some(5 * 1024));
        assert_eq!(parse_pss(b"Rss: 9 kB\nPss_Anon: 1 kB\n"), None);
    }

    #[test]
    fn a_made_up_process_is_read() {
        let proc = FakeProc::new();
        proc.process(5, "x", Kind::User)
            .file("5/statm", "10 2 1 0 0 0 0\n");
        let memory = proc.root().memory(5).unwrap();
        assert_eq!(
            (memory.rss_bytes, memory.peak_rss_bytes),
            (Some(1000 << 10), Some(2000 << 10))
        );
        assert_eq!(memory.swap_bytes, None);
        assert_eq!(proc.root().rss_bytes(5).unwrap(), Some(2 * page_bytes()));
        // This process is there, the file is not; the other process is not there at all.
        assert_eq!(proc.root().pss_bytes(5).unwrap(), None);
        assert!(is_gone(&proc.root().pss_bytes(6).unwrap_err()));
        assert_eq!(
            proc.process(7, "k", Kind::Kernel).root().memory(7).unwrap(),
            Memory::default()
        );
    }

    #[test]
    fn the_own_process_grows_when_it_takes_memory() {
        let proc = ProcRoot::default();
        let own = std::process::id();
        let before = proc.memory(own).unwrap();
        let block = black_box(vec![1_u8; 64 << 20]);
        let after = proc.memory(own).unwrap();
        // Other tests run at the same time and free memory, hence half.
        assert!(after.rss_bytes.unwrap() > before.rss_bytes.unwrap() + (block.len() / 2) as u64);
        assert!(after.peak_rss_bytes >= after.rss_bytes);
        assert!(proc.rss_bytes(own).unwrap().unwrap() > (block.len() / 2) as u64);
        assert!(proc.pss_bytes(own).unwrap().unwrap() > (block.len() / 2) as u64);
    }

    #[test]
    fn percent_of_a_core_is_cpu_time_over_time() {
        let at = Instant::now();
        let reading = |millis, cpu| SelfUsage {
            at: at + Duration::from_millis(millis),
            cpu: Duration::from_millis(cpu),
            rss_bytes: None,
        };
        let before = reading(0, 100);
        assert_eq!(reading(2000, 150).cpu_percent_since(&before), Some(2.5));
        assert_eq!(reading(1000, 2100).cpu_percent_since(&before), Some(200.0));
        assert_eq!(reading(1000, 50).cpu_percent_since(&before), Some(0.0));
        assert_eq!(before.cpu_percent_since(&before), None);
        assert_eq!(before.cpu_percent_since(&reading(5, 0)), None);
    }

    #[test]
    fn the_own_cpu_time_rises_with_work() {
        let before = SelfUsage::now(Instant::now()).unwrap();
        let mut after = before;
        // Until the clock moves, however coarse it is.
        for round in 0_u64.. {
            black_box(round.wrapping_mul(round));
            after = SelfUsage::now(Instant::now()).unwrap();
            if after.cpu > before.cpu {
                break;
            }
        }
        assert!(after.cpu > before.cpu);
        assert!(after.cpu_percent_since(&before).unwrap() > 0.0);
        assert!(after.rss_bytes.unwrap() > 0);
    }
}
