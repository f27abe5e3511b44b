//! The thin edge to `/proc`: reads files, hands their bytes to the parsers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    cgroup::{self, Cgroups},
    maps::{self, Mapping},
    stat::{self, Stat},
    status::{self, Status},
};

/// Where the process file system is mounted; tests give a directory of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcRoot(PathBuf);

impl Default for ProcRoot {
    fn default() -> Self {
        Self::new("/proc")
    }
}

/// The program file of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exe {
    pub path: PathBuf,
    /// Replaced or removed since it was started.
    pub deleted: bool,
}

impl ProcRoot {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn dir(&self, pid: u32) -> PathBuf {
        self.0.join(pid.to_string())
    }

    /// A file of a process, for example `maps`.
    pub fn file(&self, pid: u32, name: &str) -> PathBuf {
        let mut path = self.dir(pid);
        path.push(name);
        path
    }

    pub fn read(&self, pid: u32, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.file(pid, name))
    }

    /// All processes, in order of their numbers. Threads are not listed.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        numbers_in(&self.0)
    }

    pub fn tasks(&self, pid: u32) -> io::Result<Vec<u32>> {
        numbers_in(&self.file(pid, "task"))
    }

    pub fn stat(&self, pid: u32) -> io::Result<Stat> {
        stat::parse(&self.read(pid, "stat")?).map_err(invalid)
    }

    pub fn status(&self, pid: u32) -> io::Result<Status> {
        Ok(status::parse(&self.read(pid, "status")?))
    }

    pub fn maps(&self, pid: u32) -> io::Result<Vec<Mapping>> {
        maps::parse(&self.read(pid, "maps")?).map_err(invalid)
    }

    pub fn cgroups(&self, pid: u32) -> io::Result<Cgroups> {
        Ok(cgroup::parse(&self.read(pid, "cgroup")?))
    }

    /// Empty for kernel threads and for processes that have ended.
    pub fn cmdline(&self, pid: u32) -> io::Result<Vec<String>> {
        Ok(parse_cmdline(&self.read(pid, "cmdline")?))
    }

    /// The path is as the process sees it. Kernel threads have none: `NotFound`.
    pub fn exe(&self, pid: u32) -> io::Result<Exe> {
        let link = fs::read_link(self.file(pid, "exe"))?;
        let (path, deleted) = maps::strip_deleted(link.as_os_str().as_bytes());
        Ok(Exe {
            path: PathBuf::from(OsString::from_vec(path.to_vec())),
            deleted,
        })
    }

    /// The number of the calling process in the pid namespace that this `/proc` shows.
    pub fn own_pid(&self) -> Option<u32> {
        fs::read_link(self.0.join("self")).ok()?.to_str()?.parse().ok()
    }

    /// When the host booted; whole seconds, which is all that the kernel tells.
    pub fn boot_time(&self) -> io::Result<SystemTime> {
        let seconds = stat::boot_seconds(&fs::read(self.0.join("stat"))?)
            .ok_or_else(|| invalid("/proc/stat has no line with the boot time (btime)"))?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// The processes that `pid` started and that still are its children.
    pub fn children(&self, pid: u32) -> io::Result<Vec<u32>> {
        let mut children = BTreeSet::new();
        for task in self.tasks(pid)? {
            match fs::read(self.file(pid, "task").join(task.to_string()).join("children")) {
                Ok(bytes) => children.extend(parse_children(&bytes)),
                // A kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended: the parents' numbers
                // of all processes tell the same.
                Err(error) if is_gone(&error) => {
                    return Ok(self.parents()?.remove(&pid).unwrap_or_default());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(children.into_iter().collect())
    }

    /// Children, their children and so on, without `pid` itself.
    pub fn descendants(&self, pid: u32) -> io::Result<Vec<u32>> {
        let parents = self.parents()?;
        let mut found = BTreeSet::new();
        let mut todo = vec![pid];
        while let Some(parent) = todo.pop() {
            for &child in parents.get(&parent).into_iter().flatten() {
                // Numbers are reused while this reads, so that a child can seem to be its own ancestor.
                if child != pid && found.insert(child) {
                    todo.push(child);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Every parent with its children.
    fn parents(&self) -> io::Result<BTreeMap<u32, Vec<u32>>> {
        let mut parents: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for pid in self.pids()? {
            if let Ok(stat) = self.stat(pid) {
                parents.entry(stat.ppid).or_default().push(pid);
            }
        }
        Ok(parents)
    }
}

/// The process ended before or while it was read.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The time at which a process started.
pub fn start_time(boot: SystemTime, start_ticks: u64, ticks_per_second: u64) -> Option<SystemTime> {
    boot.checked_add(ticks(start_ticks, ticks_per_second)?)
}

/// Clock ticks as a length of time.
pub fn ticks(count: u64, per_second: u64) -> Option<Duration> {
    let nanos = u128::from(count) * 1_000_000_000 / u128::from(per_second).max(1);
    Some(Duration::from_nanos(nanos.try_into().ok()?))
}

/// The unit of the times in `/proc/PID/stat`.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf reads a number; it has no preconditions.
    let value = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // 100 is what every Linux port shows to user space.
    u64::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .unwrap_or(100)
}

/// Arguments end with a NUL each. A process can write over them, and then often leaves NULs behind.
pub fn parse_cmdline(bytes: &[u8]) -> Vec<String> {
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    bytes[..end]
        .split(|&byte| byte == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect()
}

fn parse_children(bytes: &[u8]) -> Vec<u32> {
    String::from_utf8_lossy(bytes)
        .split_ascii_whitespace()
        .flat_map(str::parse)
        .collect()
}

fn numbers_in(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::target::fake::{FakeProc, Kind};

    #[test]
    fn arguments_are_split_at_their_ends() {
        assert_eq!(
            parse_cmdline(b"python3\0-c\0print('a b')\0"),
            ["python3", "-c", "print('a b')"]
        );
        assert_eq!(parse_cmdline(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(
            parse_cmdline(b"nginx: worker process\0\0\0\0"),
            ["nginx: worker process"]
        );
        assert_eq!(parse_cmdline(b"no end"), ["no end"]);
        assert_eq!(parse_cmdline(b"\xff\0"), ["\u{fffd}"]);
        assert!(parse_cmdline(b"").is_empty() && parse_cmdline(b"\0\0").is_empty());
    }

    #[test]
    fn start_times_are_boot_plus_ticks() {
        let boot = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(
            start_time(boot, 250, 100),
            Some(boot + Duration::from_millis(2500))
        );
        assert_eq!(start_time(boot, u64::MAX, 1), None);
        assert_eq!(ticks(3, 0), Some(Duration::from_secs(3)));
    }

    #[test]
    fn only_numbers_in_proc_are_processes() {
        let proc = FakeProc::new();
        proc.process(9, "b", Kind::User)
            .process(10, "c", Kind::User)
            .process(2, "a", Kind::Kernel);
        proc.file("version", "Linux");
        assert_eq!(proc.root().pids().unwrap(), [2, 9, 10]);
        assert!(ProcRoot::new(proc.root().path().join("nowhere")).pids().is_err());
    }

    #[test]
    fn children_are_read_from_the_kernels_list_of_each_thread() {
        let proc = FakeProc::new();
        proc.process(5, "parent", Kind::User);
        proc.file("5/task/5/children", "6 8 ")
            .file("5/task/7/children", "9\n");
        assert_eq!(proc.root().children(5).unwrap(), [6, 8, 9]);
        assert!(is_gone(&proc.root().children(77).unwrap_err()));
    }

    #[test]
    fn without_the_kernels_list_the_parents_numbers_tell() {
        let proc = FakeProc::new();
        proc.process(5, "parent", Kind::User)
            .file("5/task/5/comm", "parent");
        for (pid, parent) in [(6, 5), (7, 5), (8, 6), (9, 1)] {
            proc.process(pid, "x", Kind::User).parent(pid, parent);
        }
        assert_eq!(proc.root().children(5).unwrap(), [6, 7]);
        assert_eq!(proc.root().descendants(5).unwrap(), [6, 7, 8]);
        assert_eq!(proc.root().descendants(9).unwrap(), [0_u32; 0]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let proc = FakeProc::new();
        proc.process(5, "a", Kind::User)
            .parent(5, 6)
            .process(6, "b", Kind::User)
            .parent(6, 5);
        assert_eq!(proc.root().descendants(5).unwrap(), [6]);
    }

    #[test]
    fn a_malformed_file_is_invalid_data_with_the_reason() {
        let proc = FakeProc::new();
        proc.file("3/maps", "nonsense\n").file("3/stat", "nonsense\n");
        for error in [proc.root().maps(3).unwrap_err(), proc.root().stat(3).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("nonsense"), "{error}");
        }
        proc.file("stat", "cpu 1\n");
        assert!(proc.root().boot_time().unwrap_err().to_string().contains("btime"));
    }

    #[test]
    fn the_own_process_started_before_now_and_after_boot() {
        let proc = ProcRoot::default();
        let own = proc.own_pid().unwrap();
        assert_eq!(own, std::process::id());
        let boot = proc.boot_time().unwrap();
        let start = start_time(boot, proc.stat(own).unwrap().start_ticks, ticks_per_second()).unwrap();
        // The boot time is cut to whole seconds.
        assert!(boot <= start && start <= SystemTime::now() + Duration::from_secs(1));
        assert_eq!(
            proc.exe(own).unwrap(),
            Exe {
                path: std::env::current_exe().unwrap(),
                deleted: false
            }
        );
        assert_eq!(proc.cmdline(own).unwrap(), std::env::args().collect::<Vec<_>>());
        assert!(proc.tasks(own).unwrap().contains(&own));
    }

    #[test]
    fn a_real_child_is_found() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let proc = ProcRoot::default();
        let own = std::process::id();
        let (children, descendants) = (proc.children(own), proc.descendants(own));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(children.unwrap().contains(&child.id()));
        assert!(descendants.unwrap().contains(&child.id()));
    }
}
