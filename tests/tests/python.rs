//! Python programs against what their interpreter knows: the lines that hold memory, and whole stacks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memwatch::model::report::{FrameKind, InlinedNote, Report, Row};
use memwatch_tests::binary::can_watch;
use memwatch_tests::pythons::{self, Held, held, of_debian, of_the_system, pyenv, time_of};
use memwatch_tests::watch::nanoseconds;
use memwatch_tests::{Memwatch, Target, need};

fn start(python: &Path, program: &str, arguments: &[&str]) -> Target {
    Target::start_command(pythons::command(python, program).args(arguments))
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
    // Without the arenas that CPython maps: what is in them is counted, or not meant. Nor are small objects.
    let blocks = |row: &&Row| row.domain.as_deref() != Some("mmap") && row.estimated_bytes == 0;
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

/// Each of ten thousand different stacks, with all its functions and lines, holds what the program says it holds.
fn stacks(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    // Large objects come from libc, but where there is no pymalloc. There the small ones are counted beside them.
    let options: &[&str] = if pythons::is_free_threaded(&python) {
        &["--python", "exact", "--min-size", "513"]
    } else {
        &[]
    };
    let mut target = start(&python, "py_stacks.py", &[]);
    let mut watch = Memwatch::of(&target, options);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert_nothing_lost(&report);
    let seen = by_python_stack(&report);
    let truth = answer["stacks"].as_object().expect("stacks");
    let blocks: u64 = truth.values().map(|value| held(value).1).sum();
    assert!(truth.len() >= 10_000, "{} stacks, {blocks} blocks", truth.len());
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
    ($check:ident, $python:ident: $($name:ident = $version:expr;)+) => {$(
        #[test]
        fn $name() {
            $check($python($version));
        }
    )+};
}

for_each_version! { stacks, pyenv:
    stacks_3_8 = "3.8";
    stacks_3_9 = "3.9";
    stacks_3_10 = "3.10";
    stacks_3_11 = "3.11";
    stacks_3_12 = "3.12";
    stacks_3_13 = "3.13";
}

for_each_version! { stacks, of_debian:
    stacks_3_13_of_debian = "3.13";
    stacks_3_14_of_debian = "3.14";
    stacks_3_15_of_debian = "3.15";
    stacks_3_14_for_debugging = "3.14d";
    stacks_3_15_for_debugging = "3.15d";
}

#[test]
fn stacks_of_the_systems_own() {
    stacks(of_the_system());
}

/// By hand, with builds that no package has: `MEMWATCH_PYTHON=… cargo test --features given --test python of_the_given`.
#[cfg(feature = "given")]
mod of_the_given {
    macro_rules! of_the_given {
        ($($check:ident)+) => {$(
            #[test]
            fn $check() {
                super::$check(memwatch_tests::pythons::given());
            }
        )+};
    }

    of_the_given! { stacks lines pools all_pools counts places }
}

/// A block is a multiple of 16 bytes.
#[derive(Clone, Copy)]
enum Bytes {
    Asked,
    Taken,
}

/// What tracemalloc says of each line.
fn traced_lines(python: &Path, program: &str, bytes: Bytes) -> HashMap<u32, Held> {
    let mut traced = start(python, program, &["trace"]);
    let answer = traced.values().pop().expect("one truth");
    let lines = answer["lines"].as_object().expect("lines");
    lines
        .iter()
        .map(|(line, value)| {
            let (asked, blocks) = held(value);
            let held = match bytes {
                Bytes::Asked => asked,
                Bytes::Taken => value[2].as_u64().expect("what the blocks take"),
            };
            (line.parse().expect("a line's number"), (held, blocks))
        })
        .collect()
}

/// A report whose pools, too, were read after this time.
fn report_after(watch: &mut Memwatch, time_ns: i128) -> Report {
    loop {
        let report = watch.report_after(time_ns);
        let age = report.options.estimated_age_seconds.unwrap_or(0.0);
        if nanoseconds(&report.time) - (age * 1e9) as i128 > time_ns {
            return report;
        }
    }
}

/// The rows of `program` once it has done its work.
fn watched(python: &Path, program: &str, options: &[&str]) -> Report {
    let mut target = start(python, program, &["no"]);
    let mut watch = Memwatch::of(&target, options);
    let answer = target.values().pop().expect("one truth");
    let report = report_after(&mut watch, time_of(&answer));
    assert_nothing_lost(&report);
    report
}

/// The line of the program that a row belongs to.
fn line_of(row: &Row, program: &str) -> Option<u32> {
    let innermost = row.frames.iter().find(|frame| frame.kind == FrameKind::Python)?;
    let ours = innermost.file.as_deref()?.ends_with(program);
    innermost.line.filter(|_| ours)
}

/// What memwatch says of each line of the program.
fn watched_lines(python: &Path, options: &[&str]) -> HashMap<u32, Held> {
    let program = "py_lines.py";
    let report = watched(python, program, options);
    let mut lines: HashMap<u32, Held> = HashMap::new();
    for row in &report.rows {
        if let Some(line) = line_of(row, program) {
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
    let traced = traced_lines(&python, "py_lines.py", Bytes::Asked);
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

for_each_version! { lines, pyenv:
    lines_3_8 = "3.8";
    lines_3_9 = "3.9";
    lines_3_10 = "3.10";
    lines_3_11 = "3.11";
    lines_3_12 = "3.12";
    lines_3_13 = "3.13";
}

for_each_version! { lines, of_debian:
    lines_3_14_for_debugging = "3.14d";
    lines_3_15_for_debugging = "3.15d";
}

/// The interpreter has its allocation inlined: what its report says of the places.
fn inlined_places(report: &Report) -> &InlinedNote {
    let [inlined] = &report.health.probes.inlined[..] else {
        panic!("{:?}", report.health.probes);
    };
    inlined
}

/// Where many places have no probe the numbers are not complete, and that is said.
fn places(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let target = start(&python, "py_lines.py", &["no"]);
    let mut watch = Memwatch::of(&target, &["--python", "exact"]);
    let report = watch.next_report();
    let inlined = inlined_places(&report);
    let unprobed = inlined.found - inlined.probed;
    let said = format!("{unprobed} of {} places at which ", inlined.found);
    let told = report
        .health
        .reasons
        .iter()
        .any(|reason| reason.starts_with(&said));
    println!("{inlined:?}, {:?}", report.health.reasons);
    assert!(inlined.found > 100, "{inlined:?}");
    assert_eq!(told, unprobed * 20 > inlined.found, "{inlined:?}");
    assert_eq!(report.health.complete, !told, "{:?}", report.health.reasons);
}

#[test]
fn places_of_the_systems_own() {
    places(of_the_system());
}

/// Where the interpreter has its allocation inlined, each small object is counted when it is allocated, and what is in
/// use of them is estimated. The program knows its numbers; free lists may serve some hundred objects without allocating.
fn counts(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let program = "py_counts.py";
    let mut target = start(&python, program, &[]);
    let mut watch = Memwatch::of(&target, &["--python", "exact"]);
    let answer = target.values().pop().expect("one truth");
    let report = report_after(&mut watch, time_of(&answer));
    assert_eq!(report.options.python.as_deref(), Some("exact"));
    // Where pymalloc was put into nobody, it is not known for whom it works.
    let domains: &[&str] = match inlined_places(&report).found {
        0 => &["python.object"],
        _ => &["python.mem", "python.object"],
    };
    assert_eq!(report.options.allocated_only, domains);
    assert_eq!(report.options.estimated, ["python.object"]);
    let inlined = inlined_places(&report);
    assert!(inlined.probed * 20 >= inlined.found * 19, "{inlined:?}");
    let lines = small_allocations(&report, program);
    let truth = answer["lines"].as_object().expect("lines");
    assert_eq!(truth.len(), 7);
    let near = |seen: u64, right: u64| seen.abs_diff(right) * 100 <= right;
    let of_line = |line: &str| lines.get(&line.parse().expect("a line's number")).copied();
    let wrong: Vec<String> = truth
        .iter()
        .map(|(line, right)| (line, held(right), of_line(line).unwrap_or_default()))
        .inspect(|(line, right, seen)| println!("line {line}: is {right:?}, memwatch {seen:?}"))
        .filter(|(_, right, seen)| !near(seen.0, right.0) || !near(seen.1, right.1))
        .map(|(line, right, seen)| format!("line {line}: is {right:?}, memwatch {seen:?}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_nothing_lost(&report);
    // All but one line's are still there; pools tell that, and the totals have it too.
    let object = &report.processes[0].totals["python.object"];
    assert!(object.inuse_objects >= 240_000, "{object:?}");
    assert!(object.frees >= 40_000, "{object:?}");
}

/// What the program's lines allocated. By the size: what is larger, such as the growing list, is libc's and counted there.
fn small_allocations(report: &Report, program: &str) -> HashMap<u32, Held> {
    let mut lines: HashMap<u32, Held> = HashMap::new();
    for row in &report.rows {
        let small = row
            .sizes
            .iter()
            .all(|size| size.below_bytes.is_some_and(|below| below <= 512));
        let python = |domain: &str| domain.starts_with("python.");
        if !small || !row.domain.as_deref().is_some_and(python) {
            continue;
        }
        if let Some(line) = line_of(row, program) {
            let sum = lines.entry(line).or_default();
            sum.0 += row.alloc_bytes;
            sum.1 += row.alloc_objects;
        }
    }
    lines
}

for_each_version! { counts, of_debian:
    counts_3_13_of_debian = "3.13";
    counts_3_14_of_debian = "3.14";
    counts_3_15_of_debian = "3.15";
}

#[test]
fn counts_of_the_systems_own() {
    counts(of_the_system());
}

/// A program that allocates all the time is spared, unless the user insists; one that does not is watched. What it will
/// cost is told before.
fn told_before(rate: &str, options: &[&str], exact: bool) {
    need!(can_watch());
    let python = need!(of_the_system());
    let target = start(&python, "py_rate.py", &[rate]);
    let mut watch = Memwatch::of(&target, &[&["--python", "exact"], options].concat());
    let report = watch.next_report();
    let ended = watch.interrupt();
    let predicted = report.health.overhead.predicted.expect("it is predicted");
    println!("{rate}: {predicted:?}\n{}", ended.stderr);
    assert_eq!(predicted.in_force, exact);
    assert_eq!(
        report.options.python.as_deref(),
        Some(if exact { "exact" } else { "pools" })
    );
    assert_eq!(report.options.allocated_only.is_empty(), !exact);
    assert!(ended.stderr.contains("calls a second"), "{}", ended.stderr);
    assert!(predicted.hits_per_second > 0.0 && predicted.nanoseconds_per_hit > 100.0);
    let spared = report
        .health
        .reasons
        .iter()
        .any(|reason| reason.contains("small objects are estimated from pools instead"));
    assert_eq!(spared, !exact);
}

#[test]
fn a_program_that_allocates_all_the_time_is_spared() {
    told_before("max", &[], false);
}

#[test]
fn a_program_that_allocates_all_the_time_is_watched_by_force() {
    told_before("max", &["--force"], true);
}

#[test]
fn a_quiet_program_is_watched_and_its_cost_is_told() {
    told_before("2000", &[], true);
}

/// A line's blocks that were counted, and small objects as they are estimated.
#[derive(Debug, Default)]
struct Line {
    exact: u64,
    estimated: u64,
    low: u64,
    high: u64,
}

/// Small objects by their pools: lines over 20 MB hold what tracemalloc says within 5 %, lines over 1 MB within 15 %, and
/// the truth lies in the interval given. Lines with large blocks are exact all the same.
fn pools(python: Result<PathBuf, String>) {
    pools_of(python, Bytes::Asked);
}

/// Where it cannot be told how much was asked for.
fn taken_pools(python: Result<PathBuf, String>) {
    pools_of(python, Bytes::Taken);
}

fn pools_of(python: Result<PathBuf, String>, bytes: Bytes) {
    const LEAST: u64 = 1 << 20;
    const MUCH: u64 = 20 << 20;
    need!(can_watch());
    let python = need!(python);
    let program = "py_small.py";
    let traced = traced_lines(&python, program, bytes);
    let report = watched(&python, program, &["--python", "pools"]);
    assert_eq!(report.options.estimated, ["python.object"]);
    let mut lines: HashMap<u32, Line> = HashMap::new();
    for row in &report.rows {
        let Some(line) = line_of(row, program).filter(|_| row.domain.as_deref() != Some("mmap")) else {
            continue;
        };
        let line = lines.entry(line).or_default();
        line.exact += row.inuse_bytes - row.estimated_bytes;
        line.estimated += row.estimated_bytes;
        line.low += row.inuse_low_bytes.unwrap_or(row.inuse_bytes);
        line.high += row.inuse_high_bytes.unwrap_or(row.inuse_bytes);
    }
    let (mut small, mut much) = (0, 0);
    for (number, (right, _)) in traced.iter().filter(|(_, held)| held.0 > LEAST) {
        let line = lines
            .get(number)
            .unwrap_or_else(|| panic!("line {number} is not there: {lines:?}"));
        let seen = line.exact + line.estimated;
        let percent = match (line.estimated > 0, *right > MUCH) {
            (false, _) => 1,
            (true, true) => 5,
            (true, false) => 15,
        };
        small += u32::from(percent == 15);
        much += u32::from(percent == 5);
        println!("line {number}: tracemalloc {right}, memwatch {line:?}");
        assert!(
            seen.abs_diff(*right) * 100 <= right * percent,
            "line {number}: tracemalloc says {right}, memwatch {line:?}"
        );
        assert!(
            (line.low..=line.high).contains(right),
            "line {number}: {right} is not in {line:?}"
        );
    }
    assert!(small >= 3 && much >= 1, "{traced:?}");
}

for_each_version! { taken_pools, pyenv:
    pools_3_8 = "3.8";
}

for_each_version! { pools, pyenv:
    pools_3_9 = "3.9";
    pools_3_10 = "3.10";
    pools_3_11 = "3.11";
    pools_3_12 = "3.12";
    pools_3_13 = "3.13";
}

for_each_version! { pools, of_debian:
    pools_3_13_of_debian = "3.13";
    pools_3_14_of_debian = "3.14";
    pools_3_15_of_debian = "3.15";
}

#[test]
fn pools_of_the_systems_own() {
    pools(of_the_system());
}

/// What was there before is shown as that, and with the rest it is what the interpreter counts.
fn all_pools(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let mut target = start(&python, "py_small.py", &["no"]);
    let mut watch = Memwatch::of(&target, &[]);
    let answer = target.values().pop().expect("one truth");
    let blocks = answer["blocks"].as_u64().expect("blocks");
    let report = report_after(&mut watch, time_of(&answer));
    let rows = report.rows.iter().filter(|row| row.estimated_bytes > 0);
    let seen: u64 = rows.map(|row| row.inuse_objects).sum();
    let before = |row: &&Row| row.key == "[in use before it was watched]";
    assert_eq!(report.rows.iter().filter(before).count(), 1);
    // Large ones are in the interpreter's count too; it makes a few more to tell us.
    assert!(seen.abs_diff(blocks) * 100 <= blocks, "{seen} of {blocks}");
}

for_each_version! { all_pools, pyenv:
    all_pools_3_8 = "3.8";
    all_pools_3_9 = "3.9";
    all_pools_3_10 = "3.10";
    all_pools_3_13 = "3.13";
}

for_each_version! { all_pools, of_debian:
    all_pools_3_13_of_debian = "3.13";
    all_pools_3_14_of_debian = "3.14";
    all_pools_3_15_of_debian = "3.15";
}

#[test]
fn all_pools_of_the_systems_own() {
    all_pools(of_the_system());
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
