//! The data of `memwatch ps`: every process, how much memory it takes, whether it grows, what runs in it, and
//! whether it can be watched.

use std::{collections::HashMap, fmt, io, time::Instant};

use serde::Serialize;

use super::{
    container,
    file_id::FileId,
    modules::{Catalog, Module, ProcessModules},
    process::{ProcRoot, is_gone},
    rss::page_bytes,
    runtime::Runtimes,
    stat::Stat,
};
use crate::model::report::{Container, Runtime};

pub const SCHEMA: &str = "memwatch.ps/1";

/// What `--format json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Ps {
    pub schema: &'static str,
    /// RFC 3339.
    pub time: String,
    /// Over what time growth was measured; null if it was not.
    pub interval_seconds: Option<f64>,
    /// Those with the most memory first.
    pub processes: Vec<PsProcess>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PsProcess {
    pub pid: u32,
    pub ppid: u32,
    /// The effective user.
    pub uid: Option<u32>,
    pub comm: String,
    /// As the user typed it, arguments joined by spaces. The name in brackets for what has no command line.
    pub command: String,
    /// Null for kernel threads and processes that have ended.
    pub rss_bytes: Option<u64>,
    /// Null for processes that were not there at the first reading.
    pub growth_bytes_per_second: Option<f64>,
    pub runtimes: Vec<Runtime>,
    pub container: Option<Container>,
    pub pod_uid: Option<String>,
    pub kernel_thread: bool,
    pub can_watch: bool,
    /// Why it cannot be watched, or what to know if it can; null if there is nothing to say.
    pub why: Option<Remark>,
}

/// What stands in the way of watching a process, or limits what is seen. In JSON the whole sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    KernelThread,
    Ended,
    OwnProcess,
    NoAccess,
    /// Its files cannot be opened from here.
    FilesClosed,
    Go,
    NoAllocator,
    Unreadable,
    /// Can be watched: only C code in a Go program allocates by functions that can be probed.
    GoWithC,
    /// Can be watched: somebody debugs it.
    Traced {
        by: u32,
    },
}

impl Remark {
    /// For a column of a table.
    pub fn short(self) -> &'static str {
        match self {
            Self::KernelThread => "kernel",
            Self::Ended => "ended",
            Self::OwnProcess => "memwatch",
            Self::NoAccess => "access",
            Self::FilesClosed => "files",
            Self::Go => "go",
            Self::NoAllocator => "allocator?",
            Self::Unreadable => "unreadable",
            Self::GoWithC => "c part",
            Self::Traced { .. } => "traced",
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelThread => "a kernel thread has no memory of its own",
            Self::Ended => "it has ended; only its parent has not taken notice yet (zombie)",
            Self::OwnProcess => "this is memwatch itself",
            Self::NoAccess => "its mappings may not be read: run as root or with CAP_SYS_PTRACE",
            Self::FilesClosed => {
                "its files were deleted or are in another mount namespace: CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE opens them"
            }
            Self::Go => "a Go program has an allocator of its own that cannot be probed: use Go's pprof",
            Self::NoAllocator => {
                "no allocation function was found in its files (linked statically and stripped?)"
            }
            Self::Unreadable => "its entry in /proc could not be read",
            Self::GoWithC => "only what the C code in this Go program allocates can be seen",
            Self::Traced { by } => return write!(f, "process {by} traces it; breakpoints there may get in the way"),
        })
    }
}

impl Serialize for Remark {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The resident memory of all processes at one moment.
#[derive(Clone, Debug)]
pub struct RssReading {
    at: Instant,
    /// By pid and start: a pid that was given out again in between is another process.
    pages: HashMap<(u32, u64), u64>,
}

impl RssReading {
    pub fn take(proc: &ProcRoot, at: Instant) -> io::Result<Self> {
        let stats = proc.pids()?.into_iter().filter_map(|pid| proc.stat(pid).ok());
        let pages = stats
            .map(|stat| ((stat.pid, stat.start_ticks), stat.rss_pages))
            .collect();
        Ok(Self { at, pages })
    }
}

/// Gathers `ps` from one `/proc`. `is_allocator` is asked once for each file whether it has allocation functions.
pub struct Gatherer<F> {
    proc: ProcRoot,
    own_pid: Option<u32>,
    is_allocator: F,
    catalog: Catalog,
    runtimes: Runtimes,
    allocators: HashMap<FileId, bool>,
}

impl<F: FnMut(&Module) -> bool> Gatherer<F> {
    pub fn new(proc: ProcRoot, is_allocator: F) -> Self {
        Self {
            own_pid: proc.own_pid(),
            is_allocator,
            catalog: Catalog::new(proc.clone()),
            runtimes: Runtimes::default(),
            allocators: HashMap::new(),
            proc,
        }
    }

