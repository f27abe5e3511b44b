//! Rows within a bound: what is there is right, what is not there is missed and counted.

use std::collections::BTreeMap;

use memwatch_common::unwind::{BLOCK_ROWS, FIXED_RULES, PAGE_SHIFT, Page, Row, Rule, x86_64::CFA_RSP};
use proptest::prelude::*;

use super::kernel::FakeKernel;
use crate::unwind::{Fingerprint, Table, room::Room, table::TablePage};

const ROWS: u32 = BLOCK_ROWS as u32;

/// A table of so many rows, with rules that no other has.
fn table(which: u16, rows: usize) -> Table {
    const A_PAGE: usize = 700;
    let mut table = Table {
        rules: FIXED_RULES.to_vec(),
        ..Table::default()
    };
    table.rules.push(Rule::new(CFA_RSP, 1000 + i32::from(which)));
    table.rules.push(Rule::new(CFA_RSP, 2000 + i32::from(which)));
    for at in 0..rows {
        table.rows.push(Row {
            pc_low: (at % A_PAGE) as u16 * 8,
            rule: 4 + (at % 2) as u16,
        });
    }
    for (page, rows) in table.rows.chunks(A_PAGE).enumerate() {
        table.pages.push(TablePage {
            page: page as u32,
            rows: Page {
                first_row: (page * A_PAGE) as u32,
                count: rows.len() as u32,
            },
        });
    }
    assert_eq!(table.check(), Ok(()));
    table
}

fn fingerprint(which: u16) -> Fingerprint {
    let mut digest = [0; 32];
    digest[..2].copy_from_slice(&which.to_le_bytes());
    Fingerprint {
        build_id: Vec::new(),
        digest,
    }
}

fn room(blocks: u32) -> Room<FakeKernel> {
    Room::new(FakeKernel::with_room(blocks as usize), blocks * ROWS).expect("a room")
}

/// Adds a file that a process maps.
fn add(room: &mut Room<FakeKernel>, which: u16, blocks: usize) -> u32 {
    let table = table(which, blocks * BLOCK_ROWS);
    let number = room
        .add(Some(&fingerprint(which)), Vec::new(), &table)
        .expect("no error");
    room.object_mut(number).expect("it is known").users = 1;
    number
}

/// How many of a table's rows the kernel side finds.
fn found(room: &mut Room<FakeKernel>, number: u32, table: &Table) -> usize {
    let mut found = 0;
    for entry in &table.pages {
        for row in &table.rows[entry.rows.first_row as usize..][..entry.rows.count as usize] {
            let address = u64::from(entry.page) << PAGE_SHIFT | u64::from(row.pc_low);
            let rule = room.kernel.rule(number, address);
            if rule == table.rules[usize::from(row.rule)] {
                found += 1;
            } else {
                assert_eq!(rule, FIXED_RULES[0], "a rule of another file");
            }
        }
    }
    found
}

#[test]
fn files_that_nobody_maps_make_room() {
    let mut room = room(10);
    let (a, b) = (add(&mut room, 1, 4), add(&mut room, 2, 6));
    room.object_mut(a).expect("known").users = 0;
    let c = add(&mut room, 3, 3);
    assert!(room.object(a).is_none() && room.find(&fingerprint(1)).is_none());
    assert_eq!(found(&mut room, b, &table(2, 6 * BLOCK_ROWS)), 6 * BLOCK_ROWS);
    assert_eq!(found(&mut room, c, &table(3, 3 * BLOCK_ROWS)), 3 * BLOCK_ROWS);
    assert_eq!((room.lost(), room.rows_used()), (0, 9 * u64::from(ROWS)));
    assert!(!room.misses_some());
}

