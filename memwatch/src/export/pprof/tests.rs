use std::io::Read as _;

use flate2::read::GzDecoder;

use super::*;
use crate::export::fixtures::{full, native_frame, row, tick};
use crate::model::report::{Frame, ThreadShare};

fn read(report: &Report) -> Profile {
    let mut bytes = Vec::new();
    let file = file(report).unwrap();
    GzDecoder::new(file.as_slice()).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

fn text(profile: &Profile, index: i64) -> &str {
    &profile.string_table[index as usize]
}

#[test]
fn the_four_sample_types_have_the_names_and_units_that_tools_expect() {
    let profile = read(&tick(vec![row()]));
    let types: Vec<(&str, &str)> = profile
        .sample_type
        .iter()
        .map(|kind| (text(&profile, kind.r#type), text(&profile, kind.unit)))
        .collect();
    assert_eq!(
        types,
        [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes")
        ]
    );
    assert_eq!(text(&profile, profile.default_sample_type), "inuse_space");
    assert_eq!(text(&profile, 0), "");
}

#[test]
fn values_and_labels_are_those_of_the_row() {
    let profile = read(&full());
    let row = row();
    assert_eq!(
        profile.sample[0].value,
        [
            row.alloc_objects,
            row.alloc_bytes,
            row.inuse_objects,
            row.inuse_bytes
        ]
        .map(|value| value as i64)
    );
    let labels: Vec<String> = profile.sample[0]
        .label
        .iter()
        .map(|label| match label.str {
            0 => format!("{}={}", text(&profile, label.key), label.num),
            value => format!("{}={}", text(&profile, label.key), text(&profile, value)),
        })
        .collect();
    assert_eq!(
        labels,
        [
            "pid=1234",
            "process=python3",
            "domain=native",
            "mapping=anonymous",
            "container=web"
        ]
    );
    let comments: Vec<&str> = profile.comment.iter().map(|line| text(&profile, *line)).collect();
    assert!(comments.contains(&"lost: 3 frees were missed"), "{comments:?}");
    assert!(comments.contains(&"process 1234: python3 app.py"), "{comments:?}");
    assert_eq!(profile.time_nanos, 1_772_366_410_000_000_000);
}

#[test]
fn what_each_thread_has_in_use_is_a_sample_of_its_own() {
    let whole = row();
    let share = |thread, bytes, objects| ThreadShare {
        thread,
        bytes,
        objects,
    };
    let threads = vec![share(41, 100, 2), share(42, 30, 1)];
    let profile = read(&tick(vec![Row { threads, ..row() }]));
    let thread = |sample: &Sample| {
        let label = sample
            .label
            .iter()
            .find(|label| text(&profile, label.key) == "thread");
        label.map(|label| label.num)
    };
    let found: Vec<_> = profile.sample.iter().map(thread).collect();
    assert_eq!(found, [Some(41), Some(42), None]);
    assert_eq!(profile.sample[0].value, [2, 100, 2, 100]);
    let sums: Vec<i64> = (0..4)
        .map(|index| profile.sample.iter().map(|sample| sample.value[index]).sum())
        .collect();
    let all = [
        whole.alloc_objects,
        whole.alloc_bytes,
        whole.inuse_objects,
        whole.inuse_bytes,
    ];
    assert_eq!(sums, all.map(|value| value as i64));
}

#[test]
fn the_program_is_the_first_file() {
    let mut report = full();
    report.processes[0].exe = Some("/usr/bin/python3.11".to_owned());
    let profile = read(&report);
    let first = profile.mapping[0].filename as usize;
    assert_eq!(profile.string_table[first], "/usr/bin/python3.11");
    assert!(profile.mapping.len() > 1);
}

#[test]
fn inlined_functions_share_a_location_and_addresses_lie_in_their_mapping() {
    let profile = read(&tick(vec![Row {
        frames: Frame::shared([
            native_frame("malloc", None, "/lib/libc.so.6"),
            Frame {
                inlined: true,
                ..native_frame("inner", Some(("a.h", 1)), "/bin/app")
            },
            native_frame("outer", Some(("a.c", 2)), "/bin/app"),
        ]),
        truncated: true,
        ..row()
    }]));
    let sample = &profile.sample[0];
    assert_eq!(
        sample.location_id.len(),
        3,
        "malloc, outer with inner, and the cut"
    );
    let outer = &profile.location[sample.location_id[1] as usize - 1];
    let names: Vec<&str> = outer
        .line
        .iter()
        .map(|line| text(&profile, profile.function[line.function_id as usize - 1].name))
        .collect();
    assert_eq!(names, ["inner", "outer"]);
    let mapping = &profile.mapping[outer.mapping_id as usize - 1];
    assert_eq!(text(&profile, mapping.filename), "/bin/app");
    assert_eq!(text(&profile, mapping.build_id), "c0ffee");
    assert_eq!(outer.address - mapping.memory_start, 0x1234);
    assert!(outer.address < mapping.memory_limit);
}

#[test]
fn nothing_is_in_the_tables_twice() {
    let profile = read(&tick(vec![
        row(),
        Row {
            pid: Some(7),
            ..row()
        },
    ]));
    assert_eq!(profile.sample.len(), 2);
    assert_eq!(profile.sample[0].location_id, profile.sample[1].location_id);
    let mut texts = profile.string_table.clone();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), profile.string_table.len());
}

#[test]
fn a_row_without_a_stack_is_counted_all_the_same() {
    let profile = read(&tick(vec![Row {
        frames: Vec::new(),
        ..row()
    }]));
    let location = &profile.location[profile.sample[0].location_id[0] as usize - 1];
    let function = profile.function[location.line[0].function_id as usize - 1];
    assert_eq!(text(&profile, function.name), "[unknown stack]");
}
