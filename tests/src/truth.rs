//! What the targets say, held against what memwatch says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use memwatch::model::report::{Frame, Report, Row};
use memwatch_common::counter::{Counter, Effect};
use serde::Deserialize;

/// One process's own account of what it asked for.
#[derive(Clone, Debug, Deserialize)]
pub struct Truth {
    pub pid: u32,
    /// Since 1970.
    pub time_ns: i128,
    #[serde(default)]
    pub failed: u64,
    pub untracked_frees: Option<u64>,
    #[serde(default)]
    pub untracked_moves: u64,
    pub inherited: Option<InheritedTruth>,
    pub functions: Vec<FunctionTruth>,
    /// For a target that tells whole stacks: path, allocated bytes and objects, bytes and objects in use.
    #[serde(default)]
    pub stacks: Vec<(String, u64, u64, u64, u64)>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct InheritedTruth {
    pub objects: u64,
    pub bytes: u64,
    pub freed_objects: u64,
    pub freed_bytes: u64,
}

/// What is `None` is not compared.
#[derive(Clone, Debug, Deserialize)]
pub struct FunctionTruth {
    pub function: String,
    pub alloc_bytes: Option<u64>,
    pub alloc_objects: Option<u64>,
    pub inuse_bytes: Option<u64>,
    pub inuse_objects: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
}

impl Sums {
    fn add(&mut self, row: &Row) {
        self.alloc_bytes += row.alloc_bytes;
        self.alloc_objects += row.alloc_objects;
        self.inuse_bytes += row.inuse_bytes;
        self.inuse_objects += row.inuse_objects;
    }
}

/// What is compared besides the functions.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// `health.complete`, and all counters of losses are zero.
    pub complete: bool,
    /// Every stack reached its thread's start. Not so where a program has code without unwind information on the way.
    pub stacks: bool,
    /// The rows of a process add up to its totals.
    pub sums: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            complete: true,
            stacks: true,
            sums: true,
        }
    }
}

/// The bare name: without arguments, template parameters and namespaces.
pub fn bare_name(frame: &Frame) -> Option<&str> {
    let name = frame.function.as_deref()?;
    let name = name.split(['(', '<']).next()?.trim_end();
    name.rsplit("::").next()
}

/// The sum over all rows whose stack contains the function, at any depth.
pub fn rows_of_function(report: &Report, pid: u32, function: &str) -> Sums {
    let mut sums = Sums::default();
    let of_function = |row: &&Row| {
        row.pid == Some(pid) && row.frames.iter().any(|frame| bare_name(frame) == Some(function))
    };
    report
        .rows
        .iter()
        .filter(of_function)
        .for_each(|row| sums.add(row));
    sums
}

/// Sums by the innermost function that the truth knows, as one such function may call another.
fn by_innermost<'a>(report: &Report, pid: u32, truth: &'a [FunctionTruth]) -> HashMap<&'a str, Sums> {
    let mut sums: HashMap<&str, Sums> = truth
        .iter()
        .map(|known| (known.function.as_str(), Sums::default()))
        .collect();
    for row in report.rows.iter().filter(|row| row.pid == Some(pid)) {
        let known = row
            .frames
            .iter()
            .filter_map(|frame| bare_name(frame))
            .find(|name| sums.contains_key(name));
        if let Some(sum) = known.and_then(|name| sums.get_mut(name)) {
            sum.add(row);
        }
    }
    sums
}

/// Sums by path: the zeros and ones that the functions `bit_zero` and `bit_one` of `big` write, outermost first.
fn by_path(report: &Report, pid: u32) -> HashMap<String, Sums> {
    let mut sums: HashMap<String, Sums> = HashMap::new();
    for row in report.rows.iter().filter(|row| row.pid == Some(pid)) {
        let bit = |frame: &Arc<Frame>| match bare_name(frame) {
            Some("bit_zero") => Some('0'),
            Some("bit_one") => Some('1'),
            _ => None,
        };
        if row
            .frames
            .iter()
            .any(|frame| bare_name(frame) == Some("big_leaf"))
        {
            sums.entry(row.frames.iter().rev().filter_map(bit).collect())
                .or_default()
                .add(row);
        }
    }
    sums
}

