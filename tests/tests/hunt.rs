//! A small leak of a busy service is named first within a minute, and its cache is not: in Python, in C below Python, and
//! in C++.
//!
//! Each hunt takes a minute and hardly any of the machine, so all three go on at once, in whichever test comes first.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use memwatch_tests::binary::{can_watch, workspace};
use memwatch_tests::hunt::{Found, hunt};
use memwatch_tests::{Recipe, Target, need, tools};

/// Debian's: static, optimised, with the allocation of its small objects inlined.
const PYTHON: &str = "/usr/bin/python3";

struct Hunts {
    python: Result<Found, String>,
    extension: Result<Found, String>,
    cpp: Result<Found, String>,
}

fn hunts() -> &'static Hunts {
    static HUNTS: OnceLock<Hunts> = OnceLock::new();
    HUNTS.get_or_init(|| {
        let started: [fn() -> Result<Target, String>; 3] = [python, extension, cpp];
        // A thread that started a process has to outlive it, and does.
        let threads =
            started.map(|start| thread::spawn(move || start().map(|mut service| hunt(&mut service))));
        let [python, extension, cpp] = threads.map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err("the hunt failed, see above".to_owned()))
        });
        Hunts {
            python,
            extension,
            cpp,
        }
    })
}

fn source(name: &str) -> PathBuf {
    workspace().join("tests/targets").join(name)
}

fn service(arguments: &[&Path]) -> Result<Target, String> {
    can_watch()?;
    if !Path::new(PYTHON).exists() {
        return Err(format!("there is no {PYTHON}"));
    }
    let mut command = Command::new(PYTHON);
    command.arg(source("hunt.py")).args(arguments);
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONNOUSERSITE", "1");
    Ok(Target::start_command(&mut command))
}

fn python() -> Result<Target, String> {
    service(&[])
}

fn extension() -> Result<Target, String> {
    let code = "import sysconfig; print(sysconfig.get_paths()['include'])";
    let (headers, _) = tools::run(Command::new(PYTHON).args(["-c", code]))?;
    let headers = headers.trim();
    if !Path::new(headers).join("Python.h").exists() {
        return Err(format!("there is no {headers}/Python.h: install python3-dev"));
    }
    let built = Recipe::c("hunt_extension.c")
        .arg(&format!("-I{headers}"))
        .shared()
        .build()?;
    service(&[&built])
}

fn cpp() -> Result<Target, String> {
    can_watch()?;
    Ok(Target::start(&Recipe::cpp("cpp_hunt.cpp").build()?))
}

/// `file:line` of the only line with this code.
fn line(file: &str, code: &str) -> String {
    let text = std::fs::read_to_string(source(file)).expect("the source is there");
    let mut lines = text.lines().enumerate().filter(|(_, line)| line.contains(code));
    let (index, _) = lines.next().expect("the line is there");
    assert!(lines.next().is_none(), "one line has {code}");
    format!("{file}:{}", index + 1)
}

#[test]
fn a_python_line() {
    let found = need!(hunts().python.as_ref());
    found.assert_named(&line("hunt.py", "sessions.append("));
}

#[test]
fn a_c_extension() {
    let found = need!(hunts().extension.as_ref());
    found.assert_named(&line("hunt_extension.c", "malloc(100)"));
}

#[test]
fn a_cpp_server() {
    let found = need!(hunts().cpp.as_ref());
    found.assert_named(&line("cpp_hunt.cpp", "new char[100]"));
}
