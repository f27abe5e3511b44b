//! One line for each row, for spreadsheets and data frames (RFC 4180). What is not known is empty.

use std::borrow::Cow;
use std::fmt::Write;

use super::folded;
use crate::model::report::{Report, Row};

const HEAD: &str = "pid,process,container,domain,inuse_bytes,inuse_objects,alloc_bytes,alloc_objects,freed_bytes,\
freed_objects,growth_bytes_per_second,delta_inuse_bytes,delta_inuse_objects,oldest_seconds,estimated_bytes,inuse_low_bytes,inuse_high_bytes,key,stack\r\n";

/// `stack` is outermost first, joined by `;`.
pub fn file(report: &Report) -> String {
    let mut out = HEAD.to_owned();
    for row in &report.rows {
        write_row(&mut out, report, row);
    }
    out
}

fn write_row(out: &mut String, report: &Report, row: &Row) {
    let process = report
        .processes
        .iter()
        .find(|process| Some(process.pid) == row.pid);
    let container = process.and_then(|process| process.container.as_ref());
    let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    let float = |value: Option<f64>| {
        let known = value.filter(|value| value.is_finite());
        known.map(|value| format!("{value:.3}")).unwrap_or_default()
    };
    let stack = folded::stack(row);
    let _ = write!(
        out,
        "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\r\n",
        number(row.pid.map(i64::from)),
        field(process.map_or("", |process| &process.comm)),
        field(container.map_or("", |container| &container.id)),
        field(row.domain.as_deref().unwrap_or_default()),
        row.inuse_bytes,
        row.inuse_objects,
        row.alloc_bytes,
        row.alloc_objects,
        row.freed_bytes,
        row.freed_objects,
        float(row.growth_bytes_per_second),
        number(row.delta.map(|delta| delta.inuse_bytes)),
        number(row.delta.map(|delta| delta.inuse_objects)),
        float(row.oldest_seconds),
        row.estimated_bytes,
        number(row.inuse_low_bytes.map(u64::cast_signed)),
        number(row.inuse_high_bytes.map(u64::cast_signed)),
        field(&row.key),
        field(&stack),
    );
}

fn field(text: &str) -> Cow<'_, str> {
    if text.contains([',', '"', '\r', '\n']) {
        Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{row, tick};

    #[test]
    fn a_line_for_each_row_with_as_many_fields_as_the_head() {
        let file = file(&tick(vec![row(), Row::default()]));
        let lines: Vec<&str> = file.split_terminator("\r\n").collect();
        assert_eq!(lines.len(), 3);
        let fields = |line: &str| line.split(',').count();
        assert!(lines.iter().all(|line| fields(line) == fields(HEAD)), "{file}");
        assert!(lines[1].starts_with("1234,python3,,native,432013312,3100000,"));
        assert!(lines[2].starts_with(",,,,0,0,0,0,0,0,,,,,0,,,"), "{}", lines[2]);
    }

    #[test]
    fn names_with_commas_and_quotes_are_quoted() {
        assert_eq!(field("std::map<int, int>"), "\"std::map<int, int>\"");
        assert_eq!(field("a\"b\nc"), "\"a\"\"b\nc\"");
        assert_eq!(field("plain"), "plain");
    }
}
