//! Unwind tables: kept between runs, and within a bound.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use memwatch::{
    model::report::{Report, Row},
    target::vdso,
    unwind::build,
};
use memwatch_common::unwind::BLOCK_ROWS;
use memwatch_tests::{
    Memwatch, Recipe, Target,
    binary::{can_watch, command},
    compile::Flavour,
    need,
    watch::run_to_end,
};

/// What `memwatch -v` says: how many tables were built, and how many came from the cache.
fn built_and_cached(target: &Target, cache: &Path, options: &[&str]) -> (u64, u64) {
    let pid = target.pid().to_string();
    let ended = run_to_end(
        command()
            .env("XDG_CACHE_HOME", cache)
            .args(["-v", "--pid", &pid, "--once", "-i", "100ms", "--format", "json"])
            .args(options),
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let told = ended
        .stderr
        .lines()
        .find_map(|line| {
            line.strip_prefix("memwatch: ")?
                .split_once(" unwind tables built, ")
        })
        .unwrap_or_else(|| panic!("nothing is told of tables: {}", ended.stderr));
    let number = |text: &str| {
        let first = text.split_whitespace().next().unwrap_or_default();
        first.parse().unwrap_or_else(|_| panic!("no number: {told:?}"))
    };
    (number(told.0), number(told.1))
}

fn kept(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.join("memwatch")).expect("the cache is there");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn the_second_run_builds_nothing() {
    need!(can_watch());
    let program = need!(Recipe::c("c_basic.c").build());
    let target = Target::start(&program);
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path();
    let run = |options: &[&str]| built_and_cached(&target, cache, options);

    assert_eq!(run(&["--no-cache"]).1, 0);
    assert!(
        !cache.join("memwatch").exists(),
        "it keeps nothing when it is told so"
    );
    let (built, cached) = run(&[]);
    assert!(
        built >= 3 && cached == 0,
        "{built} built, {cached} from an empty cache"
    );
    assert_eq!(kept(cache).len() as u64, built);
    assert_eq!(run(&[]), (0, built));
    assert_eq!(run(&["--no-cache"]), (built, 0));

    // One that is damaged is built anew, and then it is whole again.
    let file = &kept(cache)[0];
    let mut bytes = fs::read(file).expect("it is readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("it is writable");
    assert_eq!(run(&[]), (1, built - 1));
    assert_eq!(run(&[]), (0, built));
}

/// Rows of all that a process executes, in whole blocks.
fn rows_of(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let files: BTreeSet<&str> = maps
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .nth(1)
                .is_some_and(|perms| perms.contains('x'))
        })
        .filter_map(|line| Some(&line[line.find('/')?..]))
        .collect();
    let files = files.iter().map(|path| fs::read(path).expect("a file"));
    files
        .chain(vdso::image())
        .map(|bytes| {
            build(&bytes)
                .expect("a table")
                .rows
                .len()
                .next_multiple_of(BLOCK_ROWS)
        })
        .sum()
}

fn has(row: &Row, function: &str) -> bool {
    row.frames
        .iter()
        .any(|frame| frame.function.as_deref() == Some(function))
}

fn through_plugin(report: &Report) -> impl Iterator<Item = &Row> {
    report.rows.iter().filter(|row| has(row, "plugin_at_once"))
}

/// There is room for all that the program begins with. Stacks through what it loads then end early, until that takes the
/// place of what is not used any more: the loader.
#[test]
fn a_table_that_is_used_takes_the_place_of_one_that_is_not() {
    need!(can_watch());
    let recipe = Recipe::c("c_late_code.c").flavour(Flavour::Optimised);
    let program = need!(recipe.build());
    let plugin = need!(Recipe::c("plugin.c").flavour(Flavour::Optimised).shared().build());
    let mut target = Target::start_with(&program, &[plugin]);
    let bound = rows_of(target.pid());
    let mut watch = Memwatch::of(&target, &["--max-unwind-rows", &bound.to_string()]);

    let whole = |report: &Report| -> u64 {
        let rows = through_plugin(report).filter(|row| has(row, "main") && has(row, "_start"));
        rows.map(|row| row.alloc_objects).sum()
    };
    let mut before = 0;
    let mut short = false;
    // The loader is used while it loads; each two seconds that counts half as much. What lies further out in stacks that
    // end early is not looked for either, so that it may go before the loader, and comes back.
    for _ in 0..200 {
        let truth = target.go().pop().expect("one truth");
        let report = watch.report_after(truth.time_ns);
        let limit = &report.health.limits["unwind_rows"];
        assert!(limit.used <= limit.max && limit.max == bound as u64, "{limit:?}");
        let lost = report.health.counters["unwind_rows_full"];
        let told = |why: &String| why.contains("--max-unwind-rows");
        assert_eq!(
            report.health.reasons.iter().any(told),
            lost > 0,
            "{:?}",
            report.health
        );
        assert!(report.health.complete, "{:?}", report.health);
        short |= through_plugin(&report).any(|row| !has(row, "main"));
        if whole(&report) == before + 3 {
            assert!(
                lost >= 2 && short,
                "the plugin, and another that went for it: {lost}"
            );
            return;
        }
        before = whole(&report);
    }
    panic!("stacks through the plugin are never whole");
}
