//! The leak report for people: what is written in it, in order. Text and Markdown are two forms of it.

pub mod evidence;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::document::{self, Part};
use super::name;
use crate::format::{self, ByteFormat};
use crate::model::leaks::LeakReport;
use crate::model::report::{Finding, Process, Report, Row};

/// Moments of the watch that are listed.
const MOMENTS: usize = 12;
/// Rows of the list of what holds most.
pub const DEFAULT_SHOWN: usize = 10;

#[derive(Clone, Copy, Debug)]
pub struct LeakOptions {
    pub bytes: ByteFormat,
    /// Rows in each table.
    pub shown: usize,
    /// Frames of one stack; all when none.
    pub frames: Option<usize>,
}

pub fn text(leaks: &LeakReport, options: &LeakOptions) -> String {
    document::plain(&parts(leaks, options))
}

pub fn markdown(leaks: &LeakReport, options: &LeakOptions) -> String {
    document::markdown(&parts(leaks, options))
}

fn parts(leaks: &LeakReport, options: &LeakOptions) -> Vec<Part> {
    let report = &leaks.report;
    let mut parts = vec![
        Part::Title(title(report)),
        Part::Text(verdict(leaks)),
        Part::Heading("Target".to_owned()),
        target(report, options),
        Part::Heading("Memory over time".to_owned()),
        memory(leaks, options),
    ];
    if untouched(leaks) {
        parts.push(Part::Text(UNTOUCHED.to_owned()));
    }
    parts.push(Part::Heading("Findings".to_owned()));
    if report.findings.is_empty() {
        parts.push(Part::Text("None.".to_owned()));
    }
    for (index, finding) in report.findings.iter().enumerate() {
        parts.extend(one_finding(report, index, finding, options));
    }
    parts.push(Part::Heading("What holds most".to_owned()));
    parts.push(holders(report, options));
    parts.push(Part::Heading("What was lost, and what that means".to_owned()));
    parts.push(losses(report));
    parts.push(Part::Heading("How it was measured".to_owned()));
    parts.push(measured(leaks, options));
    if !leaks.suppressed.is_empty() {
        parts.push(Part::Heading("Suppressed".to_owned()));
        parts.push(suppressed(leaks, options));
    }
    parts
}

pub fn title(report: &Report) -> String {
    let names: Vec<String> = report
        .processes
        .iter()
        .take(3)
        .map(|process| format!("{} ({})", name::clean(&process.comm), process.pid))
        .collect();
    let more = report.processes.len().saturating_sub(names.len());
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!(
        "Memory of {}{more} on {}",
        names.join(", "),
        name::clean(&report.host.name)
    )
}

/// The answer in one or two sentences.
pub fn verdict(leaks: &LeakReport) -> String {
    let findings = &leaks.report.findings;
    let leaking: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.kind == "growth")
        .collect();
    let mut text = match leaking.as_slice() {
        [] if leaks.too_short => {
            "Watched too shortly to tell a leak from anything else: 23 ticks are the least.".to_owned()
        }
        [] => "No leak was found: no place grows without an end.".to_owned(),
        [one] => format!("One leak: {}.", name::clean(&one.title)),
        [first, ..] => format!(
            "{} leaks; the first: {}.",
            leaking.len(),
            name::clean(&first.title)
        ),
    };
    match findings.len() - leaking.len() {
        0 => {}
        1 => text.push_str(" One other thing is worth a look."),
        others => {
            let _ = write!(text, " {others} other things are worth a look.");
        }
    }
    if leaks.levelled_off > 0 {
        let places = if leaks.levelled_off == 1 {
            "place"
        } else {
            "places"
        };
        let _ = write!(
            text,
            " Not named: {} {places} that grew and levelled off, as caches do.",
            leaks.levelled_off
        );
    }
    if !leaks.report.health.complete {
        text.push_str(" The numbers are not complete, see below.");
    }
    text
}

fn known(value: Option<u64>, options: &LeakOptions) -> String {
    value.map_or_else(|| "not known".to_owned(), |bytes| options.bytes.size(bytes))
}

