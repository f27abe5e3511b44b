//! Tables of the files that this test runs with, against gimli's reading of them.

use std::fs;

use gimli::{BaseAddresses, EhFrame, LittleEndian};
use memwatch_common::unwind::x86_64::{CFA_PLT, RA_SIGNAL};
use memwatch_common::unwind::{RULE_NONE, Rule};
use object::{Object, ObjectSection};

use super::oracle::{Tally, compare_section};
use crate::{
    target::vdso,
    unwind::{Dropped, Interner, Table, build},
};

/// Files mapped into this process as code: the test itself, libc, the loader.
pub fn mapped_files() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let mut files: Vec<String> = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        .filter_map(|line| line.find('/').map(|at| line[at..].to_owned()))
        .collect();
    files.sort();
    files.dedup();
    files
}

fn check_file(bytes: &[u8]) -> (Table, Tally) {
    let table = build(bytes).expect("a table");
    assert_eq!(table.check(), Ok(()));
    let file = object::File::parse(bytes).expect("ELF");
    let address = |name| file.section_by_name(name).map(|section| section.address());
    let mut bases = BaseAddresses::default();
    bases.eh_frame.text = address(".text");
    bases.eh_frame.data = address(".got");
    bases.eh_frame.section = address(".eh_frame");
    let data = file
        .section_by_name(".eh_frame")
        .expect(".eh_frame")
        .data()
        .expect("bytes");
    let mut tally = Tally::default();
    let section = EhFrame::new(data, LittleEndian);
    let ranges = compare_section(&table, &section, &bases, &mut tally);
    check_gaps(&table, &ranges, file.entry());
    (table, tally)
}

/// Between functions there is no rule.
fn check_gaps(table: &Table, ranges: &[(u64, u64)], entry: u64) {
    let code = table
        .segments
        .iter()
        .map(|segment| segment.address)
        .min()
        .expect("code");
    let mut end = code;
    for &(from, to) in ranges {
        if end < from {
            for address in [end, from - 1] {
                let known = address >= entry && address < entry + 64;
                assert!(
                    known || table.rule_number(address) == RULE_NONE,
                    "{address:#x} is in a gap"
                );
            }
        }
        end = end.max(to);
    }
    assert_eq!(table.rule_number(end + (1 << 20)), RULE_NONE);
    assert_eq!(table.rule_number(u64::MAX), RULE_NONE);
}

#[test]
fn tables_of_mapped_files_say_what_gimli_says() {
    let files = mapped_files();
    assert!(files.iter().any(|file| file.contains("libc.so")), "{files:?}");
    let mut interner = Interner::new();
    for file in files {
        let bytes = fs::read(&file).expect("a readable file");
        let (table, tally) = check_file(&bytes);
        assert!(tally.same > 1000, "{file}: {tally:?}");
        assert!(tally.unsupported * 1000 < tally.same, "{file}: {tally:?}");
        let stats = &table.stats;
        assert!(
            stats.covered_bytes * 10 > stats.code_bytes * 8,
            "{file}: {stats:?}"
        );
        let rows = interner.translate(&table);
        for (own, shared) in table.rows.iter().zip(&rows) {
            let rule = interner.rules()[usize::from(shared.rule)];
            assert_eq!(
                (own.pc_low, table.rules[usize::from(own.rule)]),
                (shared.pc_low, rule)
            );
        }
    }
    assert_eq!(interner.refused(), 0);
}

#[test]
fn libc_has_the_special_rules() {
    let libc = mapped_files()
        .into_iter()
        .find(|file| file.contains("libc.so"))
        .expect("libc");
    let bytes = fs::read(libc).expect("libc's bytes");
    let table = build(&bytes).expect("a table");
    let has = |wanted: &dyn Fn(&Rule) -> bool| table.rules.iter().any(wanted);
    assert!(has(&|rule| *rule == Rule::SIGNAL), "__restore_rt");
    assert!(has(&|rule| *rule == Rule::END), "clone");
    assert!(has(&|rule| rule.cfa_kind == CFA_PLT), "PLT");
    assert_eq!(
        table
            .rules
            .iter()
            .filter(|rule| rule.ra_kind == RA_SIGNAL)
            .count(),
        1
    );
    assert_eq!(
        build(&bytes).expect("a table"),
        table,
        "the same bytes give the same table"
    );
    assert_eq!(table.stats.dropped(Dropped::Entry).count, 0);
    assert_eq!(table.stats.dropped(Dropped::Program).count, 0);
}

#[test]
fn the_vdso_has_a_table() {
    let (table, tally) = check_file(&vdso::image().expect("a vdso"));
    assert!(tally.same > 10 && tally.unsupported == 0, "{tally:?}");
    assert!(!table.rows.is_empty());
}
