use std::{fs::File, os::fd::AsRawFd, os::unix::fs::symlink};

use super::*;
use crate::target::{
    fake::{FakeProc, Kind, maps_line},
    maps::parse,
};

fn read(proc: &FakeProc, pid: u32) -> ProcessModules {
    Catalog::new(proc.root()).read(pid).unwrap()
}

/// A process whose root is the directory `place`.
fn process(proc: &FakeProc, pid: u32, place: &str, maps: &str) {
    proc.process(pid, "x", Kind::User)
        .link(&format!("{pid}/root"), proc.outside_dir(place));
    proc.file(&format!("{pid}/maps"), maps);
}

#[test]
fn executable_files_are_modules_with_their_executable_ranges_only() {
    let proc = FakeProc::new();
    let lib = proc.outside("box", "/lib/a.so", b"code");
    let maps = [
        maps_line("1000-2000", "r--p", 0, &lib, "/lib/a.so"),
        maps_line("2000-3000", "r-xp", 0x1000, &lib, "/lib/a.so"),
        maps_line("3000-5000", "r-xp", 0x2000, &lib, "/lib/a.so"),
        maps_line("5000-6000", "rw-p", 0x4000, &lib, "/lib/a.so"),
        maps_line("9000-a000", "r-xp", 0x1000, &lib, "/lib/a.so"),
    ];
    process(&proc, 5, "box", &maps.concat());
    let found = read(&proc, 5);
    assert_eq!(found.modules.len(), 1);
    let module = &found.modules[0];
    assert_eq!(module.path, Path::new("/lib/a.so"));
    assert_eq!(module.access_path, Some(proc.root().file(5, "root/lib/a.so")));
    assert_eq!(fs::read(module.access_path.as_ref().unwrap()).unwrap(), b"code");
    assert!(!module.deleted && module.id.is_some());
    // Neighbours in address and file are one range.
    assert_eq!(
        module.ranges,
        [
            Range {
                start: 0x2000,
                end: 0x5000,
                offset: 0x1000
            },
            Range {
                start: 0x9000,
                end: 0xa000,
                offset: 0x1000
            },
        ]
    );
}

#[test]
fn code_without_a_file_is_listed_apart() {
    let proc = FakeProc::new();
    process(
        &proc,
        5,
        "box",
        "1000-2000 rwxp 0 00:00 0 
2000-3000 r-xp 0 00:00 0 
3000-4000 r-xp 0 00:00 0                  [anon:v8]
4000-5000 rw-p 0 00:00 0                  [heap]
5000-6000 rwxs 0 00:01 77                 /dev/zero (deleted)
6000-7000 r-xp 0 00:00 0                  [uprobes]
7000-8000 r-xp 0 00:00 0                  [vdso]
8000-9000 --xp 0 00:00 0                  [vsyscall]
",
    );
    let found = read(&proc, 5);
    assert_eq!(found.modules, []);
    assert_eq!(found.vdso, Some((0x7000, 0x8000)));
    let named = |start, end, name: Option<&str>| AnonymousCode {
        start,
        end,
        name: name.map(str::to_owned),
    };
    assert_eq!(
        found.anonymous,
        [
            named(0x1000, 0x3000, None),
            named(0x3000, 0x4000, Some("[anon:v8]")),
            named(0x5000, 0x6000, None),
        ]
    );
}

#[test]
fn a_replaced_file_is_reached_through_its_mapping() {
    let proc = FakeProc::new();
    let old = proc.outside("attic", "old.so", b"old");
    proc.outside("box", "/lib/a.so", b"new");
    process(
        &proc,
        5,
        "box",
        &maps_line("1000-2000", "r-xp", 0, &old, "/lib/a.so (deleted)"),
    );
    proc.link("5/map_files/1000-2000", &old);
    let module = &read(&proc, 5).modules[0];
    assert!(module.deleted);
    assert_eq!(module.path, Path::new("/lib/a.so"));
    assert_eq!(
        module.access_path,
        Some(proc.root().file(5, "map_files/1000-2000"))
    );
    assert_eq!(module.id, Some(FileIds::default().look_up(&old).unwrap().id));
}