fn target(report: &Report, options: &LeakOptions) -> Part {
    let mut items = Vec::new();
    for process in &report.processes {
        items.push(identity(process, options));
    }
    items.push(format!(
        "host {}, Linux {}, {}",
        name::clean(&report.host.name),
        name::clean(&report.host.kernel),
        report.host.arch
    ));
    Part::List(items)
}

fn identity(process: &Process, options: &LeakOptions) -> String {
    let mut parts = vec![format!("process {} {}", process.pid, name::clean(&process.comm))];
    let command = process.cmdline.join(" ");
    if !command.is_empty() {
        parts.push(format!("command `{}`", name::clean(&command)));
    }
    let texts = [
        ("program", process.exe.as_deref()),
        ("started", process.start_time.as_deref()),
        ("cgroup", process.cgroup.as_deref()),
    ];
    for (what, text) in texts {
        if let Some(text) = text {
            parts.push(format!("{what} {}", name::clean(text)));
        }
    }
    for runtime in &process.runtimes {
        let version = runtime.version.as_deref().unwrap_or("of unknown version");
        parts.push(format!("{} {}", name::clean(&runtime.name), name::clean(version)));
    }
    if let Some(container) = &process.container {
        let image = container.image.as_deref().unwrap_or("image not known");
        let name = container.name.as_deref().unwrap_or(&container.id);
        parts.push(format!(
            "container {} ({})",
            name::clean(name),
            name::clean(image)
        ));
    }
    if let Some(pod) = &process.pod {
        let text = format!("{}/{}", pod.namespace, pod.name);
        parts.push(format!("pod {}", name::clean(&text)));
    }
    parts.push(format!("RSS {}", known(process.rss_bytes, options)));
    parts.push(format!(
        "most RSS ever {}",
        known(process.peak_rss_bytes, options)
    ));
    parts.extend(process.end());
    parts.join(", ")
}

const UNTOUCHED: &str = "More is in use than is resident: part of it was never touched.";

fn untouched(leaks: &LeakReport) -> bool {
    let last = leaks.timeline.last();
    last.is_some_and(|point| point.rss_bytes.is_some_and(|rss| point.inuse_bytes > rss))
}

fn memory(leaks: &LeakReport, options: &LeakOptions) -> Part {
    let points = &leaks.timeline;
    let step = points.len().div_ceil(MOMENTS).max(1);
    let last = points.len().saturating_sub(1);
    let listed = points
        .iter()
        .enumerate()
        .filter(|(index, _)| *index == last || (index % step == 0 && last - index >= step / 2));
    let rows = listed.map(|(_, point)| {
        let part = point.rss_bytes.filter(|rss| *rss > 0).map_or_else(
            || "not known".to_owned(),
            |rss| format!("{:.1}%", point.inuse_bytes as f64 * 100.0 / rss as f64),
        );
        vec![
            format::seconds(point.seconds),
            known(point.rss_bytes, options),
            options.bytes.size(point.inuse_bytes),
            part,
            options.bytes.size(point.alloc_bytes),
        ]
    });
    Part::Table {
        head: vec!["after", "RSS", "in use, explained", "of RSS", "allocated so far"],
        rows: rows.collect(),
    }
}

fn one_finding(report: &Report, index: usize, finding: &Finding, options: &LeakOptions) -> Vec<Part> {
    let head = format!(
        "{}. [{}] {}",
        index + 1,
        finding.severity,
        name::clean(&finding.title)
    );
    let mut parts = vec![
        Part::Subheading(head),
        Part::List(evidence::sentences(finding, options.bytes)),
    ];
    let row = finding.row.and_then(|row| report.rows.get(row as usize));
    if let Some(row) = row {
        parts.push(Part::Lines(stack(row, options)));
    }
    parts
}

fn stack(row: &Row, options: &LeakOptions) -> Vec<String> {
    let mut lines = vec![format!(
        "{} in {} blocks in use on this stack",
        options.bytes.size(row.inuse_bytes),
        row.inuse_objects
    )];
    let shown = options.frames.unwrap_or(usize::MAX);
    lines.extend(row.frames.iter().take(shown).map(|frame| name::frame(frame)));
    if row.frames.is_empty() {
        lines.push("[no stack]".to_owned());
    } else if row.truncated {
        lines.push("[the outer frames are missing]".to_owned());
    }
    lines
}

