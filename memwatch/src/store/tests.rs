//! Whole recordings: what was known live is what is read, at every tick, also of files that were cut or changed.

mod hostile;
mod limits;
pub(super) mod synthetic;

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use memwatch_common::{Domain, Event, EventKind, ProcessState, SiteKey};

use self::synthetic::{Service, meta, names};
use super::writer::Writer;
use super::{Bounds, Ending, Header, Recording, StoreError};
use crate::collect::sample::{Held, LiveScan, Sample, SiteAges};
use crate::model::assemble::{self, Meta};
use crate::model::group::QueryError;
use crate::model::health::Notice;
use crate::model::processes::ProcessFacts;
use crate::model::query::{GroupBy, Query};
use crate::model::report::{Kind, Report, Row};
use crate::model::state::Model;
use crate::model::testing::{SECOND, blocks, key, sample};
use crate::symbolize::names::{StackNames, StackTable};

pub(super) fn header(model_since_ns: u64) -> Header {
    Header::new(&meta(), model_since_ns, &Query::default(), "pid 100".to_owned())
}

fn read(bytes: Vec<u8>) -> Result<Recording, StoreError> {
    Recording::read(Cursor::new(bytes), &Bounds::USUAL)
}

fn threads(objects: u64) -> HashMap<SiteKey, Vec<(u32, Held)>> {
    let held = |objects| Held {
        objects,
        bytes: objects * 100,
    };
    let threads = vec![(101, held(objects / 3)), (102, held(1))];
    HashMap::from([(key(1, Domain::Native, 10), threads)])
}

/// Every kind of thing that a model can hold, over some ticks.
fn rich_samples() -> Vec<Sample> {
    let state = ProcessState {
        untracked_frees: 4,
        untracked_freed_bytes: 64,
        failed_allocations: 1,
        inherited_objects: 2,
        inherited_bytes: 99,
        ..ProcessState::new(1, 0)
    };
    let map = Event {
        kind: EventKind::Map as u32,
        instance: 1,
        pid: 100,
        stack: 10,
        flags: memwatch_common::event::MAPPING_ANONYMOUS,
        begin_ns: 99 * SECOND,
        end_ns: 99 * SECOND,
        address: 0x10000,
        a: 8192,
        ..Event::ZERO
    };
    let unmap = Event {
        kind: EventKind::Unmap as u32,
        address: 0x90_0000,
        ..map
    };
    let fork = Event {
        kind: EventKind::Fork as u32,
        instance: 2,
        pid: 200,
        a: 1,
        b: 100,
        ..Event::ZERO
    };
    let exec = Event {
        kind: EventKind::Exec as u32,
        instance: 3,
        pid: 200,
        a: 2,
        ..Event::ZERO
    };
    let exit = Event {
        kind: EventKind::Exit as u32,
        instance: 3,
        pid: 200,
        ..Event::ZERO
    };
    let ages = |bucket: usize, objects| {
        let mut ages = SiteAges {
            oldest_born_ns: 90 * SECOND,
            ..SiteAges::default()
        };
        (ages.objects[bucket], ages.bytes[bucket]) = (objects, objects * 100);
        (ages.old_objects, ages.old_bytes) = (objects, objects * 100);
        ages
    };
    let scan = |tick: u64, bucket, objects| {
        let sites = [(key(1, Domain::Native, 10), ages(bucket, objects))];
        Some(LiveScan {
            at_ns: (100 + tick) * SECOND,
            sites: sites.into_iter().collect(),
            threads: threads(objects),
        })
    };
    let mut all = vec![
        sample(0).alive(100, 1),
        sample(1)
            .alive(100, 1)
            .site(key(1, Domain::Native, 10), blocks(100, 10, 2))
            .event(map)
            .event(unmap),
        sample(2)
            .alive(100, 1)
            .site(key(1, Domain::Native, 10), blocks(100, 15, 9))
            .site(key(1, Domain::PythonObject, 20), blocks(64, 5, 0))
            .event(fork),
        sample(3)
            .alive(100, 1)
            .site(key(2, Domain::Native, 20), blocks(8, 3, 0)),
        sample(13)
            .alive(100, 1)
            .site(key(1, Domain::Native, 10), blocks(100, 25, 9))
            .event(exec),
        sample(14).alive(100, 1).event(exit),
    ];
    all[0].processes = vec![(100, state)];
    all[1].live = scan(1, 0, 8);
    all[4].live = scan(13, 2, 16);
    for (tick, one) in all.iter_mut().enumerate() {
        one.counters[0] = 1000 * tick as u64;
        one.kernel_map_bytes = (tick > 2).then_some(7 << 20);
        let limit = crate::model::report::Limit {
            used: tick as u64 / 2,
            max: 9,
        };
        one.limits.insert("sites".to_owned(), limit);
    }
    all
}

