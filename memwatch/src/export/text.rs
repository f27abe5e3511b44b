//! Reports for people: one block for each tick, IEC units, innermost frame first.

mod header;

use std::fmt::Write;

use super::name;
use super::style::{Role, Style};
use crate::format::{self, ByteFormat};
use crate::model::query::{GroupBy, SortBy, View};
use crate::model::report::{Process, Report, Row};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    pub bytes: ByteFormat,
    pub style: Style,
    /// Most frames shown of one stack.
    pub frames: Option<usize>,
}

/// One block: a line with the time, the header, the rows, the footer. Blocks after the first begin with an
/// empty line, and there is no other, so that a script can tell them apart.
pub fn block(report: &Report, options: &TextOptions) -> String {
    let mut out = String::new();
    if report.tick > 0 {
        out.push('\n');
    }
    header::write(&mut out, report, options);
    let rows = Rows {
        report,
        options,
        traceback: report.options.group_by == GroupBy::Traceback.name(),
        allocated: report.options.view == View::Alloc.name(),
    };
    for row in &report.rows {
        rows.write(&mut out, row);
    }
    rows.write_footer(&mut out);
    out
}

/// What all rows of a block have in common.
struct Rows<'a> {
    report: &'a Report,
    options: &'a TextOptions,
    traceback: bool,
    /// Leads with all that was ever allocated, not with what is in use.
    allocated: bool,
}

/// The numbers of a row that the view leads with.
struct Numbers {
    bytes: u64,
    objects: u64,
    /// Change of both, where there is something to compare with.
    change: Option<(i64, i64)>,
}