    /// `before` is a reading from a while ago, to measure growth against.
    pub fn gather(
        &mut self,
        before: Option<&RssReading>,
        now: Instant,
        time: jiff::Timestamp,
    ) -> io::Result<Ps> {
        let seconds = before.map(|before| now.saturating_duration_since(before.at).as_secs_f64());
        let mut processes = Vec::new();
        for pid in self.proc.pids()? {
            // Processes that end meanwhile are left out.
            let Ok(stat) = self.proc.stat(pid) else { continue };
            let mut process = self.process(stat.clone());
            process.growth_bytes_per_second = process.rss_bytes.and_then(|_| {
                let earlier = *before?.pages.get(&(pid, stat.start_ticks))?;
                growth(earlier, stat.rss_pages, seconds?)
            });
            processes.push(process);
        }
        processes.sort_by_key(|process| (std::cmp::Reverse(process.rss_bytes), process.pid));
        Ok(Ps {
            schema: SCHEMA,
            time: time.to_string(),
            interval_seconds: seconds,
            processes,
        })
    }

    fn process(&mut self, stat: Stat) -> PsProcess {
        let pid = stat.pid;
        let status = self.proc.status(pid).unwrap_or_default();
        let cgroups = self.proc.cgroups(pid).unwrap_or_default();
        let cgroup = cgroups.path().unwrap_or_default();
        let kernel_thread = stat.is_kernel_thread();
        let has_memory = !kernel_thread && !stat.is_dead();
        let (runtimes, verdict) = if has_memory {
            self.inside(pid, status.tracer_pid)
        } else {
            (
                Vec::new(),
                Verdict::No(if kernel_thread {
                    Remark::KernelThread
                } else {
                    Remark::Ended
                }),
            )
        };
        let (can_watch, why) = match verdict {
            Verdict::No(why) => (false, Some(why)),
            Verdict::Yes(why) => (true, why),
        };
        PsProcess {
            pid,
            ppid: stat.ppid,
            uid: status.uid.map(|uid| uid.effective),
            command: command(&stat.comm, &self.proc.cmdline(pid).unwrap_or_default()),
            rss_bytes: has_memory.then(|| stat.rss_pages.saturating_mul(page_bytes())),
            growth_bytes_per_second: None,
            runtimes,
            container: container::guess(cgroup).map(Into::into),
            pod_uid: container::pod_uid(cgroup),
            kernel_thread,
            can_watch,
            why,
            comm: stat.comm,
        }
    }

    fn inside(&mut self, pid: u32, tracer: u32) -> (Vec<Runtime>, Verdict) {
        let modules = match self.catalog.read(pid) {
            Ok(modules) => modules,
            Err(error) => {
                return (
                    Vec::new(),
                    Verdict::No(match error {
                        error if error.kind() == io::ErrorKind::PermissionDenied => Remark::NoAccess,
                        error if is_gone(&error) => Remark::Ended,
                        _ => Remark::Unreadable,
                    }),
                );
            }
        };
        let exe = self.proc.exe(pid).ok();
        let runtimes = self
            .runtimes
            .of(exe.as_ref().map(|exe| exe.path.as_path()), &modules);
        let verdict = if self.own_pid == Some(pid) {
            Verdict::No(Remark::OwnProcess)
        } else {
            self.verdict(&modules, &runtimes, tracer)
        };
        (runtimes, verdict)
    }

    fn verdict(&mut self, modules: &ProcessModules, runtimes: &[Runtime], tracer: u32) -> Verdict {
        let go = runtimes.iter().any(|runtime| runtime.name == "go");
        if modules.modules.iter().any(|module| self.has_allocator(module)) {
            let traced = (tracer != 0).then_some(Remark::Traced { by: tracer });
            return Verdict::Yes(traced.or(go.then_some(Remark::GoWithC)));
        }
        Verdict::No(if go {
            Remark::Go
        } else if modules.modules.iter().any(|module| module.access_path.is_none()) {
            Remark::FilesClosed
        } else {
            Remark::NoAllocator
        })
    }

    fn has_allocator(&mut self, module: &Module) -> bool {
        let (Some(id), Some(_)) = (module.id, &module.access_path) else {
            return false;
        };
        let is_allocator = &mut self.is_allocator;
        *self.allocators.entry(id).or_insert_with(|| is_allocator(module))
    }
}

enum Verdict {
    Yes(Option<Remark>),
    No(Remark),
}

/// Bytes per second between two counts of pages.
fn growth(before: u64, after: u64, seconds: f64) -> Option<f64> {
    let pages = i128::from(after) - i128::from(before);
    (seconds > 0.0).then(|| pages as f64 * page_bytes() as f64 / seconds)
}

fn command(comm: &str, cmdline: &[String]) -> String {
    if cmdline.is_empty() {
        format!("[{comm}]")
    } else {
        cmdline.join(" ")
    }
}

#[cfg(test)]
#[path = "ps_tests.rs"]
mod tests;