fn describe(model: &mut Model, tick: u64) {
    let facts = ProcessFacts {
        comm: "server".into(),
        cmdline: vec!["./server".into(), "-v".into()],
        rss_bytes: Some(4096 * tick),
        peak_rss_bytes: Some(4096 * 20),
        ..ProcessFacts::default()
    };
    model.describe(1, facts);
}

/// The file, and what the live view showed at each tick.
fn record(query: &Query) -> (Vec<u8>, Vec<Report>) {
    let (mut model, mut table) = (Model::new(), names());
    let mut writer = Writer::new(Vec::new(), header(100 * SECOND)).unwrap();
    let mut reports = Vec::new();
    for sample in rich_samples() {
        let tick = sample.tick;
        model.apply(sample);
        describe(&mut model, tick);
        let mut meta = meta();
        meta.time = (meta.since.parse::<jiff::Timestamp>().unwrap()
            + jiff::SignedDuration::from_secs(tick as i64))
        .to_string();
        meta.overhead.self_rss_bytes = Some(tick);
        if tick > 2 {
            meta.notices = vec![Notice {
                text: "late".into(),
                effect: memwatch_common::counter::Effect::Totals,
            }];
        }
        writer.tick(&model, &mut table, &meta).unwrap();
        reports.push(live_report(&model, query, &mut table, &meta));
    }
    writer.finish().unwrap();
    (writer.into_inner(), reports)
}

fn live_report(model: &Model, query: &Query, names: &mut dyn StackNames, meta: &Meta) -> Report {
    assemble::report(model, query, names, None, model.at_ns(), meta).unwrap()
}

fn by(group_by: GroupBy) -> Query {
    Query {
        group_by,
        ..Query::default()
    }
}

/// Without ages, which a file has every ten seconds only.
fn without_ages(mut report: Report) -> Report {
    for row in &mut report.rows {
        row.ages = None;
        row.oldest_seconds = None;
    }
    report
}

/// What was gone through is kept every ten seconds, what threads have too.
#[test]
fn threads_are_read_as_they_were_when_they_were_kept() {
    let query = by(GroupBy::Thread);
    let (bytes, reports) = record(&query);
    let mut recording = read(bytes).unwrap();
    let report = recording.at(1).unwrap().report(&query, Kind::Top, None).unwrap();
    let threads = |report: &Report| -> Vec<(String, u64, u64)> {
        let told = |row: &Row| (row.key.clone(), row.inuse_bytes, row.inuse_objects);
        report.rows.iter().map(told).collect()
    };
    assert_eq!(threads(&report), threads(&reports[1]));
    assert!(
        report.rows.iter().any(|row| row.key.starts_with("thread 101 of")),
        "{:?}",
        threads(&report)
    );
}

#[test]
fn every_tick_reads_as_it_was_shown() {
    for group_by in GroupBy::ALL.iter().filter(|group| **group != GroupBy::Thread) {
        let query = by(*group_by);
        let (bytes, reports) = record(&query);
        let mut recording = read(bytes).unwrap();
        assert_eq!(recording.ending(), Ending::Complete);
        assert_eq!(recording.ticks().len(), reports.len());
        let order: Vec<usize> = (0..reports.len()).chain([3, 0, 5, 5, 1]).collect();
        for index in order {
            let report = recording
                .at(index)
                .unwrap()
                .report(&query, Kind::Top, None)
                .unwrap();
            assert_eq!(
                without_ages(report),
                without_ages(reports[index].clone()),
                "{group_by} at {index}"
            );
        }
    }
}

#[test]
fn ages_are_those_of_the_last_time_they_were_written() {
    let (bytes, reports) = record(&Query::default());
    let mut recording = read(bytes).unwrap();
    for index in [1, 4, 5] {
        let report = recording
            .at(index)
            .unwrap()
            .report(&Query::default(), Kind::Top, None)
            .unwrap();
        assert_eq!(report.rows, reports[index].rows, "{index}");
        assert!(report.rows.iter().all(|row| row.ages.is_some()));
    }
}

