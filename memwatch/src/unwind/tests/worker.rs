//! From files and mappings to what the kernel side knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use memwatch_common::unwind::{CodeRange, Rule, x86_64::CFA_RSP};
use tempfile::TempDir;

use super::{
    image::{CODE, Layout, image},
    kernel::FakeKernel,
    synthetic::small_section,
};
use crate::{
    target::{
        file_id::FileIds,
        maps::Device,
        modules::{FileKey, Module, ProcessModules, Range},
    },
    unwind::{Cache, cache::MOST_BYTES, worker::Worker},
};

/// Files in a folder, as processes map them.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A library with a rule of its own.
    fn write(&self, name: &str, which: u32) {
        let bytes = image(
            &[0x90; 0x4000],
            0,
            &small_section(which),
            Layout::Section(".eh_frame"),
        );
        fs::write(self.path(name), bytes).expect("a file");
    }

    fn module(&self, name: &str, start: u64) -> Module {
        let path = self.path(name);
        let id = FileIds::default().look_up(&path).ok().map(|stat| stat.id);
        Module {
            key: FileKey {
                device: Device { major: 0, minor: 0 },
                inode: 0,
            },
            id,
            path: path.clone(),
            access_path: Some(path),
            deleted: false,
            ranges: vec![Range {
                start,
                end: start + 0x4000,
                offset: CODE,
            }],
        }
    }

    fn modules(&self, names: &[(&str, u64)]) -> ProcessModules {
        ProcessModules {
            modules: names
                .iter()
                .map(|(name, start)| self.module(name, *start))
                .collect(),
            ..ProcessModules::default()
        }
    }
}

fn worker(blocks: u32, cache: Option<Cache>) -> Worker<FakeKernel> {
    Worker::new(FakeKernel::with_room(blocks as usize), blocks * 1024, cache, None).expect("a worker")
}

fn work(worker: &mut Worker<FakeKernel>) {
    for _ in 0..100 {
        if worker.is_idle() {
            return;
        }
        worker.work();
    }
    panic!("there is no end of work");
}

fn ranges(worker: &Worker<FakeKernel>, instance: u32) -> Vec<CodeRange> {
    let space = &worker.room.kernel.spaces[&instance];
    space.ranges[..space.count as usize].to_vec()
}

/// The rule that the kernel side finds at an address of a process; none where it knows of no code.
fn rule(worker: &mut Worker<FakeKernel>, instance: u32, address: u64) -> Option<Rule> {
    let ranges = ranges(worker, instance);
    let range = ranges
        .iter()
        .find(|range| address >= range.start && address - range.start < u64::from(range.bytes))?;
    Some(worker.room.kernel.rule(range.object, address - range.bias))
}

/// Behind the first instruction of the function in [`small_section`].
fn made_up(which: u32) -> Rule {
    Rule::new(CFA_RSP, 16 + 8 * which as i32)
}

const A: u64 = 0x7f00_0000_0000;
const B: u64 = 0x7f00_0010_0000;
const INSIDE: u64 = 2;

#[test]
fn files_are_built_once_and_found_at_their_places() {
    let files = Files::new();
    files.write("a", 1);
    files.write("b", 2);
    files.write("copy of a", 1);
    fs::write(files.path("text"), "no program").expect("a file");
    let mut worker = worker(100, None);
    worker.map(
        1,
        101,
        &files.modules(&[("a", A), ("b", B), ("text", B + 0x10_0000)]),
    );
    worker.map(2, 102, &files.modules(&[("copy of a", B)]));
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(1)));
    assert_eq!(rule(&mut worker, 1, B + INSIDE), Some(made_up(2)));
    assert_eq!(rule(&mut worker, 2, B + INSIDE), Some(made_up(1)));
    assert_eq!(rule(&mut worker, 1, A + 0x3000), Some(Rule::default()));
    assert_eq!(rule(&mut worker, 1, A + 0x4000), None);
    let progress = worker.progress();
    assert_eq!((progress.built, progress.from_cache, progress.shared), (2, 0, 1));
    assert!(progress.failures.is_empty() && progress.spent.as_nanos() > 0);
    // The same again is nothing new.
    let versions = worker.room.kernel.versions.clone();
    worker.map(
        1,
        101,
        &files.modules(&[("a", A), ("b", B), ("text", B + 0x10_0000)]),
    );
    work(&mut worker);
    assert_eq!(worker.room.kernel.versions, versions);
    assert_eq!(worker.progress().built, 2);
}

