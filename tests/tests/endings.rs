//! Recordings that end badly: no memory, no room on the disk, a kill at a bad moment. What was recorded stays, it is said
//! in one line, and the target knows nothing of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use memwatch::model::report::Report;
use memwatch::store::{self, Ending};
use memwatch_tests::binary::{can_watch, command, patience};
use memwatch_tests::cgroup::{MemoryGroup, kill_by_memory};
use memwatch_tests::truth::assert_true;
use memwatch_tests::watch::{ALL_STACKS, run_to_end};
use memwatch_tests::{Checks, Memwatch, Recipe, Target, need};

fn wait_for(ready: impl Fn() -> bool, why: &str) {
    let until = Instant::now() + patience();
    while !ready() {
        assert!(Instant::now() < until, "{why}");
        sleep(Duration::from_millis(20));
    }
}

fn record(target: &Target, file: &Path) -> Command {
    let mut record = command();
    record.args(["record", "--pid", &target.pid().to_string(), "-i", "100ms", "-o"]);
    record.arg(file);
    record
}

/// Starts it; returns when nothing is missed any more.
fn start(record: &mut Command, file: &Path) -> Memwatch {
    let watch = Memwatch::start(record);
    wait_for(|| file.exists(), "the recording does not begin");
    watch
}

fn last_tick_ns(file: &Path) -> i128 {
    let recording = store::open(file).expect("it can be read while it is written");
    let last = recording.ticks().last().expect("it has a tick");
    last.time.expect("it has a time").as_nanosecond()
}

/// What is known at the end of the file, and what is said of the file on stderr.
fn last(file: &Path) -> (Report, String) {
    let mut show = command();
    let ended = run_to_end(
        show.arg("top")
            .arg(file)
            .args(["--format", "json"])
            .args(ALL_STACKS),
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    (
        ended.reports().pop().expect("one report"),
        ended.stderr.trim().to_owned(),
    )
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("it is there");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("it can be read").file_name();
    entries
        .map(name)
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn memwatch_is_killed_for_want_of_memory() {
    need!(can_watch());
    let group = MemoryGroup::create("memwatch");
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let mut command = record(&target, &file);
    if let Ok(group) = &group {
        group.join(&mut command);
    }
    let watch = start(&mut command, &file);
    let truths = target.go();
    wait_for(
        || last_tick_ns(&file) > truths[0].time_ns,
        "no tick later than the truth",
    );
    need!(kill_by_memory(group.as_ref(), watch.pid()));
    let ended = watch.finish();
    assert_eq!(ended.signal, Some(libc::SIGKILL), "{ended:?}");
    let (report, said) = last(&file);
    assert!(said.contains("memwatch was killed"), "{said}");
    assert_true(&report, &truths, Checks::default());
    assert_eq!(names(folder.path()), ["a.memwatch"]);
    assert!(target.exit().success());
}

#[test]
fn the_target_is_killed_for_want_of_memory() {
    need!(can_watch());
    let group = MemoryGroup::create("target");
    let mut program = Command::new(need!(Recipe::c("c_basic.c").build()));
    if let Ok(group) = &group {
        group.join(&mut program);
    }
    let mut target = Target::start_command(&mut program);
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("a.memwatch");
    let watch = start(&mut record(&target, &file), &file);
    target.go();
    let truths = target.go();
    need!(kill_by_memory(group.as_ref(), target.pid()));
    let ended = watch.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (report, said) = last(&file);
    assert_eq!(said, "", "the recording is complete");
    assert!(report.processes.iter().all(|process| process.exited));
    assert_true(&report, &truths, Checks::default());
    let text = run_to_end(command().arg("report").arg(&file)).stdout.join("\n");
    let why = if group.is_ok() {
        "was killed for want of memory"
    } else {
        "was killed by SIGKILL"
    };
    assert!(text.contains(why), "how it ended is said: {text}");
    let exits = report.processes.iter().filter_map(|process| process.exit);
    let exits: Vec<_> = exits.map(|exit| (exit.signal, exit.out_of_memory)).collect();
    assert_eq!(exits, [(Some(9), group.is_ok())]);
}

/// A file system with room for little, which goes with the value.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(bytes: u32) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        memwatch_tests::tools::run(mount.arg(folder.path()))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let zeros = vec![0; 1 << 22];
        let error = fs::write(self.path("filler"), zeros).expect_err("there is less room than this");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

#[test]
fn the_disk_becomes_full_while_recording() {
    need!(can_watch());
    let disk = need!(SmallDisk::mount(1 << 20));
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let file = disk.path("a.memwatch");
    let watch = start(&mut record(&target, &file), &file);
    let truths = target.go();
    wait_for(
        || last_tick_ns(&file) > truths[0].time_ns,
        "no tick later than the truth",
    );
    disk.fill();
    let ended = watch.finish();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| !line.ends_with("recording"))
        .collect();
    assert_eq!(said.len(), 1, "{ended:?}");
    for words in ["a.memwatch", "No space left", "kept"] {
        assert!(said[0].contains(words), "{said:?}");
    }
    assert_eq!(
        store::open(&file).expect("it can be read").ending(),
        Ending::Unfinished
    );
    let (report, _) = last(&file);
    assert_true(&report, &truths, Checks::default());
    let mut left = names(disk.folder.path());
    left.sort();
    assert_eq!(left, ["a.memwatch", "filler"]);
    assert!(target.exit().success());
}

#[test]
fn a_disk_without_room_for_the_first_tick_is_left_as_it_was() {
    need!(can_watch());
    let disk = need!(SmallDisk::mount(1 << 16));
    let file = disk.path("a.memwatch");
    fs::write(&file, "before").expect("there is room for this");
    disk.fill();
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let ended = run_to_end(record(&target, &file).args(["-d", "1s"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("No space left") && ended.stderr.contains("unchanged"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_eq!(fs::read(&file).expect("it is there"), b"before");
    assert_eq!(names(disk.folder.path()).len(), 2);
    assert!(target.exit().success());
}

/// Before its first tick there is no file, and nothing else; after it there is one that can be read.
#[test]
fn a_kill_at_any_moment_leaves_a_file_that_can_be_read_or_none() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let (mut before, mut after) = (0, 0);
    for round in 0..12_u64 {
        let folder = tempfile::tempdir().expect("a directory can be made");
        let file = folder.path().join("a.memwatch");
        let watch = if round % 4 == 3 {
            start(&mut record(&target, &file), &file)
        } else {
            let watch = Memwatch::start(&mut record(&target, &file));
            sleep(Duration::from_millis(round * 29));
            watch
        };
        watch.kill();
        match &names(folder.path())[..] {
            [] => before += 1,
            [name] if name == "a.memwatch" => {
                assert_eq!(
                    store::open(&file).expect("it can be read").ending(),
                    Ending::Unfinished
                );
                after += 1;
            }
            other => panic!("left behind: {other:?}"),
        }
    }
    assert!(
        before > 0 && after > 0,
        "{before} before the first tick, {after} after"
    );
    target.go();
    assert!(target.exit().success());
}
