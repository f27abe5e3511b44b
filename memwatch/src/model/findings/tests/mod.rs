//! The rule against programs whose truth is known, and its parts.

mod hunt;
mod programs;
mod sim;

use std::fmt::Write;

use self::programs::{PROGRAMS, Truth};
use super::*;

/// Each program many times, with other chances each time.
const SEEDS: u64 = 5;

#[derive(Default)]
struct Confusion {
    leaks: u64,
    missed: u64,
    healthy: u64,
    false_alarms: u64,
    /// Programs that were judged wrong at least once, in the order of the list.
    wrong: Vec<&'static str>,
}

fn is_named_leak(program: &programs::Program, seed: u64) -> bool {
    let (history, groups) = sim::watch(program, seed);
    let found = find(&history, &groups).found;
    found.iter().any(|found| found.kind == Kind::Growth)
}

fn measure(truth: Truth) -> (Confusion, String) {
    let (mut sums, mut table) = (Confusion::default(), String::new());
    for program in PROGRAMS.iter().filter(|program| program.truth == truth) {
        let named = (0..SEEDS).filter(|seed| is_named_leak(program, *seed)).count() as u64;
        let wrong = match truth {
            Truth::Leak | Truth::HardLeak => SEEDS - named,
            Truth::Healthy | Truth::HardHealthy => named,
        };
        if wrong > 0 {
            sums.wrong.push(program.name);
        }
        match truth {
            Truth::Leak | Truth::HardLeak => {
                sums.leaks += SEEDS;
                sums.missed += wrong;
            }
            Truth::Healthy | Truth::HardHealthy => {
                sums.healthy += SEEDS;
                sums.false_alarms += wrong;
            }
        }
        let _ = writeln!(table, "{wrong}/{SEEDS} wrong  {}", program.name);
    }
    (sums, table)
}

/// The figures in `docs/findings.md` are these.
#[test]
fn false_alarms_and_misses_are_as_few_as_the_documentation_says() {
    let (leaks, leak_table) = measure(Truth::Leak);
    let (hard, hard_table) = measure(Truth::HardLeak);
    let (healthy, healthy_table) = measure(Truth::Healthy);
    let (hard_healthy, hard_healthy_table) = measure(Truth::HardHealthy);
    let count = |truth| PROGRAMS.iter().filter(|program| program.truth == truth).count();
    let summary = [
        format!(
            "| leaks | {} | {} | {} missed |",
            count(Truth::Leak),
            leaks.leaks,
            leaks.missed
        ),
        format!(
            "| healthy | {} | {} | {} false alarms |",
            count(Truth::Healthy),
            healthy.healthy,
            healthy.false_alarms
        ),
        format!(
            "| leaks that a watch of this length cannot show | {} | {} | {} missed |",
            count(Truth::HardLeak),
            hard.leaks,
            hard.missed
        ),
        format!(
            "| healthy, but growing to the end of the watch | {} | {} | {} false alarms |",
            count(Truth::HardHealthy),
            hard_healthy.healthy,
            hard_healthy.false_alarms
        ),
    ];
    println!(
        "leaks:\n{leak_table}\nhealthy:\n{healthy_table}\nhard leaks:\n{hard_table}\nhard healthy:\n{hard_healthy_table}"
    );
    println!("{}", summary.join("\n"));
    assert!(PROGRAMS.len() >= 30);
    assert_eq!(
        leaks.missed + healthy.false_alarms,
        0,
        "{:?} {:?}",
        leaks.wrong,
        healthy.wrong
    );
    let documented = include_str!("../../../../../docs/findings.md");
    for line in summary {
        assert!(
            documented.contains(&line),
            "docs/findings.md does not say: {line}"
        );
    }
}

#[test]
fn a_watch_of_a_few_ticks_names_nothing_and_says_why() {
    let program = programs::Program {
        seconds: 10,
        ..PROGRAMS[0]
    };
    let (history, groups) = sim::watch(&program, 1);
    let findings = find(&history, &groups);
    assert!(findings.too_short && findings.found.is_empty());
}

#[test]
fn nothing_is_found_in_nothing() {
    assert_eq!(find(&History::new(), &[]), Findings::default());
}

fn only(name: &str) -> Vec<Found> {
    let program = PROGRAMS.iter().find(|program| program.name == name).unwrap();
    let (history, groups) = sim::watch(program, 3);
    find(&history, &groups).found
}

#[test]
fn evidence_tells_the_slope_and_how_sure_it_is() {
    let found = &only("100 B of every request, 200 a second")[0];
    let number = |name: &str| found.evidence[name].as_f64().unwrap();
    assert!(
        (number("bytes_per_second") - 20_000.0).abs() < 1000.0,
        "{found:?}"
    );
    assert!(number("bytes_per_second_low") <= number("bytes_per_second"));
    assert!(number("confidence") > 0.999);
    assert!(number("kendall_tau") > 0.95);
    assert_eq!(found.severity, Severity::High);
    assert!(
        found.title.contains("program.c:1 grows by 19."),
        "{}",
        found.title
    );
}

#[test]
fn a_leak_under_heavy_churn_of_the_same_line_is_seen_by_its_survivors() {
    let found = &only("leak within 500 MB of churn at the same line")[0];
    assert!(
        found.evidence["by"].as_str().unwrap().contains("older than 10 s"),
        "{found:?}"
    );
}

#[test]
fn a_step_that_stays_is_a_jump_and_no_leak() {
    let found = only("64 MiB at second 30, kept");
    assert_eq!(
        found.iter().map(|found| found.kind).collect::<Vec<_>>(),
        [Kind::Jump]
    );
    assert_eq!(found[0].severity, Severity::Low);
}

#[test]
fn churn_is_told_last() {
    let found = only("churn of 500 MB");
    assert_eq!(
        found.iter().map(|found| found.kind).collect::<Vec<_>>(),
        [Kind::Churn]
    );
}

#[test]
fn blocks_that_outlive_their_kind_are_told() {
    let found = only("a handful of 1000 requests a second is forgotten at second 20");
    assert!(
        found.iter().any(|found| found.kind == Kind::Outlives),
        "{found:?}"
    );
    assert!(found.iter().all(|found| found.kind != Kind::Growth), "{found:?}");
}
