//! Running other programs, and saying so.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::toolchain::{Surroundings, Version};

/// One line about what is done next, apart from what the programs print.
pub fn say(what: impl AsRef<str>) {
    eprintln!("xtask: {}", what.as_ref());
}

/// The folder with the workspace's `Cargo.toml`.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// The oldest compiler that the workspace accepts.
pub fn oldest_compiler() -> Result<Version> {
    Version::parse(env!("CARGO_PKG_RUST_VERSION")).context("the workspace's rust-version is not a version")
}

/// Where cargo puts what it builds: this program lies in `<there>/<profile>/`.
pub fn target_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let folder = own
        .parent()
        .and_then(Path::parent)
        .context("this program is not in cargo's target folder")?;
    Ok(folder.to_owned())
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

pub fn program(name: &str) -> Option<PathBuf> {
    Surroundings::of_this_process().program(name)
}

/// A command as one would type it.
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs it in sight of the user; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    say(typed(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", typed(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", typed(command));
    Ok(())
}

/// What it prints on stdout; anything but success is an error that shows its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", typed(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}: {}",
            typed(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The words to put before a command that must run as root: none when we are. `why` completes "needs root …".
pub fn as_root(why: &str) -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    let sudo = program("sudo")
        .with_context(|| format!("this needs root {why}, and there is no sudo: run it as root"))?;
    say(format!("this needs root {why}: using sudo"));
    let path = env::var("PATH").unwrap_or_default();
    Ok(vec![
        sudo.to_string_lossy().into_owned(),
        "-E".into(),
        "env".into(),
        format!("PATH={path}"),
    ])
}

/// `program`, run as root.
pub fn command_as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    let prefix = as_root(why)?;
    let Some((first, rest)) = prefix.split_first() else {
        return Ok(Command::new(program));
    };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    Ok(command)
}

/// Where the one binary is, or will be.
pub fn memwatch() -> Result<PathBuf> {
    Ok(target_folder()?.join("release").join("memwatch"))
}

/// Builds the one binary and says where it is.
pub fn build_memwatch() -> Result<PathBuf> {
    // All of it, though one binary is wanted: built alone, its dependencies could get other features, and it would be built
    // twice.
    run(cargo().args(["build", "--release"]))?;
    let binary = memwatch()?;
    ensure!(binary.is_file(), "cargo built no {}", binary.display());
    Ok(binary)
}

pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_one_would_type_them() {
        let mut command = Command::new("bpftrace");
        command.args(["-e", "BEGIN { exit() }", "it's", ""]);
        assert_eq!(typed(&command), r"bpftrace -e 'BEGIN { exit() }' 'it'\''s' ''");
    }

    #[test]
    fn failure_shows_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such thing") && error.contains('3'), "{error}");
    }

    #[test]
    fn output_is_stdout_alone() {
        assert_eq!(
            output(Command::new("sh").args(["-c", "echo out; echo err >&2"])).unwrap(),
            "out\n"
        );
    }
}
