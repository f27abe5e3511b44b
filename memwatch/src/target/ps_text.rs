//! `memwatch ps` as a table.

use std::fmt::Write as _;

use super::ps::{Ps, PsProcess};
use crate::{
    format::{ByteFormat, Unit},
    model::report::Runtime,
};

/// How long an id of a container needs to be to be unique on a host; what Docker shows.
const CONTAINER_CHARS: usize = 12;
const UNITS: ByteFormat = ByteFormat {
    unit: Unit::Auto,
    si: false,
};
const RUNTIME_CHARS: usize = 28;

/// One line a process; kernel threads are only counted. `width` is that of the terminal: what is longer is cut.
pub fn ps_text(ps: &Ps, width: Option<usize>) -> String {
    let shown: Vec<&PsProcess> = ps
        .processes
        .iter()
        .filter(|process| !process.kernel_thread)
        .collect();
    let header = [
        "PID",
        "RSS",
        "GROWTH/s",
        "RUNTIME",
        "CONTAINER",
        "WATCH",
        "COMMAND",
    ]
    .map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(header)
        .chain(shown.iter().map(|process| cells(process)))
        .collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        text.push_str(&line(row, &widths, width));
        text.push('\n');
    }
    footer(&mut text, &shown, ps.processes.len() - shown.len());
    text
}

fn line(row: &[String; 7], widths: &[usize; 7], width: Option<usize>) -> String {
    const NUMBERS: usize = 3;
    let mut line = String::new();
    for (column, (cell, pad)) in row.iter().zip(widths).enumerate() {
        let gap = if column == 0 { "" } else { "  " };
        // Writing to a string cannot fail.
        let _ = if column < NUMBERS {
            write!(line, "{gap}{cell:>pad$}")
        } else if column + 1 < row.len() {
            write!(line, "{gap}{cell:<pad$}")
        } else {
            write!(line, "{gap}{cell}")
        };
    }
    match width {
        Some(width) => line.chars().take(width).collect(),
        None => line,
    }
}

