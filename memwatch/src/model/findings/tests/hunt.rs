//! The hunt that takes two months without memwatch: a small leak among much healthy work.

use super::programs::{churn, filling_cache, request_leak, start_up};
use super::*;

#[test]
fn a_leak_of_100_bytes_a_request_is_named_first_within_a_minute_and_the_cache_is_not() {
    for seed in 0..10 {
        let lines = [filling_cache, churn, request_leak, start_up];
        let (history, groups) = sim::watch_lines(&lines, 60, seed);
        let found = find(&history, &groups).found;
        assert_eq!(
            (found[0].kind, found[0].key.as_str()),
            (Kind::Growth, "program.c:3")
        );
        assert!(
            found.iter().all(|found| found.key != "program.c:1"),
            "the cache is named: {found:?}"
        );
        assert!(
            found[1..].iter().all(|found| found.severity > Severity::Medium),
            "{found:?}"
        );
    }
}

#[test]
fn one_caller_that_leaks_through_a_function_that_others_use_well_is_found() {
    let lines = [churn, request_leak];
    let (history, mut groups) = sim::watch_lines(&lines, 60, 5);
    let both = Group {
        sites: groups.iter().flat_map(|group| group.sites.clone()).collect(),
        key: "pool.c:7".to_owned(),
        ages: None,
        ..groups.remove(0)
    };
    let found = find(&history, &[both]).found;
    assert_eq!(
        (found[0].kind, found[0].sites[0].stack),
        (Kind::Growth, 2),
        "{found:?}"
    );
}
