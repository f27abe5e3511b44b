//! What C extensions ask libc for stands with the line of Python that called them: numpy, lxml, and one of Cython whose type
//! lacks a destructor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use memwatch::model::report::FrameKind;
use memwatch_tests::binary::{can_watch, target_directory, workspace};
use memwatch_tests::pythons::{self, of_the_system, pyenv, time_of};
use memwatch_tests::tools::run;
use memwatch_tests::{Memwatch, Target, need};

/// Makes an extension for this interpreter of `py_leaky.pyx`, with Cython and a C compiler.
fn extension(python: &Path, version: &str) -> Result<PathBuf, String> {
    let source = workspace().join("tests/targets/py_leaky.pyx");
    let folder = target_directory().join("test-targets");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let code = folder.join(format!("py_leaky-{version}.c"));
    let built = folder.join(format!("py_leaky-{version}.so"));
    let mut cython = Command::new(python);
    cython.env(
        "PYTHONPATH",
        target_directory().join("python-packages").join(version),
    );
    let words = ["-m", "cython", "-3", "--module-name", "py_leaky"];
    run(cython.args(words).arg(&source).arg("-o").arg(&code))?;
    let headers = "import sysconfig; print(sysconfig.get_paths()['include'])";
    let (headers, _) = run(Command::new(python).args(["-c", headers]))?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-shared", "-fPIC", "-I", headers.trim()]);
    run(gcc.arg(&code).arg("-o").arg(&built))?;
    Ok(built)
}

fn attributed(python: Result<PathBuf, String>, version: &str) {
    need!(can_watch());
    let python = need!(python);
    let mut command = need!(pythons::command_with_packages(&python, version, "py_native.py"));
    let extension = need!(extension(&python, version));
    let mut target = Target::start_command(command.arg(extension));
    let mut watch = Memwatch::of(&target, &[]);
    let answer = target.values().pop().expect("one truth");
    let report = watch.report_after(time_of(&answer));
    assert!(report.health.complete, "{:?}", report.health.reasons);
    let held = answer["held"].as_object().expect("functions");
    assert_eq!(held.len(), 4);
    for (function, limits) in held {
        let limit = |at: usize| limits[at].as_u64().expect("bytes");
        let native = report
            .rows
            .iter()
            .filter(|row| row.domain.as_deref() == Some("native"));
        let mut lines: HashMap<Option<u32>, u64> = HashMap::new();
        for row in native {
            let mut python = row.frames.iter().filter(|frame| frame.kind == FrameKind::Python);
            let innermost = python.next();
            if let Some(frame) = innermost.filter(|frame| frame.function.as_ref() == Some(function)) {
                *lines.entry(frame.line).or_default() += row.inuse_bytes;
            }
        }
        let bytes = lines.values().copied().max().unwrap_or(0);
        println!("{function}: {limits}, memwatch {lines:?}");
        // What is asked for beside it on that line (an array's own small blocks) is less than 1 %.
        assert!(
            bytes >= limit(0) && bytes <= limit(1) + limit(1) / 100,
            "{function}: {limits}, memwatch {lines:?}"
        );
    }
}

#[test]
fn of_the_systems_own() {
    attributed(of_the_system(), "3.11");
}

#[test]
fn of_3_12() {
    attributed(pyenv("3.12"), "3.12");
}
