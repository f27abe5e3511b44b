//! The lines above the rows: what is watched, since when, how much of its memory is explained, what it costs,
//! and what was lost.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{TextOptions, process_name};
use crate::export::name;
use crate::export::style::{Role, Style};
use crate::format;
use crate::model::report::{InlinedNote, Kind, Overhead, ProbeNote, Process, Report};

/// Further processes and probes are only counted.
const MOST_NAMED: usize = 4;

pub(super) fn write(out: &mut String, report: &Report, options: &TextOptions) {
    let style = options.style;
    let kind = match report.kind {
        Kind::Top => "top",
        Kind::Diff => "diff",
        Kind::Report => "report",
    };
    let title = format!("{}  {kind}  tick {}", name::clean(&report.time), report.tick);
    let _ = writeln!(out, "{}", style.paint(Role::Head, title));
    line(out, style, "target", &targets(&report.processes));
    let since = format!(
        "{} ({})",
        name::clean(&report.since),
        format::seconds(report.watched_seconds)
    );
    line(out, style, "since", &since);
    line(out, style, "RSS", &rss(&report.processes, options));
    line(out, style, "mode", &mode(report, options));
    line(out, style, "probes", &probes(report));
    for note in notes(&report.health.probes.failed) {
        line(out, style, "", &style.paint(Role::Warning, note).to_string());
    }
    losses(out, report, style);
    line(
        out,
        style,
        "overhead",
        &overhead(&report.health.overhead, options),
    );
}

fn line(out: &mut String, style: Style, label: &str, text: &str) {
    let _ = writeln!(out, "{}{text}", style.paint(Role::Aside, format!("{label:<10}")));
}

fn targets(processes: &[Process]) -> String {
    if processes.is_empty() {
        return "no process yet".to_owned();
    }
    let named: Vec<String> = processes.iter().take(MOST_NAMED).map(process_name).collect();
    let mut text = named.join(", ");
    if processes.len() > MOST_NAMED {
        let _ = write!(text, " and {} more", processes.len() - MOST_NAMED);
    }
    text
}

/// How much of the memory that the processes have now is known by its blocks.
fn rss(processes: &[Process], options: &TextOptions) -> String {
    let size = |bytes| options.bytes.size(bytes);
    let mut rss = None;
    let mut explained = 0_u64;
    let mut domains: BTreeMap<&str, u64> = BTreeMap::new();
    let mut unknown = 0_usize;
    for process in processes
        .iter()
        .filter(|process| !process.exited && !process.replaced)
    {
        let Some(bytes) = process.rss_bytes else {
            unknown += 1;
            continue;
        };
        rss = Some(rss.unwrap_or(0_u64).saturating_add(bytes));
        for (domain, totals) in &process.totals {
            explained = explained.saturating_add(totals.inuse_bytes);
            let of_domain = domains.entry(domain).or_default();
            *of_domain = of_domain.saturating_add(totals.inuse_bytes);
        }
    }
    let Some(rss) = rss else {
        let exited = !processes.is_empty() && unknown == 0;
        return if exited {
            "none, the target has exited"
        } else {
            "not known"
        }
        .to_owned();
    };
    let mut text = if explained > rss {
        format!(
            "{}; {} are in use, more than that: part of it was never touched",
            size(rss),
            size(explained)
        )
    } else {
        let percent = if rss == 0 {
            0.0
        } else {
            explained as f64 * 100.0 / rss as f64
        };
        format!(
            "{}, {} ({percent:.1}%) of it explained",
            size(rss),
            size(explained)
        )
    };
    let parts: Vec<String> = domains
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(domain, bytes)| format!("{} {}", name::clean(domain), size(bytes)))
        .collect();
    if !parts.is_empty() {
        let _ = write!(text, ": {}", parts.join(", "));
    }
    if unknown > 0 {
        let _ = write!(text, "; not known for {unknown} more");
    }
    text
}

