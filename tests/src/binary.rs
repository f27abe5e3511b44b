//! The binary under test, and whether it can do its work here.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::compile::Recipe;
use crate::target::Target;
use crate::watch::run_to_end;

/// How long a test waits for anything before it fails.
pub fn patience() -> Duration {
    let seconds = env::var("MEMWATCH_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(90))
}

pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace")
}

pub fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Says why a test does not run.
pub fn skip(why: &str) {
    assert!(
        env::var_os("MEMWATCH_REQUIRE_BPF").is_none_or(|value| value != "1"),
        "cannot run: {why}"
    );
    eprintln!("skipped: {why}");
}

/// Where the binary is. It needs no rights: tests of the command line use it alone.
pub fn find() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("MEMWATCH_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("MEMWATCH_BIN={} is no file", path.display()))
        };
    }
    ["release", "debug"]
        .iter()
        .map(|profile| target_directory().join(profile).join("memwatch"))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            "there is no target/{release,debug}/memwatch: build it, or set MEMWATCH_BIN".to_owned()
        })
}

/// A command of the binary. Backtraces are asked for, so that none can hide.
pub fn command() -> Command {
    let mut command = Command::new(find().expect("tests call this after they made sure that it is there"));
    command.env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
    // Nothing of this machine's own is used, and nothing is left there.
    command.env("XDG_CACHE_HOME", target_directory().join("test-cache"));
    command
}

/// Whether memwatch can watch a process here, tried once on a real one.
pub fn can_watch() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    TRIED.get_or_init(try_once).clone()
}

fn try_once() -> Result<(), String> {
    find()?;
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("the tests that watch a process need root".to_owned());
    }
    let mut target = Target::start(&Recipe::c("c_basic.c").build()?);
    let pid = target.pid().to_string();
    let ended = run_to_end(command().args(["--pid", &pid, "--once", "-i", "100ms", "--format", "json"]));
    target.exit();
    // 4 is "not permitted, or the kernel cannot". Any other failure is one that the tests themselves shall show.
    if ended.code == Some(4) {
        Err(ended.stderr.trim().to_owned())
    } else {
        Ok(())
    }
}
