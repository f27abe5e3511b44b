//! What memwatch itself takes, beside what it costs the process that it watches.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    contestant::Running,
    pairs::{Pairs, Place, Rate},
};

/// Long enough for the clock ticks in which the kernel counts CPU time.
const WINDOW: Duration = Duration::from_secs(10);
/// After the first block, memwatch reads symbols once.
const SETTLE: Duration = Duration::from_secs(3);

const CASES: [(&str, Rate); 2] = [
    ("a process that does nothing", Rate::PerSecond(0)),
    ("100,000 pairs a second", Rate::PerSecond(100_000)),
];

#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub name: &'static str,
    /// Share of one core.
    pub cpu_percent: f64,
    pub rss_bytes: u64,
    pub attach: Duration,
    pub detach: Duration,
    /// As memwatch tells it.
    pub kernel_map_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Own(pub Vec<Case>);

impl Own {
    pub fn measure(memwatch: &Path, program: &Path) -> Result<Self> {
        CASES
            .map(|(name, rate)| case(memwatch, program, name, rate))
            .into_iter()
            .collect::<Result<_>>()
            .map(Self)
    }
}

fn case(memwatch: &Path, program: &Path, name: &'static str, rate: Rate) -> Result<Case> {
    let target = Pairs::start(program, 1, rate, Place::Same)?;
    let pid = target.pid().to_string();
    let words = [
        &memwatch.to_string_lossy(),
        "--pid",
        &pid,
        "--format",
        "json",
        "-i",
        "1s",
    ]
    .map(str::to_owned);
    let running = Running::start(&words, "\"tick\":0")?;
    thread::sleep(SETTLE);
    let before = cpu_ticks(running.pid())?;
    thread::sleep(WINDOW);
    let ticks = cpu_ticks(running.pid())?.saturating_sub(before);
    let rss_bytes = rss(running.pid())?;
    let told = running.lines.drain();
    Ok(Case {
        name,
        cpu_percent: 100.0 * ticks as f64 / ticks_per_second() / WINDOW.as_secs_f64(),
        rss_bytes,
        attach: running.attached_in,
        kernel_map_bytes: told.last().and_then(|line| kernel_map_bytes(line)),
        detach: running.stop()?.took,
    })
}

fn ticks_per_second() -> f64 {
    // SAFETY: takes a number, touches no memory.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks_in(&stat).with_context(|| format!("{path} is not as expected"))
}

/// User and system time: the 12th and 13th field after the name, which may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    rss_in(&status).with_context(|| format!("{path} tells no VmRSS"))
}

fn rss_in(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn kernel_map_bytes(report: &str) -> Option<u64> {
    let report: serde_json::Value = serde_json::from_str(report).ok()?;
    report.pointer("/health/overhead/kernel_map_bytes")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 100 1000 10";
        assert_eq!(ticks_in(stat), Some(42));
        assert_eq!(ticks_in("12 (short) S 1"), None);
        assert!(cpu_ticks(std::process::id()).is_ok());
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        assert_eq!(rss_in("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(rss_in("Name:\tx\n"), None);
        assert!(rss(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn map_memory_is_null_when_it_is_not_known() {
        let report = |value| format!(r#"{{"health":{{"overhead":{{"kernel_map_bytes":{value}}}}}}}"#);
        assert_eq!(kernel_map_bytes(&report("4096")), Some(4096));
        assert_eq!(kernel_map_bytes(&report("null")), None);
        assert_eq!(kernel_map_bytes("not json"), None);
    }
}
