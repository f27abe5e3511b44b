//! From what the user named to the processes that are meant.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    str,
};

use globset::{GlobBuilder, GlobMatcher};

use super::{
    container,
    process::{Exe, ProcRoot, is_gone},
    stat::Stat,
};

/// The kernel cuts names of processes at this length.
const COMM_BYTES: usize = 15;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Pids(Vec<u32>),
    /// A pattern for the process's name, its program file's name or its own idea of its name (`argv[0]`).
    Comm(String),
    /// A control group and all below it: a directory, or a path within the hierarchy as `/proc/PID/cgroup` tells.
    Cgroup(PathBuf),
    /// The id of a container, or its first characters.
    Container(String),
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    pub pid: u32,
    /// Why this process is meant, for people.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    #[error("there is no process {pid}; `memwatch ps` lists those that run")]
    NoSuchProcess { pid: u32 },
    #[error("process {pid} ({comm}) has ended; only its parent has not taken notice yet (zombie)")]
    Ended { pid: u32, comm: String },
    #[error(
        "process {pid} ({comm}) is a kernel thread: it has no memory of its own; name an ordinary process"
    )]
    KernelThread { pid: u32, comm: String },
    #[error("{tid} is a thread of process {tgid}, and processes are watched as a whole; use --pid {tgid}")]
    ThreadNotProcess { tid: u32, tgid: u32 },
    #[error("process {pid} is memwatch itself, which cannot watch itself; name another process")]
    OwnProcess { pid: u32 },
    #[error("{what}; `memwatch ps` lists what runs")]
    NoMatch { what: String },
    #[error("{path:?} is not a control group: it has no file cgroup.procs; give a directory below {root:?}")]
    NotACgroup { path: PathBuf, root: PathBuf },
    #[error("may not read {path:?}; run as root or with CAP_SYS_PTRACE (see `memwatch doctor`)")]
    NoAccess { path: PathBuf, source: io::Error },
    #[error("{pattern:?} is not a pattern: {reason}; write it like 'python*'")]
    BadPattern { pattern: String, reason: String },
    #[error("cannot read {path:?}")]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Finds processes. Reads only.
#[derive(Clone, Debug)]
pub struct Selector {
    proc: ProcRoot,
    cgroup_root: PathBuf,
    own_pid: Option<u32>,
}

impl Default for Selector {
    fn default() -> Self {
        let proc = ProcRoot::default();
        let own_pid = proc.own_pid();
        Self {
            proc,
            cgroup_root: "/sys/fs/cgroup".into(),
            own_pid,
        }
    }
}

impl Selector {
    pub fn new(proc: ProcRoot, cgroup_root: impl Into<PathBuf>, own_pid: Option<u32>) -> Self {
        Self {
            proc,
            cgroup_root: cgroup_root.into(),
            own_pid,
        }
    }

    /// In order of the pids; at least one. Pids that the user named are all fit to be watched, or it is an error;
    /// of patterns and groups, those that are fit are taken.
    pub fn select(&self, target: &Target) -> Result<Vec<Selected>, SelectError> {
        match target {
            Target::Pids(pids) => self.by_pid(pids),
            Target::Comm(pattern) => self.by_comm(pattern),
            Target::Cgroup(path) => self.by_cgroup(path),
            Target::Container(id) => self.by_container(id),
            Target::All => self.scan("no ordinary process can be seen".to_owned(), |_, _| {
                Some("all".to_owned())
            }),
        }
    }

