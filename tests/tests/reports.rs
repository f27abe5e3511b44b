//! Leak reports: the right line first, in every form, and a page that a real browser draws.

use std::path::PathBuf;

use memwatch_tests::binary::{can_watch, command, find};
use memwatch_tests::recorded::{self, CACHE, LEAK};
use memwatch_tests::tools::{self, document};
use memwatch_tests::watch::{Ended, parse, run_to_end};
use memwatch_tests::{Recipe, Target, need};
use tempfile::TempDir;

fn recording(seconds: u64) -> Result<(TempDir, PathBuf), String> {
    find()?;
    let folder = TempDir::new().map_err(|error| format!("no folder for the test: {error}"))?;
    let path = folder.path().join("service.memwatch");
    recorded::service(&path, seconds);
    Ok((folder, path))
}

fn report(path: &PathBuf, options: &[&str]) -> Ended {
    run_to_end(command().arg("report").arg(path).args(options))
}

#[test]
fn the_leaking_line_comes_first_after_a_minute_and_the_cache_is_not_named() {
    let (_folder, path) = need!(recording(60));
    let ended = report(&path, &["--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = parse(&ended.stdout[0]);
    let first = &report.findings[0];
    assert_eq!((first.kind.as_str(), first.severity.as_str()), ("growth", "high"));
    assert_eq!(first.evidence["key"], LEAK);
    let row = &report.rows[first.row.expect("it has a stack") as usize];
    assert_eq!(row.inuse_bytes, 600_000);
    let named: Vec<&str> = report
        .findings
        .iter()
        .map(|finding| finding.title.as_str())
        .collect();
    assert!(!named.iter().any(|title| title.contains(CACHE)), "{named:?}");
    assert_eq!(
        named.iter().filter(|title| title.contains("grows by")).count(),
        1,
        "{named:?}"
    );
}

#[test]
fn text_and_markdown_tell_the_same() {
    let (_folder, path) = need!(recording(60));
    for format in ["text", "markdown"] {
        let ended = report(&path, &["--format", format]);
        let text = ended.stdout.join("\n");
        for words in [
            "One leak",
            "grows by",
            "What was lost",
            "How it was measured",
            "server:1.4",
        ] {
            assert!(text.contains(words), "{words} is not in the {format}: {text}");
        }
    }
}

#[test]
fn a_recording_that_grew_fails_the_gate_with_a_short_verdict() {
    let (_folder, path) = need!(recording(60));
    let passes = report(&path, &["--fail-on-growth", "2G"]);
    assert_eq!(passes.code, Some(0), "{passes:?}");
    let fails = report(&path, &["--fail-on-growth", "1M"]);
    assert_eq!(fails.code, Some(3), "{fails:?}");
    assert!(
        fails.stderr.contains("memory in use grew by") && fails.stderr.lines().count() == 1,
        "{fails:?}"
    );
    assert!(!fails.stdout.is_empty(), "the report is there all the same");
}

#[test]
fn suppressed_leaks_are_counted_and_not_named() {
    let (folder, path) = need!(recording(60));
    let known = folder.path().join("known");
    std::fs::write(&known, "leak:Server::handle\n").expect("it can be written");
    let ended = report(&path, &["--suppressions", known.to_str().expect("it is text")]);
    let text = ended.stdout.join("\n");
    assert!(
        text.contains("No leak was found") && text.contains("Suppressed"),
        "{text}"
    );
}

#[test]
fn a_browser_draws_the_page_without_an_error() {
    let (folder, path) = need!(recording(60));
    let chromium = need!(tools::program("chromium", "chromium"));
    let page = folder.path().join("report.html");
    let ended = report(
        &path,
        &["--format", "html", "-o", page.to_str().expect("it is text")],
    );
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let drawn = need!(document(&chromium, folder.path(), &page));
    assert!(
        drawn.contains("data-ready=\"yes\""),
        "the scripts did not come to their end: {drawn:.2000}"
    );
    assert!(!drawn.contains("data-errors"), "{drawn:.2000}");
    let count = |words: &str| drawn.matches(words).count();
    assert!(
        count("class=\"frame") >= 15,
        "frames of the flame graph: {}",
        count("class=\"frame")
    );
    assert!(count("<tr") >= 10, "rows of the tables: {}", count("<tr"));
    assert!(
        count("class=\"finding\"") >= 2,
        "findings: {}",
        count("class=\"finding\"")
    );
    assert!(
        count("<path class=\"rss\"") == 1 && count("<path class=\"area\"") >= 2,
        "charts"
    );
    assert!(
        drawn.contains("aria-sort=\"descending\""),
        "sorted by what is in use"
    );
    assert!(drawn.contains("render"), "Python frames");
}

/// What people do with the page, done by a script in it.
#[test]
fn the_page_sorts_searches_zooms_and_opens() {
    let (folder, path) = need!(recording(60));
    let chromium = need!(tools::program("chromium", "chromium"));
    let page = folder.path().join("report.html");
    let ended = report(
        &path,
        &["--format", "html", "-o", page.to_str().expect("it is text")],
    );
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let html = std::fs::read_to_string(&page).expect("it was written");
    let script = include_str!("../data/use-the-page.js");
    let used = html.replace("</body>", &format!("<script>{script}</script></body>"));
    std::fs::write(&page, used).expect("it can be written");
    let drawn = need!(document(&chromium, folder.path(), &page));
    assert!(
        drawn.contains("data-used=\"well\""),
        "{}",
        &drawn[..drawn.len().min(600)]
    );
}

#[test]
fn a_running_process_is_reported_on() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let pid = target.pid().to_string();
    let ended = run_to_end(command().args([
        "report", "--pid", &pid, "-i", "50ms", "-d", "3s", "--format", "json",
    ]));
    target.exit();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("watching for 3s"), "{ended:?}");
    let report = parse(&ended.stdout[0]);
    assert!(
        report.findings.iter().all(|finding| finding.kind != "growth"),
        "it does nothing: {:?}",
        report.findings
    );
}
