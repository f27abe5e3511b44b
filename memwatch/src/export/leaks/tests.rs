use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::export::fixtures::{full, native_frame, row};
use crate::model::leaks::{Suppressed, TimelinePoint};
use crate::model::report::{Delta, Frame, Kind};

fn finding(kind: &str, severity: &str, title: &str, row: u64, evidence: serde_json::Value) -> Finding {
    Finding {
        kind: kind.to_owned(),
        severity: severity.to_owned(),
        title: title.to_owned(),
        evidence: serde_json::from_value::<BTreeMap<String, serde_json::Value>>(evidence).unwrap(),
        row: Some(row),
    }
}

/// A minute of a program that leaks, with all kinds of findings.
pub(crate) fn leaky() -> LeakReport {
    let mut report = full();
    report.kind = Kind::Report;
    report.watched_seconds = 60.0;
    let other = Row {
        key: "main".to_owned(),
        inuse_bytes: 5 << 20,
        inuse_objects: 40,
        alloc_bytes: 900 << 20,
        alloc_objects: 70_000,
        delta: Some(Delta {
            inuse_bytes: -(1 << 20),
            ..Delta::default()
        }),
        frames: Frame::shared([
            native_frame("malloc", None, "/lib/libc.so.6"),
            native_frame(
                "parse<int, std::string>",
                Some(("src/parse.cc", 12)),
                "/app/server",
            ),
            native_frame("main", Some(("src/main.cc", 3)), "/app/server"),
        ]),
        ..row()
    };
    report.rows.push(other);
    report.total_rows = 2;
    report.findings = vec![
        finding(
            "growth",
            "high",
            "app/cache.py:88 grows by 4.1 MiB/s",
            0,
            json!({"by": "the least in use of each tenth of the watch", "bytes_per_second": 4_299_161.6,
                "bytes_per_second_low": 4_100_000.0, "bytes_per_second_high": 4_400_000.0, "bytes_per_day": 371_447_000_000.0_f64,
                "blocks_per_second": 31_000.25, "confidence": 0.999_99, "kendall_tau": 0.98, "windows_rising": 9, "windows": 9,
                "late_share": 1.02, "inuse_bytes": 432_013_312, "inuse_objects": 3_100_000, "stacks": 1, "rows": [0]}),
        ),
        finding(
            "churn",
            "info",
            "src/parse.cc:12 allocates 15.0 MiB in 1167 blocks a second and frees nearly all of them",
            1,
            json!({"bytes_per_second": 15_728_640, "blocks_per_second": 1166.7, "part_of_allocations": 0.4, "part_of_bytes": 0.6,
                "inuse_bytes": 5_242_880, "inuse_objects": 40, "stacks": 1, "rows": [1]}),
        ),
    ];
    let timeline = (0..=60_u64).map(|second| TimelinePoint {
        seconds: second as f64,
        rss_bytes: (second != 30).then_some((100 + second * 5) << 20),
        inuse_bytes: (second * 7) << 20,
        alloc_bytes: (second * 40) << 20,
        alloc_objects: second * 4000,
    });
    LeakReport {
        report,
        timeline: timeline.collect(),
        baseline_seconds: 15.0,
        levelled_off: 2,
        too_short: false,
        suppressed: vec![Suppressed {
            pattern: "libssl*".to_owned(),
            stacks: 2,
            inuse_bytes: 4096,
            inuse_objects: 9,
        }],
    }
}

fn options() -> LeakOptions {
    LeakOptions {
        bytes: ByteFormat::default(),
        shown: DEFAULT_SHOWN,
        frames: None,
    }
}

#[test]
fn as_text() {
    insta::assert_snapshot!(text(&leaky(), &options()));
}

#[test]
fn as_markdown() {
    insta::assert_snapshot!(markdown(&leaky(), &options()));
}

#[test]
fn of_nothing_there_is_a_report_too() {
    let nothing = LeakReport {
        too_short: true,
        ..LeakReport::default()
    };
    let text = text(&nothing, &options());
    assert!(text.contains("Watched too shortly"), "{text}");
    assert!(!markdown(&nothing, &options()).is_empty());
}

#[test]
fn the_json_is_that_of_a_report_with_more_beside() {
    let value = serde_json::to_value(leaky()).unwrap();
    assert_eq!(value["schema"], "memwatch.report/1");
    assert_eq!(value["kind"], "report");
    assert_eq!(value["findings"][0]["row"], 0);
    assert_eq!(value["timeline"][30]["rss_bytes"], serde_json::Value::Null);
    assert_eq!(value["suppressed"][0]["pattern"], "libssl*");
    let report: Report = serde_json::from_value(value).unwrap();
    assert_eq!(report, leaky().report);
}
