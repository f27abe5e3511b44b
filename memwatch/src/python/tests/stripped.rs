//! Builds without symbols: what is read out of the code must be what the symbols say.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use super::interpreters::{self, Running, WAIT};
use crate::python::PythonFile;

/// The file with the interpreter, and a copy of it without symbols. Files that have none already are left out.
fn with_copy(running: &Running, folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (path, symbols) = running.python_file();
    let copy = folder.join(path.file_name().unwrap());
    let stripped = symbols && {
        let status = Command::new("strip")
            .arg("-o")
            .arg(&copy)
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        true
    };
    stripped.then_some((path, copy))
}

fn read(path: &Path) -> PythonFile {
    let name = path.file_name().unwrap().to_str().unwrap();
    PythonFile::parse(&std::fs::read(path).unwrap(), name)
        .unwrap()
        .unwrap()
}

/// Compilers leave remnants of an instruction or two that nothing leads to. No frame is ever in them.
fn frames(file: &PythonFile) -> Vec<Range<u64>> {
    let mut ranges = file.native.evaluates.clone();
    ranges.retain(|range| range.end - range.start > 16);
    ranges
}

#[test]
fn code_tells_what_symbols_tell() {
    let folder = tempfile::tempdir().unwrap();
    for (minor, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let Some((file, copy)) = with_copy(&running, folder.path()) else {
            continue;
        };
        let (whole, stripped) = (read(&file), read(&copy));
        let context = file.display();
        assert_eq!(stripped.version, whole.version, "{context}");
        assert_eq!(stripped.runtime, whole.runtime, "{context}");
        assert_eq!(frames(&stripped), frames(&whole), "{context}");
        assert_eq!(stripped.allocator.pymalloc, whole.allocator.pymalloc, "{context}");
        assert_eq!(stripped.allocator.raw, whole.allocator.raw, "{context}");
        // Before 3.10 only its name tells.
        let found = stripped.allocator.new_pool;
        assert_eq!(
            found,
            whole.allocator.new_pool.filter(|_| minor >= 10),
            "{context}"
        );
        assert_eq!(found.is_some(), minor >= 10, "{context}");
        assert_eq!(stripped.allocator.pool_sites.is_empty(), minor >= 10, "{context}");
        if whole.allocator.new_pool.is_none() {
            let found = &stripped.allocator.pool_sites;
            assert_eq!(found, &whole.allocator.pool_sites, "{context}");
        }
    }
}

#[test]
fn pools_are_found_without_symbols() {
    let folder = tempfile::tempdir().unwrap();
    for (_, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let Some((file, copy)) = with_copy(&running, folder.path()) else {
            continue;
        };
        // Of a shared library the copy can be taken in place of the installed one.
        if !file.to_string_lossy().contains(".so") {
            continue;
        }
        let preload = copy.to_str().unwrap();
        let script = "import sys; kept = [object() for _ in range(100000)]; print(sys.getallocatedblocks(), flush=True); sys.stdin.readline()";
        let (running, blocks) = Running::start(&path, script, &[("LD_PRELOAD", preload)]);
        assert_eq!(running.python_file().0, copy);
        let python = running.attach();
        let pools = python.pools(&[], &running.memory());
        let pools = pools.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let blocks: u64 = blocks.parse().unwrap();
        assert!(pools.blocks_in_use() > 100_000, "{}", file.display());
        assert!(
            pools.blocks_in_use().abs_diff(blocks) < 5000,
            "{}: {blocks}",
            file.display()
        );
    }
}
