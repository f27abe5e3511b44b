use memwatch_common::event::{MAPPING_ALLOCATOR, MAPPING_ANONYMOUS};

use super::super::group::rows;
use super::super::mappings::MappingKind;
use super::super::query::{GroupBy, Query};
use super::super::testing::{SECOND, blocks, key, sample};
use super::*;
use crate::collect::sample::PoolTotals;
use crate::symbolize::names::StackTable;

fn native(instance: u32, stack: u64) -> SiteId {
    SiteId {
        instance,
        domain: Domain::Native,
        stack,
        mapping: None,
        counting: Counting::Blocks,
    }
}

fn event(kind: EventKind, instance: u32) -> Event {
    Event {
        kind: kind as u32,
        instance,
        pid: instance * 100,
        ..Event::ZERO
    }
}

fn mapped(instance: u32, address: u64, bytes: u64, flags: u32) -> Event {
    Event {
        address,
        a: bytes,
        flags,
        stack: 7,
        begin_ns: 5,
        end_ns: 6,
        ..event(EventKind::Map, instance)
    }
}

#[test]
fn the_first_sample_has_nothing_to_compare_with() {
    let mut model = Model::new();
    model.apply(sample(0).site(key(1, Domain::Native, 9), blocks(10, 1, 0)));
    let site = model.site(&native(1, 9)).unwrap();
    assert_eq!(model.last_change(site), None);
    assert_eq!(model.growth(site), None);
}

#[test]
fn changes_are_those_of_the_last_tick_only() {
    let mut model = Model::new();
    let site = key(1, Domain::Native, 9);
    model.apply(sample(0).site(site, blocks(10, 1, 0)));
    model.apply(sample(1).site(site, blocks(10, 5, 1)));
    let delta = model.last_change(model.site(&native(1, 9)).unwrap()).unwrap();
    assert_eq!(
        delta,
        Delta {
            inuse_bytes: 30,
            inuse_objects: 3,
            alloc_bytes: 40,
            alloc_objects: 4
        }
    );
    model.apply(sample(2));
    let site = model.site(&native(1, 9)).unwrap();
    assert_eq!(model.last_change(site), Some(Delta::default()));
    assert_eq!(model.growth(site), Some(15.0));
}

#[test]
fn reading_everything_again_is_no_change() {
    let mut model = Model::new();
    let site = key(1, Domain::Native, 9);
    for tick in 0..3 {
        model.apply(sample(tick).site(site, blocks(10, 5, 1)));
    }
    assert_eq!(
        model.last_change(model.site(&native(1, 9)).unwrap()),
        Some(Delta::default())
    );
    assert_eq!(model.processes().get(1).unwrap().counts[0].alloc_objects, 5);
}

#[test]
fn a_baseline_stays_as_it_was() {
    let mut model = Model::new();
    let site = key(1, Domain::Native, 9);
    model.apply(sample(0).site(site, blocks(10, 2, 0)));
    let baseline = model.baseline();
    model.apply(
        sample(1)
            .site(site, blocks(10, 7, 0))
            .site(key(1, Domain::Native, 8), blocks(1, 1, 0)),
    );
    assert_eq!(baseline.counts(&native(1, 9)).alloc_objects, 2);
    assert_eq!(baseline.counts(&native(1, 8)), Counts::default());
    assert_eq!(baseline.at_ns, 100 * SECOND);
}

#[test]
fn mappings_become_sites_of_their_own_domain() {
    let mut model = Model::new();
    model.apply(
        sample(0)
            .event(mapped(1, 0x10000, 8192, MAPPING_ANONYMOUS))
            .event(mapped(1, 0x20000, 4096, 0))
            .event(mapped(1, 0x30000, 4096, MAPPING_ANONYMOUS | MAPPING_ALLOCATOR)),
    );
    let id = |kind| SiteId {
        instance: 1,
        domain: Domain::Mmap,
        stack: 7,
        mapping: Some(kind),
        counting: Counting::Blocks,
    };
    assert_eq!(
        model
            .site(&id(MappingKind::Anonymous))
            .unwrap()
            .totals
            .alloc_bytes,
        8192
    );
    assert_eq!(
        model.site(&id(MappingKind::File)).unwrap().totals.alloc_bytes,
        4096
    );
    assert_eq!(model.allocator_mapped_bytes(1), Some(4096));
    let process = model.processes().get(1).unwrap();
    assert_eq!(
        (process.pid, process.counts[Domain::Mmap as usize].alloc_objects),
        (Some(100), 2)
    );
}

#[test]
fn a_child_starts_with_its_parents_mappings_and_an_exec_with_none() {
    let mut model = Model::new();
    let fork = Event {
        a: 1,
        b: 100,
        ..event(EventKind::Fork, 2)
    };
    let unmap = |instance| Event {
        kind: EventKind::Unmap as u32,
        begin_ns: 8,
        end_ns: 9,
        ..mapped(instance, 0x10000, 8192, 0)
    };
    model.apply(
        sample(0)
            .event(mapped(1, 0x10000, 8192, MAPPING_ANONYMOUS))
            .event(fork)
            .event(unmap(2))
            .event(Event {
                a: 2,
                ..event(EventKind::Exec, 3)
            })
            .event(unmap(3)),
    );
    assert_eq!(model.untracked_unmaps(2), Untracked::default());
    assert_eq!(model.untracked_unmaps(3).bytes, 8192);
    assert_eq!(
        model.processes().get(1).unwrap().counts[Domain::Mmap as usize].inuse_bytes(),
        8192
    );
    assert_eq!(
        model.processes().get(2).unwrap().counts[Domain::Mmap as usize],
        Counts::default()
    );
    assert!(model.processes().get(2).unwrap().replaced);
}

