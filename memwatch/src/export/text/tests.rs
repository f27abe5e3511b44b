use super::*;
use crate::export::fixtures::{bytes, empty, full, native_frame, process, row, tick};
use crate::format::Unit;
use crate::model::report::{Delta, Frame, Kind, Limit, ProbeNote};

fn text(report: &Report) -> String {
    block(report, &TextOptions::default())
}

/// The rows and the footer.
fn body(report: &Report) -> String {
    let text = text(report);
    let (_, body) = text.split_once("overhead").unwrap();
    body.split_once('\n').unwrap().1.to_owned()
}

fn by(key: &str, mut report: Report) -> Report {
    report.options.group_by = key.to_owned();
    report
}

#[test]
fn an_empty_first_tick() {
    insta::assert_snapshot!(text(&empty()));
}

#[test]
fn one_row() {
    insta::assert_snapshot!(text(&tick(vec![row()])));
}

#[test]
fn many_rows_and_a_footer() {
    let mut report = tick(vec![
        row(),
        Row {
            pid: Some(1300),
            domain: Some("mmap".to_owned()),
            mapping: Some("anonymous".to_owned()),
            inuse_bytes: bytes("64M"),
            inuse_objects: 1,
            delta: Some(Delta {
                inuse_bytes: -4096,
                inuse_objects: -1,
                ..Delta::default()
            }),
            truncated: true,
            ..row()
        },
        Row {
            pid: None,
            domain: None,
            delta: None,
            frames: Vec::new(),
            ..row()
        },
        Row {
            pid: Some(99),
            delta: Some(Delta::default()),
            ..row()
        },
    ]);
    report.processes.push(process(1300, "worker"));
    report.total_rows = 4321;
    insta::assert_snapshot!(text(&report));
}

#[test]
fn lines_are_those_of_tracemalloc() {
    let report = by("line", tick(vec![row()]));
    assert_eq!(
        body(&report),
        "app/cache.py:88: size=412 MiB (+4.1 MiB), count=3100000 (+31000), average=139 B\n"
    );
}

#[test]
fn there_is_no_average_of_no_blocks() {
    let none = Row {
        inuse_bytes: 0,
        inuse_objects: 0,
        delta: None,
        ..row()
    };
    assert_eq!(
        body(&by("file", tick(vec![none]))),
        "app/cache.py:88: size=0 B, count=0\n"
    );
}

#[test]
fn the_head_of_a_traceback_is_that_of_the_contract() {
    assert_eq!(
        body(&tick(vec![row()])).lines().next(),
        Some("412 MiB in 3100000 blocks (+4.1 MiB, +31000)  pid 1234 python3  native")
    );
    let mapping = Row {
        inuse_objects: 1,
        mapping: Some("file".to_owned()),
        ..row()
    };
    let head = body(&tick(vec![mapping]));
    assert!(
        head.starts_with("412 MiB in 1 block (") && head.contains("  native (file)\n"),
        "{head}"
    );
}

#[test]
fn the_view_of_all_allocations() {
    let mut report = tick(vec![row()]);
    report.options.view = "alloc".to_owned();
    assert!(body(&report).starts_with("1.5 GiB allocated in 9000000 blocks (+8.6 MiB, +70000)  pid 1234"));
    assert_eq!(
        body(&by("function", report)),
        "app/cache.py:88: allocated=1.5 GiB (+8.6 MiB), count=9000000 (+70000), average=178 B\n"
    );
}

#[test]
fn what_rows_are_sorted_by_is_shown() {
    let mut report = by("line", tick(vec![row()]));
    report.options.sort = "growth".to_owned();
    assert!(body(&report).ends_with(", average=139 B, growth=+4.1 MiB/s\n"));
    report.options.sort = "age".to_owned();
    assert!(body(&report).ends_with(", average=139 B, oldest=9.5s\n"));
}

#[test]
fn a_limit_on_frames_counts_the_rest() {
    let shown = |frames| {
        block(
            &tick(vec![row()]),
            &TextOptions {
                frames: Some(frames),
                ..TextOptions::default()
            },
        )
    };
    assert!(shown(3).contains("    fill (app/cache.py:88)\n    … 1 more frame\n"));
    assert!(shown(1).contains("[libpython3.11.so.1.0]\n    … 3 more frames\n"));
    assert!(shown(0).contains("  native\n    … 4 more frames\n"));
    assert!(!shown(4).contains('…'));
}

#[test]
fn losses_filters_and_failed_probes_are_told() {
    let mut report = full();
    report
        .health
        .reasons
        .push("stacks cut at the frame limit (raise --max-depth): 12".to_owned());
    report
        .health
        .limits
        .insert("sites".to_owned(), Limit { used: 1, max: 1 });
    let failed = |symbol: &str| ProbeNote {
        symbol: symbol.to_owned(),
        module: "/usr/lib/libc.so.6".to_owned(),
        reason: "no such offset".to_owned(),
    };
    report.health.probes.failed = ["malloc", "calloc", "realloc", "free", "valloc"]
        .map(failed)
        .to_vec();
    insta::assert_snapshot!(text(&report));
}

#[test]
fn incomplete_without_a_reason_is_still_told() {
    let mut report = empty();
    report.health.complete = false;
    assert!(text(&report).contains("losses    incomplete, the cause is not known\n"));
}

#[test]
fn sampled_numbers_are_called_estimates() {
    let mut report = empty();
    report.options.sample_bytes = bytes("512k");
    assert!(
        text(&report)
            .contains("mode      sampled, one block in 512 KiB on average; all numbers are estimates\n")
    );
}