#[test]
fn older_than_is_told_for_the_edges_of_the_buckets() {
    let (bytes, _) = record(&Query::default());
    let mut recording = read(bytes).unwrap();
    let mut inuse = |seconds| {
        let query = Query {
            older_than: Some(std::time::Duration::from_secs(seconds)),
            ..by(GroupBy::Domain)
        };
        let report = recording.last().unwrap().report(&query, Kind::Top, None)?;
        let native = report
            .rows
            .iter()
            .find(|row| row.domain.as_deref() == Some("native"));
        Ok(native.map(|row| (row.inuse_objects, row.inuse_bytes)))
    };
    assert_eq!(inuse(10).unwrap(), Some((16, 1600)));
    assert_eq!(inuse(60).unwrap(), None);
    assert_eq!(inuse(1).unwrap(), Some((16, 1600)));
    // The next edge above.
    assert_eq!(inuse(7).unwrap(), inuse(10).unwrap());
    assert_eq!(inuse(11).unwrap(), inuse(60).unwrap());
    assert!(matches!(
        inuse(86_401),
        Err::<_, QueryError>(QueryError::AgeNotRecorded)
    ));
    let told = |seconds| {
        let query = Query {
            older_than: Some(std::time::Duration::from_secs(seconds)),
            ..Query::default()
        };
        let (query, notice) = Header::default().can_tell(&query).unwrap();
        (
            query.older_than.unwrap().as_secs(),
            notice.map(|notice| notice.text),
        )
    };
    assert_eq!(told(60), (60, None));
    let (age, notice) = told(45);
    let notice = notice.unwrap();
    assert_eq!(age, 60);
    assert!(
        notice.starts_with("blocks of at least 1m are shown, not 45s:"),
        "{notice}"
    );
}

#[test]
fn a_difference_of_two_ticks_is_that_of_the_live_view() {
    let (bytes, _) = record(&Query::default());
    let mut recording = read(bytes).unwrap();
    let baseline = recording.at(1).unwrap().model.baseline();
    let mut moment = recording.last().unwrap();
    let report = moment
        .report(&by(GroupBy::Domain), Kind::Diff, Some(&baseline))
        .unwrap();
    let native = report
        .rows
        .iter()
        .find(|row| row.domain.as_deref() == Some("native"))
        .unwrap();
    // Of both processes.
    assert_eq!(native.delta.unwrap().alloc_objects, 15 + 3);
    assert_eq!(report.kind, Kind::Diff);
}

#[test]
fn what_can_be_known_of_a_tick_without_reading_it() {
    let (bytes, reports) = record(&by(GroupBy::Domain));
    let recording = read(bytes).unwrap();
    for (info, report) in recording.ticks().iter().zip(&reports) {
        assert_eq!(info.tick, report.tick);
        assert_eq!(info.time.unwrap().to_string(), report.time);
        let inuse: u64 = report.rows.iter().map(|row| row.inuse_bytes).sum();
        assert_eq!(info.inuse_bytes, inuse);
        assert_eq!(info.rss_bytes, Some(4096 * info.tick));
    }
    assert_eq!(recording.header().target, "pid 100");
}

#[test]
fn a_process_that_was_let_go_is_gone_from_then_on() {
    let (mut model, mut table) = (Model::new(), StackTable::new());
    let mut writer = Writer::new(Vec::new(), header(100 * SECOND)).unwrap();
    let count = crate::model::processes::MAX_ENDED as u32 + 5;
    let mut first = sample(0);
    for instance in 1..=count {
        first.processes.push((instance, ProcessState::new(instance, 0)));
        first
            .sites
            .push((key(instance, Domain::Native, 7), blocks(10, 1, 0)));
    }
    for sample in [first, sample(1), sample(2).alive(9999, count + 1)] {
        model.apply(sample);
        model.forget();
        writer.tick(&model, &mut table, &meta()).unwrap();
    }
    let mut recording = read(writer.into_inner()).unwrap();
    let sites = |recording: &mut Recording, index| recording.at(index).unwrap().model.sites().count();
    assert_eq!(sites(&mut recording, 0), count as usize);
    assert_eq!(sites(&mut recording, 2), count as usize - 5);
    assert_eq!(
        recording.last().unwrap().model.processes().iter().count(),
        count as usize - 4
    );
    assert_eq!(recording.ending(), Ending::Unfinished);
}

#[test]
fn names_that_get_better_later_are_taken_from_then_on() {
    let (mut model, mut table) = (Model::new(), StackTable::new());
    let mut writer = Writer::new(Vec::new(), header(100 * SECOND)).unwrap();
    let named = names().stack(1, 10);
    for tick in 0..3 {
        let mut stack = (*named).clone();
        if tick == 0 {
            stack.raw = true;
            stack.frames.clear();
        }
        table.insert(1, 10, stack);
        model.apply(sample(tick).site(key(1, Domain::Native, 10), blocks(10, 1 + tick, 0)));
        writer.tick(&model, &mut table, &meta()).unwrap();
    }
    let mut recording = read(writer.into_inner()).unwrap();
    assert!(recording.at(0).unwrap().names.stack(1, 10).frames.is_empty());
    assert_eq!(*recording.at(2).unwrap().names.stack(1, 10), *named);
}

