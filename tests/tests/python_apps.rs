//! Real Python programs against tracemalloc: a web application under load, a job of tables, a server of many clients.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use memwatch::model::report::{FrameKind, Report, Row};
use memwatch_tests::binary::can_watch;
use memwatch_tests::pythons::{self, of_debian, of_the_system, pyenv, time_of};
use memwatch_tests::watch::nanoseconds;
use memwatch_tests::{Memwatch, Target, need};
use serde_json::Value;

/// Lines that hold less are not looked at.
const LEAST: u64 = 100_000;
const MEGABYTE: u64 = 1 << 20;

/// What tracemalloc says of a line.
#[derive(Clone, Copy, Debug)]
struct Traced {
    small: u64,
    small_blocks: u64,
    large: u64,
    large_blocks: u64,
}

/// What memwatch says of one.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    counted: u64,
    counted_blocks: u64,
    estimated: u64,
    low: u64,
    high: u64,
}

/// An interpreter, the version of the packages it needs, what it runs, and how much work that has.
struct App {
    python: PathBuf,
    version: &'static str,
    name: &'static str,
    much: &'static str,
}

fn start(app: &App, how: &str) -> Result<Target, String> {
    let mut command = pythons::command_with_packages(&app.python, app.version, "py_apps.py")?;
    Ok(Target::start_command(command.args([app.name, how, app.much])))
}

/// Lets it work; all its clients got the right answers.
fn served(target: &mut Target) -> Value {
    let answer = target.values().pop().expect("it tells");
    assert_eq!(answer["wrong"], serde_json::json!([]));
    answer
}

fn traced_lines(answer: &Value) -> HashMap<String, Traced> {
    let lines = answer["lines"].as_object().expect("lines");
    let traced = |value: &Value| {
        let number = |at: usize| value[at].as_u64().expect("four numbers");
        Traced {
            small: number(0),
            small_blocks: number(1),
            large: number(2),
            large_blocks: number(3),
        }
    };
    lines
        .iter()
        .map(|(line, value)| (line.clone(), traced(value)))
        .collect()
}

/// As the program writes it.
fn line_of(row: &Row) -> Option<String> {
    let innermost = row.frames.iter().find(|frame| frame.kind == FrameKind::Python)?;
    let file = Path::new(innermost.file.as_deref()?).file_name()?.to_str()?;
    Some(format!("{file}:{}", innermost.line?))
}

fn seen_lines(report: &Report) -> HashMap<String, Seen> {
    let mut lines: HashMap<String, Seen> = HashMap::new();
    // Arenas and libc's own mappings are what the blocks are in.
    for row in report
        .rows
        .iter()
        .filter(|row| row.domain.as_deref() != Some("mmap"))
    {
        let Some(line) = line_of(row) else { continue };
        let seen = lines.entry(line).or_default();
        seen.counted += row.inuse_bytes - row.estimated_bytes;
        seen.estimated += row.estimated_bytes;
        if row.estimated_bytes == 0 {
            seen.counted_blocks += row.inuse_objects;
        }
        seen.low += row.inuse_low_bytes.unwrap_or(row.inuse_bytes);
        seen.high += row.inuse_high_bytes.unwrap_or(row.inuse_bytes);
    }
    lines
}

/// The same program under tracemalloc and under memwatch.
fn both(app: &App, options: &[&str]) -> Result<(HashMap<String, Traced>, Report), String> {
    let traced = traced_lines(&served(&mut start(app, "trace")?));
    let mut target = start(app, "no")?;
    let mut watch = Memwatch::of(&target, options);
    let answer = served(&mut target);
    let time = time_of(&answer);
    loop {
        let report = watch.report_after(time);
        let age = report.options.estimated_age_seconds.unwrap_or(0.0);
        if nanoseconds(&report.time) - (age * 1e9) as i128 > time {
            assert!(report.health.complete, "{:?}", report.health.reasons);
            return Ok((traced, report));
        }
    }
}

fn is_within(percent: u64, seen: u64, right: u64) -> bool {
    seen.abs_diff(right) * 100 <= right * percent
}

