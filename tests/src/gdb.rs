//! Stacks as gdb unwinds them.

use std::fs;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::binary::workspace;
use crate::target::{die_with_parent, wait};

/// Where a frame stands: a file, and the address in it as its program headers count; no file for code that was made at
/// run time, and then the address in the process.
pub type Place = (String, u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct GdbStack {
    /// Innermost first; the first is the entry of the allocation function.
    pub frames: Vec<Place>,
    /// gdb says that there is no caller, and not that it could not find it.
    pub whole: bool,
}

/// Stops a process so many times at the entry of an allocation function. `Err` says what is missing.
pub fn stacks(pid: u32, stops: u32) -> Result<Vec<GdbStack>, String> {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let output = directory.path().join("stacks");
    let mut command = Command::new("gdb");
    command.args(["-q", "-nx", "-batch", "-p", &pid.to_string(), "-x"]);
    command.arg(workspace().join("tests/src/gdb_stacks.py"));
    // Debug information that is fetched or read at leisure would only slow it down.
    command.env_remove("DEBUGINFOD_URLS");
    command
        .env("STACKS_STOPS", stops.to_string())
        .env("STACKS_OUTPUT", &output);
    let errors = directory.path().join("errors");
    let to = fs::File::create(&errors).expect("it can be written");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(to);
    die_with_parent(&mut command);
    match command.spawn() {
        Ok(mut child) => wait(&mut child, "gdb"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("gdb is not installed".to_owned());
        }
        Err(error) => panic!("gdb cannot be run: {error}"),
    };
    let text = fs::read_to_string(&output).unwrap_or_default();
    let stacks: Vec<GdbStack> = text
        .lines()
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("gdb's script wrote {line:?}: {error}"))
        })
        .collect();
    let said = fs::read_to_string(&errors).unwrap_or_default();
    assert_eq!(
        stacks.len(),
        stops as usize,
        "gdb stopped too few times; it said:\n{said}"
    );
    Ok(stacks)
}