/// By line, as tracemalloc users know it.
fn holders(report: &Report, options: &LeakOptions) -> Part {
    let mut lines: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for row in &report.rows {
        let line = crate::model::leaks::line_of(row);
        let sums = lines.entry(line).or_default();
        let numbers = [
            row.inuse_bytes,
            row.inuse_objects,
            row.alloc_bytes,
            row.alloc_objects,
        ];
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum = sum.saturating_add(number);
        }
    }
    let mut lines: Vec<(String, [u64; 4])> = lines.into_iter().collect();
    lines.sort_by(|a, b| b.1[0].cmp(&a.1[0]).then_with(|| a.0.cmp(&b.0)));
    let rows = lines.into_iter().take(options.shown).map(|(line, numbers)| {
        vec![
            name::clean(&line).into_owned(),
            options.bytes.size(numbers[0]),
            numbers[1].to_string(),
            options.bytes.size(numbers[2]),
            numbers[3].to_string(),
        ]
    });
    Part::Table {
        head: vec!["line", "in use", "blocks", "allocated", "allocations"],
        rows: rows.collect(),
    }
}

fn losses(report: &Report) -> Part {
    let health = &report.health;
    let mut items = vec![
        if health.complete {
            "Totals are exact: every allocation and every free since the start of the watch was counted."
        } else {
            "Totals are not exact. Growth that was found is there all the same unless frees were lost; how much it is may differ by what is told here:"
        }
        .to_owned(),
    ];
    items.extend(
        health
            .reasons
            .iter()
            .map(|reason| name::clean(reason).into_owned()),
    );
    items.push("Blocks from before the watch are not known.".to_owned());
    Part::List(items)
}

fn measured(leaks: &LeakReport, options: &LeakOptions) -> Part {
    let report = &leaks.report;
    let overhead = &report.health.overhead;
    let mode = match report.options.sample_bytes {
        0 => "every block was counted".to_owned(),
        bytes => format!(
            "one block in {} on average was counted, and all numbers are estimates",
            options.bytes.size(bytes)
        ),
    };
    let mut items = vec![
        format!(
            "memwatch {} from {} for {}, a tick every {}; {mode}",
            report.version,
            report.since,
            format::seconds(report.watched_seconds),
            format::seconds(report.interval_seconds)
        ),
        format!(
            "{} probes ({}), {} hits{}",
            report.health.probes.attached,
            report.health.probes.method,
            overhead.hits,
            overhead
                .target_percent
                .filter(|percent| percent.is_finite())
                .map(|percent| format!(", about {percent:.1}% of a core in the target"))
                .unwrap_or_default()
        ),
        "Findings follow the rule in docs/findings.md: the least in use of each tenth of the watch, and the number of old blocks, have to go up steadily to the end.".to_owned(),
    ];
    let asked = &report.options;
    let filters: Vec<String> = asked
        .include
        .iter()
        .map(|glob| format!("--include {glob}"))
        .chain(asked.exclude.iter().map(|glob| format!("--exclude {glob}")))
        .chain(asked.min_size.map(|size| format!("--min-size {size}")))
        .chain(asked.max_size.map(|size| format!("--max-size {size}")))
        .collect();
    if !filters.is_empty() {
        items.push(format!(
            "Only a part was looked at: {}",
            name::clean(&filters.join(" "))
        ));
    }
    Part::List(items)
}

fn suppressed(leaks: &LeakReport, options: &LeakOptions) -> Part {
    let rows = leaks.suppressed.iter().map(|suppressed| {
        vec![
            name::clean(&suppressed.pattern).into_owned(),
            suppressed.stacks.to_string(),
            options.bytes.size(suppressed.inuse_bytes),
            suppressed.inuse_objects.to_string(),
        ]
    });
    Part::Table {
        head: vec!["leak:", "stacks", "in use", "blocks"],
        rows: rows.collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