#[test]
fn a_process_that_maps_other_code_is_told_anew() {
    let files = Files::new();
    files.write("a", 1);
    files.write("b", 2);
    let mut worker = worker(100, None);
    worker.map(1, 101, &files.modules(&[("a", A)]));
    work(&mut worker);
    let before = worker.room.kernel.versions[&1];
    worker.map(1, 101, &files.modules(&[("b", A)]));
    // What is known already is told before anything is built.
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(2)));
    assert_ne!(worker.room.kernel.versions[&1], before);
    // Replaced twice: a walk may still hold the first.
    worker.map(1, 101, &files.modules(&[("a", B)]));
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), None);
    assert_eq!(worker.room.kernel.waits, 1);
    worker.unmap(&[1]);
    assert!(worker.room.kernel.spaces.is_empty());
}

#[test]
fn a_file_that_cannot_be_opened_is_tried_again_by_another_path() {
    let files = Files::new();
    files.write("a", 1);
    let mut modules = files.modules(&[("a", A)]);
    modules.modules[0].access_path = Some(files.path("gone"));
    let mut worker = worker(100, None);
    worker.map(1, 101, &modules);
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), None);
    // Another file under its name is not it.
    files.write("b", 2);
    modules.modules[0].access_path = Some(files.path("b"));
    worker.map(1, 101, &modules);
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), None);
    worker.map(2, 102, &files.modules(&[("a", A)]));
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(1)));
    assert_eq!(rule(&mut worker, 2, A + INSIDE), Some(made_up(1)));
}

#[test]
fn files_that_are_prepared_are_there_when_they_are_mapped() {
    let files = Files::new();
    files.write("a", 1);
    let mut worker = worker(100, None);
    worker.prepare(&files.path("a"));
    worker.prepare(Path::new("/no/such/file"));
    work(&mut worker);
    assert_eq!(worker.progress().built, 1);
    worker.map(1, 101, &files.modules(&[("a", A)]));
    work(&mut worker);
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(1)));
    assert_eq!(worker.progress().built, 1);
}

#[test]
fn the_next_run_builds_nothing() {
    let (files, folder) = (Files::new(), Files::new());
    files.write("a", 1);
    files.write("b", 2);
    for (built, from_cache) in [(2, 0), (0, 2)] {
        let cache = Cache::open_at(&folder.path("cache"), MOST_BYTES).expect("a cache");
        let mut worker = worker(100, Some(cache));
        worker.map(1, 101, &files.modules(&[("a", A), ("b", B)]));
        work(&mut worker);
        let progress = worker.progress();
        assert_eq!((progress.built, progress.from_cache), (built, from_cache));
        assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(1)));
        assert_eq!(rule(&mut worker, 1, B + INSIDE), Some(made_up(2)));
    }
}

#[test]
fn with_little_room_the_files_in_use_win() {
    let files = Files::new();
    for (name, which) in [("a", 1), ("b", 2), ("c", 3)] {
        files.write(name, which);
    }
    let mut worker = worker(2, None);
    worker.map(1, 101, &files.modules(&[("a", A), ("b", B)]));
    work(&mut worker);
    worker.map(2, 102, &files.modules(&[("c", A)]));
    work(&mut worker);
    assert_eq!(worker.progress().lost, 1);
    assert!(worker.misses_some());
    assert_eq!(rule(&mut worker, 2, A + INSIDE), Some(Rule::default()));
    assert_eq!(rule(&mut worker, 1, B + INSIDE), Some(made_up(2)));
    let version = worker.room.kernel.versions[&2];
    worker.look_at_use();
    assert_eq!(
        rule(&mut worker, 2, A + INSIDE),
        Some(made_up(3)),
        "a was never looked for"
    );
    assert_ne!(
        worker.room.kernel.versions[&2], version,
        "that it was missing is remembered"
    );
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(Rule::default()));
    assert_eq!((worker.progress().lost, worker.progress().brought_back), (2, 1));
    // One process ends, and there is room for all.
    worker.unmap(&[2]);
    worker.look_at_use();
    assert_eq!(rule(&mut worker, 1, A + INSIDE), Some(made_up(1)));
    assert!(!worker.misses_some());
    // What made room is not known any more, and comes back like new.
    worker.map(3, 103, &files.modules(&[("b", A)]));
    worker.map(1, 101, &files.modules(&[]));
    worker.map(4, 104, &files.modules(&[("c", B)]));
    work(&mut worker);
    assert_eq!(rule(&mut worker, 3, A + INSIDE), Some(made_up(2)));
    assert_eq!(rule(&mut worker, 4, B + INSIDE), Some(made_up(3)));
    assert_eq!(worker.progress().lost, 2);
}
