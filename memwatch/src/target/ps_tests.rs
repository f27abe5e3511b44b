use std::time::Duration;

use serde_json::json;

use super::*;
use crate::target::{
    fake::{FakeProc, Kind, maps_line},
    go_build::tests::{elf, info},
};

const ID: &str = "3f4e8c0f2b6a4d5e8f7a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6";

fn gather(proc: &FakeProc) -> HashMap<u32, PsProcess> {
    let mut gatherer = Gatherer::new(proc.root(), |module| module.path.ends_with("libc.so.6"));
    let ps = gatherer
        .gather(None, Instant::now(), jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    ps.processes
        .into_iter()
        .map(|process| (process.pid, process))
        .collect()
}

/// A process that executes the given files of its root directory.
fn process(proc: &FakeProc, pid: u32, exe: &str, files: &[(&str, &[u8])]) {
    let mut maps = String::new();
    for (n, (path, bytes)) in files.iter().enumerate() {
        let file = proc.outside("box", path, bytes);
        let start = 0x1000 * (n + 1);
        maps.push_str(&maps_line(
            &format!("{start:x}-{:x}", start + 0x1000),
            "r-xp",
            0,
            &file,
            path,
        ));
    }
    proc.process(pid, exe.trim_start_matches('/'), Kind::User)
        .exe(pid, exe);
    proc.link(&format!("{pid}/root"), proc.outside_dir("box"))
        .file(&format!("{pid}/maps"), maps);
}

#[test]
fn a_process_with_an_allocator_can_be_watched() {
    let proc = FakeProc::new();
    process(
        &proc,
        5,
        "/python3.11",
        &[("/python3.11", b""), ("/libc.so.6", b"")],
    );
    proc.file("5/cmdline", "python3\0app.py\0")
        .file("5/cgroup", format!("0::/docker/{ID}\n"));
    let runtime = |name: &str, version: Option<&str>| Runtime {
        name: name.to_owned(),
        version: version.map(str::to_owned),
    };
    let expected = PsProcess {
        pid: 5,
        ppid: 1,
        uid: Some(7),
        comm: "python3.11".to_owned(),
        command: "python3 app.py".to_owned(),
        rss_bytes: Some(250 * page_bytes()),
        growth_bytes_per_second: None,
        runtimes: vec![runtime("cpython", Some("3.11")), runtime("glibc", None)],
        container: Some(Container {
            id: ID.to_owned(),
            ..Container::default()
        }),
        pod_uid: None,
        kernel_thread: false,
        can_watch: true,
        why: None,
    };
    assert_eq!(gather(&proc)[&5], expected);
}

#[test]
fn each_obstacle_is_named() {
    let proc = FakeProc::new();
    let go = elf(".go.buildinfo", &info(2, "go1.22.3"));
    process(&proc, 5, "/go-static", &[("/go-static", &go)]);
    process(
        &proc,
        6,
        "/go-with-c",
        &[("/go-with-c", &go), ("/libc.so.6", b"")],
    );
    process(&proc, 7, "/static", &[("/static", b"")]);
    process(&proc, 8, "/gone", &[]);
    proc.file("8/maps", "1000-2000 r-xp 0 08:01 5 /gone (deleted)\n");
    process(&proc, 9, "/debugged", &[("/libc.so.6", b"")]);
    proc.file("9/status", "Tgid:\t9\nTracerPid:\t77\n");
    process(&proc, 10, "/memwatch", &[("/libc.so.6", b"")]);
    proc.link("self", "10");
    process(&proc, 11, "/broken", &[]);
    proc.file("11/maps", "nonsense\n");
    proc.process(12, "kworker", Kind::Kernel)
        .process(13, "sh", Kind::Zombie);
    process(&proc, 14, "/ending", &[]);
    std::fs::remove_file(proc.root().file(14, "maps")).unwrap();
    let found = gather(&proc);
    let answers = |pid: u32| (found[&pid].can_watch, found[&pid].why);
    assert_eq!(answers(5), (false, Some(Remark::Go)));
    assert_eq!(answers(6), (true, Some(Remark::GoWithC)));
    assert_eq!(answers(7), (false, Some(Remark::NoAllocator)));
    assert_eq!(answers(8), (false, Some(Remark::FilesClosed)));
    assert_eq!(answers(9), (true, Some(Remark::Traced { by: 77 })));
    assert_eq!(answers(10), (false, Some(Remark::OwnProcess)));
    assert_eq!(answers(11), (false, Some(Remark::Unreadable)));
    assert_eq!(answers(12), (false, Some(Remark::KernelThread)));
    assert_eq!(answers(13), (false, Some(Remark::Ended)));
    assert_eq!(answers(14), (false, Some(Remark::Ended)));
    assert_eq!(found[&12].rss_bytes.or(found[&13].rss_bytes), None);
    assert!(found[&12].kernel_thread && found[&12].command == "[kworker]");
}

#[test]
fn each_file_is_checked_for_an_allocator_once() {
    let proc = FakeProc::new();
    for pid in 5..25 {
        process(&proc, pid, "/app", &[("/app", b""), ("/libc.so.6", b"")]);
    }
    let mut asked = Vec::new();
    let mut gatherer = Gatherer::new(proc.root(), |module: &Module| {
        asked.push(module.path.clone());
        module.path.ends_with("libc.so.6")
    });
    gatherer
        .gather(None, Instant::now(), jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    drop(gatherer);
    assert_eq!(asked, [std::path::PathBuf::from("/app"), "/libc.so.6".into()]);
}

#[test]
fn growth_is_between_two_readings_of_the_same_process() {
    let proc = FakeProc::new();
    let stat = |pid: u32, start: u64, pages: u64| {
        let text = format!("{pid} (x) S 1 1 1 0 -1 0 0 0 0 0 7 5 0 0 20 0 1 0 {start} 0 {pages} 0\n");
        proc.file(&format!("{pid}/stat"), text);
    };
    for pid in 5..9 {
        proc.process(pid, "x", Kind::User);
        stat(pid, 400, 100);
    }
    let start = Instant::now();
    let before = RssReading::take(&proc.root(), start).unwrap();
    stat(5, 400, 300);
    stat(6, 400, 50);
    // This pid was given to another process.
    stat(7, 900, 300);
    proc.process(9, "new", Kind::User);
    let mut gatherer = Gatherer::new(proc.root(), |_| false);
    let now = start + Duration::from_secs(2);
    let ps = gatherer
        .gather(Some(&before), now, jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    let page = page_bytes() as f64;
    let found: Vec<_> = ps
        .processes
        .iter()
        .map(|p| (p.pid, p.growth_bytes_per_second))
        .collect();
    // By resident memory, then by pid.
    assert_eq!(
        found,
        [
            (5, Some(100.0 * page)),
            (7, None),
            (9, None),
            (8, Some(0.0)),
            (6, Some(-25.0 * page))
        ]
    );
    assert_eq!(ps.interval_seconds, Some(2.0));
    // No time has passed: growth cannot be told.
    let ps = gatherer
        .gather(Some(&before), start, jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    assert!(
        ps.processes
            .iter()
            .all(|process| process.growth_bytes_per_second.is_none())
    );
}

#[test]
fn json_has_nulls_for_what_is_not_known_and_sentences_for_remarks() {
    let proc = FakeProc::new();
    proc.process(12, "kworker", Kind::Kernel);
    let mut gatherer = Gatherer::new(proc.root(), |_| false);
    let ps = gatherer
        .gather(None, Instant::now(), jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    assert_eq!(
        serde_json::to_value(ps).unwrap(),
        json!({
            "schema": "memwatch.ps/1",
            "time": "1970-01-01T00:00:00Z",
            "interval_seconds": null,
            "processes": [{
                "pid": 12, "ppid": 1, "uid": 7, "comm": "kworker", "command": "[kworker]",
                "rss_bytes": null, "growth_bytes_per_second": null, "runtimes": [], "container": null,
                "pod_uid": null, "kernel_thread": true, "can_watch": false,
                "why": "a kernel thread has no memory of its own",
            }],
        })
    );
}

#[test]
fn on_the_real_host_the_own_process_is_there_and_refused() {
    let proc = ProcRoot::default();
    let start = Instant::now();
    let before = RssReading::take(&proc, start).unwrap();
    let mut gatherer = Gatherer::new(proc, |module| module.path.to_string_lossy().contains("libc"));
    let ps = gatherer
        .gather(
            Some(&before),
            start + Duration::from_secs(1),
            jiff::Timestamp::now(),
        )
        .unwrap();
    let own = ps
        .processes
        .iter()
        .find(|process| process.pid == std::process::id())
        .unwrap();
    assert_eq!((own.can_watch, own.why), (false, Some(Remark::OwnProcess)));
    assert!(own.rss_bytes.unwrap() > 0 && own.growth_bytes_per_second.is_some());
    assert!(
        ps.processes
            .is_sorted_by_key(|process| std::cmp::Reverse(process.rss_bytes))
    );
}
