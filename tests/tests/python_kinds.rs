//! Python code of every kind: memory that each takes stands with the frames that the interpreter itself shows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memwatch::model::report::{FrameKind, Report, Row};
use memwatch_tests::binary::can_watch;
use memwatch_tests::pythons::{self, Held, held, of_debian, of_the_system, pyenv, time_of};
use memwatch_tests::{Memwatch, Target, need};

/// The Python frames as the program itself writes them.
fn python_stack(row: &Row) -> String {
    let frames = row.frames.iter().filter(|frame| frame.kind == FrameKind::Python);
    let names: Vec<String> = frames
        .map(|frame| {
            let function = frame.function.as_deref().unwrap_or("?");
            let file = frame.file.as_deref().unwrap_or("?");
            format!("{function}:{}:{file}", frame.line.unwrap_or(0))
        })
        .collect();
    names.join(";")
}

fn by_python_stack(report: &Report) -> HashMap<String, Held> {
    let mut sums: HashMap<String, Held> = HashMap::new();
    // All that the program means is large: from libc, block by block. With PYTHONMALLOC=malloc so are small objects.
    let meant = |row: &&Row| {
        row.domain.as_deref() != Some("mmap")
            && row.estimated_bytes == 0
            && row.inuse_bytes >= 10_000 * row.inuse_objects
    };
    for row in report.rows.iter().filter(meant) {
        let sum = sums.entry(python_stack(row)).or_default();
        sum.0 += row.inuse_bytes;
        sum.1 += row.inuse_objects;
    }
    sums
}

/// With all objects of these sizes: they come from libc, but where there is no pymalloc.
fn watch(python: &Path, target: &Target, sizes: &[&str]) -> Memwatch {
    let exact: &[&str] = if pythons::is_free_threaded(python) {
        &["--python", "exact"]
    } else {
        &[]
    };
    Memwatch::of(target, &[sizes, exact].concat())
}

fn kinds(python: Result<PathBuf, String>, allocator: Option<&str>) {
    need!(can_watch());
    let python = need!(python);
    let mut command = pythons::command(&python, "py_kinds.py");
    command.env_remove("PYTHONMALLOC");
    command.envs(allocator.map(|name| ("PYTHONMALLOC", name)));
    let mut target = Target::start_command(&mut command);
    let mut watch = watch(&python, &target, &["--min-size", "10000"]);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert!(report.health.complete, "{:?}", report.health.reasons);
    let seen = by_python_stack(&report);
    let truth = answer["stacks"].as_object().expect("stacks");
    assert!(truth.len() >= 44, "{} stacks", truth.len());
    let wrong: Vec<String> = truth
        .iter()
        .filter(|(stack, value)| seen.get(*stack) != Some(&held(value)))
        .map(|(stack, value)| format!("{stack}: is {:?}, seen {:?}", held(value), seen.get(stack)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} stacks are wrong:\n{}\nseen:\n{}",
        wrong.len(),
        truth.len(),
        wrong.join("\n"),
        seen.iter()
            .map(|(stack, held)| format!("{stack} {held:?}"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
}

macro_rules! kinds {
    ($($name:ident = $python:expr, $allocator:expr;)+) => {$(
        #[test]
        fn $name() {
            kinds($python, $allocator);
        }
    )+};
}

kinds! {
    of_3_8 = pyenv("3.8"), None;
    of_3_9 = pyenv("3.9"), None;
    of_3_10 = pyenv("3.10"), None;
    of_3_11 = pyenv("3.11"), None;
    of_3_12 = pyenv("3.12"), None;
    of_3_13 = pyenv("3.13"), None;
    of_the_systems_own = of_the_system(), None;
    of_3_14 = of_debian("3.14"), None;
    of_3_15 = of_debian("3.15"), None;
    of_3_15_for_debugging = of_debian("3.15d"), None;
    of_3_9_without_pymalloc = pyenv("3.9"), Some("malloc");
    of_3_13_without_pymalloc = pyenv("3.13"), Some("malloc");
    of_the_systems_own_without_pymalloc = of_the_system(), Some("malloc");
    of_3_12_with_marks = pyenv("3.12"), Some("debug");
    of_the_systems_own_with_marks = of_the_system(), Some("debug");
    of_3_15_with_marks = of_debian("3.15"), Some("malloc_debug");
}

/// C between Python: each native frame stands between the Python frames that called it and that it called.
fn order(python: Result<PathBuf, String>) {
    need!(can_watch());
    let python = need!(python);
    let mut target = Target::start_command(&mut pythons::command(&python, "py_order.py"));
    let mut watch = watch(
        &python,
        &target,
        &["--min-size", "1234567", "--max-size", "1234800"],
    );
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    // The one large block that it keeps.
    let row = report.rows.iter().find(|row| row.estimated_bytes == 0);
    let row = row.unwrap_or_else(|| panic!("{:?}", report.rows));
    let called: Vec<&str> = row
        .frames
        .iter()
        .filter_map(|frame| {
            let function = frame.function.as_deref()?;
            let native = ["bsearch", "qsort"]
                .into_iter()
                .find(|name| function.contains(name));
            match frame.kind {
                FrameKind::Python => Some(function),
                _ => native,
            }
        })
        .collect();
    let mut called: Vec<String> = called.into_iter().map(str::to_owned).collect();
    // One function may be several frames: what was inlined, and its own helpers.
    called.dedup();
    assert_eq!(serde_json::json!(called), answer["order"], "{:#?}", row.frames);
}

macro_rules! order {
    ($($name:ident = $python:expr;)+) => {$(
        #[test]
        fn $name() {
            order($python);
        }
    )+};
}

order! {
    order_of_3_10 = pyenv("3.10");
    order_of_3_12 = pyenv("3.12");
    order_of_the_systems_own = of_the_system();
    order_of_3_13 = of_debian("3.13");
    order_of_3_14 = of_debian("3.14");
    order_of_3_15 = of_debian("3.15");
}

#[test]
#[cfg(feature = "given")]
fn order_of_the_given() {
    order(pythons::given());
}

#[test]
#[cfg(feature = "given")]
fn of_the_given() {
    kinds(pythons::given(), None);
}
