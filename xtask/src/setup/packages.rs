//! Python packages that the tests' programs use, in `target/python-packages/<version>`, and in the root of a newer Debian
//! for its own interpreter. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::shell;

/// The distribution's interpreter, in whose environment pip runs.
const PYTHON: &str = "/usr/bin/python3";

/// That the tests take from pyenv.
const PYENV: &str = "3.12";

/// That of the newer Debian, and where its root has programs of ours.
const DEBIAN: (&str, &str) = ("3.13", "pythons/debian/programs/packages");

pub fn provide() -> Result<()> {
    let target = shell::target_folder()?;
    let folder = target.join("python-packages");
    let wanted = shell::workspace().join("tests/requirements.txt");
    let mut places = vec![
        (own_version()?, folder.clone()),
        (PYENV.to_owned(), folder.clone()),
    ];
    let (version, inside) = DEBIAN;
    if target.join("pythons/debian").is_dir() {
        places.push((version.to_owned(), target.join(inside)));
    }
    let pip = folder.join("pip");
    for (version, place) in places {
        install(&pip, &version, &place, &wanted)?;
    }
    Ok(())
}

fn own_version() -> Result<String> {
    let code = "import sys; print('%d.%d' % sys.version_info[:2])";
    let said = shell::output(Command::new(PYTHON).args(["-c", code]))?;
    Ok(said.trim().to_owned())
}

/// Once for each list of packages.
fn install(pip: &Path, version: &str, place: &Path, wanted: &Path) -> Result<()> {
    let what = shell::read(wanted)?;
    let (to, mark) = (place.join(version), place.join(format!("{version}.list")));
    if fs::read_to_string(&mark).is_ok_and(|there| there == what) {
        shell::say(format!("tests: packages for Python {version} are there"));
        return Ok(());
    }
    let program = environment(pip)?;
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    shell::say(format!("tests: fetching packages for Python {version}"));
    let words = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary",
        ":all:",
    ];
    let mut command = Command::new(program);
    command
        .args(words)
        .args(["--python-version", version, "--target"]);
    shell::run(command.arg(&to).arg("--requirement").arg(wanted))?;
    shell::write(&mark, &what)
}

fn environment(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("bin/pip");
    if !program.is_file() {
        shell::run(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(folder))?;
    }
    Ok(program)
}
