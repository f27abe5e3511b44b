//! A memory cgroup with a limit, in which the kernel kills.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::binary::patience;
use crate::compile::Recipe;
use crate::target::Target;

const MIB: u64 = 1 << 20;

pub struct MemoryGroup {
    folder: PathBuf,
    /// The second version of cgroups, or the first.
    unified: bool,
}

impl MemoryGroup {
    /// `Err` says why this machine lets us have none.
    pub fn create(name: &str) -> Result<Self, String> {
        let roots = [("/sys/fs/cgroup", true), ("/sys/fs/cgroup/memory", false)];
        let mut why = Vec::new();
        for (root, unified) in roots {
            match Self::create_in(Path::new(root), name, unified) {
                Ok(group) => return Ok(group),
                Err(error) => why.push(format!("{root}: {error}")),
            }
        }
        Err(format!("no memory cgroup can be made ({})", why.join("; ")))
    }

    fn create_in(root: &Path, name: &str, unified: bool) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let controllers = root.join("cgroup.controllers");
        if unified {
            let known = fs::read_to_string(&controllers).map_err(text)?;
            if !known.split_whitespace().any(|controller| controller == "memory") {
                return Err("it does not control memory".to_owned());
            }
            fs::write(root.join("cgroup.subtree_control"), "+memory").map_err(text)?;
        }
        let folder = root.join(format!("memwatch-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).map_err(text)?;
        let group = Self { folder, unified };
        fs::metadata(group.folder.join(group.limit_name())).map_err(text)?;
        Ok(group)
    }

    const fn limit_name(&self) -> &'static str {
        if self.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        }
    }

    /// The command's process, and all that it starts, will be in the group.
    pub fn join(&self, command: &mut Command) {
        let procs = self.folder.join("cgroup.procs");
        // SAFETY: between fork and exec of a process whose other threads hold no lock that a write to a file needs.
        unsafe {
            command.pre_exec(move || fs::write(&procs, "0"));
        }
    }

    fn usage(&self) -> u64 {
        let name = if self.unified {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let text = fs::read_to_string(self.folder.join(name)).expect("the group tells what it uses");
        text.trim().parse().expect("a number")
    }

    fn kills(&self) -> u64 {
        let name = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.folder.join(name)).expect("the group tells whom it killed");
        let mut words = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
        words
            .next()
            .and_then(|word| word.trim().parse().ok())
            .expect("a number")
    }

    /// Fills the group's memory up until the kernel kills this process of it.
    fn kill_by_memory(&self, victim: u32) -> Result<(), String> {
        // Before all others: the highest score there is.
        fs::write(format!("/proc/{victim}/oom_score_adj"), "1000")
            .map_err(|error| format!("the kernel cannot be told whom to kill: {error}"))?;
        let program = Recipe::c("hog.c").build()?;
        let room = 64;
        // Far more than the kernel could get by dropping what it read from files. The hog itself may be killed second.
        let mut command = Command::new(program);
        command.arg((room * 64).to_string());
        self.join(&mut command);
        let mut hog = Target::start_command(&mut command);
        if self.unified {
            let _ = fs::write(self.folder.join("memory.swap.max"), "0");
        } else {
            let _ = fs::write(self.folder.join("memory.swappiness"), "0");
        }
        let limit = self.usage() + room * MIB;
        fs::write(self.folder.join(self.limit_name()), limit.to_string())
            .map_err(|error| format!("no limit can be set: {error}"))?;
        hog.begin();
        let until = Instant::now() + patience();
        while self.kills() == 0 {
            assert!(Instant::now() < until, "the kernel kills nobody");
            sleep(Duration::from_millis(10));
        }
        hog.kill();
        Ok(())
    }
}

/// What the kernel does to a process of a group that has no memory left. Where no group could be made, only its last
/// step: SIGKILL.
pub fn kill_by_memory(group: Result<&MemoryGroup, &String>, victim: u32) -> Result<(), String> {
    match group {
        Ok(group) => group.kill_by_memory(victim),
        Err(why) => {
            eprintln!("{why}: killed by a signal instead");
            // SAFETY: the caller's child, which was not waited for.
            let result = unsafe { libc::kill(victim as i32, libc::SIGKILL) };
            assert_eq!(result, 0, "a signal can be sent to our own child");
            Ok(())
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Busy until the last of its processes is gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}
