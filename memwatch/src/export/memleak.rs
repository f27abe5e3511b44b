//! What bcc's `memleak` prints, for scripts that read it.

use std::fmt::Write;

use super::name;
use crate::model::label;
use crate::model::report::{Frame, Report};

pub fn text(report: &Report) -> String {
    let mut rows: Vec<_> = report.rows.iter().filter(|row| row.inuse_objects > 0).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.inuse_bytes));
    let mut out = format!(
        "[{}] Top {} stacks with outstanding allocations:\n",
        clock(&report.time),
        rows.len()
    );
    for row in rows {
        let _ = writeln!(
            out,
            "\t{} bytes in {} allocations from stack",
            row.inuse_bytes, row.inuse_objects
        );
        for frame in &row.frames {
            let _ = writeln!(out, "\t\t{}", line(frame));
        }
        if row.frames.is_empty() {
            let _ = writeln!(out, "\t\t[unknown]");
        }
    }
    out
}

/// `12:00:10` of an RFC 3339 time.
fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

/// `0x0000000000001234<TAB>main+0x6d [allocs]`
fn line(frame: &Frame) -> String {
    let mut line = String::new();
    if let Some(address) = frame.address {
        let _ = write!(line, "{address:#018x}\t");
    }
    line.push_str(&name::clean(&label::frame(frame)));
    if let (Some(_), Some(offset)) = (&frame.function, frame.offset) {
        let _ = write!(line, "+{offset:#x}");
    }
    if let (Some(file), Some(number)) = (&frame.file, frame.line) {
        let _ = write!(line, " {}:{number}", name::clean(file));
    }
    if let Some(module) = &frame.module {
        let _ = write!(line, " [{}]", name::module(module));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{row, tick};
    use crate::model::report::Row;

    #[test]
    fn as_memleak_prints_it() {
        let report = tick(vec![
            Row {
                inuse_bytes: 7,
                inuse_objects: 1,
                frames: Vec::new(),
                ..row()
            },
            row(),
            Row::default(),
        ]);
        insta::assert_snapshot!(text(&report));
    }
}
