//! A recording of a made-up service, written with memwatch's own writer: what reads recordings can be tested without
//! root and without a kernel that memwatch supports.

use std::fs::File;
use std::path::Path;

use memwatch::collect::sample::{LiveScan, Sample, SiteAges};
use memwatch::model::assemble::Meta;
use memwatch::model::processes::ProcessFacts;
use memwatch::model::query::Query;
use memwatch::model::report::{Container, Frame, FrameKind, Host, Runtime};
use memwatch::model::state::Model;
use memwatch::store::{Header, writer::Writer};
use memwatch::symbolize::names::{NamedStack, StackTable};
use memwatch_common::counter::COUNTERS;
use memwatch_common::hist::{lifetime_bucket, size_bucket};
use memwatch_common::{Domain, ProcessState, SiteKey, SiteTotals};

pub const PID: u32 = 4321;
const INSTANCE: u32 = 1;
const SECOND: u64 = 1_000_000_000;

/// The line that leaks.
pub const LEAK: &str = "src/server.cc:120";
/// The cache, which grows for half a minute.
pub const CACHE: &str = "src/cache.cc:88";

/// Blocks of one size from one stack: how many were allocated and freed after so many seconds.
struct Place {
    domain: Domain,
    size: u64,
    stack: NamedStack,
    allocated: fn(u64) -> u64,
    freed: fn(u64) -> u64,
    /// Seconds that blocks live that are freed.
    life: u64,
    /// Blocks older than ten seconds.
    old: fn(u64) -> u64,
}

fn native(function: &str, file: &str, line: u32, module: &str, address: u64) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        offset: Some(0x1c),
        file: (!file.is_empty()).then(|| file.to_owned()),
        line: (line > 0).then_some(line),
        module: Some(module.to_owned()),
        build_id: Some(format!(
            "{:040x}",
            (module.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )),
        address: Some(address),
        ..Frame::default()
    }
}

fn python(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        kind: FrameKind::Python,
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        ..Frame::default()
    }
}

const SERVER: &str = "/usr/bin/server";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

fn stack(frames: Vec<Frame>) -> NamedStack {
    let outer = [
        native(
            "Worker::serve(Request const&)",
            "src/worker.cc",
            61,
            SERVER,
            0x4100,
        ),
        native("Worker::run()", "src/worker.cc", 22, SERVER, 0x4000),
        native("start_thread", "", 0, LIBC, 0x8_9000),
        native("clone3", "", 0, LIBC, 0x10_9000),
    ];
    let malloc = native("malloc", "", 0, LIBC, 0x9_8000);
    NamedStack {
        frames: Frame::shared([vec![malloc], frames, outer.to_vec()].concat()),
        truncated: false,
        raw: false,
    }
}

fn places() -> Vec<Place> {
    of_requests().into_iter().chain(others()).collect()
}

/// What requests do.
fn of_requests() -> Vec<Place> {
    let inlined = Frame {
        inlined: true,
        ..native(
            "std::make_unique<Context, int>",
            "/usr/include/c++/12/bits/unique_ptr.h",
            1065,
            SERVER,
            0x5120,
        )
    };
    vec![
        Place {
            domain: Domain::Native,
            size: 100,
            stack: stack(vec![native(
                "Server::handle(Request const&)",
                "src/server.cc",
                120,
                SERVER,
                0x5000,
            )]),
            allocated: |second| second * 100,
            life: 1,
            freed: |_| 0,
            old: |second| second.saturating_sub(10) * 100,
        },
        Place {
            domain: Domain::Native,
            size: 65_536,
            stack: stack(vec![
                inlined,
                native("parse_body(Buffer&)", "src/parse.cc", 44, SERVER, 0x5100),
                native(
                    "Server::handle(Request const&)",
                    "src/server.cc",
                    118,
                    SERVER,
                    0x4f00,
                ),
            ]),
            allocated: |second| second * 8000,
            // Half a gigabyte, more or less, and never old.
            life: 1,
            freed: |second| (second * 8000).saturating_sub(7600 + (second * 7919) % 900),
            old: |_| 0,
        },
        Place {
            domain: Domain::Native,
            size: 5000,
            stack: stack(vec![
                native(
                    "Cache::insert(std::string, Entry)",
                    "src/cache.cc",
                    88,
                    SERVER,
                    0x6000,
                ),
                native("Server::lookup(Key)", "src/server.cc", 204, SERVER, 0x5300),
            ]),
            allocated: |second| second * 400,
            life: 30,
            freed: |second| (second * 400).saturating_sub(12_000),
            old: |second| (second.saturating_sub(10) * 400).min(8000),
        },
    ]
}