/// Everything in which the report differs from the truth.
pub fn differences(report: &Report, truth: &Truth, checks: Checks) -> Vec<String> {
    let mut found = Vec::new();
    if checks.complete {
        losses(report, checks.stacks, &mut found);
    }
    if report.total_rows != report.rows.len() as u64 {
        found.push(format!(
            "{} of {} rows: --limit was too low",
            report.rows.len(),
            report.total_rows
        ));
    }
    let sums = by_innermost(report, truth.pid, &truth.functions);
    for function in &truth.functions {
        compare_function(function, sums[function.function.as_str()], &mut found);
    }
    if !truth.stacks.is_empty() {
        compare_stacks(report, truth, &mut found);
    }
    compare_process(report, truth, checks, &mut found);
    found
}

fn losses(report: &Report, stacks: bool, found: &mut Vec<String>) {
    if !report.health.complete {
        found.push(format!("not complete: {}", report.health.reasons.join("; ")));
    }
    for counter in Counter::ALL
        .iter()
        .filter(|counter| counter.effect() == Effect::Totals || stacks && counter.effect() == Effect::Stacks)
    {
        match report.health.counters.get(counter.name()) {
            Some(0) => {}
            Some(count) => found.push(format!("{count} {}: {}", counter.name(), counter.meaning())),
            None => found.push(format!("health.counters has no {}", counter.name())),
        }
    }
}

fn compare_function(truth: &FunctionTruth, seen: Sums, found: &mut Vec<String>) {
    let pairs = [
        ("alloc_bytes", truth.alloc_bytes, seen.alloc_bytes),
        ("alloc_objects", truth.alloc_objects, seen.alloc_objects),
        ("inuse_bytes", truth.inuse_bytes, seen.inuse_bytes),
        ("inuse_objects", truth.inuse_objects, seen.inuse_objects),
    ];
    let wrong: Vec<String> = pairs
        .into_iter()
        .filter_map(|(what, right, value)| Some((what, right?, value)))
        .filter(|(_, right, value)| right != value)
        .map(|(what, right, value)| format!("{what} {value}, the truth is {right}"))
        .collect();
    if !wrong.is_empty() {
        found.push(format!("{}: {}", truth.function, wrong.join("; ")));
    }
}

fn compare_stacks(report: &Report, truth: &Truth, found: &mut Vec<String>) {
    const SHOWN: usize = 10;
    let mut sums = by_path(report, truth.pid);
    let mut wrong = Vec::new();
    for (path, alloc_bytes, alloc_objects, inuse_bytes, inuse_objects) in &truth.stacks {
        let right = Sums {
            alloc_bytes: *alloc_bytes,
            alloc_objects: *alloc_objects,
            inuse_bytes: *inuse_bytes,
            inuse_objects: *inuse_objects,
        };
        let seen = sums.remove(path).unwrap_or_default();
        if seen != right {
            wrong.push(format!("stack {path}: {seen:?}, the truth is {right:?}"));
        }
    }
    wrong.extend(
        sums.iter()
            .map(|(path, seen)| format!("stack {path}: there is no such stack, yet {seen:?}")),
    );
    if wrong.len() > SHOWN {
        found.push(format!(
            "{} of {} stacks are wrong, such as",
            wrong.len(),
            truth.stacks.len()
        ));
    }
    found.extend(wrong.into_iter().take(SHOWN));
}

