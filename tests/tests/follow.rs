//! Children, programs that become other programs, and programs that memwatch starts itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use memwatch_tests::binary::{can_watch, command, patience};
use memwatch_tests::truth::{assert_true, rows_of_function};
use memwatch_tests::watch::ALL_STACKS;
use memwatch_tests::{Checks, Flavour, Memwatch, Recipe, Target, Truth, need};

fn latest(truths: &[Truth]) -> i128 {
    truths
        .iter()
        .map(|truth| truth.time_ns)
        .max()
        .expect("a target tells at least one truth")
}

/// A program that allocates in the first milliseconds after an exec does so before memwatch has read where its code is:
/// its callers are known, not all of its stacks whole. Totals are exact all the same.
const AFTER_EXEC: Checks = Checks {
    complete: true,
    stacks: false,
    sums: true,
};

fn forks(flavour: Flavour) {
    need!(can_watch());
    let program = need!(Recipe::c("c_fork.c").flavour(flavour).build());
    let mut target = Target::start(&program);
    // Only probes in the whole host see children from their first instruction; a busy neighbour would have
    // memwatch choose the others.
    let mut watch = Memwatch::of(&target, &["--probe-scope", "host"]);
    let mut children = Vec::new();
    for part in 0..3 {
        let truths = target.go();
        assert_eq!(
            truths.len(),
            [5, 21, 1][part],
            "the target tells of all its processes"
        );
        let report = watch.report_after(latest(&truths));
        // The last part starts other programs.
        let checks = if part == 2 { AFTER_EXEC } else { Checks::default() };
        assert_true(&report, &truths, checks);
        // What was true of the children of the parts before is still true.
        assert_true(&report, &children, checks);
        children.extend(truths.into_iter().filter(|truth| truth.pid != target.pid()));
    }
    assert!(target.exit().success());
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn children_plain() {
    forks(Flavour::Plain);
}

#[test]
fn children_without_frame_pointers() {
    forks(Flavour::Optimised);
}

/// Probes in the watched processes only come to a child after its fork: that is told, and then all is counted.
#[test]
fn children_that_are_probed_late() {
    need!(can_watch());
    let program = need!(Recipe::c("c_fork.c").build());
    let mut target = Target::start(&program);
    let mut watch = Memwatch::of(&target, &["--probe-scope", "process"]);
    let truths = target.go();
    let report = watch.report_after(latest(&truths));
    let (own, children): (Vec<_>, Vec<_>) = truths.into_iter().partition(|truth| truth.pid == target.pid());
    let gap_is_open = Checks {
        complete: false,
        ..Checks::default()
    };
    assert_true(&report, &own, gap_is_open);
    for child in children {
        assert!(
            report.processes.iter().any(|process| process.pid == child.pid),
            "child {} is not in the report",
            child.pid
        );
    }
    assert!(!report.health.complete, "the gap is not told");
    assert!(
        report
            .health
            .reasons
            .iter()
            .any(|reason| reason.contains("after its fork")),
        "{:?}",
        report.health.reasons
    );
}

#[test]
fn children_are_left_out_on_demand() {
    need!(can_watch());
    let program = need!(Recipe::c("c_fork.c").build());
    let mut target = Target::start(&program);
    let mut watch = Memwatch::of(&target, &["--no-follow"]);
    let truths = target.go();
    let report = watch.report_after(latest(&truths));
    let (own, children): (Vec<_>, Vec<_>) = truths.into_iter().partition(|truth| truth.pid == target.pid());
    assert_true(&report, &own, Checks::default());
    for child in children {
        assert!(
            report.rows.iter().all(|row| row.pid != Some(child.pid)),
            "a child was followed"
        );
        assert!(
            report.processes.iter().all(|process| process.pid != child.pid),
            "a child was followed"
        );
    }
}

fn execs(flavour: Flavour) {
    need!(can_watch());
    let program = need!(Recipe::c("c_exec.c").flavour(flavour).build());
    let mut target = Target::start(&program);
    let pid = target.pid();
    let mut watch = Memwatch::of(&target, &[]);
    let before = target.go();
    assert_true(&watch.report_after(latest(&before)), &before, Checks::default());
    for _ in 0..2 {
        let after = target.go();
        let report = watch.report_after(latest(&after));
        assert_true(&report, &after, AFTER_EXEC);
        let gone = rows_of_function(&report, pid, "exec_before");
        assert_eq!(
            (gone.inuse_bytes, gone.inuse_objects),
            (0, 0),
            "what the program before held is gone"
        );
        let entries: Vec<_> = report
            .processes
            .iter()
            .filter(|process| process.pid == pid)
            .collect();
        assert_eq!(
            entries.iter().filter(|process| !process.replaced).count(),
            1,
            "one of them lives"
        );
    }
}

#[test]
fn exec_plain() {
    execs(Flavour::Plain);
}

#[test]
fn exec_without_frame_pointers() {
    execs(Flavour::Optimised);
}

fn make_fifo(path: &Path) {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no zero byte");
    // SAFETY: a valid string that lives through the call.
    let result = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(result, 0, "a fifo can be made");
}

/// The truths that the target has written to a file, once it says that it is done.
fn truths_in(path: &Path) -> Vec<Truth> {
    let until = Instant::now() + patience();
    loop {
        let text = fs::read_to_string(path).expect("the file is there");
        if text.contains(r#""event":"done""#) {
            let lines = text.lines().filter(|line| line.contains(r#""event":"truth""#));
            return lines
                .map(|line| serde_json::from_str(line).expect("a truth"))
                .collect();
        }
        assert!(Instant::now() < until, "the target is not done: {text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// `memwatch -- COMMAND`: from its first instruction, so every block is known, also those from before "go".
#[test]
fn a_program_that_memwatch_starts() {
    need!(can_watch());
    let program = need!(Recipe::c("c_basic.c").build());
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (words, said) = (directory.path().join("words"), directory.path().join("said"));
    make_fifo(&words);
    File::create(&said).expect("a file can be made");
    let mut start = command();
    start
        .args(["--format", "json", "-i", "300ms"])
        .args(ALL_STACKS)
        .arg("--")
        .arg(program);
    let mut watch = Memwatch::start(start.env("TRUTH_IN", &words).env("TRUTH_OUT", &said));
    assert_eq!(watch.next_report().tick, 0);
    let mut voice = File::options()
        .write(true)
        .open(&words)
        .expect("the target opens its end");
    voice.write_all(b"go\n").expect("the target listens");
    let truth = truths_in(&said).pop().expect("one truth");
    let report = watch.report_after(truth.time_ns);
    // 400 blocks of site_malloc are older than the truth, but not older than the watch.
    let seen = rows_of_function(&report, truth.pid, "site_malloc");
    let told = truth
        .functions
        .iter()
        .find(|known| known.function == "site_malloc")
        .expect("it tells of it");
    assert_eq!(
        Some(seen.alloc_objects),
        told.alloc_objects.map(|objects| objects + 400)
    );
    assert!(report.health.complete, "{:?}", report.health.reasons);
    for known in truth
        .functions
        .iter()
        .filter(|known| known.function != "site_malloc")
    {
        let seen = rows_of_function(&report, truth.pid, &known.function);
        assert_eq!(Some(seen.alloc_bytes), known.alloc_bytes, "{}", known.function);
        assert_eq!(Some(seen.inuse_bytes), known.inuse_bytes, "{}", known.function);
    }
    drop(voice); // the target reads the end of its input and leaves
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