#[test]
fn exited_and_replaced_processes() {
    let mut report = tick(vec![row()]);
    report.processes[0].exited = true;
    report.processes[0].rss_bytes = None;
    let all_gone = text(&report);
    assert!(
        all_gone.contains("target    pid 1234 python3 (exited)\n"),
        "{all_gone}"
    );
    assert!(
        all_gone.contains("RSS       none, the target has exited\n"),
        "{all_gone}"
    );
    assert!(
        all_gone.contains("(+4.1 MiB, +31000)  pid 1234 python3 (exited)  native\n"),
        "{all_gone}"
    );

    let mut before = process(1234, "sh");
    before.replaced = true;
    report.processes = vec![before, process(1234, "python3")];
    let replaced = text(&report);
    assert!(
        replaced.contains("target    pid 1234 sh (replaced by exec), pid 1234 python3\n"),
        "{replaced}"
    );
    assert!(
        replaced.contains("RSS       512 MiB, 412 MiB (80.5%) of it explained"),
        "{replaced}"
    );
    assert!(replaced.contains("  pid 1234 python3  native\n"), "{replaced}");
}

#[test]
fn rss_that_does_not_add_up() {
    let line = |report: &Report| {
        text(report)
            .lines()
            .find(|line| line.starts_with("RSS"))
            .unwrap()
            .to_owned()
    };
    let mut report = tick(Vec::new());
    report.processes[0].rss_bytes = Some(bytes("100M"));
    assert_eq!(
        line(&report),
        "RSS       100 MiB; 412 MiB are in use, more than that: part of it was never touched: mmap 112 MiB, native 300 MiB"
    );
    report.processes[0].rss_bytes = Some(0);
    report.processes[0].totals.clear();
    assert_eq!(line(&report), "RSS       0 B, 0 B (0.0%) of it explained");
    report.processes[0].rss_bytes = None;
    assert_eq!(line(&report), "RSS       not known");
    report.processes.push(process(2, "a"));
    assert!(line(&report).ends_with("; not known for 1 more"));
}

#[test]
fn many_processes_are_counted() {
    let mut report = empty();
    report.processes = (1..=7).map(|pid| process(pid, "")).collect();
    assert!(text(&report).contains("target    pid 1, pid 2, pid 3, pid 4 and 3 more\n"));
    report.processes.clear();
    assert!(text(&report).contains("target    no process yet\n"));
}

#[test]
fn names_of_any_kind() {
    let template = format!("std::map<{}>::insert", "std::string, ".repeat(300));
    let mut report = tick(vec![Row {
        frames: Frame::shared([
            native_frame(
                "größe_キャッシュ",
                Some(("src/café.c", 1)),
                "/opt/приложение/lib.so",
            ),
            native_frame(&template, None, "/usr/lib/libstdc++.so.6"),
            native_frame("evil\x1b[2J\n\u{202e}", None, "/tmp/a\nb"),
            Frame::default(),
        ]),
        ..row()
    }]);
    report.processes[0].comm = "py\x07thon".to_owned();
    insta::assert_snapshot!(text(&report));
}

#[test]
fn a_diff_in_fixed_units() {
    let mut report = tick(vec![row()]);
    report.kind = Kind::Diff;
    let options = TextOptions {
        bytes: ByteFormat {
            unit: Unit::Kib,
            si: false,
        },
        frames: Some(1),
        style: Style::PLAIN,
    };
    insta::assert_snapshot!(block(&report, &options));
}

#[test]
fn colour_changes_nothing_but_the_looks() {
    let options = TextOptions {
        style: Style::COLOURED,
        ..TextOptions::default()
    };
    for report in [full(), by("line", full()), empty()] {
        let coloured = block(&report, &options);
        let mut plain = coloured.clone();
        for code in ["0", "1", "2", "31", "32", "33"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        assert_ne!(coloured, plain);
        assert_eq!(plain, text(&report));
    }
}

#[test]
fn blocks_are_told_apart_by_their_only_empty_line() {
    assert!(!text(&empty()).contains("\n\n"));
    for report in [full(), by("line", full()), tick(Vec::new())] {
        let text = text(&report);
        assert!(text.starts_with("\n2026-03-01T12:00:10Z  "));
        assert!(!text[1..].contains("\n\n") && text.ends_with('\n'));
    }
}

#[test]
fn no_number_breaks_the_text() {
    let mut report = tick(vec![Row {
        inuse_bytes: u64::MAX,
        inuse_objects: u64::MAX,
        growth_bytes_per_second: Some(f64::NEG_INFINITY),
        oldest_seconds: Some(f64::NAN),
        delta: Some(Delta {
            inuse_bytes: i64::MIN,
            inuse_objects: i64::MAX,
            ..Delta::default()
        }),
        ..row()
    }]);
    report.watched_seconds = f64::NAN;
    report.processes.extend([process(5, "a"), process(6, "b")]);
    for process in &mut report.processes {
        process.rss_bytes = Some(u64::MAX);
        process
            .totals
            .values_mut()
            .for_each(|totals| totals.inuse_bytes = u64::MAX);
    }
    for sort in ["growth", "age"] {
        report.options.sort = sort.to_owned();
        assert!(text(&report).contains("(-8.0 EiB, +9223372036854775807)"));
        assert!(text(&by("line", report.clone())).contains("average=1 B"));
    }
}