    /// Whether one process can be watched, as far as `/proc` tells.
    pub fn check(&self, pid: u32) -> Result<Stat, SelectError> {
        let gone = |error: io::Error, name| match error {
            error if is_gone(&error) => SelectError::NoSuchProcess { pid },
            source => access_error(self.proc.file(pid, name), source),
        };
        // The directory of a thread exists, though no list shows it.
        let status = self.proc.status(pid).map_err(|error| gone(error, "status"))?;
        if let Some(tgid) = status.tgid.filter(|&tgid| tgid != pid) {
            return Err(SelectError::ThreadNotProcess { tid: pid, tgid });
        }
        let stat = self.proc.stat(pid).map_err(|error| gone(error, "stat"))?;
        if self.own_pid == Some(pid) {
            return Err(SelectError::OwnProcess { pid });
        }
        if stat.is_kernel_thread() {
            return Err(SelectError::KernelThread { pid, comm: stat.comm });
        }
        if stat.is_dead() {
            return Err(SelectError::Ended { pid, comm: stat.comm });
        }
        // Opening checks the rights; nothing is read yet.
        match fs::File::open(self.proc.file(pid, "maps")) {
            // It has given up its memory but is still there: about to become a zombie.
            Err(error) if is_gone(&error) && self.proc.stat(pid).is_ok() => {
                Err(SelectError::Ended { pid, comm: stat.comm })
            }
            opened => opened.map(|_| stat).map_err(|error| gone(error, "maps")),
        }
    }

    fn by_pid(&self, pids: &[u32]) -> Result<Vec<Selected>, SelectError> {
        let pids: BTreeSet<u32> = pids.iter().copied().collect();
        if pids.is_empty() {
            return Err(SelectError::NoMatch {
                what: "no pid was given".to_owned(),
            });
        }
        pids.into_iter()
            .map(|pid| {
                self.check(pid).map(|_| Selected {
                    pid,
                    reason: "pid".to_owned(),
                })
            })
            .collect()
    }

    fn by_comm(&self, pattern: &str) -> Result<Vec<Selected>, SelectError> {
        let glob = GlobBuilder::new(pattern)
            .build()
            .map_err(|error| SelectError::BadPattern {
                pattern: pattern.to_owned(),
                reason: error.kind().to_string(),
            })?;
        let glob = glob.compile_matcher();
        self.scan(format!("no process is named {pattern:?}"), |stat, proc| {
            let exe = proc.exe(stat.pid).ok();
            let cmdline = proc.cmdline(stat.pid).unwrap_or_default();
            match_name(&glob, &stat.comm, exe.as_ref(), &cmdline)
        })
    }

    fn by_container(&self, id: &str) -> Result<Vec<Selected>, SelectError> {
        if id.is_empty() {
            return Err(SelectError::NoMatch {
                what: "no container was given".to_owned(),
            });
        }
        self.scan(format!("no process is in a container {id:?}"), |stat, proc| {
            let cgroups = proc.cgroups(stat.pid).ok()?;
            let found = container::guess(cgroups.path()?)?;
            found
                .id
                .starts_with(id)
                .then(|| format!("container {}", found.id))
        })
    }

    fn by_cgroup(&self, path: &Path) -> Result<Vec<Selected>, SelectError> {
        let dir = self.find_cgroup(path)?;
        let mut pids = BTreeSet::new();
        self.collect_cgroup(&dir, true, &mut pids)?;
        let what = format!("no process is in the control group {}", dir.display());
        let reason = format!("in {}", dir.display());
        self.keep_fit(
            pids.into_iter().map(|pid| Selected {
                pid,
                reason: reason.clone(),
            }),
            what,
        )
    }

    /// The directory of a control group that was given as a directory or as a path within the hierarchy.
    fn find_cgroup(&self, path: &Path) -> Result<PathBuf, SelectError> {
        let inner: PathBuf = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let absolute = path.is_absolute().then(|| path.to_owned());
        // Version 2; then where version 1 and mixed hosts keep what this is about.
        let below = ["", "memory", "unified", "systemd", "pids"]
            .map(|hierarchy| self.cgroup_root.join(hierarchy).join(&inner));
        absolute
            .into_iter()
            .chain(below)
            .find(|dir| dir.join("cgroup.procs").exists())
            .ok_or_else(|| SelectError::NotACgroup {
                path: path.to_owned(),
                root: self.cgroup_root.clone(),
            })
    }