fn mode(report: &Report, options: &TextOptions) -> String {
    let asked = &report.options;
    let mut text = match asked.sample_bytes {
        0 => "every block".to_owned(),
        bytes => format!(
            "sampled, one block in {} on average; all numbers are estimates",
            options.bytes.size(bytes)
        ),
    };
    if !asked.allocated_only.is_empty() {
        text.push_str("; small Python objects are counted when allocated");
        let (found, probed) = inlined(report);
        if found > 0 {
            let _ = write!(text, " ({probed} of {found} inlined places)");
        }
        text.push_str(", in use (~) by CPython's pools");
    } else if !asked.estimated.is_empty() {
        text.push_str("; small Python objects (~) are estimated from CPython's pools");
        if let Some(seconds) = asked.estimated_age_seconds.filter(|seconds| *seconds >= 1.0) {
            let _ = write!(text, ", as they were {seconds:.0} s before");
        }
    }
    match (asked.min_size, asked.max_size) {
        (Some(min), Some(max)) => {
            let _ = write!(
                text,
                " of {} to {}",
                options.bytes.size(min),
                options.bytes.size(max)
            );
        }
        (Some(min), None) => {
            let _ = write!(text, " of at least {}", options.bytes.size(min));
        }
        (None, Some(max)) => {
            let _ = write!(text, " of at most {}", options.bytes.size(max));
        }
        (None, None) => {}
    }
    if let Some(age) = asked.older_than_seconds {
        let _ = write!(text, ", in use for at least {}", format::seconds(age));
    }
    text
}

/// Places where CPython's allocator was put into its callers: found and probed.
fn inlined(report: &Report) -> (u64, u64) {
    let notes = &report.health.probes.inlined;
    let sum = |of: fn(&InlinedNote) -> u64| notes.iter().map(of).sum();
    (sum(|note| note.found), sum(|note| note.probed))
}

fn probes(report: &Report) -> String {
    let probes = &report.health.probes;
    let mut text = format!("{} attached", probes.attached);
    if !probes.method.is_empty() {
        let _ = write!(text, " ({})", name::clean(&probes.method));
    }
    for (notes, word) in [(&probes.skipped, "skipped"), (&probes.failed, "failed")] {
        if !notes.is_empty() {
            let _ = write!(text, ", {} {word}", notes.len());
        }
    }
    text
}

fn notes(failed: &[ProbeNote]) -> Vec<String> {
    let mut lines: Vec<String> = failed
        .iter()
        .take(MOST_NAMED)
        .map(|note| {
            let module = name::module(&note.module);
            format!(
                "{} in {module}: {}",
                name::clean(&note.symbol),
                name::clean(&note.reason)
            )
        })
        .collect();
    if failed.len() > MOST_NAMED {
        lines.push(format!("and {} more", failed.len() - MOST_NAMED));
    }
    lines
}

fn losses(out: &mut String, report: &Report, style: Style) {
    let health = &report.health;
    let unexplained = ["incomplete, the cause is not known".to_owned()];
    let reasons = match (health.reasons.as_slice(), health.complete) {
        ([], true) => return line(out, style, "losses", "nothing lost"),
        ([], false) => &unexplained,
        (reasons, _) => reasons,
    };
    for (index, reason) in reasons.iter().enumerate() {
        let label = if index == 0 { "losses" } else { "" };
        line(
            out,
            style,
            label,
            &style.paint(Role::Warning, name::clean(reason)).to_string(),
        );
    }
}

fn overhead(overhead: &Overhead, options: &TextOptions) -> String {
    let size = |bytes| options.bytes.size(bytes);
    let mut parts = vec![format!("{} probe hits", overhead.hits)];
    if let Some(percent) = overhead.target_percent.filter(|percent| percent.is_finite()) {
        parts.push(format!("about {percent:.1}% of a core in the target"));
    }
    match (
        overhead.self_cpu_percent.filter(|percent| percent.is_finite()),
        overhead.self_rss_bytes,
    ) {
        (Some(cpu), Some(rss)) => parts.push(format!("memwatch {cpu:.1}% of a core, {}", size(rss))),
        (Some(cpu), None) => parts.push(format!("memwatch {cpu:.1}% of a core")),
        (None, Some(rss)) => parts.push(format!("memwatch {}", size(rss))),
        (None, None) => {}
    }
    if let Some(predicted) = overhead.predicted.filter(|predicted| predicted.in_force) {
        parts.push(format!("predicted {:.1}% for Python", predicted.percent));
    }
    if let Some(bytes) = overhead.kernel_map_bytes {
        parts.push(format!("kernel maps {}", size(bytes)));
    }
    parts.join(", ")
}
