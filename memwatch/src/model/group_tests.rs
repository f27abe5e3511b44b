use std::collections::HashMap;
use std::time::Duration;

use memwatch_common::event::MAPPING_ANONYMOUS;
use memwatch_common::{Domain, Event, EventKind};

use super::super::processes::ProcessFacts;
use super::super::report::{Container, FrameKind};
use super::super::testing::{SECOND, blocks, key, sample};
use super::*;
use crate::collect::sample::{ClassBytes, ClassUse, Held, LiveScan, PoolTotals, Sample};
use crate::python::classes::CLASSES;
use crate::symbolize::names::{NamedStack, StackTable};

const NOW: u64 = 110 * SECOND;

fn frame(function: &str, file: &str, line: u32, module: &str) -> Frame {
    Frame {
        function: Some(function.into()),
        file: Some(file.into()),
        line: Some(line),
        module: Some(module.into()),
        ..Frame::default()
    }
}

/// Stack 10: malloc < grow < main. Stack 20: malloc < read < grow < main. Stack 30: Python.
fn names() -> StackTable {
    let malloc = || frame("malloc", "malloc.c", 1, "/lib/libc.so.6");
    let grow = |line| frame("grow", "cache.c", line, "/bin/app");
    let main = || frame("main", "main.c", 3, "/bin/app");
    let python = Frame {
        kind: FrameKind::Python,
        ..frame("build", "/srv/app.py", 88, "/srv/app.py")
    };
    let mut table = StackTable::new();
    for instance in 1..=3 {
        let mut put = |stack, frames| {
            table.insert(
                instance,
                stack,
                NamedStack {
                    frames: Frame::shared(frames),
                    ..NamedStack::default()
                },
            );
        };
        put(10, vec![malloc(), grow(5), main()]);
        put(
            20,
            vec![
                malloc(),
                frame("read", "io.c", 7, "/lib/libio.so"),
                grow(6),
                main(),
            ],
        );
        put(
            30,
            vec![
                frame("PyObject_Malloc", "obmalloc.c", 9, "/bin/python"),
                python.clone(),
            ],
        );
    }
    table
}

/// Two processes, two ticks.
fn model() -> Model {
    let mut model = Model::new();
    model.apply(
        sample(0)
            .site(key(1, Domain::Native, 10), blocks(100, 10, 0))
            .site(key(1, Domain::Native, 20), blocks(10, 50, 50))
            .alive(1000, 1)
            .alive(2000, 2),
    );
    model.apply(
        sample(10)
            .site(key(1, Domain::Native, 10), blocks(100, 30, 10))
            .site(key(1, Domain::Native, 20), blocks(10, 60, 50))
            .site(key(2, Domain::PythonObject, 30), blocks(64, 100, 10))
            .site(key(2, Domain::Native, 99), blocks(8, 1, 0))
            .alive(1000, 1)
            .alive(2000, 2),
    );
    model
}

fn ask(model: &Model, query: &Query) -> Vec<Row> {
    let (rows, total) = rows(model, query, &mut names(), None, NOW).unwrap();
    assert!(total >= rows.len() as u64);
    rows
}

fn grouped_by(group_by: GroupBy) -> Query {
    Query {
        group_by,
        ..Query::default()
    }
}

fn sizes(rows: &[Row]) -> Vec<(&str, u64)> {
    rows.iter()
        .map(|row| (row.key.as_str(), row.inuse_bytes))
        .collect()
}

