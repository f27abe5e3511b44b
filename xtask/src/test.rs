//! `cargo xtask test` and `cargo xtask verify`: what needs a kernel and root.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{setup, shell};

/// cargo runs test programs through this; `target` is the host's, which is where tests run.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// What is watched by two tests at once would be each other's busy neighbour.
const ONE_AT_A_TIME: (&str, &str) = ("RUST_TEST_THREADS", "1");

pub fn run(arguments: &[OsString]) -> Result<()> {
    setup::run(&setup::Options {
        tests: true,
        bench: false,
    })?;
    let binary = shell::build_memwatch()?;
    let root = shell::as_root("to attach to processes")?;
    let mut outcome = Outcome::default();
    let mut went_well = true;
    for mut command in commands(arguments) {
        command
            .env("MEMWATCH_BIN", &binary)
            .env("MEMWATCH_REQUIRE_BPF", "1");
        if !root.is_empty() {
            // Built as the user, run as root: so nothing in the target folder ends up as root's.
            command.env(RUNNER, root.join(" "));
        }
        shell::say(shell::typed(&command));
        went_well &= watch(&mut command, &mut outcome)?;
    }
    shell::say(format!(
        "{} tests passed, {} failed, {} ignored, in {} test programs",
        outcome.passed, outcome.failed, outcome.ignored, outcome.programs
    ));
    ensure!(went_well && outcome.failed == 0, "cargo test failed");
    ensure!(
        outcome.ignored == 0,
        "{} tests were ignored: a test that does not run shows nothing",
        outcome.ignored
    );
    ensure!(outcome.passed > 0, "no test was run");
    Ok(())
}

/// The tests that watch processes run one at a time; a choice of one's own is made in one go.
fn commands(arguments: &[OsString]) -> Vec<Command> {
    let test = |packages: &[&str]| {
        let mut command = shell::cargo();
        command
            .arg("test")
            .args(packages)
            .arg("--no-fail-fast")
            .args(arguments);
        command
    };
    let all = ["--workspace", "--exclude", "memwatch-ebpf"];
    let (name, value) = ONE_AT_A_TIME;
    if arguments.is_empty() {
        let mut watching = test(&["--package", "memwatch-tests"]);
        watching.env(name, value);
        vec![
            test(&[&all[..], &["--exclude", "memwatch-tests"]].concat()),
            watching,
        ]
    } else {
        let mut chosen = test(&all);
        chosen.env(name, value);
        vec![chosen]
    }
}

/// What the closing lines of all test programs say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub programs: u64,
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Outcome {
    /// `test result: ok. 8 passed; 0 failed; 2 ignored; …`
    pub fn add(&mut self, line: &str) {
        let Some((_, numbers)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        self.programs += 1;
        for part in numbers.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs it, shows its output, and counts. False when it failed.
fn watch(command: &mut Command, outcome: &mut Outcome) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        outcome.add(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok(status.success())
}

pub fn verify() -> Result<()> {
    setup::run(&setup::Options::default())?;
    let binary = shell::build_memwatch()?;
    shell::run(shell::command_as_root(binary, "to load programs")?.args(["doctor", "--verify"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut outcome = Outcome::default();
        outcome.add(
            "test result: ok. 8 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.02s",
        );
        outcome.add("test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 9 filtered out");
        outcome.add("9 ignored");
        let expected = Outcome {
            programs: 2,
            passed: 9,
            failed: 3,
            ignored: 2,
        };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn output_is_gone_through_to_its_end() {
        let script = "echo 'test result: ok. 1 passed; 0 failed; 1 ignored'; \
                      echo 'test result: ok. 1 passed; 0 failed; 3 ignored'";
        let mut outcome = Outcome::default();
        assert!(watch(Command::new("sh").args(["-c", script]), &mut outcome).unwrap());
        assert_eq!((outcome.passed, outcome.ignored), (2, 4));
        assert!(!watch(Command::new("sh").args(["-c", "exit 1"]), &mut outcome).unwrap());
    }

    #[test]
    fn only_a_choice_of_ones_own_is_one_command() {
        let typed = |arguments: &[OsString]| -> Vec<String> {
            commands(arguments).iter().map(shell::typed).collect()
        };
        let all = typed(&[]);
        assert!(all[0].contains("--exclude memwatch-tests") && all[1].contains("--package memwatch-tests"));
        let chosen = typed(&["--test".into(), "gdb".into()]);
        assert!(
            chosen.len() == 1 && chosen[0].ends_with("--no-fail-fast --test gdb"),
            "{chosen:?}"
        );
    }
}
