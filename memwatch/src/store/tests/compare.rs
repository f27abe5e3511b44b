//! Recordings of different runs.

use std::io::Cursor;

use super::super::tests::header;
use super::super::tests::synthetic::{meta, stack};
use super::*;
use crate::model::processes::ProcessFacts;
use crate::model::query::{GroupBy, SortBy};
use crate::model::state::Model;
use crate::model::testing::{SECOND, blocks, key, sample};
use crate::store::writer::Writer;
use crate::store::{Bounds, Recording};
use crate::symbolize::names::StackTable;

/// One run: instance, pid, and sites as (stack hash, stack, objects of 100 bytes).
fn run(instance: u32, pid: u32, sites: &[(u64, NamedStack, u64)]) -> Recording {
    let (mut model, mut names) = (Model::new(), StackTable::new());
    let mut next = sample(0).alive(pid, instance);
    for (hash, stack, objects) in sites {
        names.insert(instance, *hash, stack.clone());
        next = next.site(key(instance, Domain::Native, *hash), blocks(100, *objects, 0));
    }
    model.apply(next);
    let facts = ProcessFacts {
        comm: "server".into(),
        ..ProcessFacts::default()
    };
    model.describe(instance, facts);
    let mut writer = Writer::new(Vec::new(), header(100 * SECOND)).unwrap();
    writer.tick(&model, &mut names, &meta()).unwrap();
    Recording::read(Cursor::new(writer.into_inner()), &Bounds::USUAL).unwrap()
}

fn changes(old: &mut Recording, new: &mut Recording, group_by: GroupBy) -> Vec<(i64, u64, Option<u32>)> {
    let query = Query {
        group_by,
        sort: SortBy::Difference,
        ..Query::default()
    };
    let report = compare(&mut old.last().unwrap(), &mut new.last().unwrap(), &query).unwrap();
    assert_eq!(report.kind, Kind::Diff);
    let rows = report.rows.iter();
    rows.map(|row| (row.delta.unwrap().inuse_bytes, row.inuse_bytes, row.pid))
        .collect()
}

/// As another build of the same source has it.
fn rebuilt(mut stack: NamedStack) -> NamedStack {
    for frame in &mut stack.frames {
        let frame = Arc::make_mut(frame);
        frame.build_id = Some("another".into());
        frame.address = frame.address.map(|address| address + 0x777);
        frame.offset = frame.offset.map(|offset| offset + 3);
    }
    stack
}

#[test]
fn sites_of_another_run_are_found_by_their_stacks() {
    let mut old = run(
        1,
        100,
        &[(11, stack(1, 5), 10), (12, stack(2, 5), 4), (13, stack(3, 5), 7)],
    );
    let mut new = run(
        9,
        555,
        &[(21, stack(1, 5), 15), (22, stack(2, 5), 4), (24, stack(4, 5), 1)],
    );
    let all = changes(&mut old, &mut new, GroupBy::Traceback);
    assert_eq!(
        all,
        [
            (-700, 0, Some(555)),
            (500, 1500, Some(555)),
            (100, 100, Some(555)),
            (0, 400, Some(555))
        ]
    );
}

#[test]
fn another_build_is_compared_by_function_and_line() {
    let mut old = run(1, 100, &[(11, stack(1, 5), 10)]);
    let mut new = run(
        1,
        100,
        &[(11, rebuilt(stack(1, 5)), 15), (12, rebuilt(stack(2, 5)), 1)],
    );
    let all = changes(&mut old, &mut new, GroupBy::Traceback);
    assert_eq!(all, [(500, 1500, Some(100)), (100, 100, Some(100))]);
}

#[test]
fn the_same_hash_of_another_stack_is_another_site() {
    let mut old = run(1, 100, &[(11, stack(1, 5), 10)]);
    let mut new = run(1, 100, &[(11, stack(2, 5), 3)]);
    let all = changes(&mut old, &mut new, GroupBy::Traceback);
    assert_eq!(all, [(-1000, 0, Some(100)), (300, 300, Some(100))]);
    let mut new = run(1, 100, &[(11, stack(2, 5), 3)]);
    let total: i64 = changes(&mut old, &mut new, GroupBy::Function)
        .iter()
        .map(|row| row.0)
        .sum();
    assert_eq!(total, -700);
}

#[test]
fn stacks_that_cannot_be_told_apart_add_up() {
    let mut old = run(1, 100, &[(11, stack(1, 5), 10), (12, stack(1, 5), 5)]);
    let mut new = run(1, 100, &[(11, stack(1, 5), 20)]);
    assert_eq!(
        changes(&mut old, &mut new, GroupBy::Traceback),
        [(500, 2000, Some(100))]
    );
}

#[test]
fn a_recording_compared_with_itself_has_no_differences() {
    let sites = [
        (11, stack(1, 5), 10),
        (12, stack(2, 5), 5),
        (13, NamedStack::default(), 2),
    ];
    let (mut old, mut new) = (run(1, 100, &sites), run(1, 100, &sites));
    for group_by in GroupBy::ALL.iter().filter(|by| **by != GroupBy::Thread) {
        let all = changes(&mut old, &mut new, *group_by);
        assert!(all.iter().all(|row| row.0 == 0), "{group_by}: {all:?}");
    }
}
