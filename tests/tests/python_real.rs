//! Real Python programs while memwatch comes and goes.

use std::path::PathBuf;

use memwatch_tests::binary::can_watch;
use memwatch_tests::pythons::{self, pyenv};
use memwatch_tests::{Memwatch, Target, need};

/// `MEMWATCH_TEST_ROUNDS` asks for more.
fn rounds() -> usize {
    let asked = std::env::var("MEMWATCH_TEST_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Modules of CPython's own test suite go on to succeed while memwatch attaches and detaches, each time in another way,
/// now and then without a chance to tidy up.
fn suite(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let mut target = Target::start_command(&mut pythons::command(&python, "py_suite.py"));
    target.begin();
    for round in 0..rounds() {
        let mode = ["pools", "exact", "off"][round % 3];
        let mut watch = Memwatch::of(&target, &["--python", mode, "-i", "200ms"]);
        let report = watch.next_report();
        assert!(report.health.probes.attached > 0, "round {round}");
        if round % 5 == 4 {
            watch.kill();
        } else {
            let ended = watch.interrupt();
            assert_eq!(ended.code, Some(0), "round {round}: {ended:?}");
        }
        assert!(target.runs(), "round {round}");
    }
    let answer = target.values().pop().expect("it tells");
    assert_eq!(answer["failed"].as_array().map(Vec::len), Some(0), "{answer}");
    assert!(answer["tests"].as_u64() > Some(0), "{answer}");
    assert!(target.exit().success());
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
