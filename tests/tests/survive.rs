//! Whatever memwatch does, the target lives on as if nothing had been; and when memwatch is gone, so are its probes.

use std::thread::sleep;
use std::time::Duration;

use memwatch_tests::binary::{can_watch, command};
use memwatch_tests::kernel::{Kind, assert_gone, assert_no_named_probes, objects_of};
use memwatch_tests::mapped::{assert_untouched, changed_code};
use memwatch_tests::watch::run_to_end;
use memwatch_tests::{Memwatch, Recipe, Target, need};

fn assert_progress(target: &mut Target, before: u64) -> u64 {
    for _ in 0..600 {
        let load = target.load();
        assert_eq!(load.bad, 0, "the target's memory was touched");
        if load.ok > before {
            return load.ok;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("the target makes no progress");
}

/// Attach and detach many times under full load, in every way in which memwatch can end.
#[test]
fn a_hundred_rounds_under_load() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["3"]);
    let mut done = target.load().ok;
    for round in 0..100 {
        let mut watch = Memwatch::of(&target, &["-i", "100ms"]);
        match round % 4 {
            0 => watch.kill(),
            1 => {
                let ended = watch.interrupt();
                assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            }
            2 => {
                let report = watch.next_report();
                assert!(
                    report.health.overhead.hits > 0,
                    "nothing was seen of a target under full load"
                );
                let ended = watch.interrupt();
                assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            }
            _ => {
                watch.signal(libc::SIGTERM);
                let ended = watch.finish();
                assert_eq!(ended.signal, None, "SIGTERM is no crash: {}", ended.stderr);
            }
        }
        done = assert_progress(&mut target, done);
        if round % 10 == 0 {
            assert_untouched(target.pid());
        }
    }
    assert_untouched(target.pid());
    assert!(target.exit().success(), "the target found its memory changed");
}

/// Killed in the middle of attaching, at any moment.
#[test]
fn killed_while_attaching() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["3"]);
    let mut done = target.load().ok;
    let pid = target.pid().to_string();
    for round in 0..20_u64 {
        let watch = Memwatch::start(command().args(["--pid", &pid, "--format", "json", "-i", "100ms"]));
        sleep(Duration::from_millis(round * 23));
        watch.kill();
        done = assert_progress(&mut target, done);
    }
    assert_untouched(target.pid());
    assert!(target.exit().success(), "the target found its memory changed");
}

#[test]
fn a_kill_leaves_nothing_behind() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["2"]);
    assert!(
        changed_code(target.pid()).is_empty(),
        "the code is as in its files before anybody watches"
    );
    let done = target.load().ok;
    let mut watch = Memwatch::of(&target, &["-i", "200ms"]);
    watch.next_report();
    let objects = objects_of(watch.pid());
    assert!(
        objects.iter().any(|object| object.kind == Kind::Map),
        "no maps are open: {objects:?}"
    );
    assert!(objects.iter().all(|object| object.exists()));
    assert!(
        !changed_code(target.pid()).is_empty(),
        "no probe is in the target's code"
    );
    watch.kill();
    assert_gone(&objects);
    assert_untouched(target.pid());
    assert_no_named_probes();
    assert_progress(&mut target, done);
    assert!(target.exit().success(), "the target found its memory changed");
}

#[test]
fn a_proper_end_leaves_nothing_behind() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["2"]);
    let done = target.load().ok;
    let mut watch = Memwatch::of(&target, &["-i", "200ms"]);
    watch.next_report();
    let objects = objects_of(watch.pid());
    let ended = watch.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_gone(&objects);
    assert_untouched(target.pid());
    assert_no_named_probes();
    assert_progress(&mut target, done);
    assert!(target.exit().success(), "the target found its memory changed");
}

/// Two memwatches on one target do not disturb each other.
#[test]
fn two_at_once() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["2"]);
    let done = target.load().ok;
    let mut first = Memwatch::of(&target, &["-i", "200ms"]);
    let second = Memwatch::of(&target, &["-i", "200ms"]);
    second.kill();
    let (before, after) = (first.next_report(), first.next_report());
    assert!(
        after.health.overhead.hits > before.health.overhead.hits,
        "the first one is blind now"
    );
    assert_eq!(first.interrupt().code, Some(0));
    assert_untouched(target.pid());
    assert_progress(&mut target, done);
    assert!(target.exit().success(), "the target found its memory changed");
}

/// The filter of the seccomp target works: without it the test of it would say nothing.
#[test]
fn the_seccomp_filter_kills() {
    let program = need!(Recipe::c("c_seccomp.c").build());
    let ended = run_to_end(std::process::Command::new(program).arg("forbidden"));
    assert_eq!(ended.signal, Some(libc::SIGSYS));
}

/// A static Go program has no allocator that could be watched, and must not be hurt by the attempt.
#[test]
fn a_go_program_is_left_alone() {
    need!(can_watch());
    let program = need!(Recipe::go("go_static.go").build());
    let mut target = Target::start(&program);
    let mut done = target.load().ok;
    let pid = target.pid().to_string();
    for _ in 0..5 {
        let ended = run_to_end(command().args(["--pid", &pid, "--once", "-i", "200ms", "--format", "json"]));
        assert!(
            matches!(ended.code, Some(4 | 5)),
            "exit code {:?}, it must be refused: {}",
            ended.code,
            ended.stderr
        );
        assert_eq!(
            ended.stderr.trim_end().lines().count(),
            1,
            "one line says why: {}",
            ended.stderr
        );
        done = assert_progress(&mut target, done);
    }
    assert_untouched(target.pid());
    assert!(target.exit().success(), "the target found its memory changed");
}

/// A target that is killed under watch ends the watch in good order.
#[test]
fn the_target_is_killed() {
    need!(can_watch());
    let program = need!(Recipe::c("load.c").build());
    let mut target = Target::start_with(&program, &["3"]);
    target.load();
    let mut watch = Memwatch::of(&target, &["-i", "100ms"]);
    watch.next_report();
    let objects = objects_of(watch.pid());
    target.kill();
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.reports().pop().expect("the end is told");
    let process = last.processes.iter().find(|process| process.pid == target.pid());
    assert!(
        process.is_some_and(|process| process.exited),
        "the last report says that it ended"
    );
    assert_gone(&objects);
}
