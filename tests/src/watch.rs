//! The binary at work.

use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use jiff::Timestamp;
use memwatch::model::report::Report;

use crate::binary::{command, patience};
use crate::lines::{Lines, NoLine};
use crate::target::{Target, die_with_parent, wait};

/// The options with which rows are whole stacks and none is left out, also where nothing is in use any more.
pub const ALL_STACKS: [&str; 6] = ["--group-by", "traceback", "--view", "alloc", "-n", "100000"];

pub struct Memwatch {
    child: Child,
    lines: Lines,
    errors: Option<JoinHandle<String>>,
}

/// What is left when it has ended.
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<String>,
    pub stderr: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            code,
            signal,
            stdout,
            stderr,
        } = self;
        write!(
            formatter,
            "exit code {code:?}, signal {signal:?}, {} lines on stdout",
            stdout.len()
        )?;
        write!(formatter, "; stderr: {stderr}")
    }
}

impl Ended {
    fn new(status: ExitStatus, stdout: Vec<String>, stderr: String) -> Self {
        Self {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
        }
    }

    pub fn reports(&self) -> Vec<Report> {
        self.stdout.iter().map(|line| parse(line)).collect()
    }
}

pub fn parse(line: &str) -> Report {
    let shown = || line.chars().take(2000).collect::<String>();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not a report ({error}): {}", shown()))
}

pub fn nanoseconds(rfc3339: &str) -> i128 {
    let time: Timestamp = rfc3339
        .parse()
        .unwrap_or_else(|error| panic!("{rfc3339:?} is no time: {error}"));
    time.as_nanosecond()
}

fn read_all(mut source: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read until then is what there is to say.
        let _ = source.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a command to its end with nothing on stdin.
pub fn run_to_end(command: &mut Command) -> Ended {
    let started = Memwatch::start(command);
    started.finish()
}

impl Memwatch {
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_parent(command);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let lines = Lines::of(child.stdout.take().expect("it is piped"));
        let errors = Some(read_all(child.stderr.take().expect("it is piped")));
        Self { child, lines, errors }
    }

    /// Watches a target by whole stacks, every 500 ms. Returns when all probes are attached.
    pub fn of(target: &Target, options: &[&str]) -> Self {
        Self::of_process(target.pid(), options)
    }

    pub fn of_process(pid: u32, options: &[&str]) -> Self {
        let pid = pid.to_string();
        let mut options = options.to_vec();
        if !options.contains(&"-i") {
            options.extend(["-i", "500ms"]);
        }
        if !options.contains(&"--group-by") {
            options.extend(ALL_STACKS);
        }
        let mut watch = Self::start(command().args(["--pid", &pid, "--format", "json"]).args(options));
        let first = watch.next_report();
        assert_eq!(first.tick, 0, "the first block is tick 0");
        watch
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line as it is.
    pub fn next_line(&mut self) -> String {
        match self.lines.next(patience()) {
            Ok(line) => line,
            Err(why) => self.give_up(why),
        }
    }

    fn give_up(&mut self, why: NoLine) -> ! {
        let late = why == NoLine::TimedOut;
        if late {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("it is our child");
        let errors = self.stderr();
        assert!(
            !late,
            "memwatch printed nothing within {:?}; stderr:\n{errors}",
            patience()
        );
        panic!("memwatch ended with {status}; stderr:\n{errors}");
    }

    fn stderr(&mut self) -> String {
        self.errors.take().map_or_else(String::new, |thread| {
            thread.join().expect("the reader does not panic")
        })
    }

    pub fn next_report(&mut self) -> Report {
        parse(&self.next_line())
    }

    /// The first report that was taken after this time.
    pub fn report_after(&mut self, time_ns: i128) -> Report {
        let until = Instant::now() + patience() * 2;
        loop {
            let report = self.next_report();
            if nanoseconds(&report.time) > time_ns {
                return report;
            }
            assert!(
                Instant::now() < until,
                "no report is later than the truth; the last is of {}",
                report.time
            );
        }
    }

    pub fn signal(&self, number: i32) {
        // SAFETY: the child was not waited for, so the pid is still its own.
        let result = unsafe { libc::kill(self.child.id() as i32, number) };
        assert_eq!(result, 0, "a signal can be sent to our own child");
    }

    /// Ctrl-C, and all that it prints after.
    pub fn interrupt(self) -> Ended {
        self.signal(libc::SIGINT);
        self.finish()
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Ended {
        let stdout = match self.lines.rest(patience()) {
            Ok(lines) => lines,
            Err(why) => self.give_up(why),
        };
        let status = wait(&mut self.child, "memwatch");
        let stderr = self.stderr();
        Ended::new(status, stdout, stderr)
    }

    /// SIGKILL: it has no chance to tidy up.
    pub fn kill(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Takes nothing more of what it prints; the reader meets a closed pipe.
    pub fn close_stdout(mut self) -> Ended {
        self.lines = Lines::of(std::io::empty());
        let status = wait(&mut self.child, "memwatch");
        let stderr = self.stderr();
        Ended::new(status, Vec::new(), stderr)
    }
}

impl Drop for Memwatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
