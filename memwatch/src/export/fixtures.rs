//! Reports made by hand, for the tests of this folder.

use std::collections::BTreeMap;

use crate::cli::units::parse_size;
use crate::model::report::{
    Age, Container, Delta, Finding, Frame, FrameKind, Health, Host, Inherited, Kind, Limit, Options,
    Overhead, Pod, ProbeNote, Probes, Process, Report, Row, Runtime, SCHEMA, SizeBucket, Totals,
};

pub fn bytes(size: &str) -> u64 {
    parse_size(size).unwrap()
}

pub fn process(pid: u32, comm: &str) -> Process {
    let native = Totals {
        inuse_bytes: bytes("300M"),
        inuse_objects: 3_000_000,
        allocations: 5_000_000,
        ..Totals::default()
    };
    let mmap = Totals {
        inuse_bytes: bytes("112M"),
        inuse_objects: 3,
        ..Totals::default()
    };
    Process {
        pid,
        comm: comm.to_owned(),
        rss_bytes: Some(bytes("512M")),
        totals: BTreeMap::from([("native".to_owned(), native), ("mmap".to_owned(), mmap)]),
        ..Process::default()
    }
}

/// Tick 0: nothing recorded.
pub fn empty() -> Report {
    let quiet = Process {
        totals: BTreeMap::new(),
        ..process(1234, "python3")
    };
    Report {
        schema: SCHEMA.to_owned(),
        time: "2026-03-01T12:00:00Z".to_owned(),
        since: "2026-03-01T12:00:00Z".to_owned(),
        interval_seconds: 1.0,
        host: Host {
            name: "node-1".to_owned(),
            kernel: "6.1.0".to_owned(),
            arch: "x86_64".to_owned(),
        },
        version: "0.1.0".to_owned(),
        options: Options {
            group_by: "traceback".to_owned(),
            sort: "inuse-bytes".to_owned(),
            view: "inuse".to_owned(),
            follow: true,
            max_depth: 127,
            limit: 10,
            ..Options::default()
        },
        health: Health {
            complete: true,
            probes: Probes {
                attached: 24,
                method: "uprobe.multi".to_owned(),
                ..Probes::default()
            },
            ..Health::default()
        },
        processes: vec![quiet],
        ..Report::default()
    }
}

/// Tick 10 with the rows given.
pub fn tick(rows: Vec<Row>) -> Report {
    let mut report = empty();
    report.tick = 10;
    report.time = "2026-03-01T12:00:10Z".to_owned();
    report.watched_seconds = 10.0;
    report.processes = vec![process(1234, "python3")];
    report.health.overhead = Overhead {
        hits: 8_000_123,
        target_percent: Some(3.25),
        self_cpu_percent: Some(1.0),
        self_rss_bytes: Some(bytes("45M")),
        kernel_map_bytes: Some(bytes("64M")),
        predicted: None,
    };
    report.total_rows = rows.len() as u64;
    report.rows = rows;
    report
}

pub fn native_frame(function: &str, file: Option<(&str, u32)>, module: &str) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        offset: Some(0x12),
        file: file.map(|(file, _)| file.to_owned()),
        line: file.map(|(_, line)| line),
        module: Some(module.to_owned()),
        build_id: Some("c0ffee".to_owned()),
        address: Some(0x1234),
        ..Frame::default()
    }
}

pub fn python_frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        kind: FrameKind::Python,
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        ..Frame::default()
    }
}

pub fn row() -> Row {
    Row {
        threads: Vec::new(),
        key: "app/cache.py:88".to_owned(),
        pid: Some(1234),
        domain: Some("native".to_owned()),
        inuse_bytes: bytes("412M"),
        inuse_objects: 3_100_000,
        alloc_bytes: bytes("1.5G"),
        alloc_objects: 9_000_000,
        freed_bytes: bytes("1.5G") - bytes("412M"),
        freed_objects: 5_900_000,
        growth_bytes_per_second: Some(4_299_161.6),
        delta: Some(Delta {
            inuse_bytes: 4_299_162,
            inuse_objects: 31_000,
            alloc_bytes: 9_000_000,
            alloc_objects: 70_000,
        }),
        oldest_seconds: Some(9.5),
        stacks: 1,
        frames: Frame::shared([
            native_frame(
                "PyObject_Malloc",
                Some(("Objects/obmalloc.c", 712)),
                "/usr/lib/libpython3.11.so.1.0",
            ),
            Frame {
                inlined: true,
                offset: None,
                ..native_frame("put", Some(("cache.c", 7)), "/app/cache.so")
            },
            python_frame("fill", "app/cache.py", 88),
            Frame {
                function: None,
                file: None,
                ..native_frame("", None, "/usr/bin/python3.11")
            },
        ]),
        ..Row::default()
    }
}

/// Every field that can be absent is there.
pub fn full() -> Report {
    let age = Age {
        below_seconds: Some(1.0),
        objects: 7,
    };
    let rest = Age {
        below_seconds: None,
        objects: 2,
    };
    let mut report = tick(vec![Row {
        ages: Some(vec![age, rest]),
        lifetimes: vec![age, rest],
        sizes: vec![
            SizeBucket {
                below_bytes: Some(64),
                objects: 5,
            },
            SizeBucket {
                below_bytes: None,
                objects: 1,
            },
        ],
        truncated: true,
        mapping: Some("anonymous".to_owned()),
        ..row()
    }]);
    report.kind = Kind::Diff;
    report.options.min_size = Some(64);
    report.options.max_size = Some(4096);
    report.options.older_than_seconds = Some(2.5);
    report.options.include = vec!["*.py".to_owned()];
    report.options.exclude = vec!["libc*".to_owned()];
    report.options.domains = vec!["native".to_owned()];
    report.health.complete = false;
    report.health.reasons = vec!["3 frees were missed".to_owned()];
    report.health.counters = BTreeMap::from([("free_missed".to_owned(), 3)]);
    report.health.limits = BTreeMap::from([("blocks".to_owned(), Limit { used: 5, max: 10 })]);
    let note = ProbeNote {
        symbol: "valloc".to_owned(),
        module: "/usr/lib/libc.so.6".to_owned(),
        reason: "not exported".to_owned(),
    };
    report.health.probes.skipped = vec![note.clone()];
    report.health.probes.failed = vec![note];
    report.processes = vec![Process {
        ppid: Some(1),
        start_time: Some("2026-03-01T11:00:00Z".to_owned()),
        exe: Some("/usr/bin/python3.11".to_owned()),
        cmdline: vec!["python3".to_owned(), "app.py".to_owned()],
        cgroup: Some("/system.slice/app.service".to_owned()),
        container: Some(Container {
            id: "0123".to_owned(),
            name: Some("web".to_owned()),
            image: Some("app:1".to_owned()),
        }),
        pod: Some(Pod {
            namespace: "default".to_owned(),
            name: "web-0".to_owned(),
            uid: "u-1".to_owned(),
        }),
        runtimes: vec![Runtime {
            name: "cpython".to_owned(),
            version: Some("3.11.7".to_owned()),
        }],
        peak_rss_bytes: Some(bytes("600M")),
        inherited: Some(Inherited {
            objects: 1,
            bytes: 2,
            freed_objects: 1,
            freed_bytes: 2,
        }),
        allocator_mapped_bytes: Some(bytes("1M")),
        ..process(1234, "python3")
    }];
    report.findings = vec![Finding {
        kind: "growth".to_owned(),
        severity: "high".to_owned(),
        title: "grows".to_owned(),
        evidence: BTreeMap::from([("per_second".to_owned(), serde_json::json!(4.5))]),
        row: Some(0),
    }];
    report
}