#[test]
fn totals_of_an_ended_process_are_kept_until_it_is_forgotten() {
    let mut model = Model::new();
    for instance in 1..=MAX_ENDED as u32 + 1 {
        model.apply(
            sample(0)
                .site(key(instance, Domain::Native, 9), blocks(10, 1, 0))
                .event(mapped(instance, 0x10000, 8192, 0))
                .event(event(EventKind::Exit, instance)),
        );
    }
    assert_eq!(model.site(&native(1, 9)).unwrap().totals.alloc_bytes, 10);
    assert_eq!(model.forget(), [1]);
    assert!(model.site(&native(1, 9)).is_none() && model.site(&native(2, 9)).is_some());
    model.apply(
        sample(1)
            .site(key(1, Domain::Native, 9), blocks(10, 1, 0))
            .event(mapped(1, 0x10000, 8192, 0))
            .alive(100, 1),
    );
    assert!(model.site(&native(1, 9)).is_none() && model.allocator_mapped_bytes(1).is_none());
}

#[test]
fn a_process_that_is_no_longer_listed_has_ended() {
    let mut model = Model::new();
    model.apply(sample(0).alive(100, 1).alive(200, 2));
    model.apply(sample(1).alive(200, 2));
    assert!(model.processes().get(1).unwrap().exited);
    assert!(!model.processes().get(2).unwrap().exited);
}

#[test]
fn numbers_without_a_meaning_are_counted() {
    let mut model = Model::new();
    let unknown_domain = SiteKey {
        instance: 1,
        domain: 99,
        stack: 0,
    };
    model.apply(sample(0).site(unknown_domain, blocks(1, 1, 0)).event(Event {
        kind: 77,
        ..Event::ZERO
    }));
    assert_eq!(model.undecoded(), 2);
    assert_eq!(model.sites().count(), 0);
}

#[test]
fn the_last_pass_over_live_blocks_is_kept() {
    let mut model = Model::new();
    let live = LiveScan {
        at_ns: 5,
        ..LiveScan::default()
    };
    model.apply(Sample {
        live: Some(live),
        ..sample(0)
    });
    model.apply(sample(1));
    assert_eq!(model.live().unwrap().at_ns, 5);
}

#[test]
fn a_program_that_was_replaced_holds_nothing() {
    let mut model = Model::new();
    let key = key(1, Domain::Native, 9);
    model.apply(sample(0).site(key, blocks(10, 5, 2)).alive(100, 1));
    let exec = Event {
        kind: EventKind::Exec as u32,
        instance: 2,
        pid: 100,
        a: 1,
        ..Event::ZERO
    };
    model.apply(sample(1).site(key, blocks(10, 6, 2)).event(exec).alive(100, 2));
    let counts = |model: &Model| Counts::from(&model.site(&site_id(&key).unwrap()).unwrap().totals);
    assert_eq!(
        (counts(&model).alloc_objects, counts(&model).inuse_objects()),
        (6, 0)
    );
    // After a full ring all sites are read again.
    model.apply(sample(2).site(key, blocks(10, 6, 2)).alive(100, 2));
    assert_eq!(counts(&model).inuse_objects(), 0);
}

/// 1,000 small objects from before the watch, 500 handed out since, of which 200 are left.
#[test]
fn what_was_there_before_does_not_hide_what_was_freed() {
    let pools = |stack, objects| PoolTotals {
        key: key(1, Domain::PythonObject, stack),
        totals: blocks(64, objects, 0),
        classes: Vec::new(),
    };
    let handed_out = SiteKey {
        domain: Domain::PythonObject as u32 | ALLOCATED_ONLY,
        ..key(1, Domain::PythonObject, 30)
    };
    let mut model = Model::new();
    model.apply(Sample {
        pools: vec![pools(STACK_BEFORE, 1000)],
        ..sample(0)
    });
    model.apply(Sample {
        pools: vec![pools(STACK_BEFORE, 1000), pools(30, 200)],
        ..sample(1).site(handed_out, blocks(64, 500, 0))
    });
    for group_by in [GroupBy::Process, GroupBy::Domain] {
        let query = Query {
            group_by,
            ..Query::default()
        };
        let (rows, _) = rows(&model, &query, &mut StackTable::new(), None, 2 * SECOND).unwrap();
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(
            (row.inuse_objects, row.freed_objects, row.freed_bytes),
            (1200, 300, 300 * 64)
        );
    }
    let counts = &model.processes().get(1).unwrap().counts[Domain::PythonObject as usize];
    assert_eq!((counts.inuse_objects(), counts.freed_objects), (1200, 300));
}