#[test]
fn a_file_that_is_missed_more_takes_the_place_of_one_that_is_not_used() {
    let mut room = room(10);
    let (a, b, c) = (add(&mut room, 1, 4), add(&mut room, 2, 6), add(&mut room, 3, 5));
    assert_eq!(room.lost(), 1, "nothing is known yet of how useful they are");
    assert!(room.misses_some() && room.wanted().is_none());
    room.kernel.rule(b, 0);
    room.kernel.rule(c, 0);
    room.look_at_use().expect("no error");
    assert_eq!(room.wanted(), None, "both are used as often");
    for _ in 0..3 {
        room.kernel.rule(c, 0);
    }
    room.look_at_use().expect("no error");
    assert_eq!(room.wanted(), Some(c));
    assert!(room.put(c, &table(3, 5 * BLOCK_ROWS)).expect("no error"));
    assert_eq!(found(&mut room, b, &table(2, 6 * BLOCK_ROWS)), 0);
    assert_eq!(found(&mut room, c, &table(3, 5 * BLOCK_ROWS)), 5 * BLOCK_ROWS);
    assert_eq!(found(&mut room, a, &table(1, 4 * BLOCK_ROWS)), 4 * BLOCK_ROWS);
    assert_eq!(room.lost(), 2);
    // What went is missed, by pages without rows.
    room.look_at_use().expect("no error");
    assert_eq!(room.wanted(), None, "c is used as often");
}

#[test]
fn what_is_larger_than_all_room_is_never_brought_back() {
    let mut room = room(3);
    let a = add(&mut room, 1, 4);
    assert_eq!((room.lost(), room.rows_used()), (1, 0));
    room.kernel.rule(a, 0);
    room.look_at_use().expect("no error");
    assert!(!room.misses_some() && room.wanted().is_none());
    // Nobody maps it any more, and nobody knows of it.
    room.object_mut(a).expect("known").users = 0;
    assert!(room.forget(a).expect("no error"));
    assert!(room.kernel.pages.is_empty() && room.object(a).is_none());
}

#[test]
fn a_kernel_without_memory_is_a_full_one() {
    let mut room = Room::new(FakeKernel::with_room(5), 100 * ROWS).expect("a room");
    let (a, b) = (add(&mut room, 1, 4), add(&mut room, 2, 3));
    assert_eq!(room.lost(), 1);
    assert_eq!(
        room.kernel.blocks.len(),
        4,
        "what was written before is taken out"
    );
    assert_eq!(found(&mut room, a, &table(1, 4 * BLOCK_ROWS)), 4 * BLOCK_ROWS);
    assert_eq!(found(&mut room, b, &table(2, 3 * BLOCK_ROWS)), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever comes and goes: rows of one file are never found for another, and the bound holds. The maps themselves
    /// check that no walk can meet what is taken out.
    #[test]
    fn files_come_and_go(steps in prop::collection::vec((0_u8..5, 0_u16..12, 1_usize..6000), 1..60)) {
        const BLOCKS: u32 = 9;
        let mut room = room(BLOCKS);
        let mut sizes: BTreeMap<u16, usize> = BTreeMap::new();
        for (what, which, size) in steps {
            let known = room.find(&fingerprint(which));
            match (what, known) {
                (0 | 1, None) => {
                    sizes.insert(which, size);
                    let number = room.add(Some(&fingerprint(which)), Vec::new(), &table(which, size)).expect("no error");
                    room.object_mut(number).expect("known").users = 1;
                }
                (0, Some(number)) => {
                    room.object_mut(number).expect("known").users ^= 1;
                    room.forget(number).expect("no error");
                }
                (1 | 2, Some(number)) => {
                    for _ in 0..size % 50 {
                        room.kernel.rule(number, 0);
                    }
                }
                (3, _) => room.look_at_use().expect("no error"),
                (4, _) => {
                    if let Some(number) = room.wanted() {
                        let which = (0..12).find(|which| room.find(&fingerprint(*which)) == Some(number)).expect("known");
                        let rows = table(which, sizes[&which]);
                        prop_assert!(room.put(number, &rows).expect("no error"), "there was said to be room");
                        prop_assert_eq!(found(&mut room, number, &rows), rows.rows.len());
                    }
                }
                _ => {}
            }
            prop_assert!(room.kernel.blocks.len() as u32 <= BLOCKS);
            prop_assert_eq!(room.rows_used(), room.kernel.blocks.len() as u64 * u64::from(ROWS));
        }
        for (which, size) in sizes {
            if let Some(number) = room.find(&fingerprint(which)) {
                let all = found(&mut room, number, &table(which, size));
                prop_assert!(all == 0 || all == size, "{all} of {size}");
            }
        }
    }
}