fn off(seen: u64, right: u64) -> f64 {
    (seen as f64 / right as f64 - 1.0) * 100.0
}

/// Where each block is followed, every line holds what tracemalloc says within 1 %, in bytes and in blocks.
fn exact(python: Result<PathBuf, String>, version: &'static str, name: &'static str) {
    need!(can_watch());
    let python = need!(python);
    let app = App {
        python,
        version,
        name,
        much: "1",
    };
    let (traced, report) = need!(both(&app, &["--python", "exact", "--force"]));
    assert!(report.options.allocated_only.is_empty() && report.options.estimated.is_empty());
    let seen = seen_lines(&report);
    let mut large = 0;
    let mut wrong = Vec::new();
    for (line, right) in &traced {
        let (bytes, blocks) = (right.small + right.large, right.small_blocks + right.large_blocks);
        if bytes <= LEAST {
            continue;
        }
        large += 1;
        let seen = seen.get(line).copied().unwrap_or_default();
        let told = format!(
            "{line}: {bytes} bytes in {blocks} blocks, memwatch {:+.3} % and {:+.3} %",
            off(seen.counted, bytes),
            off(seen.counted_blocks, blocks)
        );
        println!("{told}");
        // C code may have had a block or two of libc that tracemalloc was not told of.
        let counts = is_within(1, seen.counted_blocks, blocks) || seen.counted_blocks.abs_diff(blocks) <= 4;
        if !is_within(1, seen.counted, bytes) || !counts {
            wrong.push(told);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(large >= 2, "{traced:?}");
}

/// By pools, lines hold what tracemalloc says: of large blocks within 1 %, of small objects within 15 %, and above 20 MB
/// within 5 %.
fn pools(python: Result<PathBuf, String>, version: &'static str, name: &'static str) {
    need!(can_watch());
    let python = need!(python);
    let app = App {
        python,
        version,
        name,
        much: "8",
    };
    let (traced, report) = need!(both(&app, &["--python", "pools"]));
    assert_eq!(report.options.estimated, ["python.object"]);
    let seen = seen_lines(&report);
    let (mut compared, mut wrong) = (0, Vec::new());
    for (line, right) in &traced {
        let seen = seen.get(line).copied().unwrap_or_default();
        let mut told = format!("{line}: {right:?}, memwatch {seen:?}");
        if right.large > LEAST {
            compared += 1;
            let _ = write!(told, ", large {:+.3} %", off(seen.counted, right.large));
            // Small blocks that C code has of libc are counted too.
            let blocks = right.large_blocks..=right.large_blocks + right.small_blocks + 2;
            if !is_within(1, seen.counted, right.large) || !blocks.contains(&seen.counted_blocks) {
                wrong.push(told.clone());
            }
        }
        if right.small > MEGABYTE {
            compared += 1;
            let percent = if right.small > 20 * MEGABYTE { 5 } else { 15 };
            let _ = write!(told, ", small {:+.2} %", off(seen.estimated, right.small));
            let whole = right.small + right.large;
            let near = is_within(percent, seen.estimated, right.small);
            if !near || !(seen.low..=seen.high).contains(&whole) {
                wrong.push(told.clone());
            }
        }
        println!("{told}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared >= 2, "{traced:?}");
}

macro_rules! apps {
    ($($name:ident = $check:ident($python:expr, $version:expr, $app:expr);)+) => {$(
        #[test]
        fn $name() {
            $check($python, $version, $app);
        }
    )+};
}

apps! {
    flask_exactly = exact(pyenv("3.12"), "3.12", "flask");
    pandas_exactly = exact(pyenv("3.12"), "3.12", "pandas");
    asyncio_exactly = exact(pyenv("3.12"), "3.12", "asyncio");
    flask_by_pools = pools(of_the_system(), "3.11", "flask");
    pandas_by_pools = pools(of_the_system(), "3.11", "pandas");
    asyncio_by_pools = pools(of_the_system(), "3.11", "asyncio");
    flask_by_pools_in_3_13 = pools(of_debian("3.13"), "3.13", "flask");
    asyncio_by_pools_in_3_13 = pools(of_debian("3.13"), "3.13", "asyncio");
}
