//! The interpreters that tests run: those that `MEMWATCH_PYTHONS` lists (paths, separated by colons), or
//! `/usr/bin/python3` and everything under `~/.pyenv/versions`. Wrapper scripts that end in `exec` will do.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::python::{Found, Interpreter, ProcessMemory, PythonFiles, c_library};
use crate::target::{ProcRoot, modules::Catalog};

/// At least this minor version: older ones are not supported.
const OLDEST: u8 = 8;

/// All interpreters, with their minor versions. Finding none fails the test.
pub fn all() -> Vec<(u8, PathBuf)> {
    let mut found: Vec<(u8, PathBuf)> = candidates()
        .into_iter()
        .filter_map(|path| Some((minor(&path)?, path)))
        .filter(|(minor, _)| *minor >= OLDEST)
        .collect();
    found.sort();
    assert!(
        !found.is_empty(),
        "no Python found: name some in MEMWATCH_PYTHONS"
    );
    found
}

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("MEMWATCH_PYTHONS") {
        return std::env::split_paths(&named).collect();
    }
    let mut paths = vec![PathBuf::from("/usr/bin/python3")];
    if let Some(home) = std::env::home_dir() {
        let versions = fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten();
        paths.extend(
            versions
                .flatten()
                .map(|version| version.path().join("bin/python3")),
        );
    }
    paths.retain(|path| path.exists());
    paths
}

fn minor(python: &Path) -> Option<u8> {
    let output = Command::new(python)
        .args([
            "-c",
            "import sys; print(sys.version_info[0] == 3 and sys.version_info[1])",
        ])
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Says that it runs, and does so until it is told to end.
pub const WAIT: &str = "print('up', flush=True); import sys; sys.stdin.readline()";

/// A running interpreter. It ends with the test.
pub struct Running {
    child: Child,
    pub input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Runs a script, and waits for the first line that it prints.
    pub fn start(python: &Path, script: &str, environment: &[(&str, &str)]) -> (Self, String) {
        let mut child = Command::new(python)
            .args(["-c", script])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        let line = running.line();
        (running, line)
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a line and waits for the answer.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn memory(&self) -> ProcessMemory {
        ProcessMemory::open(&ProcRoot::default(), self.pid()).unwrap()
    }

    pub fn found(&self) -> (Found, crate::python::thread_state::CLibrary) {
        let modules = Catalog::new(ProcRoot::default()).read(self.pid()).unwrap();
        let mut found = PythonFiles::default().find(&modules);
        assert_eq!(found.len(), 1, "{found:?}");
        (found.remove(0), c_library(&modules))
    }

    /// The file that holds the interpreter, and whether it has a full symbol table.
    pub fn python_file(&self) -> (PathBuf, bool) {
        use object::Object as _;
        let modules = Catalog::new(ProcRoot::default()).read(self.pid()).unwrap();
        let found = PythonFiles::default().find(&modules);
        let path = modules.modules[found[0].module].path.clone();
        let bytes = fs::read(&path).unwrap();
        let symbols = object::File::parse(&bytes[..])
            .unwrap()
            .symbols()
            .next()
            .is_some();
        (path, symbols)
    }

    pub fn attach(&self) -> Interpreter {
        let (found, library) = self.found();
        Interpreter::attach(&found.file.unwrap(), found.bias, library, &self.memory()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
