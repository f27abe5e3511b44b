//! The program watched: `tests/bench/pairs.c`.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::lines::Lines;
use crate::shell;

/// Bytes of each block.
pub const SIZE: u32 = 64;

/// How the program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// So that every tool can walk its stack.
    WithPointers,
    WithoutPointers,
}

pub fn compile(frames: Frames) -> Result<PathBuf> {
    let folder = shell::target_folder()?.join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (name, how) = match frames {
        Frames::WithPointers => ("pairs", "-fno-omit-frame-pointer"),
        Frames::WithoutPointers => ("pairs-without-pointers", "-fomit-frame-pointer"),
    };
    let program = folder.join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", how, "-fno-optimize-sibling-calls", "-pthread", "-o"])
        .arg(&program)
        .arg(shell::workspace().join("tests/bench/pairs.c"));
    shell::output(&mut gcc)?;
    Ok(program)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Max,
    /// Pairs a second, of all threads together.
    PerSecond(u32),
}

impl Rate {
    fn argument(self) -> String {
        match self {
            Self::Max => "max".into(),
            Self::PerSecond(rate) => rate.to_string(),
        }
    }
}

/// A running one; ends when dropped.
pub struct Pairs {
    child: Child,
    lines: Lines,
}

/// One line of its output: all since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    wall_ns: u64,
    cpu_ns: u64,
    pairs: u64,
}

/// What a pair cost over some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Time on a CPU, in the program and in the kernel, of all threads. Waiting for a CPU is not in it.
    pub cpu_ns_per_pair: f64,
    /// By the clock on the wall, of all threads together.
    pub pairs_per_second: f64,
}

/// Where the stack is at one call of malloc and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the same place: a loop.
    Same,
    /// Never at the same place twice, one after the other.
    Moving,
}

impl Place {
    const fn argument(self) -> &'static str {
        match self {
            Self::Same => "still",
            Self::Moving => "moving",
        }
    }
}

impl Pairs {
    pub fn start(program: &Path, threads: u32, rate: Rate, place: Place) -> Result<Self> {
        Self::start_with(
            program,
            &[
                &threads.to_string(),
                &rate.argument(),
                &SIZE.to_string(),
                "0",
                place.argument(),
            ],
        )
    }

    /// One thread, as fast as it can, with a stack of so many frames from malloc's on.
    pub fn start_deep(program: &Path, frames: u32, place: Place) -> Result<Self> {
        /// malloc, ten of the program, two of the thread's start.
        const LEAST: u32 = 13;
        let more = frames.saturating_sub(LEAST).to_string();
        Self::start_with(
            program,
            &[
                "1",
                &Rate::Max.argument(),
                &SIZE.to_string(),
                &more,
                place.argument(),
            ],
        )
    }

    fn start_with(program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_command(Command::new(program).args(arguments))
    }

    /// Any program that says the same.
    pub fn start_command(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stdout = child.stdout.take().context("the watched program has no stdout")?;
        let pairs = Self {
            child,
            lines: Lines::of(stdout),
        };
        pairs
            .lines
            .next(Duration::from_secs(30))
            .context("the watched program says nothing")?;
        Ok(pairs)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What a pair costs from now on, for that long.
    pub fn read(&self, duration: Duration) -> Result<Reading> {
        // A round that began before now does not count.
        self.lines.drain();
        thread::sleep(duration);
        reading(&self.lines.drain())
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        // Either fails only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn reading(lines: &[String]) -> Result<Reading> {
    let all: Vec<Progress> = lines.iter().filter_map(|line| Progress::parse(line)).collect();
    let (first, last) = all
        .first()
        .zip(all.last())
        .context("the watched program says nothing")?;
    let pairs = last.pairs.saturating_sub(first.pairs);
    ensure!(pairs > 0, "the watched program made no progress");
    let pairs = pairs as f64;
    Ok(Reading {
        cpu_ns_per_pair: last.cpu_ns.saturating_sub(first.cpu_ns) as f64 / pairs,
        pairs_per_second: pairs * 1e9 / last.wall_ns.saturating_sub(first.wall_ns) as f64,
    })
}

impl Progress {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            wall_ns: next()?,
            cpu_ns: next()?,
            pairs: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn a_reading_is_the_difference_of_the_outermost_lines() {
        let reading = reading(&lines(&["1000 500 10", "2000 800 20", "3000 1500 60"])).unwrap();
        assert_eq!(
            reading,
            Reading {
                cpu_ns_per_pair: 20.0,
                pairs_per_second: 50.0 * 1e9 / 2000.0
            }
        );
    }

    #[test]
    fn no_progress_is_an_error() {
        assert!(reading(&lines(&["1000 500 10", "2000 800 10"])).is_err());
        assert!(reading(&lines(&["1000 500 10"])).is_err());
        assert!(reading(&lines(&["pairs: cannot start"])).is_err());
        assert!(reading(&[]).is_err());
    }
}
