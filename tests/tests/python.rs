//! Python programs against what their interpreter knows: the lines that hold memory, and whole stacks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use memwatch::model::report::{FrameKind, Report, Row};
use memwatch_tests::binary::{can_watch, workspace};
use memwatch_tests::{Memwatch, Target, need};
use serde_json::Value;

/// Bytes and blocks.
type Held = (u64, u64);

/// An interpreter of `~/.pyenv`, by the beginning of its version.
fn pyenv(version: &str) -> Result<PathBuf, String> {
    let versions = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    let wanted = format!("{version}.");
    let found = std::fs::read_dir(&versions)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted));
    found
        .map(|entry| entry.path().join("bin/python"))
        .filter(|python| python.exists())
        .ok_or_else(|| format!("there is no CPython {version} in {}", versions.display()))
}

/// The distribution's own: static, optimised, with its allocation inlined.
fn of_the_system() -> Result<PathBuf, String> {
    let python = Path::new("/usr/bin/python3");
    if python.exists() {
        Ok(python.to_owned())
    } else {
        Err("there is no /usr/bin/python3".to_owned())
    }
}

fn start(python: &Path, program: &str, arguments: &[&str]) -> Target {
    let path = workspace().join("tests/targets").join(program);
    let mut command = Command::new(python);
    command
        .arg(path)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    // What the user's own site-packages start would be part of the truth.
    command.env("PYTHONNOUSERSITE", "1");
    Target::start_command(&mut command)
}

fn time_of(answer: &Value) -> i128 {
    i128::from(answer["time_ns"].as_i64().expect("the truth has a time"))
}

fn held(value: &Value) -> Held {
    let number = |at: usize| value[at].as_u64().expect("bytes and blocks");
    (number(0), number(1))
}

/// The Python frames as the program itself writes them.
fn python_stack(row: &Row) -> String {
    let frames = row.frames.iter().filter(|frame| frame.kind == FrameKind::Python);
    let names: Vec<String> = frames
        .map(|frame| {
            let function = frame.function.as_deref().unwrap_or("?");
            format!("{function}:{}", frame.line.unwrap_or(0))
        })
        .collect();
    names.join(";")
}

fn by_python_stack(report: &Report) -> HashMap<String, Held> {
    let mut sums: HashMap<String, Held> = HashMap::new();
    // Without the arenas that CPython maps: what is in them is counted, or not meant.
    let blocks = |row: &&Row| row.domain.as_deref() != Some("mmap");
    for row in report.rows.iter().filter(blocks) {
        let sum = sums.entry(python_stack(row)).or_default();
        sum.0 += row.inuse_bytes;
        sum.1 += row.inuse_objects;
    }
    sums
}

fn assert_nothing_lost(report: &Report) {
    assert!(report.health.complete, "{:?}", report.health.reasons);
}

/// Each of some thousand stacks, with all its functions and lines, holds what the program says it holds.
fn stacks(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let mut target = start(&python, "py_stacks.py", &[]);
    let mut watch = Memwatch::of(&target, &[]);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert_nothing_lost(&report);
    let seen = by_python_stack(&report);
    let truth = answer["stacks"].as_object().expect("stacks");
    let blocks: u64 = truth.values().map(|value| held(value).1).sum();
    assert!(
        truth.len() > 4_000 && blocks >= 10_000,
        "{} stacks, {blocks} blocks",
        truth.len()
    );
    let wrong: Vec<String> = truth
        .iter()
        .filter(|(stack, value)| seen.get(*stack) != Some(&held(value)))
        .map(|(stack, value)| format!("{stack}: is {:?}, seen {:?}", held(value), seen.get(stack)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} stacks are wrong, such as\n{}",
        wrong.len(),
        truth.len(),
        wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n")
    );
}

macro_rules! for_each_version {
    ($check:ident: $($name:ident = $version:expr;)+) => {$(
        #[test]
        fn $name() {
            $check(pyenv($version));
        }
    )+};
}