#[test]
fn each_stack_is_a_row_with_all_its_numbers() {
    let rows = ask(&model(), &Query::default());
    assert_eq!(
        sizes(&rows),
        [
            ("build", 5760),
            ("grow;main", 2000),
            ("read;grow;main", 100),
            ("[unknown stack]", 8)
        ]
    );
    let grow = &rows[1];
    assert_eq!((grow.pid, grow.domain.as_deref()), (Some(1000), Some("native")));
    assert_eq!(
        (grow.inuse_objects, grow.alloc_bytes, grow.freed_objects),
        (20, 3000, 10)
    );
    assert_eq!(
        grow.delta.unwrap(),
        Delta {
            inuse_bytes: 1000,
            inuse_objects: 10,
            alloc_bytes: 2000,
            alloc_objects: 20
        }
    );
    assert_eq!(grow.growth_bytes_per_second, Some(100.0));
    assert_eq!(
        grow.sizes,
        [SizeBucket {
            below_bytes: Some(128),
            objects: 30
        }]
    );
    assert_eq!(
        grow.lifetimes,
        [Age {
            below_seconds: Some(8192.0 / 1e9),
            objects: 10
        }]
    );
    assert_eq!((grow.frames.len(), grow.stacks, grow.truncated), (3, 1, false));
    assert_eq!(
        (&grow.ages, grow.oldest_seconds, &grow.mapping),
        (&None, None, &None)
    );
    assert!(rows[3].truncated && rows[3].frames.is_empty());
}

#[test]
fn nothing_to_compare_with_is_null_and_not_zero() {
    let mut model = Model::new();
    model.apply(sample(0).site(key(1, Domain::Native, 10), blocks(100, 1, 0)));
    let rows = ask(&model, &Query::default());
    assert_eq!(
        (rows[0].delta, rows[0].growth_bytes_per_second, rows[0].pid),
        (None, None, None)
    );
}

#[test]
fn groups_by_place() {
    let model = model();
    let by = |group_by| {
        ask(&model, &grouped_by(group_by))
            .iter()
            .map(|r| (r.key.clone(), r.inuse_bytes))
            .collect::<Vec<_>>()
    };
    let own = |list: &[(&str, u64)]| {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), *v))
            .collect::<Vec<_>>()
    };
    let unknown = ("[unknown stack]", 8);
    assert_eq!(
        by(GroupBy::Line),
        own(&[
            ("/srv/app.py:88", 5760),
            ("cache.c:5", 2000),
            ("io.c:7", 100),
            unknown
        ])
    );
    assert_eq!(
        by(GroupBy::File),
        own(&[("/srv/app.py", 5760), ("cache.c", 2000), ("io.c", 100), unknown])
    );
    assert_eq!(
        by(GroupBy::Function),
        own(&[("build", 5760), ("grow", 2000), ("read", 100), unknown])
    );
    assert_eq!(
        by(GroupBy::Domain),
        own(&[("python.object", 5760), ("native", 2108)])
    );
    assert_eq!(by(GroupBy::Process), own(&[("2000", 5768), ("1000", 2100)]));
    assert_eq!(by(GroupBy::Size), own(&[("64-127 B", 7760), ("8-15 B", 108)]));
}

#[test]
fn cumulative_counts_a_stack_in_every_function_once() {
    let query = Query {
        cumulative: true,
        domains: vec![Domain::Native],
        ..grouped_by(GroupBy::Function)
    };
    let rows = ask(&model(), &query);
    assert_eq!(
        sizes(&rows),
        [
            ("grow", 2100),
            ("main", 2100),
            ("malloc", 2100),
            ("read", 100),
            ("[unknown stack]", 8)
        ]
    );
    assert_eq!((rows[0].stacks, rows[0].pid), (2, Some(1000)));
}

#[test]
fn what_a_group_does_not_have_in_common_is_null() {
    let rows = ask(&model(), &grouped_by(GroupBy::Process));
    assert_eq!((rows[0].pid, rows[0].domain.as_deref()), (Some(2000), None));
    let rows = ask(&model(), &grouped_by(GroupBy::Domain));
    assert_eq!(
        (rows[1].pid, rows[1].domain.as_deref(), rows[1].stacks),
        (None, Some("native"), 3)
    );
    assert_eq!(rows[1].frames[1].function.as_deref(), Some("grow"));
}

#[test]
fn containers_and_their_absence_are_groups() {
    let mut model = model();
    let container = Some(Container {
        id: "abc".into(),
        ..Container::default()
    });
    model.describe(
        2,
        ProcessFacts {
            container,
            ..ProcessFacts::default()
        },
    );
    assert_eq!(
        sizes(&ask(&model, &grouped_by(GroupBy::Container))),
        [("abc", 5768), ("[no container]", 2100)]
    );
}