#[test]
fn a_replaced_file_without_the_right_to_its_mapping_has_no_path() {
    let proc = FakeProc::new();
    let old = proc.outside("attic", "old.so", b"old");
    proc.outside("box", "/lib/a.so", b"new");
    process(
        &proc,
        5,
        "box",
        &maps_line("1000-2000", "r-xp", 0, &old, "/lib/a.so"),
    );
    let module = &read(&proc, 5).modules[0];
    assert_eq!(
        (&module.access_path, module.id, module.deleted),
        (&None, None, false)
    );
}

/// As on overlays and btrfs: `maps` names another device than `stat`.
fn other_device(line: &str) -> String {
    let mut fields: Vec<&str> = line.splitn(6, ' ').collect();
    fields[3] = "ab:cd";
    fields.join(" ")
}

#[test]
fn another_device_number_is_settled_by_the_mapping() {
    let proc = FakeProc::new();
    let lib = proc.outside("box", "/lib/a.so", b"code");
    let line = other_device(&maps_line("1000-2000", "r-xp", 0, &lib, "/lib/a.so"));
    process(&proc, 5, "box", &line);
    proc.link("5/map_files/1000-2000", &lib);
    assert_eq!(
        read(&proc, 5).modules[0].access_path,
        Some(proc.root().file(5, "root/lib/a.so"))
    );
    // The mapping leads elsewhere: the file at the path is not the one that runs.
    let other = proc.outside("attic", "other.so", b"code");
    proc.link("5/map_files/1000-2000", &other);
    assert_eq!(
        read(&proc, 5).modules[0].access_path,
        Some(proc.root().file(5, "map_files/1000-2000"))
    );
}

#[test]
fn without_the_mapping_inode_and_size_must_fit() {
    let proc = FakeProc::new();
    let lib = proc.outside("box", "/lib/a.so", &[0; 0x1800]);
    let path_of = |line: &str| {
        process(&proc, 5, "box", line);
        read(&proc, 5).modules[0].access_path.clone()
    };
    let fits = other_device(&maps_line("1000-2000", "r-xp", 0x1000, &lib, "/lib/a.so"));
    assert_eq!(path_of(&fits), Some(proc.root().file(5, "root/lib/a.so")));
    let beyond = other_device(&maps_line("1000-2000", "r-xp", 0x2000, &lib, "/lib/a.so"));
    assert_eq!(path_of(&beyond), None);
    let gone = other_device(&maps_line("1000-2000", "r-xp", 0, &lib, "/lib/a.so (deleted)"));
    assert_eq!(path_of(&gone), None);
}

#[test]
fn a_process_in_a_chroot_sees_a_shorter_path() {
    let proc = FakeProc::new();
    let lib = proc.outside("jail", "/lib/a.so", b"code");
    process(
        &proc,
        5,
        "jail",
        &maps_line("1000-2000", "r-xp", 0, &lib, lib.to_str().unwrap()),
    );
    let module = &read(&proc, 5).modules[0];
    assert_eq!(module.path, Path::new("/lib/a.so"));
    assert_eq!(module.access_path, Some(proc.root().file(5, "root/lib/a.so")));
}

#[test]
fn a_file_outside_the_processes_root_is_reached_by_its_own_name() {
    let proc = FakeProc::new();
    let lib = proc.outside("elsewhere", "/a.so", b"code");
    process(
        &proc,
        5,
        "jail",
        &maps_line("1000-2000", "r-xp", 0, &lib, lib.to_str().unwrap()),
    );
    let module = &read(&proc, 5).modules[0];
    assert_eq!((&module.path, &module.access_path), (&lib, &Some(lib.clone())));
}

