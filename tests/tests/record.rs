//! Recordings of real programs: what is read from the file is the truth, to the byte, however the recording ended.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use memwatch::model::report::Report;
use memwatch::store::{self, Ending};
use memwatch_tests::binary::{can_watch, command, patience};
use memwatch_tests::truth::assert_true;
use memwatch_tests::watch::{ALL_STACKS, nanoseconds, run_to_end};
use memwatch_tests::{Checks, Memwatch, Recipe, Target, need};

/// Starts recording; returns when nothing is missed any more.
fn record(target: &Target, file: &Path) -> Memwatch {
    let mut record = command();
    record.args(["record", "--pid", &target.pid().to_string(), "-i", "100ms", "-o"]);
    let watch = Memwatch::start(record.arg(file));
    wait_for(|| file.exists(), "the recording does not begin");
    watch
}

fn wait_for(ready: impl Fn() -> bool, why: &str) {
    let until = Instant::now() + patience();
    while !ready() {
        assert!(Instant::now() < until, "{why}");
        sleep(Duration::from_millis(20));
    }
}

/// Waits until a tick that is later than this is in the file.
fn wait_for_tick(file: &Path, time_ns: i128) {
    let is_in = || {
        let recording = store::open(file).expect("it can be read while it is written");
        let last = recording.ticks().last().expect("it has a tick");
        last.time.expect("it has a time").as_nanosecond() > time_ns
    };
    wait_for(is_in, "no tick later than the truth was recorded");
}

/// What a command of memwatch prints about files.
fn reports(arguments: &[&str], files: &[&Path]) -> Vec<Report> {
    let mut show = command();
    let ended = run_to_end(
        show.args(arguments)
            .args(files)
            .args(["--format", "json"])
            .args(ALL_STACKS),
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.reports()
}

fn inuse(report: &Report) -> u64 {
    report.rows.iter().map(|row| row.inuse_bytes).sum()
}

#[test]
fn a_recording_that_was_interrupted_holds_the_truth() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let watch = record(&target, &file);
    let first = target.go();
    let second = target.go();
    wait_for_tick(&file, second[0].time_ns);
    let ended = watch.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let recording = store::open(&file).expect("it can be read");
    assert_eq!(recording.ending(), Ending::Complete);

    let last = reports(&["top"], &[&file]).pop().expect("one report");
    assert_true(&last, &second, Checks::default());
    let all = reports(&["top", "--from", "0"], &[&file]);
    assert_eq!(all.len(), recording.ticks().len());
    assert_eq!(inuse(&all[0]), 0, "nothing was allocated before it began");
    for (report, info) in all.iter().zip(recording.ticks()) {
        assert_eq!((report.tick, inuse(report)), (info.tick, info.inuse_bytes));
    }
    // A tick between two parts of its work is as true as the last.
    let between = all
        .iter()
        .filter(|report| nanoseconds(&report.time) > first[0].time_ns);
    assert!(between.count() >= 1);

    let difference = reports(&["diff"], &[&file]).pop().expect("one report");
    let grown: i64 = difference
        .rows
        .iter()
        .filter_map(|row| row.delta)
        .map(|delta| delta.inuse_bytes)
        .sum();
    assert_eq!(grown, inuse(&last) as i64);
    let none = reports(&["diff"], &[&file, &file]).pop().expect("one report");
    assert!(
        none.rows
            .iter()
            .all(|row| row.delta.is_some_and(|delta| delta.inuse_bytes == 0))
    );
    assert!(target.exit().success());
}

#[test]
fn the_last_state_of_a_target_that_ends_is_saved() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let watch = record(&target, &file);
    target.go();
    let truths = target.go();
    target.kill();
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = reports(&["top"], &[&file]).pop().expect("one report");
    assert!(last.processes.iter().all(|process| process.exited));
    assert_true(&last, &truths, Checks::default());
}

#[test]
fn killing_memwatch_loses_at_most_the_last_tick() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let watch = record(&target, &file);
    let truths = target.go();
    wait_for_tick(&file, truths[0].time_ns);
    watch.kill();
    let last = reports(&["top"], &[&file]).pop().expect("one report");
    assert_true(&last, &truths, Checks::default());
    let left = std::fs::read_dir(folder.path()).expect("it is there").count();
    assert_eq!(left, 1, "nothing half-written is left");
    assert!(target.exit().success());
}

/// The same program run twice: other pids, other addresses.
#[test]
fn two_runs_are_compared_by_their_stacks() {
    need!(can_watch());
    let program = need!(Recipe::c("c_basic.c").build());
    let folder = tempfile::tempdir().expect("a directory can be made");
    let files = ["old", "new"].map(|name| folder.path().join(name));
    for (file, parts) in files.iter().zip([1, 2]) {
        let mut target = Target::start(&program);
        let watch = record(&target, file);
        for _ in 0..parts {
            target.go();
        }
        target.exit();
        assert_eq!(watch.finish().code, Some(0));
    }
    let [old, new] = [&files[0], &files[1]].map(|file| reports(&["top"], &[file]).pop().expect("one report"));
    let difference = reports(&["diff"], &[&files[0], &files[1]])
        .pop()
        .expect("one report");
    let change: i64 = difference
        .rows
        .iter()
        .filter_map(|row| row.delta)
        .map(|delta| delta.alloc_bytes)
        .sum();
    let allocated = |report: &Report| report.rows.iter().map(|row| row.alloc_bytes as i64).sum::<i64>();
    assert_eq!(change, allocated(&new) - allocated(&old));
    // Had no stack been found again, each would be there twice.
    assert!(
        difference.rows.len() < old.rows.len() + new.rows.len(),
        "no stack of the old run is in the new one"
    );
}

#[test]
fn a_full_disk_ends_the_recording_with_one_line() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let pid = target.pid().to_string();
    let ended = run_to_end(command().args(["record", "--pid", &pid, "-d", "1s", "-o", "/dev/full"]));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("/dev/full"), "{}", ended.stderr);
    assert!(target.exit().success());
}

/// Each thread holds what it asked for, whoever frees it, in all what the process holds.
#[test]
fn threads_are_told_apart_live_and_in_a_recording() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_threads.c").build()));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let watch = record(&target, &file);
    let truths = target.go();
    wait_for_tick(&file, truths[0].time_ns + 2_000_000_000);
    assert_eq!(watch.interrupt().code, Some(0));
    let by = |group_by| {
        let options = ["--group-by", group_by, "-n", "100000", "--format", "json"];
        let ended = run_to_end(command().arg("top").arg(&file).args(options));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.reports().pop().expect("one report")
    };
    let (threads, process) = (by("thread"), by("process"));
    let first = format!("thread {} of", target.pid());
    let others = threads
        .rows
        .iter()
        .filter(|row| row.key.starts_with("thread ") && !row.key.starts_with(&first))
        .count();
    assert!(
        others > 1,
        "{:?}",
        threads.rows.iter().map(|row| &row.key).collect::<Vec<_>>()
    );
    assert_eq!(inuse(&threads), inuse(&process));
    assert!(target.exit().success());
}
