//! Stacks as lines: `main;serve;grow 4096`, outermost first, which flame graph tools and scripts read. With a
//! baseline there are two numbers, before and now, as `difffolded.pl` writes them.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::name;
use super::weight::Weight;
use crate::model::label;
use crate::model::report::{Frame, FrameKind, Kind, Report, Row};

/// Stands for the frames that are missing where a stack was cut.
pub const TRUNCATED: &str = "[truncated]";

/// Before and now; equal stacks of several processes are one. Those without weight are left out.
pub fn stacks(report: &Report, weight: Weight) -> BTreeMap<String, (u64, u64)> {
    let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for row in &report.rows {
        let (before, now) = (weight.before(row), weight.of(row));
        if before > 0 || now > 0 {
            let sums = all.entry(stack(row)).or_default();
            *sums = (sums.0.saturating_add(before), sums.1.saturating_add(now));
        }
    }
    all
}

/// One line for each stack: its weight, or in a difference its weight before and now.
pub fn lines(report: &Report, weight: Weight) -> String {
    let mut out = String::new();
    for (stack, (before, now)) in stacks(report, weight) {
        let _ = match report.kind {
            Kind::Diff => writeln!(out, "{stack} {before} {now}"),
            Kind::Top | Kind::Report if now > 0 => writeln!(out, "{stack} {now}"),
            Kind::Top | Kind::Report => Ok(()),
        };
    }
    out
}

/// The frames of a row, outermost first, joined by `;`.
pub fn stack(row: &Row) -> String {
    if row.frames.is_empty() {
        return label::no_frames(row).to_owned();
    }
    let cut = row.truncated.then(|| TRUNCATED.to_owned());
    let frames = row.frames.iter().rev().map(|one| frame(one));
    cut.into_iter().chain(frames).collect::<Vec<String>>().join(";")
}

/// The function, and for Python also its place, since functions of scripts share few names. Never holds what
/// separates frames or ends a line.
pub fn frame(frame: &Frame) -> String {
    let function = label::frame(frame);
    let text = match (&frame.file, frame.line) {
        (Some(file), Some(line)) if frame.kind == FrameKind::Python => format!("{function} ({file}:{line})"),
        _ => function,
    };
    name::clean(&text).replace(';', ":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{full, row, tick};

    const STACK: &str = "python3.11+0x1234;fill (app/cache.py:88);put;PyObject_Malloc";

    #[test]
    fn a_stack_is_a_line_outermost_first() {
        let report = tick(vec![row()]);
        assert_eq!(lines(&report, Weight::InuseObjects), format!("{STACK} 3100000\n"));
    }

    #[test]
    fn a_difference_has_before_and_now() {
        assert_eq!(
            lines(&full(), Weight::InuseObjects),
            format!("[truncated];{STACK} 3069000 3100000\n")
        );
    }

    #[test]
    fn equal_stacks_are_added_and_empty_ones_left_out() {
        let other = Row {
            pid: Some(7),
            inuse_objects: 5,
            ..row()
        };
        let nothing = Row {
            frames: Vec::new(),
            ..Row::default()
        };
        let report = tick(vec![row(), other, nothing]);
        assert_eq!(lines(&report, Weight::InuseObjects), format!("{STACK} 3100005\n"));
    }

    #[test]
    fn names_cannot_break_the_format() {
        let odd = Frame {
            function: Some("a;b\nc".to_owned()),
            ..Frame::default()
        };
        assert_eq!(frame(&odd), "a:b\\nc");
        assert_eq!(stack(&Row::default()), "[unknown stack]");
    }
}
