//! How large a recording becomes and how long it takes to read: printed, for the documentation. In small, unless
//! `MEMWATCH_LIMITS` is `write` or `read`: then an hour of ten thousand sites, written to files in one run and read from them
//! in another, so that the memory is that of reading.
//!
//! `MEMWATCH_LIMITS=write cargo test --release -p memwatch --lib store::tests::limits -- --nocapture`

use std::io::Cursor;
use std::time::Instant;

use super::header;
use super::synthetic::{Service, meta};
use crate::model::query::{GroupBy, Query};
use crate::model::report::Kind;
use crate::store::writer::Writer;
use crate::store::{Bounds, Recording};

/// Ticks and sites.
const HOUR: (u64, u64) = (3600, 10_000);
const SMALL: (u64, u64) = (40, 300);
const MIB: f64 = 1_048_576.0;

fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Written to this file, so that it can be read by a process of its own.
fn file(busy: u64, any_size: bool) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("memwatch-limits-{busy}-{any_size}.memwatch"))
}

fn write(busy: u64, any_size: bool, (ticks, sites): (u64, u64)) -> Vec<u8> {
    let mut service = Service::with_activity(sites, 1, busy);
    if any_size {
        service = service.of_any_size();
    }
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    let mut spent = std::time::Duration::ZERO;
    for _ in 0..ticks {
        service.tick();
        let began = Instant::now();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
        spent += began.elapsed();
    }
    println!(
        "{busy} of 1000 sites busy (blocks of any size: {any_size}): {:.1} MiB, {:.1} KiB a tick, {:.2} ms to write a tick; first tick {:.1} KiB",
        writer.bytes() as f64 / MIB,
        writer.bytes() as f64 / 1024.0 / ticks as f64,
        spent.as_secs_f64() * 1e3 / ticks as f64,
        writer.written()[0].frame_bytes as f64 / 1024.0,
    );
    writer.into_inner()
}

/// How many ticks there are.
fn open(source: impl std::io::Read + std::io::Seek + Send + 'static) -> u64 {
    let began = Instant::now();
    let mut recording = Recording::read(source, &Bounds::USUAL).unwrap();
    let opened = began.elapsed();
    let query = Query {
        group_by: GroupBy::Line,
        ..Query::default()
    };
    let rows = recording.last().unwrap().report(&query, Kind::Top, None).unwrap();
    println!(
        "opened in {:.2} s, reported {} lines after {:.2} s, peak memory of this process {:.0} MiB",
        opened.as_secs_f64(),
        rows.total_rows,
        began.elapsed().as_secs_f64(),
        peak_rss_kib() as f64 / 1024.0
    );
    assert!(rows.total_rows > 0);
    recording.ticks().len() as u64
}

#[test]
fn what_is_written_is_read() {
    for (busy, any_size) in [(50, false), (100, false), (100, true)] {
        let file = file(busy, any_size);
        match std::env::var("MEMWATCH_LIMITS").as_deref() {
            Ok("write") => std::fs::write(file, write(busy, any_size, HOUR)).unwrap(),
            Ok(_) => assert_eq!(open(std::fs::File::open(file).unwrap()), HOUR.0),
            Err(_) => assert_eq!(open(Cursor::new(write(busy, any_size, SMALL))), SMALL.0),
        }
    }
}

/// A site that changed costs a few bytes.
#[test]
fn a_change_costs_few_bytes() {
    let mut service = Service::with_activity(500, 1, 1000);
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    for _ in 0..60 {
        service.tick();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
    }
    let after_first = writer.bytes() - writer.written()[0].frame_bytes;
    let per_change = after_first as f64 / (59.0 * 500.0);
    println!("{per_change:.1} bytes for each change of a site");
    assert!(per_change < 4.0, "{per_change}");
    let _ = Recording::read(Cursor::new(writer.into_inner()), &Bounds::USUAL).unwrap();
}