fn compare_process(report: &Report, truth: &Truth, checks: Checks, found: &mut Vec<String>) {
    let Some(process) = report
        .processes
        .iter()
        .find(|process| process.pid == truth.pid && !process.replaced)
    else {
        found.push(format!("process {} is not in the report", truth.pid));
        return;
    };
    let native = process.totals.get("native").copied().unwrap_or_default();
    if native.failed_allocations < truth.failed {
        found.push(format!(
            "{} failed allocations, the truth is {}",
            native.failed_allocations, truth.failed
        ));
    }
    if let Some(frees) = truth.untracked_frees
        && !(frees..=frees + truth.untracked_moves).contains(&native.untracked_frees)
    {
        let (seen, moves) = (native.untracked_frees, truth.untracked_moves);
        found.push(format!(
            "{seen} frees of older blocks, the truth is {frees} and {moves} by realloc"
        ));
    }
    if let Some(right) = truth.inherited {
        let seen = process.inherited.unwrap_or_default();
        let seen = (seen.objects, seen.bytes, seen.freed_objects, seen.freed_bytes);
        let right = (right.objects, right.bytes, right.freed_objects, right.freed_bytes);
        if seen != right {
            found.push(format!(
                "process {}: inherited {seen:?}, the truth is {right:?}",
                truth.pid
            ));
        }
    }
    let alone = report
        .processes
        .iter()
        .filter(|process| process.pid == truth.pid)
        .count()
        == 1;
    if checks.sums && alone {
        let mut by_domain: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for row in report.rows.iter().filter(|row| row.pid == Some(truth.pid)) {
            let sum = by_domain
                .entry(row.domain.as_deref().unwrap_or("none"))
                .or_default();
            *sum = (sum.0 + row.inuse_bytes, sum.1 + row.inuse_objects);
        }
        for (domain, totals) in &process.totals {
            let sum = by_domain.remove(domain.as_str()).unwrap_or_default();
            let total = (totals.inuse_bytes, totals.inuse_objects);
            if sum != total {
                found.push(format!(
                    "{domain}: the rows add up to {sum:?}, the process's totals say {total:?}"
                ));
            }
        }
        found.extend(
            by_domain
                .into_keys()
                .map(|domain| format!("rows of domain {domain} have no totals")),
        );
    }
}

/// Fails with everything that differs.
pub fn assert_true(report: &Report, truths: &[Truth], checks: Checks) {
    let found: Vec<String> = truths
        .iter()
        .flat_map(|truth| {
            let pid = truth.pid;
            differences(report, truth, checks)
                .into_iter()
                .map(move |line| format!("  [{pid}] {line}"))
        })
        .collect();
    assert!(
        found.is_empty(),
        "the report at tick {} is wrong:\n{}",
        report.tick,
        found.join("\n")
    );
}

#[cfg(test)]
mod tests {
    use memwatch::model::report::{Process, Totals};

    use super::*;

    fn frames(names: &[&str]) -> Vec<Arc<Frame>> {
        Frame::shared(names.iter().map(|name| Frame {
            function: Some((*name).to_owned()),
            ..Frame::default()
        }))
    }

