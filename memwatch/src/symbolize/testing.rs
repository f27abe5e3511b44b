//! Small programs, compiled for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object as _, ObjectSymbol as _};

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes `text` to `source` and compiles it to `output`.
    pub fn compile(&self, compiler: &str, flags: &[&str], source: &str, text: &str, output: &str) -> PathBuf {
        fs::write(self.path(source), text).unwrap();
        let path = self.path(output);
        run(Command::new(compiler)
            .args(flags)
            .arg("-o")
            .arg(&path)
            .arg(self.path(source)));
        path
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The address and size of the one symbol whose name contains `part`.
pub fn symbol(file: &Path, part: &str) -> (u64, u64) {
    let bytes = fs::read(file).unwrap();
    let file = object::File::parse(&bytes[..]).unwrap();
    let symbols = file.symbols().chain(file.dynamic_symbols());
    let found =
        symbols.filter(|symbol| symbol.size() > 0 && symbol.name().is_ok_and(|name| name.contains(part)));
    let mut found: Vec<(u64, u64)> = found.map(|symbol| (symbol.address(), symbol.size())).collect();
    found.dedup();
    assert_eq!(found.len(), 1, "{part}");
    found[0]
}
