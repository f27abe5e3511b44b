//! How large a recording becomes and how long it takes to read: printed, for the documentation.
//!
//! `cargo test --release -p memwatch --lib store::tests::limits -- --ignored --nocapture`

use std::io::Cursor;
use std::time::Instant;

use super::header;
use super::synthetic::{Service, meta};
use crate::model::query::{GroupBy, Query};
use crate::model::report::Kind;
use crate::store::writer::Writer;
use crate::store::{Bounds, Recording};

const TICKS: u64 = 3600;
const SITES: u64 = 10_000;
const MIB: f64 = 1_048_576.0;

fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Written to this file, so that it can be read by a process of its own.
fn file(busy: u64) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("memwatch-limits-{busy}.memwatch"))
}

fn write(busy: u64) {
    let mut service = Service::with_activity(SITES, 1, busy);
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    let mut spent = std::time::Duration::ZERO;
    for _ in 0..TICKS {
        service.tick();
        let began = Instant::now();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
        spent += began.elapsed();
    }
    println!(
        "{busy} of 1000 sites busy: {:.1} MiB, {:.1} KiB a tick, {:.2} ms to write a tick; first tick {:.1} KiB",
        writer.bytes() as f64 / MIB,
        writer.bytes() as f64 / 1024.0 / TICKS as f64,
        spent.as_secs_f64() * 1e3 / TICKS as f64,
        writer.written()[0].frame_bytes as f64 / 1024.0,
    );
    std::fs::write(file(busy), writer.into_inner()).unwrap();
}

fn open(busy: u64) {
    let began = Instant::now();
    let mut recording = Recording::read(std::fs::File::open(file(busy)).unwrap(), &Bounds::USUAL).unwrap();
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
}

#[test]
#[ignore = "takes minutes; it is for measuring"]
fn an_hour_of_ten_thousand_sites_is_written() {
    for busy in [50, 100] {
        write(busy);
    }
}

#[test]
#[ignore = "needs the file that the other one writes; it is for measuring"]
fn an_hour_of_ten_thousand_sites_is_read() {
    for busy in [50, 100] {
        open(busy);
    }
}

/// The same in small: a site that changed costs a few bytes.
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
    assert!(per_change < 16.0, "{per_change}");
    let _ = Recording::read(Cursor::new(writer.into_inner()), &Bounds::USUAL).unwrap();
}
