//! A made-up report for tests and for `examples/screen.rs`, which takes this file in by its path.

use std::collections::BTreeMap;

use crate::model::report::{
    Age, Delta, Frame, FrameKind, Health, Kind, Limit, Options, Overhead, Probes, Process, Report, Row,
    Runtime, SizeBucket, Totals,
};

const MIB: u64 = 1 << 20;

fn python(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        kind: FrameKind::Python,
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        ..Frame::default()
    }
}

fn native(function: &str, module: &str) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        offset: Some(0x1c + function.len() as u64),
        module: Some(format!("/usr/lib/x86_64-linux-gnu/{module}")),
        address: Some(0x4_1f2e),
        ..Frame::default()
    }
}

fn interpreter() -> Vec<Frame> {
    vec![
        native("_PyObject_Malloc", "libpython3.11.so.1.0"),
        Frame {
            inlined: true,
            ..native("unicode_new", "libpython3.11.so.1.0")
        },
        native("PyUnicode_DecodeUTF8Stateful", "libpython3.11.so.1.0"),
    ]
}

fn request_path() -> Vec<Frame> {
    vec![
        python("handle", "/srv/checkout/app/http.py", 214),
        python("dispatch", "/srv/checkout/app/router.py", 61),
        native("_PyEval_EvalFrameDefault", "libpython3.11.so.1.0"),
        python("run", "/usr/lib/python3.11/threading.py", 975),
        native("start_thread", "libc.so.6"),
    ]
}

fn stack(inner: &[Frame]) -> Vec<Frame> {
    [&interpreter()[..], inner, &request_path()[..]].concat()
}

const REALLOC_INSERT: &str = "std::vector<ordering::Item, std::allocator<ordering::Item> >\
    ::_M_realloc_insert<ordering::Item const&>(ordering::Item const&)";

fn app(function: &str, file: &str, line: u32) -> Frame {
    python(function, &format!("/srv/checkout/app/{file}"), line)
}

fn cxx(function: &str, file: &str, line: u32) -> Frame {
    let path = format!("/build/ordering/src/{file}");
    Frame {
        file: Some(path),
        line: Some(line),
        ..native(function, "libordering.so.2")
    }
}

fn from_cxx() -> Vec<Frame> {
    vec![
        native("malloc", "libc.so.6"),
        native("operator new(unsigned long)", "libstdc++.so.6"),
        cxx(REALLOC_INSERT, "../include/c++/12/bits/vector.tcc", 459),
        cxx("ordering::Basket::add(ordering::Item const&)", "basket.cc", 77),
        cxx(
            "ordering::Session::on_message(std::string_view)",
            "session.cc",
            310,
        ),
        native("ffi_call_unix64", "libffi.so.8"),
        app("submit", "orders/native.py", 19),
    ]
}

fn nameless() -> Frame {
    Frame {
        function: None,
        ..native("", "libordering.so.2")
    }
}

/// The stacks, with MiB in use, blocks, growth in KiB a second and age of the oldest in seconds.
#[rustfmt::skip]
fn stacks() -> Vec<(Vec<Frame>, u64, u64, f64, f64)> {
    let libc = |function| native(function, "libc.so.6");
    let json = python("loads", "/usr/lib/python3.11/json/__init__.py", 346);
    let evil = native("evil\u{1b}[2J\u{202e}name", "libevil\n.so");
    let workers = native("start_workers", "libordering.so.2");
    vec![
        (stack(&[app("_decode", "cache.py", 88), app("get_or_load", "cache.py", 52)]), 412, 3_100_000, 4180.0, 724.6),
        (stack(&[app("parse_lines", "parse.py", 140), app("load_order", "load.py", 33)]), 96, 402_111, 310.0, 690.0),
        (from_cxx(), 64, 2048, -820.0, 12.2),
        (stack(&[json, app("body", "http.py", 101)]), 31, 88_000, 0.0, 3.4),
        (vec![libc("mmap"), libc("__pthread_create_2_1"), workers], 16, 2, 0.0, 725.0),
        (stack(&[app("日本語の関数", "商品/カタログ.py", 7)]), 9, 5120, 12.0, 600.0),
        (stack(&[app("render", "templates.py", 260)]), 4, 910, -3.0, 0.08),
        (vec![libc("malloc"), nameless()], 2, 31, 0.0, 444_000.0),
        (vec![libc("malloc"), evil], 1, 1, 0.0, 60.0),
    ]
}

