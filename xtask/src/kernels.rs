//! `cargo xtask kernels`: the kernel side on other kernels, in an emulator.
//!
//! Kernels come as packages of Debian and Ubuntu, through an apt with lists of its own under `target/kernels`: nothing of
//! this machine's apt is changed. Each is booted with memwatch, the tests' targets and the tests that compare
//! memwatch's numbers with the truth to the byte, all in memory. What passes here on this kernel is run there.

mod machine;
mod packages;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::packages::Packages;
use crate::{
    apt::{self, program},
    setup, shell,
    test::Outcome,
};

#[derive(Args, Debug)]
pub struct Options {
    /// Only these, such as 5.15 or 6.1; otherwise all that are known
    kernels: Vec<String>,
    /// Tests of tests/tests/truth.rs to run on each; any part of their names
    #[arg(long = "test", default_values_t = TESTS.map(str::to_owned))]
    tests: Vec<String>,
    /// Give a kernel up after so many seconds
    #[arg(long, default_value_t = 1800)]
    patience: u64,
}

/// Every allocation function, threads, calls that do not return, libraries that come later, a strict filter.
const TESTS: [&str; 5] = [
    "all_functions::without_frame_pointers",
    "threads::without_frame_pointers",
    "edges::without_frame_pointers",
    "libraries_that_come_later",
    "under_seccomp",
];

/// What the machine prints is kept here, under the folder of all that this makes.
const FOLDER: &str = "kernels";

/// What came of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// `uname -r`, once it was up.
    release: Option<String>,
    /// `loads; probes by uprobe.multi`
    loads: Option<String>,
    /// Instructions that the verifier went through, for each way of putting probes in place.
    verified: Vec<String>,
    /// What `memwatch doctor --verify` was not content with.
    failed: Vec<String>,
    tests: Outcome,
    ended: bool,
}

pub fn run(options: &Options) -> Result<()> {
    setup::run(&setup::Options {
        tests: true,
        bench: false,
    })?;
    apt::install(
        &[
            program("qemu-system-x86_64", "qemu-system-x86"),
            program("busybox", "busybox-static"),
            program("cpio", "cpio"),
        ],
        "kernels",
    )?;
    let memwatch = shell::build_memwatch()?;
    let tests = here(&memwatch, &options.tests)?;
    let folder = shell::target_folder()?.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let packages = Packages::open(&folder)?;
    let emulator = machine::Emulator::find(&packages, &folder)?;
    let memory = machine::pack(&folder, &memwatch, &tests, &options.tests)?;
    let mut went_well = true;
    for kernel in packages::KERNELS
        .iter()
        .filter(|kernel| wanted(options, kernel.version))
    {
        let line = match packages.kernel(kernel) {
            Ok(image) => {
                let printed = emulator.boot(&image, &memory, options.patience)?;
                let log = folder.join(format!("{}.log", kernel.version));
                shell::write(&log, &printed)?;
                let verdict = Verdict::read(&printed);
                went_well &= verdict.is_well(kernel.supported);
                verdict.line(kernel.supported, &log)
            }
            Err(error) => format!("not tried: {error:#}"),
        };
        println!("{:5} {line}", kernel.version);
    }
    ensure!(went_well, "memwatch does not do on every kernel what it should");
    Ok(())
}

fn wanted(options: &Options, version: &str) -> bool {
    options.kernels.is_empty() || options.kernels.iter().any(|name| name == version)
}

/// Runs the tests on this kernel, which builds their targets too. Gives the test program.
fn here(memwatch: &Path, tests: &[String]) -> Result<PathBuf> {
    let mut build = shell::cargo();
    build.args([
        "test",
        "--package",
        "memwatch-tests",
        "--test",
        "truth",
        "--no-run",
    ]);
    let messages = shell::output(build.args(["--message-format", "json"]))?;
    let program = test_program(&messages).context("cargo names no test program `truth`")?;
    let mut command = shell::command_as_root(&program, "to attach to processes")?;
    command
        .args(["--test-threads", "1"])
        .args(tests)
        .env("MEMWATCH_BIN", memwatch)
        .env("MEMWATCH_REQUIRE_BPF", "1")
        .current_dir(shell::workspace());
    shell::run(&mut command).context("the tests must pass on this kernel first")?;
    Ok(program)
}

