//! Files that were cut, changed, or made up.

use std::io::Cursor;

use proptest::prelude::*;

use super::super::frame::{Head, Packer, write_start};
use super::super::section::Section;
use super::synthetic::{Random, Service, meta};
use super::{header, read};
use crate::model::query::Query;
use crate::model::report::Kind;
use crate::store::writer::Writer;
use crate::store::{Bounds, Ending, Recording, StoreError, VERSION, fuzz_entry};

/// A recording, where each of its ticks ends, and what was in use then.
fn service(ticks: usize) -> (Vec<u8>, Vec<usize>, Vec<u64>) {
    let mut service = Service::new(200, 3);
    let mut writer = Writer::new(Vec::new(), header(service.model.since_ns())).unwrap();
    for _ in 0..ticks {
        service.tick();
        writer.tick(&service.model, &mut service.names, &meta()).unwrap();
    }
    let mut end = 0;
    let ends = writer.written().iter().map(|written| {
        end += written.frame_bytes as usize;
        end
    });
    let ends = ends.collect();
    let inuse = writer
        .written()
        .iter()
        .map(|written| written.inuse_bytes)
        .collect();
    writer.finish().unwrap();
    (writer.into_inner(), ends, inuse)
}

#[test]
fn cut_at_a_thousand_places_it_opens_to_the_last_whole_tick() {
    let (bytes, ends, inuse) = service(40);
    let mut random = Random(11);
    for _ in 0..1000 {
        let cut = random.below(bytes.len() as u64) as usize;
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let opened = read(bytes[..cut].to_vec());
        if whole == 0 {
            assert!(
                matches!(opened, Err(StoreError::NoTick | StoreError::NotARecording)),
                "{cut}"
            );
            continue;
        }
        let mut recording = opened.unwrap();
        assert_eq!(recording.ticks().len(), whole, "{cut}");
        let expected = match cut - ends[whole - 1] {
            0 => Ending::Unfinished,
            rest => Ending::Cut { bytes: rest as u64 },
        };
        assert_eq!(recording.ending(), expected, "{cut}");
        let report = recording
            .last()
            .unwrap()
            .report(
                &Query {
                    limit: 1000,
                    ..Query::default()
                },
                Kind::Top,
                None,
            )
            .unwrap();
        let sum: u64 = report.rows.iter().map(|row| row.inuse_bytes).sum();
        assert_eq!(sum, inuse[whole - 1], "{cut}");
    }
}

#[test]
fn a_bit_that_flipped_ends_the_file_there() {
    let (bytes, ends, _) = service(10);
    let mut random = Random(5);
    for _ in 0..200 {
        let place = 12 + random.below(bytes.len() as u64 - 12) as usize;
        let mut changed = bytes.clone();
        changed[place] ^= 1 << random.below(8);
        let whole = ends.iter().filter(|end| **end <= place).count();
        match read(changed) {
            Ok(mut recording) => {
                assert_eq!(recording.ticks().len(), whole, "{place}");
                assert_ne!(recording.ending(), Ending::Complete, "{place}");
                recording.last().unwrap();
            }
            Err(error) => assert!(
                whole == 0 && matches!(error, StoreError::NoTick),
                "{place}: {error}"
            ),
        }
    }
}

#[test]
fn what_is_no_recording_and_what_is_newer_is_told() {
    let message = |bytes: &[u8]| read(bytes.to_vec()).unwrap_err().to_string();
    assert_eq!(message(b""), "it is not a memwatch recording");
    assert_eq!(message(b"{\"schema\":1}"), "it is not a memwatch recording");
    let (mut bytes, _, _) = service(2);
    bytes[8] = VERSION as u8 + 1;
    assert_eq!(
        message(&bytes),
        "it is of format version 3, and this memwatch reads versions up to 2: use a newer memwatch"
    );
    let mut start = Vec::new();
    write_start(&mut start);
    assert_eq!(
        message(&start),
        "it was cut off before its first whole tick: nothing can be read from it"
    );
}

