//! Real Python programs while memwatch comes and goes.

use std::path::PathBuf;
use std::time::Instant;

use memwatch_tests::binary::can_watch;
use memwatch_tests::pythons::{self, of_the_system, pyenv};
use memwatch_tests::{Memwatch, Target, need};
use serde_json::Value;

/// `MEMWATCH_TEST_ROUNDS` asks for more.
fn rounds() -> usize {
    let asked = std::env::var("MEMWATCH_TEST_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// memwatch attaches and detaches while the target works, each time in another way, now and then without a chance to tidy
/// up. What the target tells in the end.
fn come_and_go(target: &mut Target) -> Value {
    target.begin();
    for round in 0..rounds() {
        let mode = ["pools", "exact", "off"][round % 3];
        let began = Instant::now();
        let mut watch = Memwatch::of(target, &["--python", mode, "-i", "200ms"]);
        let report = watch.next_report();
        assert!(report.health.probes.attached > 0, "round {round}");
        let attached = began.elapsed();
        if round % 5 == 4 {
            watch.kill();
        } else {
            let ended = watch.interrupt();
            assert_eq!(ended.code, Some(0), "round {round}: {ended:?}");
        }
        println!(
            "round {round}, {mode}: two reports after {:.1} s, gone after {:.1} s",
            attached.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
        assert!(target.runs(), "round {round}");
    }
    let answer = target.values().pop().expect("it tells");
    assert!(target.exit().success());
    answer
}

/// Modules of CPython's own test suite go on to succeed.
fn suite(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let mut target = Target::start_command(&mut pythons::command(&python, "py_suite.py"));
    let answer = come_and_go(&mut target);
    assert_eq!(answer["failed"].as_array().map(Vec::len), Some(0), "{answer}");
    assert!(answer["tests"].as_u64() > Some(0), "{answer}");
}

/// A web application with its threads and its clients, a server of many clients: all go on to get right answers.
fn app(python: Result<PathBuf, String>, version: &str, name: &str) {
    need!(can_watch());
    let python = need!(python);
    let mut command = need!(pythons::command_with_packages(&python, version, "py_apps.py"));
    let mut target = Target::start_command(command.args([name, "load"]));
    let answer = come_and_go(&mut target);
    assert_eq!(answer["wrong"].as_array().map(Vec::len), Some(0), "{answer}");
    assert!(answer["rounds"].as_u64() > Some(0), "{answer}");
}

#[test]
fn suite_of_3_8() {
    suite(pyenv("3.8"));
}

#[test]
fn suite_of_3_12() {
    suite(pyenv("3.12"));
}

#[test]
fn suite_of_3_13() {
    suite(pyenv("3.13"));
}

#[test]
fn flask_of_the_systems_own() {
    app(of_the_system(), "3.11", "flask");
}

#[test]
fn flask_of_3_12() {
    app(pyenv("3.12"), "3.12", "flask");
}

#[test]
fn asyncio_of_the_systems_own() {
    app(of_the_system(), "3.11", "asyncio");
}
