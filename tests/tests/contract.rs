//! What scripts rely on: lines, fields, ticks and ends.

use std::time::Duration;

use memwatch_tests::binary::{can_watch, command};
use memwatch_tests::truth::assert_true;
use memwatch_tests::watch::{Ended, nanoseconds, run_to_end};
use memwatch_tests::{Checks, Memwatch, Recipe, Target, need};
use serde_json::Value;

fn basic() -> Result<Target, String> {
    can_watch()?;
    Ok(Target::start(&Recipe::c("c_basic.c").build()?))
}

fn watch_for(target: &Target, options: &[&str]) -> Ended {
    let pid = target.pid().to_string();
    run_to_end(command().args(["--pid", &pid, "--format", "json"]).args(options))
}

/// Fields that are always there, whatever their value.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "schema",
            "kind",
            "time",
            "since",
            "interval_seconds",
            "host",
            "version",
            "options",
            "health",
            "processes",
            "rows",
            "findings",
        ],
    ),
    ("/host", &["name", "kernel", "arch"]),
    (
        "/options",
        &["group_by", "sort", "view", "sample_bytes", "min_size"],
    ),
    (
        "/health",
        &["complete", "reasons", "counters", "probes", "overhead"],
    ),
    ("/health/probes", &["attached", "skipped", "failed"]),
    (
        "/health/overhead",
        &[
            "hits",
            "target_percent",
            "self_cpu_percent",
            "self_rss_bytes",
            "kernel_map_bytes",
        ],
    ),
    (
        "/processes/0",
        &[
            "pid",
            "ppid",
            "start_time",
            "comm",
            "exe",
            "cmdline",
            "cgroup",
            "container",
            "pod",
            "runtimes",
            "rss_bytes",
            "peak_rss_bytes",
            "exited",
            "totals",
        ],
    ),
    (
        "/processes/0/totals/native",
        &[
            "allocations",
            "frees",
            "allocated_bytes",
            "freed_bytes",
            "inuse_bytes",
            "inuse_objects",
            "untracked_frees",
        ],
    ),
    (
        "/rows/0",
        &[
            "key",
            "pid",
            "domain",
            "inuse_bytes",
            "inuse_objects",
            "alloc_bytes",
            "alloc_objects",
            "freed_bytes",
            "freed_objects",
            "growth_bytes_per_second",
            "frames",
            "truncated",
        ],
    ),
    (
        "/rows/0/frames/0",
        &[
            "kind", "function", "file", "line", "module", "build_id", "address", "inlined",
        ],
    ),
];

#[test]
fn fields_of_the_json() {
    let mut target = need!(basic());
    let mut watch = Memwatch::of(&target, &[]);
    let truth = target.go().pop().expect("one truth");
    watch.report_after(truth.time_ns);
    let line: Value = serde_json::from_str(&watch.next_line()).expect("a line is one object");
    for (place, names) in FIELDS {
        let object = line
            .pointer(place)
            .unwrap_or_else(|| panic!("there is no {place}"));
        for name in *names {
            assert!(object.get(name).is_some(), "{place} has no {name}");
        }
    }
    assert_eq!(line["schema"], "memwatch.report/1");
    assert_eq!(line["kind"], "top");
    assert_eq!(line["processes"][0]["pid"], target.pid());
    assert!(
        line["host"]["kernel"]
            .as_str()
            .is_some_and(|kernel| !kernel.is_empty())
    );
    assert!(
        line["processes"][0]["rss_bytes"]
            .as_u64()
            .is_some_and(|rss| rss > 0)
    );
    let (time, since) = (
        line["time"].as_str().expect("text"),
        line["since"].as_str().expect("text"),
    );
    assert!(nanoseconds(time) >= nanoseconds(since));
    for row in line["rows"].as_array().expect("rows are a list") {
        let number = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} of {row}"));
        assert_eq!(
            number("alloc_bytes") - number("freed_bytes"),
            number("inuse_bytes"),
            "{row}"
        );
        assert_eq!(
            number("alloc_objects") - number("freed_objects"),
            number("inuse_objects"),
            "{row}"
        );
    }
}

/// Debug information leads to the very line.
#[test]
fn frames_have_files_and_lines() {
    let mut target = need!(basic());
    let mut watch = Memwatch::of(&target, &[]);
    let truth = target.go().pop().expect("one truth");
    let report = watch.report_after(truth.time_ns);
    let mut frames = report.rows.iter().flat_map(|row| &row.frames);
    let frame = frames
        .find(|frame| frame.function.as_deref() == Some("site_calloc"))
        .expect("it was called");
    assert!(
        frame
            .file
            .as_deref()
            .is_some_and(|file| file.ends_with("c_basic.c")),
        "{frame:?}"
    );
    assert!(frame.line.is_some_and(|line| line > 0), "{frame:?}");
    assert!(
        frame
            .module
            .as_deref()
            .is_some_and(|module| module.contains("c_basic")),
        "{frame:?}"
    );
    let row = report
        .rows
        .iter()
        .find(|row| row.frames.contains(frame))
        .expect("it is of a row");
    let names: Vec<_> = row
        .frames
        .iter()
        .filter_map(|frame| frame.function.as_deref())
        .collect();
    let position = |name| names.iter().position(|found| *found == name);
    assert!(
        position("site_calloc") < position("main"),
        "innermost first: {names:?}"
    );
    assert!(position("main").is_some(), "the stack reaches main: {names:?}");
    assert!(!row.truncated, "the stack is whole: {names:?}");
}

