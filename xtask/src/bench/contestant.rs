//! Who is measured: a command line that watches a process, and a word that tells when it does.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    lines::Lines,
    pairs::{Pairs, Reading},
};
use crate::shell;

/// Longest wait for a tool to be in place, and to be gone.
const PATIENCE: Duration = Duration::from_mins(1);

const HITS: &str = "/health/overhead/hits";

#[derive(Clone, Debug)]
pub struct Contestant {
    pub name: &'static str,
    /// `{pid}` stands for the process to watch. Empty for the one that is not watched.
    command: Vec<String>,
    /// Printed on stdout once everything is in place.
    ready: &'static str,
    /// Where its last line of JSON counts what it saw: a tool that saw nothing costs nothing, and is no result.
    seen: Option<&'static str>,
    /// The bench fails if this one cannot be measured.
    pub required: bool,
    /// For readers of the table.
    pub about: &'static str,
}

fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

fn ours(memwatch: &Path, arguments: &str) -> Vec<String> {
    [vec![memwatch.to_string_lossy().into_owned()], words(arguments)].concat()
}

pub fn all(memwatch: &Path) -> Vec<Contestant> {
    let script = shell::workspace().join("tests/bench/memleak.bt");
    let script = script.to_string_lossy().into_owned();
    vec![
        Contestant {
            name: "plain",
            command: Vec::new(),
            ready: "",
            seen: None,
            required: true,
            about: "not watched",
        },
        Contestant {
            name: "floor",
            command: ours(memwatch, "bench-floor --pid {pid}"),
            ready: "ready",
            seen: None,
            required: true,
            about: "empty BPF programs at the places that memwatch probes: what no tool of this kind gets below",
        },
        Contestant::memwatch(memwatch, ""),
        Contestant {
            name: "bpftrace",
            command: vec![
                "bpftrace".into(),
                "-p".into(),
                "{pid}".into(),
                script,
                "{pid}".into(),
            ],
            ready: "watching",
            seen: None,
            required: false,
            about: "`tests/bench/memleak.bt`: every block",
        },
        Contestant {
            name: "bcc-memleak",
            command: words("memleak-bpfcc -p {pid} 2"),
            // Its word of being attached comes before it attaches; its first table does not.
            ready: "outstanding allocations",
            seen: None,
            required: false,
            about: "`memleak-bpfcc -p PID 2`: every block",
        },
    ]
}

impl Contestant {
    pub fn plain(about: &'static str) -> Self {
        Self {
            name: "plain",
            command: Vec::new(),
            ready: "",
            seen: None,
            required: true,
            about,
        }
    }

    /// memwatch, in one of its ways.
    pub fn ours(name: &'static str, command: Vec<String>, about: &'static str) -> Self {
        Self {
            name,
            command,
            ready: "\"tick\":0",
            seen: None,
            required: true,
            about,
        }
    }

    /// Another tool.
    pub fn other(name: &'static str, command: Vec<String>, ready: &'static str, about: &'static str) -> Self {
        Self {
            name,
            command,
            ready,
            seen: None,
            required: false,
            about,
        }
    }

    pub fn is_plain(&self) -> bool {
        self.command.is_empty()
    }

    /// memwatch, with these options beside.
    pub fn memwatch(memwatch: &Path, options: &str) -> Self {
        Self {
            name: "memwatch",
            command: ours(memwatch, &format!("--pid {{pid}} --format json -i 1s {options}")),
            ready: "\"tick\":0",
            seen: Some(HITS),
            required: true,
            about: "every block",
        }
    }

    /// Whether it is memwatch, in one of its ways.
    pub fn is_ours(&self) -> bool {
        self.required && !self.is_plain()
    }

    pub fn measure(&self, target: &Pairs, duration: Duration) -> Result<Reading> {
        if self.is_plain() {
            return target.read(duration);
        }
        let running = Running::start(&self.command_for(target.pid()), self.ready)?;
        let reading = target.read(duration)?;
        let last = running.stop()?.last_line;
        if let Some(pointer) = self.seen {
            ensure!(number_in(&last, pointer) > 0, "saw nothing of what it watched");
        }
        Ok(reading)
    }

    fn command_for(&self, pid: u32) -> Vec<String> {
        self.command
            .iter()
            .map(|word| word.replace("{pid}", &pid.to_string()))
            .collect()
    }
}

/// 0 where there is none.
fn number_in(json: &str, pointer: &str) -> u64 {
    let json: Option<serde_json::Value> = serde_json::from_str(json).ok();
    json.and_then(|json| json.pointer(pointer)?.as_u64()).unwrap_or(0)
}

