//! What a report says about a process, as far as `/proc` tells.

use std::{io, time::SystemTime};

use super::{
    container,
    modules::ProcessModules,
    process::{self, ProcRoot},
    runtime::Runtimes,
};
use crate::model::report::Process;

/// Describes processes of one host.
#[derive(Debug)]
pub struct Describer {
    proc: ProcRoot,
    boot: Option<SystemTime>,
    ticks_per_second: u64,
    runtimes: Runtimes,
}

impl Describer {
    pub fn new(proc: ProcRoot) -> Self {
        let boot = proc.boot_time().ok();
        Self {
            proc,
            boot,
            ticks_per_second: process::ticks_per_second(),
            runtimes: Runtimes::default(),
        }
    }

    /// All that is known without watching: the counts stay empty. What may not be read is `None`; only a process
    /// that has gone is an error.
    pub fn describe(&mut self, pid: u32, modules: &ProcessModules) -> io::Result<Process> {
        let stat = self.proc.stat(pid)?;
        let memory = self.proc.memory(pid).unwrap_or_default();
        let exe = self.proc.exe(pid).ok();
        let cgroup = self
            .proc
            .cgroups(pid)
            .ok()
            .and_then(|cgroups| cgroups.path().map(str::to_owned));
        let start = self
            .boot
            .and_then(|boot| process::start_time(boot, stat.start_ticks, self.ticks_per_second));
        Ok(Process {
            pid,
            ppid: Some(stat.ppid),
            start_time: start.and_then(rfc3339),
            comm: stat.comm,
            container: cgroup.as_deref().and_then(container::guess).map(Into::into),
            runtimes: self
                .runtimes
                .of(exe.as_ref().map(|exe| exe.path.as_path()), modules),
            exe: exe.map(|exe| exe.path.to_string_lossy().into_owned()),
            cmdline: self.proc.cmdline(pid).unwrap_or_default(),
            cgroup,
            rss_bytes: memory.rss_bytes,
            peak_rss_bytes: memory.peak_rss_bytes,
            ..Process::default()
        })
    }
}

fn rfc3339(time: SystemTime) -> Option<String> {
    Some(jiff::Timestamp::try_from(time).ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::report::{Container, Runtime},
        target::{
            fake::{FakeProc, Kind},
            modules::Catalog,
        },
    };

    #[test]
    fn a_made_up_process_is_described_in_full() {
        let id = "3f4e8c0f2b6a4d5e8f7a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6";
        let proc = FakeProc::new();
        proc.process(5, "python3", Kind::User)
            .exe(5, "/usr/bin/python3.11 (deleted)")
            .parent(5, 3);
        proc.file("5/cgroup", format!("0::/docker/{id}\n"));
        let described = Describer::new(proc.root())
            .describe(5, &ProcessModules::default())
            .unwrap();
        let expected = Process {
            pid: 5,
            ppid: Some(3),
            // 400 ticks after boot
            start_time: Some("2023-11-14T22:13:24Z".to_owned()),
            comm: "python3".to_owned(),
            exe: Some("/usr/bin/python3.11".to_owned()),
            cmdline: vec!["/usr/bin/python3.11".to_owned()],
            cgroup: Some(format!("/docker/{id}")),
            container: Some(Container {
                id: id.to_owned(),
                name: None,
                image: None,
            }),
            runtimes: vec![Runtime {
                name: "cpython".to_owned(),
                version: Some("3.11".to_owned()),
            }],
            rss_bytes: Some(1000 << 10),
            peak_rss_bytes: Some(2000 << 10),
            ..Process::default()
        };
        assert_eq!(
            process::ticks_per_second(),
            100,
            "the made-up start time counts in hundredths"
        );
        assert_eq!(described, expected);
    }

    #[test]
    fn what_may_not_be_read_is_none_and_a_missing_process_an_error() {
        let proc = FakeProc::new();
        proc.process(5, "x", Kind::User);
        std::fs::remove_file(proc.root().path().join("stat")).unwrap();
        let mut describer = Describer::new(proc.root());
        let described = describer.describe(5, &ProcessModules::default()).unwrap();
        assert_eq!(
            (described.start_time, described.exe, described.cgroup),
            (None, None, None)
        );
        assert!(process::is_gone(
            &describer.describe(6, &ProcessModules::default()).unwrap_err()
        ));
    }

    #[test]
    fn the_own_process_is_described() {
        let own = std::process::id();
        let modules = Catalog::default().read(own).unwrap();
        let described = Describer::new(ProcRoot::default())
            .describe(own, &modules)
            .unwrap();
        assert_eq!(described.ppid, Some(std::os::unix::process::parent_id()));
        assert_eq!(
            described.exe.as_deref(),
            std::env::current_exe().unwrap().to_str()
        );
        let started: jiff::Timestamp = described.start_time.unwrap().parse().unwrap();
        assert!(started <= jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1));
        assert!(described.peak_rss_bytes >= described.rss_bytes && described.rss_bytes.is_some());
    }
}
