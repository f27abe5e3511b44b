//! Interpreters to be watched: those of pyenv, the system's own, and those of a newer Debian, which run with a root of
//! their own as in a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::binary::{target_directory, workspace};

/// Where the programs are, in a root of its own.
const PROGRAMS: &str = "programs";

/// An interpreter of `~/.pyenv`, by the beginning of its version.
pub fn pyenv(version: &str) -> Result<PathBuf, String> {
    let versions = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    let wanted = format!("{version}.");
    let found = fs::read_dir(&versions)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted));
    found
        .map(|entry| entry.path().join("bin/python"))
        .filter(|python| python.exists())
        .ok_or_else(|| format!("there is no CPython {version} in {}", versions.display()))
}

/// The distribution's own: static, optimised, with its allocation inlined.
pub fn of_the_system() -> Result<PathBuf, String> {
    let python = Path::new("/usr/bin/python3");
    if python.exists() {
        Ok(python.to_owned())
    } else {
        Err("there is no /usr/bin/python3".to_owned())
    }
}

/// Of a newer Debian: static and optimised, or with a `d` after its version built for debugging.
pub fn of_debian(version: &str) -> Result<PathBuf, String> {
    let python = roots().join(format!("debian/usr/bin/python{version}"));
    if python.exists() {
        Ok(python)
    } else {
        Err(format!(
            "there is no {} (`cargo xtask setup --tests` fetches it)",
            python.display()
        ))
    }
}

/// Any other, by the path in `MEMWATCH_PYTHON`: one made with `tests/make_python.sh`, for instance.
pub fn given() -> Result<PathBuf, String> {
    std::env::var_os("MEMWATCH_PYTHON")
        .map(PathBuf::from)
        .filter(|python| python.exists())
        .ok_or_else(|| "MEMWATCH_PYTHON names no interpreter".to_owned())
}

/// Whether it has no global lock, and so no pymalloc.
pub fn is_free_threaded(python: &Path) -> bool {
    let asked = "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED'))";
    let answer = Command::new(python).args(["-c", asked]).output();
    answer.is_ok_and(|output| output.stdout.starts_with(b"1"))
}

/// Each folder in it is the root of a system.
fn roots() -> PathBuf {
    target_directory().join("pythons")
}

/// The root that an interpreter runs in, if that is not ours.
fn root_of(python: &Path) -> Option<PathBuf> {
    let inside = python.strip_prefix(roots()).ok()?;
    Some(roots().join(inside.components().next()?))
}

/// Runs a program of `tests/targets`.
pub fn command(python: &Path, program: &str) -> Command {
    let path = workspace().join("tests/targets").join(program);
    let mut command = if let Some(root) = root_of(python) {
        in_root(&root, python, &path)
    } else {
        let mut command = Command::new(python);
        command.arg(path);
        command
    };
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    // What the user's own site-packages start would be part of the truth.
    command.env("PYTHONNOUSERSITE", "1");
    command
}

/// The process that is started becomes the interpreter itself.
fn in_root(root: &Path, python: &Path, program: &Path) -> Command {
    let python = Path::new("/").join(python.strip_prefix(root).expect("it is in its root"));
    let inside = Path::new(PROGRAMS).join(program.file_name().expect("a program has a name"));
    copy(program, &root.join(&inside)).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut command = Command::new("chroot");
    command.arg(root).arg(python).arg(Path::new("/").join(inside));
    command
}

/// Runs a program that uses packages of `tests/requirements.txt`. `Err` where these were not installed.
pub fn command_with_packages(python: &Path, version: &str, program: &str) -> Result<Command, String> {
    let (root, folder) = match root_of(python) {
        Some(root) => (root, Path::new("/").join(PROGRAMS).join("packages")),
        None => (PathBuf::new(), target_directory().join("python-packages")),
    };
    let folder = folder.join(version);
    let there = root.join(folder.strip_prefix("/").unwrap_or(&folder));
    let there = if root.as_os_str().is_empty() {
        folder.clone()
    } else {
        there
    };
    if !there.is_dir() {
        return Err(format!(
            "there is no {} (`cargo xtask setup --tests` fetches it)",
            there.display()
        ));
    }
    let mut command = command(python, program);
    command.env("PYTHONPATH", folder);
    Ok(command)
}

/// Whole at any moment: other tests may be starting the same program.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let unfinished = to.with_extension(format!(
        "{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::copy(from, &unfinished)?;
    fs::rename(&unfinished, to)
}

/// Bytes and blocks.
pub type Held = (u64, u64);

/// As the programs write them.
pub fn held(value: &Value) -> Held {
    let number = |at: usize| value[at].as_u64().expect("bytes and blocks");
    (number(0), number(1))
}

/// When a program told its truth.
pub fn time_of(answer: &Value) -> i128 {
    i128::from(answer["time_ns"].as_i64().expect("the truth has a time"))
}