    fn row(names: &[&str], bytes: u64) -> Row {
        Row {
            pid: Some(7),
            domain: Some("native".to_owned()),
            alloc_bytes: bytes,
            alloc_objects: 1,
            inuse_bytes: bytes,
            inuse_objects: 1,
            frames: frames(names),
            ..Row::default()
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        let totals = Totals {
            inuse_bytes: rows.iter().map(|row| row.inuse_bytes).sum(),
            inuse_objects: rows.iter().map(|row| row.inuse_objects).sum(),
            ..Totals::default()
        };
        let totals = BTreeMap::from([("native".to_owned(), totals)]);
        let mut report = Report {
            total_rows: rows.len() as u64,
            rows,
            ..Report::default()
        };
        report.processes.push(Process {
            pid: 7,
            totals,
            ..Process::default()
        });
        report.health.complete = true;
        report.health.counters = Counter::ALL
            .iter()
            .map(|counter| (counter.name().to_owned(), 0))
            .collect();
        report
    }

    fn truth() -> Truth {
        let text = r#"{"pid":7,"time_ns":1,"functions":[
            {"function":"inner","alloc_bytes":30,"alloc_objects":2,"inuse_bytes":30,"inuse_objects":2},
            {"function":"outer","alloc_bytes":5,"alloc_objects":1,"inuse_bytes":5,"inuse_objects":1}]}"#;
        serde_json::from_str(text).expect("it is well-formed")
    }

    fn rows() -> Vec<Row> {
        vec![
            row(&["malloc", "space::inner<int>(char const*)", "outer", "main"], 10),
            row(&["malloc", "inner", "main"], 20),
            row(&["malloc", "helper", "outer", "main"], 5),
        ]
    }

    #[test]
    fn a_right_report_passes() {
        assert_eq!(
            differences(&report(rows()), &truth(), Checks::default()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn one_byte_or_one_object_is_found() {
        let changes: [fn(&mut Row); 6] = [
            |row| row.alloc_bytes += 1,
            |row| row.alloc_objects += 1,
            |row| row.inuse_bytes -= 1,
            |row| row.inuse_objects += 1,
            |row| row.pid = Some(8),
            |row| row.frames = frames(&["malloc"]),
        ];
        for change in changes {
            let mut wrong = rows();
            change(&mut wrong[1]);
            let found = differences(&report(wrong), &truth(), Checks::default());
            assert!(found.iter().any(|line| line.starts_with("inner: ")), "{found:?}");
        }
    }

    #[test]
    fn each_loss_is_found() {
        for counter in Counter::ALL {
            let mut lossy = report(rows());
            lossy.health.counters.insert(counter.name().to_owned(), 1);
            let found = differences(&lossy, &truth(), Checks::default());
            assert_eq!(
                found.len(),
                usize::from(counter.effect() != Effect::Work),
                "{found:?}"
            );
        }
        let mut incomplete = report(rows());
        incomplete.health.complete = false;
        assert_eq!(differences(&incomplete, &truth(), Checks::default()).len(), 1);
    }

    #[test]
    fn cut_lists_wrong_totals_and_missing_processes_are_found() {
        let mut cut = report(rows());
        cut.total_rows += 1;
        assert_eq!(differences(&cut, &truth(), Checks::default()).len(), 1);
        let mut off = report(rows());
        off.processes[0]
            .totals
            .get_mut("native")
            .expect("it is there")
            .inuse_bytes += 1;
        assert_eq!(differences(&off, &truth(), Checks::default()).len(), 1);
        let mut missing = report(rows());
        missing.processes.clear();
        assert_eq!(differences(&missing, &truth(), Checks::default()).len(), 1);
    }

    #[test]
    fn stacks_are_told_apart_by_their_path() {
        let mut truth = truth();
        truth.functions.clear();
        truth.stacks = vec![("01".to_owned(), 8, 1, 8, 1), ("10".to_owned(), 9, 1, 9, 1)];
        let right = vec![
            row(&["malloc", "big_leaf", "bit_one", "bit_zero", "work"], 8),
            row(&["malloc", "big_leaf", "bit_zero", "bit_one", "work"], 9),
        ];
        assert_eq!(
            differences(&report(right.clone()), &truth, Checks::default()),
            Vec::<String>::new()
        );
        let mut swapped = right;
        swapped[0].frames.swap(2, 3);
        assert!(!differences(&report(swapped), &truth, Checks::default()).is_empty());
    }

    #[test]
    fn frees_of_older_blocks_and_inherited_blocks_are_compared() {
        let mut truth = truth();
        truth.untracked_frees = Some(1);
        assert_eq!(differences(&report(rows()), &truth, Checks::default()).len(), 1);
        truth.untracked_frees = Some(0);
        truth.inherited = Some(InheritedTruth {
            objects: 1,
            bytes: 2,
            freed_objects: 0,
            freed_bytes: 0,
        });
        assert_eq!(differences(&report(rows()), &truth, Checks::default()).len(), 1);
    }
}