fn footer(text: &mut String, shown: &[&PsProcess], kernel_threads: usize) {
    let mut notes: Vec<String> = Vec::new();
    for process in shown {
        // One line for each kind of obstacle that the table names only by a word.
        if let Some(why) = process.why {
            let note = format!("{}: {why}", why.short());
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes.sort();
    if kernel_threads > 0 {
        notes.push(format!("kernel threads not shown: {kernel_threads}"));
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
}

fn cells(process: &PsProcess) -> [String; 7] {
    let unknown = || "-".to_owned();
    let container = process.container.as_ref().map(|container| {
        container
            .name
            .clone()
            .unwrap_or_else(|| container.id.chars().take(CONTAINER_CHARS).collect())
    });
    [
        process.pid.to_string(),
        process.rss_bytes.map_or_else(unknown, |bytes| UNITS.size(bytes)),
        process
            .growth_bytes_per_second
            .map_or_else(unknown, |bytes| UNITS.change(bytes.round() as i64)),
        cut(&runtimes(&process.runtimes), RUNTIME_CHARS),
        container.map_or_else(unknown, |name| printable(&name)),
        watch(process),
        printable(&process.command),
    ]
}

fn watch(process: &PsProcess) -> String {
    let answer = if process.can_watch { "yes" } else { "no" };
    process
        .why
        .map_or_else(|| answer.to_owned(), |why| format!("{answer}: {}", why.short()))
}

/// Nearly every process has a C library: it is named only where there is nothing else to name.
fn runtimes(runtimes: &[Runtime]) -> String {
    let is_libc = |runtime: &&Runtime| matches!(runtime.name.as_str(), "glibc" | "musl");
    let (libc, mut named): (Vec<_>, Vec<_>) = runtimes.iter().partition(is_libc);
    if named.is_empty() {
        named = libc;
    }
    if named.is_empty() {
        return "-".to_owned();
    }
    let names = named.into_iter().map(|runtime| match &runtime.version {
        Some(version) => printable(&format!("{} {version}", runtime.name)),
        None => runtime.name.clone(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// A process chooses its own name: control characters in it must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|next| if next.is_control() { '?' } else { next })
        .collect()
}

fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::report::Container,
        target::ps::{Remark, SCHEMA},
    };

    fn process(pid: u32, command: &str) -> PsProcess {
        PsProcess {
            pid,
            ppid: 1,
            uid: Some(0),
            comm: command.to_owned(),
            command: command.to_owned(),
            rss_bytes: None,
            growth_bytes_per_second: None,
            runtimes: Vec::new(),
            container: None,
            pod_uid: None,
            kernel_thread: false,
            can_watch: true,
            why: None,
        }
    }

    fn runtime(name: &str, version: Option<&str>) -> Runtime {
        Runtime {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        }
    }

    fn ps(processes: Vec<PsProcess>) -> Ps {
        Ps {
            schema: SCHEMA,
            time: "2024-01-02T03:04:05Z".to_owned(),
            interval_seconds: Some(1.0),
            processes,
        }
    }

    fn sample() -> Ps {
        ps(vec![
            PsProcess {
                rss_bytes: Some(412 << 20),
                growth_bytes_per_second: Some(4.25 * 1024.0 * 1024.0),
                runtimes: vec![
                    runtime("cpython", Some("3.11")),
                    runtime("glibc", None),
                    runtime("jemalloc", None),
                ],
                container: Some(Container {
                    id: "3f4e8c0f2b6a4d5e8f7a".to_owned(),
                    ..Container::default()
                }),
                ..process(1234, "python3 app.py")
            },
            PsProcess {
                rss_bytes: Some(9 << 20),
                growth_bytes_per_second: Some(-2048.0),
                runtimes: vec![runtime("go", Some("1.22.3"))],
                can_watch: false,
                why: Some(Remark::Go),
                ..process(7, "evil\x1b[2J\nname")
            },
            PsProcess {
                growth_bytes_per_second: None,
                can_watch: false,
                why: Some(Remark::Ended),
                ..process(99, "[sh]")
            },
            PsProcess {
                kernel_thread: true,
                ..process(2, "[kthreadd]")
            },
        ])
    }

    #[test]
    fn the_table() {
        insta::assert_snapshot!(ps_text(&sample(), None), @r"
         PID      RSS  GROWTH/s  RUNTIME                 CONTAINER     WATCH      COMMAND
        1234  412 MiB  +4.2 MiB  cpython 3.11, jemalloc  3f4e8c0f2b6a  yes        python3 app.py
           7  9.0 MiB  -2.0 KiB  go 1.22.3               -             no: go     evil?[2J?name
          99        -         -  -                       -             no: ended  [sh]

        ended: it has ended; only its parent has not taken notice yet (zombie)
        go: a Go program has an allocator of its own that cannot be probed: use Go's pprof
        kernel threads not shown: 1
        ");
    }

    #[test]
    fn lines_are_cut_at_the_width_of_the_terminal() {
        let text = ps_text(&sample(), Some(30));
        let table: Vec<_> = text.lines().take(4).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 30), "{text}");
        assert!(table[1].starts_with("1234"));
    }

    #[test]
    fn nothing_to_show_is_a_header_alone() {
        assert_eq!(
            ps_text(&ps(Vec::new()), None),
            "PID  RSS  GROWTH/s  RUNTIME  CONTAINER  WATCH  COMMAND\n"
        );
    }

    #[test]
    fn long_lists_of_runtimes_are_cut() {
        let many: Vec<_> = (0..9).map(|_| runtime("cpython", Some("3.11"))).collect();
        let cut = cut(&runtimes(&many), RUNTIME_CHARS);
        assert_eq!(
            (cut.chars().count(), cut.chars().last()),
            (RUNTIME_CHARS, Some('…'))
        );
    }
}