impl Rows<'_> {
    fn numbers(&self, row: &Row) -> Numbers {
        if self.allocated {
            Numbers {
                bytes: row.alloc_bytes,
                objects: row.alloc_objects,
                change: row.delta.map(|delta| (delta.alloc_bytes, delta.alloc_objects)),
            }
        } else {
            Numbers {
                bytes: row.inuse_bytes,
                objects: row.inuse_objects,
                change: row.delta.map(|delta| (delta.inuse_bytes, delta.inuse_objects)),
            }
        }
    }

    fn write(&self, out: &mut String, row: &Row) {
        if self.traceback {
            self.write_traceback(out, row);
        } else {
            self.write_line(out, row);
        }
    }

    /// `412 MiB in 3100000 blocks (+4.1 MiB, +31000)  pid 1234 python3  native`
    fn write_traceback(&self, out: &mut String, row: &Row) {
        let style = self.options.style;
        let numbers = self.numbers(row);
        let allocated = if self.allocated { " allocated" } else { "" };
        let blocks = if numbers.objects == 1 { "block" } else { "blocks" };
        let head = format!(
            "{}{}{allocated} in {} {blocks}",
            about(row),
            self.options.bytes.size(numbers.bytes),
            numbers.objects
        );
        let _ = write!(out, "{}", style.paint(Role::Head, head));
        if let Some((bytes, objects)) = numbers.change {
            let change = format!("({}, {objects:+})", self.options.bytes.delta(bytes));
            let _ = write!(out, " {}", style.paint(Style::of_delta(bytes), change));
        }
        if let Some(pid) = row.pid {
            let _ = write!(out, "  {}", self.process(pid));
        }
        match (&row.domain, &row.mapping) {
            (Some(domain), Some(mapping)) => {
                let _ = write!(out, "  {} ({})", name::clean(domain), name::clean(mapping));
            }
            (Some(domain), None) => {
                let _ = write!(out, "  {}", name::clean(domain));
            }
            (None, _) => {}
        }
        self.write_extras(out, row, "  ");
        out.push('\n');
        self.write_frames(out, row);
    }

    fn write_frames(&self, out: &mut String, row: &Row) {
        let style = self.options.style;
        let shown = self.options.frames.unwrap_or(usize::MAX).min(row.frames.len());
        for frame in &row.frames[..shown] {
            let _ = writeln!(out, "    {}", name::frame(frame));
        }
        let more = row.frames.len() - shown;
        if more > 0 {
            let frames = if more == 1 { "frame" } else { "frames" };
            let _ = writeln!(
                out,
                "    {}",
                style.paint(Role::Aside, format!("… {more} more {frames}"))
            );
        }
        if row.frames.is_empty() {
            let _ = writeln!(out, "    {}", style.paint(Role::Aside, "[no stack]"));
        } else if row.truncated {
            let _ = writeln!(
                out,
                "    {}",
                style.paint(Role::Warning, "[the outer frames are missing]")
            );
        }
    }

    /// `app/cache.py:88: size=412 MiB (+4.1 MiB), count=3100000 (+31000), average=139 B`
    fn write_line(&self, out: &mut String, row: &Row) {
        let style = self.options.style;
        let numbers = self.numbers(row);
        let label = if self.allocated { "allocated" } else { "size" };
        let size = format!("{label}={}{}", about(row), self.options.bytes.size(numbers.bytes));
        let _ = write!(
            out,
            "{}: {}",
            name::clean(&row.key),
            style.paint(Role::Head, size)
        );
        if let Some((bytes, _)) = numbers.change {
            let change = format!("({})", self.options.bytes.delta(bytes));
            let _ = write!(out, " {}", style.paint(Style::of_delta(bytes), change));
        }
        let _ = write!(out, ", count={}", numbers.objects);
        if let Some((_, objects)) = numbers.change {
            let _ = write!(
                out,
                " {}",
                style.paint(Style::of_delta(objects), format!("({objects:+})"))
            );
        }
        // As in tracemalloc: there is no average of no blocks.
        if let Some(average) = numbers.bytes.checked_div(numbers.objects) {
            let _ = write!(out, ", average={}", self.options.bytes.size(average));
        }
        self.write_extras(out, row, ", ");
        out.push('\n');
    }

    /// What the rows are sorted or chosen by, when the other numbers do not tell.
    fn write_extras(&self, out: &mut String, row: &Row, separator: &str) {
        let asked = &self.report.options;
        if let (Some(low), Some(high), false) = (row.inuse_low_bytes, row.inuse_high_bytes, self.allocated) {
            let (low, high) = (self.options.bytes.size(low), self.options.bytes.size(high));
            let _ = write!(out, "{separator}between {low} and {high}");
        }
        if asked.sort == SortBy::Growth.name()
            && let Some(growth) = row.growth_bytes_per_second
        {
            let _ = write!(out, "{separator}growth={}", self.options.bytes.rate(growth));
        }
        if (asked.sort == SortBy::Age.name() || asked.older_than_seconds.is_some())
            && let Some(oldest) = row.oldest_seconds
        {
            let _ = write!(out, "{separator}oldest={}", format::seconds(oldest));
        }
    }

    /// The program that has the pid now, when several had it one after the other.
    fn process(&self, pid: u32) -> String {
        let mut of_pid = self.report.processes.iter().filter(|process| process.pid == pid);
        let first = of_pid.clone().next();
        match of_pid.rfind(|process| !process.replaced).or(first) {
            Some(process) => process_name(process),
            None => format!("pid {pid}"),
        }
    }

    fn write_footer(&self, out: &mut String) {
        let style = self.options.style;
        let more = self
            .report
            .total_rows
            .saturating_sub(self.report.rows.len() as u64);
        let line = match (self.report.rows.is_empty(), more) {
            (true, 0) if self.report.tick == 0 => "nothing recorded yet, all probes are in place".to_owned(),
            (true, 0) => "no blocks".to_owned(),
            (_, 0) => return,
            (_, 1) => "1 more group".to_owned(),
            (_, more) => format!("{more} more groups"),
        };
        let _ = writeln!(out, "{}", style.paint(Role::Aside, line));
    }
}

/// What stands before a size that is not exact.
const fn about(row: &Row) -> &'static str {
    if row.estimated_bytes > 0 { "~" } else { "" }
}

/// `pid 1234 python3`, and what became of it.
fn process_name(process: &Process) -> String {
    let state = match (process.replaced, process.exited, process.exit) {
        (true, ..) => " (replaced by exec)".to_owned(),
        (false, true, Some(exit)) => format!(" ({})", exit.words()),
        (false, true, None) => " (exited)".to_owned(),
        (false, false, _) => String::new(),
    };
    let comm = name::clean(&process.comm);
    if comm.is_empty() {
        format!("pid {}{state}", process.pid)
    } else {
        format!("pid {} {comm}{state}", process.pid)
    }
}

#[cfg(test)]
mod tests;
