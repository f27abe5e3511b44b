//! A program that is watched. `targets/truth.h` tells the protocol.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use crate::binary::patience;
use crate::lines::{Lines, NoLine};
use crate::truth::Truth;

pub struct Target {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines,
    ready: Value,
}

/// What `load` and `go_static` say of themselves.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Load {
    pub ok: u64,
    pub bad: u64,
}

impl Target {
    /// Starts a program and waits until it is ready.
    pub fn start(program: &Path) -> Self {
        Self::start_command(&mut Command::new(program))
    }

    pub fn start_with(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Self {
        Self::start_command(Command::new(program).args(arguments))
    }

    pub fn start_command(command: &mut Command) -> Self {
        let name = format!(
            "{}",
            Path::new(command.get_program())
                .file_name()
                .unwrap_or_default()
                .display()
        );
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(command);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let lines = Lines::of(child.stdout.take().expect("it is piped"));
        let input = child.stdin.take();
        let mut target = Self {
            name,
            child,
            input,
            lines,
            ready: Value::Null,
        };
        target.ready = target.line();
        assert_eq!(
            target.ready["event"], "ready",
            "{}: {}",
            target.name, target.ready
        );
        target
    }

    /// What it said when it was ready.
    pub const fn ready(&self) -> &Value {
        &self.ready
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, word: &str) {
        let input = self.input.as_mut().expect("it was not told to exit");
        if let Err(error) = input.write_all(format!("{word}\n").as_bytes()) {
            let state = self.state();
            panic!("{} takes no more words ({error}); {state}", self.name);
        }
    }

    fn state(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("it ended with {status}"),
            _ => "it still runs".to_owned(),
        }
    }

    fn line(&mut self) -> Value {
        match self.lines.next(patience()) {
            Ok(line) => {
                let value: Value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("{}: not JSON ({error}): {line}", self.name));
                assert_ne!(value["event"], "error", "{} gave up: {line}", self.name);
                value
            }
            Err(NoLine::TimedOut) => {
                let state = self.state();
                panic!("{}: nothing heard within {:?}; {state}", self.name, patience());
            }
            Err(NoLine::Ended) => {
                let status = self.child.wait().expect("it is our child");
                panic!(
                    "{} ended with {status} (signal {:?}) before it said all",
                    self.name,
                    status.signal()
                );
            }
        }
    }

    /// Sends "go" without waiting for the answer.
    pub fn begin(&mut self) {
        self.tell("go");
    }

    /// What came between "go" and "done".
    fn answers(&mut self) -> Vec<Value> {
        let until = Instant::now() + patience() * 2;
        let mut answers = Vec::new();
        loop {
            let value = self.line();
            if value["event"] == "done" {
                return answers;
            }
            answers.push(value);
            assert!(Instant::now() < until, "{}: its work takes too long", self.name);
        }
    }

    /// Lets it do the next part of its work. One truth for each of its processes.
    pub fn go(&mut self) -> Vec<Truth> {
        self.begin();
        self.truths()
    }

    /// Lets it do the next part of its work; what it says of it, as it is.
    pub fn values(&mut self) -> Vec<Value> {
        self.begin();
        self.answers()
    }

    pub fn truths(&mut self) -> Vec<Truth> {
        let truth = |value| serde_json::from_value(value).expect("the truth is well-formed");
        self.answers().into_iter().map(truth).collect()
    }

    /// Asks a program under load how it is.
    pub fn load(&mut self) -> Load {
        self.begin();
        let answer = self.answers().pop().expect("it answers");
        serde_json::from_value(answer).expect("the answer is well-formed")
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it by force, as any process may end.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Tells it to end, and waits.
    pub fn exit(&mut self) -> ExitStatus {
        if let Some(mut input) = self.input.take() {
            // It may have ended before; its status tells.
            let _ = input.write_all(b"exit\n");
        }
        wait(&mut self.child, &self.name)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child, but not for ever.
pub fn wait(child: &mut Child, name: &str) -> ExitStatus {
    let until = Instant::now() + patience();
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} did not end within {:?}", patience());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A test that is ended by force leaves nothing running.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and takes no memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