#[test]
fn once() {
    let target = need!(basic());
    let ended = watch_for(&target, &["--once", "-i", "200ms"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ticks: Vec<_> = ended.reports().iter().map(|report| report.tick).collect();
    assert_eq!(ticks, [0, 1]);
}

#[test]
fn count() {
    let target = need!(basic());
    let ended = watch_for(&target, &["--count", "3", "-i", "200ms"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ticks: Vec<_> = ended.reports().iter().map(|report| report.tick).collect();
    assert_eq!(ticks, [0, 1, 2, 3]);
}

#[test]
fn duration() {
    let target = need!(basic());
    let ended = watch_for(&target, &["--duration", "1s", "-i", "200ms"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let reports = ended.reports();
    let last = reports.last().expect("there are reports");
    assert!(
        last.watched_seconds >= 0.8,
        "it left after {} s",
        last.watched_seconds
    );
    assert!(reports.len() >= 2);
}

/// Shorter than the interval: what was gathered is still told.
#[test]
fn duration_below_the_interval() {
    let mut target = need!(basic());
    let pid = target.pid().to_string();
    let mut watch = Memwatch::start(command().args([
        "-p", &pid, "--format", "json", "-i", "1h", "-d", "2s", "-n", "100000",
    ]));
    assert_eq!(watch.next_report().tick, 0);
    target.begin();
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.reports().pop().expect("a last report");
    assert!(
        last.rows.iter().map(|row| row.alloc_objects).sum::<u64>() > 0,
        "what was seen is told"
    );
    target.truths();
}

/// The first report comes when all probes are in place: what happens from then on is known.
#[test]
fn tick_zero_is_a_promise() {
    for _ in 0..5 {
        let mut target = need!(basic());
        let mut watch = Memwatch::of(&target, &["-i", "300ms"]);
        let truths = target.go();
        assert_true(&watch.report_after(truths[0].time_ns), &truths, Checks::default());
    }
}

#[test]
fn interrupt_still_prints() {
    let mut target = need!(basic());
    let mut watch = Memwatch::of(&target, &["-i", "1h"]);
    let truths = target.go();
    let ended = watch.interrupt();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    let last = ended.reports().pop().expect("what was gathered is printed");
    assert_true(&last, &truths, Checks::default());
    watch = Memwatch::of(&target, &["-i", "1h"]);
    watch.signal(libc::SIGTERM);
    let ended = watch.finish();
    assert_eq!(
        ended.signal, None,
        "SIGTERM ends it in good order: {}",
        ended.stderr
    );
}

#[test]
fn a_closed_pipe_is_success() {
    let target = need!(basic());
    for format in ["json", "text"] {
        let pid = target.pid().to_string();
        let mut watch = Memwatch::start(command().args(["--pid", &pid, "-i", "100ms", "--format", format]));
        watch.next_line();
        let ended = watch.close_stdout();
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
        assert_eq!(ended.stderr.trim(), "", "a closed pipe is no error");
    }
}

/// Numbers of one tick stand on their own: the pace does not change them, and they never go back.
#[test]
fn totals_never_go_back() {
    need!(can_watch());
    let mut target = Target::start_with(&need!(Recipe::c("load.c").build()), &["2"]);
    target.load();
    let mut watch = Memwatch::of(&target, &["-i", "100ms"]);
    let (mut allocations, mut time) = (0, 0);
    for tick in 1..=10 {
        let report = watch.next_report();
        assert_eq!(report.tick, tick);
        let now = report.processes[0]
            .totals
            .get("native")
            .map_or(0, |totals| totals.allocations);
        assert!(now >= allocations, "allocations fell from {allocations} to {now}");
        assert!(nanoseconds(&report.time) > time);
        (allocations, time) = (now, nanoseconds(&report.time));
    }
    assert!(allocations > 0, "nothing was seen of a target under full load");
}

#[test]
fn text_has_its_header() {
    let mut target = need!(basic());
    let pid = target.pid().to_string();
    let mut watch = Memwatch::start(command().args(["--pid", &pid, "-i", "300ms", "--format", "text"]));
    watch.next_line(); // the first block begins: all is attached
    target.go();
    std::thread::sleep(Duration::from_secs(1));
    let text = watch.interrupt().stdout.join("\n");
    assert!(text.contains(&pid), "the header names the target: {text}");
    assert!(text.contains("RSS"), "the header tells RSS: {text}");
    assert!(text.contains("site_"), "rows are named: {text}");
}

/// The end of the target ends the watch, without waiting for the next tick.
#[test]
fn the_target_ends() {
    let mut target = need!(basic());
    let watch = Memwatch::of(&target, &["-i", "1h"]);
    target.go();
    assert!(target.exit().success());
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.reports().pop().expect("a last report");
    assert!(
        last.processes.iter().all(|process| process.exited),
        "it says that the target ended"
    );
}

#[test]
fn growth_as_a_gate() {
    let mut target = need!(basic());
    let pid = target.pid().to_string();
    let mut watch = Memwatch::start(command().args([
        "--pid",
        &pid,
        "--format",
        "json",
        "-i",
        "200ms",
        "-d",
        "3s",
        "--fail-on-growth",
        "1MiB",
    ]));
    assert_eq!(watch.next_report().tick, 0);
    target.go();
    let ended = watch.finish();
    assert_eq!(
        ended.code,
        Some(3),
        "it grew by more than 100 MiB: {}",
        ended.stderr
    );
    let quiet = watch_for(&target, &["-i", "200ms", "-d", "1s", "--fail-on-growth", "1MiB"]);
    assert_eq!(quiet.code, Some(0), "it did not grow: {}", quiet.stderr);
}