/// The last program that cargo's messages name: dependencies come before what needs them.
fn test_program(messages: &str) -> Option<PathBuf> {
    let named = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    };
    messages.lines().filter_map(named).next_back()
}

impl Verdict {
    /// Out of what the machine printed.
    fn read(printed: &str) -> Self {
        let mut verdict = Self::default();
        for line in printed.lines().map(str::trim_end) {
            if let Some(release) = line.strip_prefix(machine::UP) {
                verdict.release = Some(release.trim().to_owned());
            } else if line == machine::ENDED {
                verdict.ended = true;
            } else if let Some(failed) = line.strip_prefix("FAIL") {
                verdict
                    .failed
                    .push(failed.split_whitespace().collect::<Vec<_>>().join(" "));
            } else if let Some(found) = line.strip_prefix("ok ") {
                verdict.add(found.trim());
            } else {
                verdict.tests.add(line);
            }
        }
        verdict
    }

    fn add(&mut self, found: &str) {
        if let Some(loads) = found.strip_prefix("kernel side") {
            self.loads = Some(loads.trim().to_owned());
        } else if let Some((name, rest)) = found.split_once(char::is_whitespace)
            && let Some((_, instructions)) = rest.split_once("went through ")
        {
            self.verified.push(format!(
                "{name} {}",
                instructions.trim_end_matches(" instructions")
            ));
        }
    }

    /// A kernel that is too old must be told so, and must not crash.
    fn is_well(&self, supported: bool) -> bool {
        let tested = self.tests.passed > 0 && self.tests.failed == 0;
        self.ended
            && if supported {
                tested && self.failed.is_empty()
            } else {
                !self.failed.is_empty()
            }
    }

    fn line(&self, supported: bool, log: &Path) -> String {
        let release = self.release.as_deref().unwrap_or("did not come up");
        if self.is_well(supported) && !supported {
            return format!("{release}: refused, as it should be");
        }
        let word = if self.is_well(supported) { "well" } else { "FAILED" };
        let mut line = format!(
            "{release}: {word}; {}; {} tests passed, {} failed",
            self.loads.as_deref().unwrap_or("does not load"),
            self.tests.passed,
            self.tests.failed
        );
        if !self.verified.is_empty() {
            let _ = write!(line, "; verified: {}", self.verified.join(", "));
        }
        if !self.is_well(supported) {
            let _ = write!(line, "; see {}", log.display());
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "Booting from ROM..\r\nmemwatch's kernel: 6.12.107\r\n\
        ok    kernel                     Linux 6.12\r\n\
        ok    kernel side                loads; probes by uprobe.multi\r\n\
        ok    uprobe.session             not on this kernel: since Linux 6.13\r\n\
        ok    uprobe.multi               loads; the verifier went through [157593, 11197] instructions\r\n\
        test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 47 filtered out; finished in 9.1s\r\n\
        memwatch's machine ends\r\n";

    #[test]
    fn a_kernel_is_well_when_its_tests_passed() {
        let verdict = Verdict::read(PRINTED);
        assert!(verdict.is_well(true), "{verdict:?}");
        let line = verdict.line(true, Path::new("log"));
        assert_eq!(
            line,
            "6.12.107: well; loads; probes by uprobe.multi; 5 tests passed, 0 failed; verified: uprobe.multi [157593, 11197]"
        );
    }

    #[test]
    fn a_kernel_is_not_well_without_tests_or_an_end() {
        assert!(!Verdict::read(&PRINTED.replace("5 passed", "0 passed")).is_well(true));
        assert!(!Verdict::read(&PRINTED.replace("0 failed", "1 failed")).is_well(true));
        assert!(!Verdict::read(&PRINTED.replace("machine ends", "")).is_well(true));
        assert!(
            !Verdict::read(&PRINTED.replace("ok    uprobe.session", "FAIL  uprobe.session")).is_well(true)
        );
    }

    #[test]
    fn a_kernel_that_is_too_old_must_be_refused() {
        assert!(!Verdict::read(PRINTED).is_well(false));
        let refused = PRINTED.replace("ok    kernel side ", "FAIL  kernel side ");
        assert!(Verdict::read(&refused).is_well(false));
    }

    #[test]
    fn the_test_program_is_the_last_one_named() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/memwatch\"}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/truth-1\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}";
        assert_eq!(test_program(messages), Some(PathBuf::from("/t/deps/truth-1")));
    }
}
