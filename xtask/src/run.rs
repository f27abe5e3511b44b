//! `cargo xtask run`: the first look at memwatch.

use std::{
    env,
    ffi::OsString,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{setup, shell};

pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    let binary = shell::build_memwatch()?;
    let mut memwatch = shell::command_as_root(binary, "to watch other processes")?;
    // Ends when this function does.
    let target = arguments.is_empty().then(Target::start).transpose()?;
    if let Some(Target(child)) = &target {
        shell::say(format!(
            "watching a small program that leaks, pid {}; q or Ctrl-C ends it",
            child.id()
        ));
        memwatch.args(["--pid", &child.id().to_string()]);
    }
    memwatch.args(arguments);
    ignore_interrupts();
    let status = memwatch
        .status()
        .with_context(|| format!("cannot run `{}`", shell::typed(&memwatch)))?;
    Ok(exit_code(status))
}

/// A Ctrl-C is for memwatch, which then prints what it gathered: wait for it.
fn ignore_interrupts() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: the handler does nothing, which is safe at any time. A handler, unlike SIG_IGN, does not outlive exec,
    // so memwatch starts with the usual one.
    unsafe { libc::signal(libc::SIGINT, nothing as *const () as libc::sighandler_t) };
}

/// As a shell gives it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// This program as a leaking one; it ends with us, even if we are killed, because it reads our end of a pipe.
struct Target(Child);

impl Target {
    fn start() -> Result<Self> {
        let own = env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new(own);
        // A group of its own: a Ctrl-C must not end the target before the last look at it.
        command
            .args(["leaky", "--until-stdin-ends"])
            .stdin(Stdio::piped())
            .process_group(0);
        Ok(Self(command.spawn().context("cannot start the leaking program")?))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Either fails only if it is gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_handed_on() {
        let shown = |raw| format!("{:?}", exit_code(ExitStatus::from_raw(raw)));
        assert_eq!(shown(3 << 8), format!("{:?}", ExitCode::from(3)));
        assert_eq!(shown(libc::SIGKILL), format!("{:?}", ExitCode::from(137)));
    }
}