for_each_version! { stacks:
    stacks_3_8 = "3.8";
    stacks_3_9 = "3.9";
    stacks_3_10 = "3.10";
    stacks_3_11 = "3.11";
    stacks_3_12 = "3.12";
    stacks_3_13 = "3.13";
}

#[test]
fn stacks_of_the_systems_own() {
    stacks(of_the_system());
}

/// What tracemalloc says of each line.
fn traced_lines(python: &Path) -> HashMap<u32, Held> {
    let mut traced = start(python, "py_lines.py", &["trace"]);
    let answer = traced.values().pop().expect("one truth");
    let lines = answer["lines"].as_object().expect("lines");
    lines
        .iter()
        .map(|(line, value)| (line.parse().expect("a line's number"), held(value)))
        .collect()
}

/// What memwatch says of each line of the program.
fn watched_lines(python: &Path, options: &[&str]) -> HashMap<u32, Held> {
    let mut target = start(python, "py_lines.py", &["no"]);
    let mut watch = Memwatch::of(&target, options);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert_nothing_lost(&report);
    let mut lines: HashMap<u32, Held> = HashMap::new();
    for row in &report.rows {
        let innermost = row.frames.iter().find(|frame| frame.kind == FrameKind::Python);
        let ours = innermost.filter(|frame| {
            frame
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("py_lines.py"))
        });
        if let Some(line) = ours.and_then(|frame| frame.line) {
            let sum = lines.entry(line).or_default();
            sum.0 += row.inuse_bytes;
            sum.1 += row.inuse_objects;
        }
    }
    lines
}

/// Every line over 100 KB holds what tracemalloc says, within 1 %.
fn lines(python: Result<PathBuf, String>) {
    const LEAST: u64 = 100_000;
    need!(can_watch());
    let python = need!(python);
    let traced = traced_lines(&python);
    let watched = watched_lines(&python, &["--python", "exact"]);
    let large: Vec<(&u32, &Held)> = traced.iter().filter(|(_, held)| held.0 > LEAST).collect();
    assert!(large.len() >= 5, "{traced:?}");
    for (line, right) in large {
        let seen = watched.get(line).copied().unwrap_or_default();
        let near = |seen: u64, right: u64| seen.abs_diff(right) * 100 <= right;
        assert!(
            near(seen.0, right.0) && near(seen.1, right.1),
            "line {line}: tracemalloc says {right:?}, memwatch {seen:?}"
        );
    }
}

for_each_version! { lines:
    lines_3_8 = "3.8";
    lines_3_9 = "3.9";
    lines_3_10 = "3.10";
    lines_3_11 = "3.11";
    lines_3_12 = "3.12";
    lines_3_13 = "3.13";
}

/// Where the interpreter has its allocation inlined, what it asks libc for is seen, and that the rest is not is said.
#[test]
fn inlined_builds_say_that_small_objects_are_not_seen() {
    need!(can_watch());
    let python = need!(of_the_system());
    let target = start(&python, "py_lines.py", &["no"]);
    let mut watch = Memwatch::of(&target, &["--python", "exact"]);
    let report = watch.next_report();
    let told = report
        .health
        .probes
        .skipped
        .iter()
        .any(|note| note.symbol == "PyObject_Malloc" && note.reason.contains("put into its callers"));
    assert!(told, "{:?}", report.health.probes.skipped);
}

/// Without Python's lines where the user wants none.
#[test]
fn python_off_shows_native_frames_only() {
    need!(can_watch());
    let python = need!(of_the_system());
    let mut target = start(&python, "py_lines.py", &["no"]);
    let mut watch = Memwatch::of(&target, &["--python", "off"]);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert!(!report.rows.is_empty());
    let python_frames = report
        .rows
        .iter()
        .flat_map(|row| &row.frames)
        .filter(|frame| frame.kind == FrameKind::Python)
        .count();
    assert_eq!(python_frames, 0);
}