const SECTIONS: [Section; 15] = [
    Section::Header,
    Section::Tick,
    Section::Strings,
    Section::Frames,
    Section::Stacks,
    Section::StackOf,
    Section::Processes,
    Section::ProcessNumbers,
    Section::Forgotten,
    Section::Sites,
    Section::Totals1,
    Section::Ages1,
    Section::Counters,
    Section::Totals,
    Section::Ages,
];

/// Good frames with anything in them, so that what lies behind the checksums is reached.
fn framed(ticks: &[Vec<(usize, Vec<u8>)>]) -> Vec<u8> {
    let mut packer = Packer::new().unwrap();
    let mut bytes = Vec::new();
    write_start(&mut bytes);
    for (tick, sections) in ticks.iter().enumerate() {
        let mut raw = Vec::new();
        for (section, content) in sections {
            SECTIONS[*section].put(&mut raw, content);
        }
        let head = Head {
            tick: tick as u64,
            at_ns: tick as u64 * 5,
            ..Head::default()
        };
        bytes.extend(packer.frame(&head, &raw).unwrap());
    }
    bytes
}

/// The unpacked ticks of a good recording.
fn raws(bytes: &[u8]) -> Vec<Vec<u8>> {
    use super::super::frame::{Next, START_BYTES, Unpacker, next};
    let mut source = &bytes[START_BYTES as usize..];
    let (mut unpacker, mut buffer, mut all) = (Unpacker::new().unwrap(), Vec::new(), Vec::new());
    while let Next::Frame(head, packed) = next(&mut source, &mut buffer, &Bounds::USUAL).unwrap() {
        let mut raw = Vec::new();
        unpacker
            .unpack(&head, &buffer[packed..], &mut raw, &Bounds::USUAL)
            .unwrap();
        all.push(raw);
    }
    all
}

fn sections() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let content = prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..60);
    prop::collection::vec((0..SECTIONS.len(), content), 0..6)
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_entry(&bytes);
        let mut started = Vec::new();
        write_start(&mut started);
        started.extend(bytes);
        fuzz_entry(&started);
    }

    #[test]
    fn any_sections_are_refused_or_read(ticks in prop::collection::vec(sections(), 1..4)) {
        fuzz_entry(&framed(&ticks));
    }
}

/// Good ticks with some bytes changed, under good checksums.
#[test]
fn good_ticks_with_bad_numbers_are_refused_or_read() {
    let raws = raws(&service(6).0);
    let mut random = Random(99);
    for _ in 0..600 {
        let mut packer = Packer::new().unwrap();
        let mut bytes = Vec::new();
        write_start(&mut bytes);
        for (tick, raw) in raws.iter().enumerate() {
            let mut raw = raw.clone();
            // The first tick is mostly names, and its header must stay for the rest to be reached.
            let from = if tick == 0 { raw.len() * 3 / 4 } else { 0 };
            for _ in 0..random.below(4) {
                if raw.len() > from {
                    let place = from + random.below((raw.len() - from) as u64) as usize;
                    raw[place] = random.next() as u8;
                }
            }
            let head = Head {
                tick: tick as u64,
                at_ns: random.next() >> random.below(64),
                ..Head::default()
            };
            bytes.extend(packer.frame(&head, &raw).unwrap());
        }
        fuzz_entry(&bytes);
    }
}

#[test]
fn numbers_too_large_to_add_up_are_refused() {
    let mut site = vec![1, 0, 0];
    site.extend([0; 8]);
    // One site that allocated 2^63 objects: gap 0, then each column.
    let huge = {
        let mut out = Vec::new();
        crate::numbers::put_difference(&mut out, 1 << 62, 0);
        out
    };
    let mut totals = Vec::new();
    for column in [&[0][..], &huge, &huge, &huge, &[0], &[0], &[], &[0], &[]] {
        crate::numbers::put_bytes(&mut totals, column);
    }
    // As version 1 has them, and as they are now.
    for section in [10, 13] {
        let bytes = framed(&[vec![(9, site.clone()), (section, totals.clone())]]);
        let error = Recording::read(Cursor::new(bytes), &Bounds::SMALL)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "it is damaged at tick 0: its numbers are larger than any memory"
        );
    }
}