/// Files of each format version, written when that was the newest. They are never written again: for the next version
/// there will be another.
#[test]
fn all_versions_are_read() {
    for version in 1..=super::VERSION {
        let name = format!("tests/fixtures/version-{version}.memwatch");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let is_newest = version == super::VERSION;
        if std::env::var_os("MEMWATCH_WRITE_FIXTURE").is_some() && is_newest && !path.exists() {
            std::fs::write(&path, record(&Query::default()).0).unwrap();
        }
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written[8..12], version.to_le_bytes());
        let mut recording = super::open(&path).unwrap();
        let (_, reports) = record(&Query::default());
        assert_eq!(recording.ticks().len(), 6);
        let report = recording
            .last()
            .unwrap()
            .report(&Query::default(), Kind::Top, None)
            .unwrap();
        // Files have had threads since later than these were written.
        let mut expected = reports[5].rows.clone();
        for row in &mut expected {
            row.threads.clear();
        }
        assert_eq!(report.rows, expected, "{version}");
        assert_eq!(report.processes, reports[5].processes, "{version}");
    }
}

/// Ticks that nobody looks at are only read; whoever looks sees the same as who looked at all of them.
#[test]
fn ticks_that_were_passed_over_make_no_difference() {
    const TICKS: usize = 150;
    let mut service = Service::with_activity(60, 3, 500);
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    for _ in 0..TICKS {
        service.tick();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
    }
    let bytes = writer.into_inner();
    let shown = |recording: &mut Recording, index: usize| {
        let query = Query {
            limit: 1000,
            ..Query::default()
        };
        recording
            .at(index)
            .unwrap()
            .report(&query, Kind::Top, None)
            .unwrap()
    };
    let mut each = read(bytes.clone()).unwrap();
    let expected: Vec<Report> = (0..TICKS).map(|index| shown(&mut each, index)).collect();
    assert!(
        expected[TICKS - 1]
            .rows
            .iter()
            .any(|row| row.growth_bytes_per_second.is_some_and(|growth| growth != 0.0))
    );
    let mut recording = read(bytes).unwrap();
    // Forward in leaps, back, and by one.
    for index in [0, 40, 41, 90, 60, 61, 149, 148, 30, 31, 32, 149] {
        assert_eq!(shown(&mut recording, index), expected[index], "{index}");
    }
    for every in [1, 7, 29, 31, 70] {
        recording.at(0).unwrap();
        for index in (0..TICKS - 1).step_by(every) {
            let moment = recording.on_the_way(index, TICKS - 1).unwrap();
            let sites = moment.model.sites();
            let inuse: u64 = sites.map(|(_, site)| site.totals.inuse_bytes()).sum();
            assert_eq!(inuse, recording.ticks()[index].inuse_bytes, "{every}: {index}");
        }
        assert_eq!(shown(&mut recording, TICKS - 1), expected[TICKS - 1], "{every}");
    }
    recording.on_the_way(100, 149).unwrap();
    assert_eq!(shown(&mut recording, 110), expected[110]);
}

#[test]
fn the_same_watch_makes_the_same_file() {
    assert_eq!(record(&Query::default()).0, record(&Query::default()).0);
}

#[test]
fn a_busy_service_is_read_as_it_was_written() {
    let mut service = Service::new(300, 7);
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    let mut totals = Vec::new();
    for _ in 0..60 {
        service.tick();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
        let mut sites: Vec<_> = service
            .model
            .sites()
            .map(|(id, site)| (*id, site.totals))
            .collect();
        sites.sort_unstable_by_key(|(id, _)| *id);
        totals.push(sites);
    }
    let mut recording = read(writer.into_inner()).unwrap();
    for (index, expected) in totals.iter().enumerate() {
        let moment = recording.at(index).unwrap();
        let mut sites: Vec<_> = moment
            .model
            .sites()
            .map(|(id, site)| (*id, site.totals))
            .collect();
        sites.sort_unstable_by_key(|(id, _)| *id);
        // A site that is there and has nothing yet is not written.
        let expected: Vec<_> = expected
            .iter()
            .filter(|(_, totals)| totals.alloc_objects > 0)
            .copied()
            .collect();
        assert_eq!(sites, expected, "{index}");
        for (id, _) in &expected {
            let name = service.names.stack(id.instance, id.stack);
            assert_eq!(moment.names.stack(id.instance, id.stack).frames, name.frames);
        }
    }
}
