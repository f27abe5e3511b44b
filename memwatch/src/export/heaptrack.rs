//! What `heaptrack_print` prints, for scripts that read it: decimal units, two digits. Sections on what memwatch does
//! not know (the peak, temporary allocations as heaptrack defines them) are left out.

use std::fmt::Write;

use super::name;
use crate::model::label;
use crate::model::report::{Frame, Report, Row};

/// Stacks in each section, as `heaptrack_print` has by default.
const MOST_STACKS: usize = 10;

pub fn text(report: &Report) -> String {
    let mut out = String::new();
    section(
        &mut out,
        report,
        "MOST CALLS TO ALLOCATION FUNCTIONS",
        |row| row.alloc_objects,
        |row| {
            format!(
                "{} calls to allocation functions with {} allocated in total from",
                row.alloc_objects,
                bytes(row.alloc_bytes)
            )
        },
    );
    section(
        &mut out,
        report,
        "MEMORY LEAKS",
        |row| row.inuse_bytes,
        |row| {
            format!(
                "{} leaked over {} calls from",
                bytes(row.inuse_bytes),
                row.inuse_objects
            )
        },
    );
    footer(&mut out, report);
    out
}

fn section(
    out: &mut String,
    report: &Report,
    title: &str,
    order: impl Fn(&Row) -> u64,
    head: impl Fn(&Row) -> String,
) {
    let mut rows: Vec<&Row> = report.rows.iter().filter(|row| order(row) > 0).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(order(row)));
    let _ = writeln!(out, "{title}");
    for row in rows.into_iter().take(MOST_STACKS) {
        let _ = writeln!(out, "{}", head(row));
        for frame in &row.frames {
            write_frame(out, frame);
        }
        if row.frames.is_empty() {
            let _ = writeln!(out, "<unresolved function>");
        }
        let _ = writeln!(out);
    }
}

fn write_frame(out: &mut String, frame: &Frame) {
    let _ = writeln!(out, "{}", name::clean(&label::frame(frame)));
    if let (Some(file), Some(line)) = (&frame.file, frame.line) {
        let _ = writeln!(out, "  at {}:{line}", name::clean(file));
    }
    if let Some(module) = &frame.module {
        let _ = writeln!(out, "  in {}", name::clean(module));
    }
}

fn footer(out: &mut String, report: &Report) {
    let seconds = report.watched_seconds;
    let calls: u64 = report.rows.iter().map(|row| row.alloc_objects).sum();
    let leaked: u64 = report.rows.iter().map(|row| row.inuse_bytes).sum();
    let rate = if seconds > 0.0 {
        calls as f64 / seconds
    } else {
        0.0
    };
    let _ = writeln!(out, "total runtime: {seconds:.2}s.");
    let _ = writeln!(out, "calls to allocation functions: {calls} ({rate:.0}/s)");
    let peaks: Option<u64> = report
        .processes
        .iter()
        .map(|process| process.peak_rss_bytes)
        .sum();
    if let Some(peak) = peaks {
        // The target's own: memwatch is not in it.
        let _ = writeln!(out, "peak RSS: {}", bytes(peak));
    }
    let _ = writeln!(out, "total memory leaked: {}", bytes(leaked));
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" {
                format!("{count}B")
            } else {
                format!("{value:.2}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{row, tick};

    #[test]
    fn as_heaptrack_prints_it() {
        let leaky = Row {
            inuse_bytes: 62_500_000,
            inuse_objects: 12,
            alloc_objects: 12,
            frames: Vec::new(),
            ..row()
        };
        insta::assert_snapshot!(text(&tick(vec![row(), leaky])));
    }

    #[test]
    fn sizes_are_decimal_with_two_digits() {
        assert_eq!(
            [0, 999, 1000, 62_500_000, u64::MAX].map(bytes),
            ["0B", "999B", "1.00KB", "62.50MB", "18446744.07TB"]
        );
    }
}