/// What is held besides, and what Python does.
fn others() -> Vec<Place> {
    vec![
        Place {
            domain: Domain::Native,
            size: 8192,
            stack: NamedStack {
                truncated: true,
                ..stack(vec![native("load_tables", "src/tables.cc", 9, SERVER, 0x7000)])
            },
            allocated: |second| second.min(3) * 2000,
            life: 1,
            freed: |_| 0,
            old: |second| second.saturating_sub(10).min(3) * 2000,
        },
        Place {
            domain: Domain::PythonObject,
            size: 56,
            stack: stack(vec![
                native(
                    "_PyEval_EvalFrameDefault",
                    "Python/ceval.c",
                    5200,
                    "/usr/lib/libpython3.11.so.1.0",
                    0x1d_0000,
                ),
                python("render", "app/session.py", 31),
                python("handle", "app/main.py", 12),
            ]),
            allocated: |second| second * 3000,
            life: 1,
            freed: |second| (second * 3000).saturating_sub(4000 + (second * 31) % 500),
            old: |_| 0,
        },
        Place {
            domain: Domain::Native,
            size: 48,
            stack: NamedStack {
                truncated: true,
                ..NamedStack::default()
            },
            allocated: |_| 40,
            life: 1,
            freed: |_| 15,
            old: |second| if second > 10 { 25 } else { 0 },
        },
    ]
}

fn key(number: usize, place: &Place) -> SiteKey {
    SiteKey {
        instance: INSTANCE,
        domain: place.domain as u32,
        stack: 1000 + number as u64,
    }
}

fn totals(place: &Place, second: u64) -> SiteTotals {
    let (allocated, freed) = ((place.allocated)(second), (place.freed)(second));
    let mut totals = SiteTotals {
        alloc_bytes: allocated * place.size,
        alloc_objects: allocated,
        freed_bytes: freed * place.size,
        freed_objects: freed,
        ..SiteTotals::ZERO
    };
    totals.sizes[size_bucket(place.size)] = allocated;
    totals.lifetimes[lifetime_bucket(place.life * SECOND)] = freed;
    totals
}

fn sample(places: &[Place], tick: u64) -> Sample {
    let at_ns = (100 + tick) * SECOND;
    let sites = places.iter().enumerate().filter(|_| tick > 0);
    let sites = sites.map(|(number, place)| (key(number, place), totals(place, tick)));
    let ages = places.iter().enumerate().map(|(number, place)| {
        let totals = totals(place, tick);
        let old = (place.old)(tick);
        let mut ages = SiteAges::default();
        ages.objects[1] = (totals.alloc_objects - totals.freed_objects).saturating_sub(old);
        ages.objects[2] = old;
        ages.oldest_born_ns = 101 * SECOND;
        (key(number, place), ages)
    });
    Sample {
        at_ns,
        tick,
        sites: sites.collect(),
        pools: Vec::new(),
        pools_ns: None,
        pool_classes: Vec::new(),
        events: Vec::new(),
        processes: vec![(PID, ProcessState::new(INSTANCE, 0))],
        counters: [0; COUNTERS],
        live: Some(LiveScan {
            at_ns,
            sites: ages.collect(),
            ..LiveScan::default()
        }),
        limits: std::collections::BTreeMap::new(),
        kernel_map_bytes: Some(64 << 20),
    }
}

fn facts(second: u64) -> ProcessFacts {
    ProcessFacts {
        ppid: Some(1),
        start_time: Some("2026-03-01T11:00:00Z".to_owned()),
        comm: "server".to_owned(),
        exe: Some(SERVER.to_owned()),
        cmdline: vec!["server".to_owned(), "--port".to_owned(), "80".to_owned()],
        container: Some(Container {
            id: "0123456789ab".to_owned(),
            name: Some("web".to_owned()),
            image: Some("server:1.4".to_owned()),
        }),
        runtimes: vec![Runtime {
            name: "cpython".to_owned(),
            version: Some("3.11.7".to_owned()),
        }],
        rss_bytes: Some((540 << 20) + (second.min(30) << 21) + second * 12_000),
        peak_rss_bytes: Some(700 << 20),
        ..ProcessFacts::default()
    }
}

fn meta() -> Meta {
    Meta {
        time: "2026-03-01T12:00:00Z".to_owned(),
        since: "2026-03-01T12:00:00Z".to_owned(),
        interval_seconds: 1.0,
        host: Host {
            name: "node-1".to_owned(),
            kernel: "6.1.0".to_owned(),
            arch: "x86_64".to_owned(),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        follow: true,
        max_depth: 127,
        domains: Domain::ALL.to_vec(),
        ..Meta::default()
    }
}

/// So many seconds of the service, a tick each, from before its first allocation on.
pub fn service(path: &Path, seconds: u64) {
    let places = places();
    let mut names = StackTable::new();
    for (number, place) in places.iter().enumerate() {
        names.insert(INSTANCE, key(number, place).stack, place.stack.clone());
    }
    let header = Header::new(&meta(), 100 * SECOND, &Query::default(), format!("--pid {PID}"));
    let file = File::create(path).expect("the test's folder can be written");
    let mut writer = Writer::new(file, header).expect("a writer can be made");
    let mut model = Model::new();
    for tick in 0..=seconds {
        model.apply(sample(&places, tick));
        model.describe(INSTANCE, facts(tick));
        writer
            .tick(&model, &mut names, &meta())
            .expect("a tick can be written");
    }
    writer.finish().expect("the end can be written");
}