#[test]
fn many_processes_look_at_each_file_once() {
    let proc = FakeProc::new();
    let libs: Vec<_> = (0..500)
        .map(|n| proc.outside("box", &format!("/lib/{n}.so"), format!("{n}").as_bytes()))
        .collect();
    let mut maps = String::new();
    for (n, lib) in libs.iter().enumerate() {
        let start = 0x10000 * (n + 1);
        let range = format!("{start:x}-{:x}", start + 0x1000);
        maps.push_str(&maps_line(&range, "r-xp", 0, lib, &format!("/lib/{n}.so")));
    }
    for pid in 1..=100 {
        process(&proc, pid, "box", &maps);
    }
    let mut catalog = Catalog::new(proc.root());
    let all: Vec<_> = (1..=100).map(|pid| (pid, catalog.read(pid).unwrap())).collect();
    assert_eq!(catalog.looked_up(), 500);
    // Each process has a path of its own all the same: another one may end before the path is used.
    assert_eq!(
        all[99].1.modules[7].access_path,
        Some(proc.root().file(100, "root/lib/7.so"))
    );
    let files = shared(all.iter().map(|(pid, modules)| (*pid, modules)));
    assert_eq!(files.len(), 500);
    assert!(files.iter().all(|file| file.pids.len() == 100));
}

#[test]
fn other_roots_do_not_share_answers() {
    let proc = FakeProc::new();
    let first = proc.outside("one", "/lib/a.so", b"1");
    proc.outside("two", "/lib/a.so", b"2");
    // Both name the same device and inode, as snapshots of one btrfs do.
    let line = maps_line("1000-2000", "r-xp", 0, &first, "/lib/a.so");
    process(&proc, 5, "one", &line);
    process(&proc, 6, "two", &line);
    proc.link("6/map_files/1000-2000", proc.outside_dir("two").join("lib/a.so"));
    let mut catalog = Catalog::new(proc.root());
    let (five, six) = (catalog.read(5).unwrap(), catalog.read(6).unwrap());
    assert_ne!(five.modules[0].id, six.modules[0].id);
    assert_eq!(shared([(5, &five), (6, &six)]).len(), 2);
}

#[test]
fn files_that_cannot_be_reached_are_kept_apart_by_their_numbers() {
    let proc = FakeProc::new();
    process(
        &proc,
        5,
        "box",
        "1000-2000 r-xp 0 08:01 5 /a\n2000-3000 r-xp 0 08:01 6 /a\n",
    );
    let found = read(&proc, 5);
    let files = shared([(5, &found), (6, &found)]);
    assert_eq!(
        files.iter().map(|file| file.pids.as_slice()).collect::<Vec<_>>(),
        [[5, 6], [5, 6]]
    );
}

#[test]
fn a_process_that_has_gone_is_an_error_that_says_so() {
    let proc = FakeProc::new();
    let error = Catalog::new(proc.root()).read(99).unwrap_err();
    assert!(crate::target::process::is_gone(&error));
}

#[test]
fn a_path_that_leads_out_of_the_root_by_a_link_is_not_believed() {
    let proc = FakeProc::new();
    let real = proc.outside("attic", "a.so", b"real");
    let trap = proc.outside("attic", "trap.so", b"trap");
    proc.outside("box", "/lib/x", b"");
    symlink(&trap, proc.outside_dir("box").join("lib/a.so")).unwrap();
    process(
        &proc,
        5,
        "box",
        &maps_line("1000-2000", "r-xp", 0, &real, "/lib/a.so"),
    );
    assert_eq!(read(&proc, 5).modules[0].access_path, None);
}

#[test]
fn the_own_modules_can_be_opened_and_are_the_right_files() {
    let own = std::process::id();
    let found = Catalog::default().read(own).unwrap();
    assert!(found.vdso.is_some());
    let here = parse as *const () as u64;
    let me = found
        .modules
        .iter()
        .find(|module| {
            module
                .ranges
                .iter()
                .any(|range| (range.start..range.end).contains(&here))
        })
        .unwrap();
    assert_eq!(me.path, std::env::current_exe().unwrap());
    for module in &found.modules {
        let opened = File::open(module.access_path.as_ref().unwrap()).unwrap();
        let direct = fs::metadata(&module.path).unwrap();
        assert!(opened.as_raw_fd() >= 0);
        assert_eq!(opened.metadata().unwrap().ino(), direct.ino());
    }
}