#[test]
fn threads_have_what_the_last_pass_saw_and_the_rest_is_of_none() {
    let mut model = model();
    let threads = |bytes| {
        let held = [(1001, bytes, 1), (1002, 5, 1)];
        let held = held.map(|(thread, bytes, objects)| (thread, Held { objects, bytes }));
        HashMap::from([(key(1, Domain::Native, 10), held.to_vec())])
    };
    let scan = |bytes| {
        Some(LiveScan {
            at_ns: NOW,
            threads: threads(bytes),
            ..LiveScan::default()
        })
    };
    model.apply(Sample {
        live: scan(100),
        ..sample(12).alive(1000, 1).alive(2000, 2)
    });
    let baseline = model.baseline();
    model.apply(Sample {
        live: scan(300),
        ..sample(13).alive(1000, 1).alive(2000, 2)
    });
    let query = grouped_by(GroupBy::Thread);
    let by_thread = ask(&model, &query);
    let told = |rows: &[Row], name: &str| {
        let row = rows.iter().find(|row| row.key.starts_with(name)).unwrap();
        (row.inuse_bytes, row.delta.map(|delta| delta.inuse_bytes))
    };
    assert_eq!(told(&by_thread, "thread 1001 of"), (300, None));
    assert_eq!(told(&by_thread, "thread 1002 of"), (5, None));
    let sum = |rows: &[Row]| -> (u64, u64) {
        let add = |sum: (u64, u64), row: &Row| (sum.0 + row.inuse_bytes, sum.1 + row.alloc_bytes);
        rows.iter().fold((0, 0), add)
    };
    assert_eq!(sum(&by_thread), sum(&ask(&model, &grouped_by(GroupBy::Process))));
    let (changes, _) = rows(&model, &query, &mut names(), Some(&baseline), NOW).unwrap();
    assert_eq!(told(&changes, "thread 1001 of"), (300, Some(200)));
}