/// A tool at work.
pub struct Running {
    child: Child,
    pub lines: Lines,
    complaints: Lines,
    /// From its start until its probes were in place.
    pub attached_in: Duration,
    /// The line that said so.
    pub first: String,
}

impl Running {
    pub fn start(words: &[String], ready: &str) -> Result<Self> {
        let (program, arguments) = words.split_first().context("an empty command")?;
        let start = Instant::now();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        hear_interrupts(&mut command);
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let (stdout, stderr) = child.stdout.take().zip(child.stderr.take()).context("no pipes")?;
        let mut running = Self {
            child,
            lines: Lines::of(stdout),
            complaints: Lines::of(stderr),
            attached_in: Duration::ZERO,
            first: String::new(),
        };
        match running.lines.wait_for(ready, PATIENCE) {
            Ok(line) => running.first = line,
            Err(error) => {
                running.end();
                bail!("{error:#}{}", said(&running.complaints.rest()));
            }
        }
        running.attached_in = start.elapsed();
        Ok(running)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end as a Ctrl-C does, and waits.
    pub fn stop(mut self) -> Result<Stopped> {
        if let Some(status) = self.child.try_wait().context("cannot wait")? {
            bail!(
                "ended while it was measured: {status}{}",
                said(&self.complaints.rest())
            );
        }
        let start = Instant::now();
        // SAFETY: our own child, not yet waited for, so the pid is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) };
        while self.child.try_wait().context("cannot wait")?.is_none() {
            if start.elapsed() > PATIENCE {
                self.end();
                bail!("did not end within {} s of a Ctrl-C", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        Ok(Stopped {
            took,
            last_line: self.lines.rest().pop().unwrap_or_default(),
        })
    }

    fn end(&mut self) {
        // Either fails only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whoever is started in the background by a script begins life deaf to Ctrl-C, and so would the tools.
fn hear_interrupts(command: &mut Command) {
    // SAFETY: between fork and exec only `signal` is called, which may be.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
}

#[derive(Debug)]
pub struct Stopped {
    pub took: Duration,
    pub last_line: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last thing of any weight that a tool said.
fn said(lines: &[String]) -> String {
    let last = lines
        .iter()
        .map(|line| line.trim())
        .rfind(|line| !line.is_empty());
    last.map(|line| format!(" (it said: {line})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_pid_is_put_where_it_belongs() {
        let bpftrace = all(Path::new("memwatch"))
            .into_iter()
            .find(|contestant| contestant.name == "bpftrace");
        let words = bpftrace.unwrap().command_for(77);
        assert_eq!((words[2].as_str(), words[4].as_str()), ("77", "77"));
        assert!(!words.concat().contains('{'));
    }

    #[test]
    fn a_tool_is_waited_for_and_stopped_as_by_a_ctrl_c() {
        let script = "trap 'echo bye; exit 0' INT; echo hello; echo all ready; while :; do sleep 0.01; done";
        let running = Running::start(&shell(script), "ready").unwrap();
        assert_eq!(running.first, "all ready");
        assert_eq!(running.stop().unwrap().last_line, "bye");
    }

    #[test]
    fn a_tool_that_saw_nothing_is_told_from_one_that_did() {
        let report = |hits| format!(r#"{{"health":{{"overhead":{{"hits":{hits}}}}}}}"#);
        assert_eq!(number_in(&report("7"), HITS), 7);
        assert_eq!(number_in(&report("null"), HITS), 0);
        assert_eq!(number_in("", HITS), 0);
    }

    #[test]
    fn a_tool_that_ends_early_is_quoted() {
        let error = Running::start(&shell("echo no such kernel >&2; exit 1"), "ready")
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("ended before") && error.contains("no such kernel"),
            "{error}"
        );
    }

    #[test]
    fn a_tool_that_ends_while_measured_is_no_result() {
        let mut running = Running::start(&shell("echo ready"), "ready").unwrap();
        running.child.wait().unwrap();
        assert!(running.stop().unwrap_err().to_string().contains("ended while"));
    }

    #[test]
    fn names_are_unique_and_only_one_is_plain() {
        let all = all(Path::new("memwatch"));
        assert!(
            all.iter()
                .all(|one| all.iter().filter(|other| other.name == one.name).count() == 1)
        );
        assert_eq!(all.iter().filter(|one| one.is_plain()).count(), 1);
    }
}
