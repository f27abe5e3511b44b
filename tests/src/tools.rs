//! The programs that exports are for.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::binary::patience;
use crate::lines::Lines;
use crate::target::die_with_parent;

/// The path of a program.
pub fn program(name: &str, package: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("`{name}` is not here (`cargo xtask setup --tests` installs it: {package})"))
}

/// Runs to the end; gives stdout and stderr, or says how it failed.
pub fn run(command: &mut Command) -> Result<(String, String), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok((text(&output.stdout), text(&output.stderr)))
    } else {
        Err(format!(
            "{command:?} ended with {}: {}",
            output.status,
            text(&output.stderr)
        ))
    }
}

/// `go tool pprof` with these arguments.
pub fn pprof(go: &Path, home: &Path, arguments: &[&str]) -> Result<(String, String), String> {
    // It keeps settings and looks for binaries; neither shall come from whoever runs the test.
    let mut command = Command::new(go);
    command
        .args(["tool", "pprof", "-symbolize=none"])
        .args(arguments)
        .env("HOME", home)
        .env("PPROF_TMPDIR", home)
        .env("PPROF_BINARY_PATH", home);
    run(&mut command)
}

/// Loads a page in Chromium and gives the document as it is once its scripts have run.
pub fn document(chromium: &Path, home: &Path, page: &Path) -> Result<String, String> {
    let url = format!("file://{}", page.display());
    let profile = format!("--user-data-dir={}", home.join("chromium").display());
    let mut command = Command::new(chromium);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--virtual-time-budget=10000", &profile, "--dump-dom", &url])
        .env("HOME", home);
    run(&mut command).map(|(document, _)| document)
}

/// Starts a program that writes its data to a file; gives what it says on stderr.
pub fn start(command: &mut Command) -> (Child, Lines) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_parent(command);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let said = Lines::of(child.stderr.take().expect("it is piped"));
    (child, said)
}

/// Waits for a line that contains this.
pub fn wait_for(said: &Lines, words: &str) {
    let mut before = Vec::new();
    loop {
        match said.next(patience()) {
            Ok(line) if line.contains(words) => return,
            Ok(line) => before.push(line),
            Err(why) => panic!("no line with {words:?} ({why:?}), only {before:?}"),
        }
    }
}

/// Ctrl-C.
pub fn interrupt(child: &Child) {
    // SAFETY: the child was not waited for, so the pid is still its own.
    let result = unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(result, 0, "a signal can be sent to our own child");
}