    fn collect_cgroup(&self, dir: &Path, top: bool, pids: &mut BTreeSet<u32>) -> Result<(), SelectError> {
        match fs::read(dir.join("cgroup.procs")) {
            Ok(bytes) => pids.extend(numbers(&bytes)),
            // A group of threads has no list of processes.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let threads = fs::read(dir.join("cgroup.threads")).unwrap_or_default();
                let owners = numbers(&threads).filter_map(|tid| self.proc.status(tid).ok()?.tgid);
                pids.extend(owners);
            }
            // A group below can be removed while this reads.
            Err(_) if !top => return Ok(()),
            Err(source) => return Err(access_error(dir.join("cgroup.procs"), source)),
        }
        let Ok(entries) = fs::read_dir(dir) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.collect_cgroup(&entry.path(), false, pids)?;
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        what: String,
        reason: impl Fn(&Stat, &ProcRoot) -> Option<String>,
    ) -> Result<Vec<Selected>, SelectError> {
        let path = || self.proc.path().to_owned();
        let pids = self.proc.pids().map_err(|source| access_error(path(), source))?;
        let found = pids.into_iter().filter_map(|pid| {
            let reason = reason(&self.proc.stat(pid).ok()?, &self.proc)?;
            Some(Selected { pid, reason })
        });
        self.keep_fit(found, what)
    }

    /// Those that can be watched. If there is none, the error of the most telling one that cannot.
    fn keep_fit(
        &self,
        found: impl Iterator<Item = Selected>,
        what: String,
    ) -> Result<Vec<Selected>, SelectError> {
        let mut fit = Vec::new();
        let mut unfit = None;
        for selected in found {
            match self.check(selected.pid) {
                Ok(_) => fit.push(selected),
                Err(SelectError::NoSuchProcess { .. }) => {}
                Err(error @ SelectError::NoAccess { .. }) => unfit = Some(error),
                Err(error) => unfit = unfit.or(Some(error)),
            }
        }
        if fit.is_empty() {
            return Err(unfit.unwrap_or(SelectError::NoMatch { what }));
        }
        Ok(fit)
    }
}

/// Why a pattern matches a process, if it does.
fn match_name(glob: &GlobMatcher, comm: &str, exe: Option<&Exe>, cmdline: &[String]) -> Option<String> {
    if glob.is_match(comm) {
        return Some(format!("name {comm}"));
    }
    if let Some(name) = exe
        .and_then(|exe| exe.path.file_name())
        .and_then(|name| name.to_str())
        && glob.is_match(name)
    {
        return Some(format!("program {name}"));
    }
    // Login shells put a dash before their name.
    let first = cmdline
        .first()
        .map(|arg| base_name(arg.strip_prefix('-').unwrap_or(arg)));
    if let Some(name) = first.filter(|name| glob.is_match(name)) {
        return Some(format!("command {name}"));
    }
    // A script's name is cut too, and its program is the interpreter: the whole name is among the first arguments.
    let cut = comm.len() == COMM_BYTES;
    let full = cmdline
        .iter()
        .take(4)
        .map(|arg| base_name(arg))
        .find(|name| cut && name.starts_with(comm));
    full.filter(|name| glob.is_match(name))
        .map(|name| format!("command {name}"))
}

fn base_name(arg: &str) -> &str {
    arg.rsplit('/').next().unwrap_or(arg)
}

/// Processes of other pid namespaces stand as 0 in the list: they cannot be named from here.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let lines = bytes
        .split(|&byte| byte == b'\n')
        .filter_map(|line| str::from_utf8(line).ok());
    lines
        .filter_map(|line| line.trim().parse().ok())
        .filter(|&pid| pid != 0)
}

fn access_error(path: PathBuf, source: io::Error) -> SelectError {
    if source.kind() == io::ErrorKind::PermissionDenied {
        SelectError::NoAccess { path, source }
    } else {
        SelectError::Unreadable { path, source }
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