fn row(number: usize, (frames, mib, objects, growth_kib, oldest): (Vec<Frame>, u64, u64, f64, f64)) -> Row {
    let key: Vec<&str> = frames
        .iter()
        .filter_map(|frame| frame.function.as_deref())
        .collect();
    let has_python = frames.iter().any(|frame| frame.kind == FrameKind::Python);
    let inuse = mib * MIB + number as u64 * 31_337;
    let size = |at: u32| SizeBucket {
        below_bytes: (at < 12).then(|| 16 << at),
        objects: objects >> at.abs_diff(3),
    };
    let life = |at: i32| Age {
        below_seconds: (at < 9).then(|| 1e-5 * 10_f64.powi(at)),
        objects: objects * 3 / u64::from(2 + at.abs_diff(4)),
    };
    let age = |(at, below)| Age {
        below_seconds: below,
        objects: objects / (1_u64 + at),
    };
    let edges = [Some(1.0), Some(10.0), Some(60.0), Some(300.0), Some(1800.0), None];
    Row {
        threads: Vec::new(),
        key: key.join(";"),
        pid: Some(1234),
        domain: Some(if has_python { "python.object" } else { "native" }.to_owned()),
        inuse_bytes: inuse,
        inuse_objects: objects,
        alloc_bytes: inuse * 3,
        alloc_objects: objects * 4,
        freed_bytes: inuse * 2,
        freed_objects: objects * 3,
        growth_bytes_per_second: Some(growth_kib * 1024.0),
        delta: Some(Delta {
            inuse_bytes: (growth_kib * 1024.0 * 130.0) as i64,
            inuse_objects: growth_kib as i64 * 17,
            alloc_bytes: 3 * MIB as i64,
            alloc_objects: 4321,
        }),
        ages: Some((0..).zip(edges).map(age).collect()),
        lifetimes: (0..10).map(life).collect(),
        sizes: (0..13).map(size).collect(),
        oldest_seconds: Some(oldest),
        frames: Frame::shared(frames),
        stacks: 1,
        ..Row::default()
    }
}

pub fn process(pid: u32) -> Process {
    let totals = |inuse_mib: u64| Totals {
        inuse_bytes: inuse_mib * MIB,
        allocated_bytes: inuse_mib * 3 * MIB,
        ..Totals::default()
    };
    Process {
        pid,
        comm: "checkout-api".to_owned(),
        cmdline: [
            "/usr/bin/python3.11",
            "-m",
            "checkout.server",
            "--port",
            "8080",
            "--workers",
            "8",
        ]
        .map(str::to_owned)
        .to_vec(),
        runtimes: vec![Runtime {
            name: "cpython".to_owned(),
            version: Some("3.11.7".to_owned()),
        }],
        rss_bytes: Some(812 * MIB),
        peak_rss_bytes: Some(901 * MIB),
        totals: BTreeMap::from([
            ("python.object".to_owned(), totals(552)),
            ("native".to_owned(), totals(84)),
        ]),
        ..Process::default()
    }
}

/// The report of a tick; the numbers move a bit from tick to tick.
pub fn report(tick: u64) -> Report {
    let mut rows: Vec<Row> = stacks()
        .into_iter()
        .enumerate()
        .map(|(number, stack)| row(number, stack))
        .collect();
    for row in &mut rows {
        let grown = row.growth_bytes_per_second.unwrap_or(0.0) * tick as f64;
        row.inuse_bytes = row.inuse_bytes.saturating_add_signed(grown as i64);
        row.oldest_seconds = row.oldest_seconds.map(|seconds| seconds + tick as f64);
    }
    let wave = (tick as f64 / 6.0).sin() * 12.0 + tick as f64 * 1.8;
    let mut process = process(1234);
    process.rss_bytes = Some(((760.0 + wave) * MIB as f64) as u64);
    Report {
        kind: Kind::Top,
        time: "2025-03-01T14:14:16Z".to_owned(),
        since: "2025-03-01T14:02:11Z".to_owned(),
        watched_seconds: 725.0 + tick as f64,
        interval_seconds: 1.0,
        tick,
        options: Options {
            sort: "inuse-bytes".to_owned(),
            ..Options::default()
        },
        health: Health {
            complete: true,
            probes: Probes {
                attached: 41,
                method: "uprobe.multi".to_owned(),
                ..Probes::default()
            },
            overhead: Overhead {
                hits: 182_000 * (725 + tick),
                target_percent: Some(6.4),
                self_cpu_percent: Some(0.8),
                self_rss_bytes: Some(41 * MIB),
                kernel_map_bytes: Some(64 * MIB),
                predicted: None,
            },
            limits: BTreeMap::from([
                (
                    "live".to_owned(),
                    Limit {
                        used: 3_598_222,
                        max: 8_000_000,
                    },
                ),
                (
                    "sites".to_owned(),
                    Limit {
                        used: 4211,
                        max: 65_536,
                    },
                ),
            ]),
            ..Health::default()
        },
        processes: vec![process],
        total_rows: 412,
        rows,
        ..Report::default()
    }
}