#[test]
fn filters_by_name_and_domain() {
    let model = model();
    let ask_keys = |include: &[&str], exclude: &[&str], domains: Vec<Domain>| {
        let own = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect();
        let query = Query {
            include: own(include),
            exclude: own(exclude),
            domains,
            ..Query::default()
        };
        ask(&model, &query)
            .into_iter()
            .map(|row| row.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(ask_keys(&["libio.so"], &[], vec![]), ["read;grow;main"]);
    assert_eq!(ask_keys(&["grow"], &["io.c"], vec![]), ["grow;main"]);
    assert_eq!(ask_keys(&[], &["main"], vec![]), ["build", "[unknown stack]"]);
    assert_eq!(ask_keys(&[], &[], vec![Domain::PythonObject]), ["build"]);
    let bad = Query {
        include: vec!["{".into()],
        ..Query::default()
    };
    assert!(matches!(
        rows(&model, &bad, &mut names(), None, NOW),
        Err(QueryError::Glob(_))
    ));
}

#[test]
fn sorts_by_each_number() {
    let model = model();
    let first = |sort| {
        ask(
            &model,
            &Query {
                sort,
                limit: 2,
                ..Query::default()
            },
        )
        .into_iter()
        .map(|r| r.key)
        .collect::<Vec<_>>()
    };
    assert_eq!(first(SortBy::InuseObjects), ["build", "grow;main"]);
    assert_eq!(first(SortBy::AllocBytes), ["build", "grow;main"]);
    assert_eq!(first(SortBy::AllocObjects), ["build", "read;grow;main"]);
    assert_eq!(first(SortBy::Growth), ["build", "grow;main"]);
}

/// As tracemalloc's compare_to: what shrank by more comes before what grew by less.
#[test]
fn differences_are_sorted_by_how_much_there_is_of_them() {
    let mut model = model();
    let baseline = model.baseline();
    model.apply(
        sample(11)
            .site(key(1, Domain::Native, 10), blocks(100, 31, 10))
            .site(key(2, Domain::PythonObject, 30), blocks(64, 100, 50))
            .site(key(2, Domain::Native, 99), blocks(8, 60, 0))
            .alive(1000, 1)
            .alive(2000, 2),
    );
    let query = Query {
        sort: SortBy::Difference,
        ..Query::default()
    };
    let (rows, _) = rows(&model, &query, &mut names(), Some(&baseline), NOW).unwrap();
    let changes: Vec<i64> = rows.iter().map(|row| row.delta.unwrap().inuse_bytes).collect();
    assert_eq!(changes, [-2560, 472, 100, 0]);
}

#[test]
fn the_limit_cuts_rows_and_the_total_tells_how_many_there_were() {
    let query = Query {
        limit: 1,
        frames: Some(1),
        ..Query::default()
    };
    let (rows, total) = rows(&model(), &query, &mut names(), None, NOW).unwrap();
    assert_eq!((rows.len(), total), (1, 4));
    assert_eq!((rows[0].frames.len(), rows[0].key.as_str()), (1, "build"));
}

#[test]
fn rows_of_equal_size_keep_their_order() {
    let mut model = Model::new();
    let mut sample = sample(0);
    for stack in 0..50 {
        sample = sample.site(key(1, Domain::Native, 1000 + stack), blocks(8, 1, 0));
    }
    model.apply(sample);
    let mut table = StackTable::new();
    for stack in 0..50_u32 {
        let frames = vec![frame(&format!("f{stack:02}"), "f.c", stack, "f")];
        table.insert(
            1,
            1000 + u64::from(stack),
            NamedStack {
                frames: Frame::shared(frames),
                ..NamedStack::default()
            },
        );
    }
    let (rows, _) = rows(
        &model,
        &Query {
            limit: 50,
            ..Query::default()
        },
        &mut table,
        None,
        NOW,
    )
    .unwrap();
    assert!(rows.is_sorted_by_key(|row| row.key.clone()), "{:?}", sizes(&rows));
}

#[test]
fn freed_sites_are_shown_only_where_they_matter() {
    let mut model = Model::new();
    model.apply(sample(0).site(key(1, Domain::Native, 10), blocks(100, 10, 0)));
    let baseline = model.baseline();
    model.apply(sample(1).site(key(1, Domain::Native, 10), blocks(100, 10, 10)));
    assert!(ask(&model, &Query::default()).is_empty());
    assert_eq!(
        ask(
            &model,
            &Query {
                view: View::Alloc,
                ..Query::default()
            }
        )[0]
        .alloc_bytes,
        1000
    );
    assert_eq!(
        ask(
            &model,
            &Query {
                sort: SortBy::AllocBytes,
                ..Query::default()
            }
        )
        .len(),
        1
    );
    let (rows, _) = rows(&model, &Query::default(), &mut names(), Some(&baseline), NOW).unwrap();
    assert_eq!(rows[0].delta.unwrap().inuse_bytes, -1000);
}

fn with_live_scan() -> Model {
    let mut model = model();
    let ages = |young, old, oldest_born_ns| {
        let mut ages = SiteAges {
            oldest_born_ns,
            old_bytes: old * 100,
            old_objects: old,
            ..SiteAges::default()
        };
        ages.objects[0] = young;
        ages.objects[2] = old;
        ages
    };
    let sites = HashMap::from([
        (key(1, Domain::Native, 10), ages(15, 5, 60 * SECOND)),
        (key(1, Domain::Native, 20), ages(10, 0, 105 * SECOND)),
    ]);
    let map = Event {
        kind: EventKind::Map as u32,
        instance: 2,
        pid: 2000,
        flags: MAPPING_ANONYMOUS,
        stack: 10,
        begin_ns: 20 * SECOND,
        end_ns: 20 * SECOND,
        address: 0x10000,
        a: 4096,
        ..Event::ZERO
    };
    let live = Some(LiveScan {
        at_ns: NOW,
        sites,
        ..LiveScan::default()
    });
    model.apply(Sample {
        live,
        ..sample(11).event(map).alive(1000, 1).alive(2000, 2)
    });
    model
}

#[test]
fn ages_come_from_the_pass_over_live_blocks_and_from_mappings() {
    let rows = ask(
        &with_live_scan(),
        &Query {
            sort: SortBy::Age,
            ..Query::default()
        },
    );
    let oldest: Vec<_> = rows
        .iter()
        .map(|row| (row.key.as_str(), row.oldest_seconds))
        .collect();
    assert_eq!(
        oldest,
        [
            ("grow;main", Some(90.0)),
            ("grow;main", Some(50.0)),
            ("read;grow;main", Some(5.0)),
            ("build", None),
            ("[unknown stack]", None)
        ]
    );
    assert_eq!(
        (rows[0].mapping.as_deref(), rows[0].domain.as_deref()),
        (Some("anonymous"), Some("mmap"))
    );
    let ages = rows[1].ages.as_ref().unwrap();
    assert_eq!(ages.len(), AGE_EDGES_SECONDS.len() + 1);
    assert_eq!(
        (ages[0], ages[8].below_seconds),
        (
            Age {
                below_seconds: Some(1.0),
                objects: 15
            },
            None
        )
    );
}

#[test]
fn only_old_blocks_are_in_use_when_asked_for_those() {
    let older_than = Some(Duration::from_secs(10));
    let rows = ask(
        &with_live_scan(),
        &Query {
            older_than,
            ..Query::default()
        },
    );
    let old: Vec<_> = rows
        .iter()
        .map(|row| (row.inuse_bytes, row.inuse_objects))
        .collect();
    assert_eq!(old, [(4096, 1), (500, 5)]);
    let before_any_scan = ask(
        &model(),
        &Query {
            older_than,
            ..Query::default()
        },
    );
    assert!(before_any_scan.is_empty());
}

#[test]
fn sizes_have_no_ages() {
    let rows = ask(&with_live_scan(), &grouped_by(GroupBy::Size));
    assert!(
        rows.iter()
            .all(|row| row.ages.is_none() && row.lifetimes.is_empty())
    );
    assert_eq!(
        rows.iter().map(|row| row.inuse_bytes).sum::<u64>(),
        5760 + 2000 + 100 + 8 + 4096
    );
}

#[test]
fn what_is_in_pools_is_an_estimate_and_has_an_interval() {
    let place = key(1, Domain::PythonObject, 30);
    let small = PoolTotals {
        key: place,
        totals: blocks(64, 1000, 0),
        classes: vec![ClassBytes {
            class: 3,
            bytes: 64_000,
            filled: 0,
        }],
    };
    let mut uses = [ClassUse::default(); CLASSES];
    uses[3] = ClassUse {
        bytes: 64_000 + 160,
        openers: 1,
    };
    let mut model = Model::new();
    model.apply(Sample {
        pools: vec![small],
        pool_classes: vec![(1, uses)],
        ..sample(0).site(place, blocks(5000, 10, 0))
    });
    let by = |group_by| Query {
        group_by,
        ..Query::default()
    };
    let (rows, _) = rows(&model, &by(GroupBy::Traceback), &mut names(), None, NOW).unwrap();
    let numbers = |row: &Row| {
        (
            row.inuse_bytes,
            row.estimated_bytes,
            row.inuse_low_bytes,
            row.inuse_high_bytes,
        )
    };
    assert_eq!(
        numbers(&rows[0]),
        (64_000, 64_000, Some(0), Some(64_000 + 160 + 3 * 16_384))
    );
    assert_eq!(numbers(&rows[1]), (50_000, 0, None, None));
    let (lines, _) = super::rows(&model, &by(GroupBy::Line), &mut names(), None, NOW).unwrap();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        numbers(&lines[0]),
        (114_000, 64_000, Some(50_000), Some(114_000 + 160 + 3 * 16_384))
    );
}
