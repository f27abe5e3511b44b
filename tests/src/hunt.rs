//! The hunt that takes two months without memwatch: a service that leaks 100 bytes a request among half a gigabyte that
//! comes and goes, and a cache that grows and then stays. It is under load, recorded for a minute, and reported on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use memwatch::model::report::{Finding, Report, Row};

use crate::binary::{command, patience};
use crate::server::connect;
use crate::target::Target;
use crate::watch::{Memwatch, parse, run_to_end};

/// Between two requests.
const PACE: Duration = Duration::from_millis(10);
/// How long the cache goes on growing while it is watched.
const GROWING: Duration = Duration::from_secs(25);
const WATCHED: &str = "60s";

/// What there is to say about a service after a minute.
pub struct Found {
    pub report: Report,
    /// Answered while it was watched.
    pub requests: u64,
}

/// One connection with a hundred requests a second.
struct Load {
    stop: Arc<AtomicBool>,
    /// From now on only entries that were asked for before.
    level: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    fn on(port: u16) -> Self {
        let (stop, level) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = Some(std::thread::spawn({
            let (stop, level) = (Arc::clone(&stop), Arc::clone(&level));
            move || requests(connect(port), &stop, &level)
        }));
        Self { stop, level, thread }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is ended once");
        thread.join().expect("every request was answered")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn requests(mut connection: TcpStream, stop: &AtomicBool, level: &AtomicBool) -> u64 {
    connection
        .set_read_timeout(Some(patience()))
        .expect("a timeout can be set");
    let (mut entries, mut answered) = (0_u64, 0_u64);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if !level.load(Ordering::Relaxed) {
            entries += 4;
        }
        let number = answered * 4 % entries.max(4);
        ask(&mut connection, number);
        answered += 1;
        // A service that was late is not asked faster than this after.
        next = (next + PACE).max(Instant::now());
        sleep(next.saturating_duration_since(Instant::now()));
    }
    answered
}

/// One request, and all of its answer.
fn ask(connection: &mut TcpStream, number: u64) {
    let request = format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    connection
        .write_all(request.as_bytes())
        .expect("the service takes requests");
    let body = format!("{{\"entry\": {number}}}");
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.ends_with(body.as_bytes()) {
        let read = connection.read(&mut part).expect("the service answers");
        assert!(read > 0, "the service hung up");
        answer.extend_from_slice(&part[..read]);
    }
}

/// Records the service for a minute, under load; then reports on the file.
pub fn hunt(service: &mut Target) -> Found {
    let port = service.ready()["port"].as_u64().expect("it says its port");
    let load = Load::on(u16::try_from(port).expect("a port"));
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("service.memwatch");
    let pid = service.pid().to_string();
    let mut record = command();
    record.args(["record", "--pid", &pid, "-i", "1s", "-d", WATCHED, "-o"]);
    let watch = Memwatch::start(record.arg(&file));
    let until = Instant::now() + patience();
    while !file.exists() {
        assert!(Instant::now() < until, "the recording does not begin");
        sleep(Duration::from_millis(20));
    }
    sleep(GROWING);
    load.level.store(true, Ordering::Relaxed);
    let ended = watch.finish();
    let requests = load.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ended = run_to_end(command().arg("report").arg(&file).args(["--format", "json"]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    Found {
        report: parse(&ended.stdout[0]),
        requests,
    }
}

impl Found {
    fn row(&self, finding: &Finding) -> &Row {
        &self.report.rows[finding.row.expect("it has a stack") as usize]
    }

    fn titles(&self) -> Vec<&str> {
        self.report
            .findings
            .iter()
            .map(|finding| finding.title.as_str())
            .collect()
    }

    /// Of all rows with this function.
    fn sum(&self, function: &str, number: impl Fn(&Row) -> u64) -> u64 {
        let rows = self.report.rows.iter();
        rows.filter(|row| is_on(row, function)).map(number).sum()
    }

    /// That this line is named first, no other as a leak, and the cache not at all.
    pub fn assert_named(&self, line: &str) {
        let titles = self.titles();
        let churn = self.sum("read_request", |row| row.inuse_bytes);
        assert!(
            churn > 400 << 20,
            "only {churn} bytes come and go, after {} requests",
            self.requests
        );
        let cached = self.sum("fill_cache", |row| row.inuse_bytes);
        assert!(cached > 1 << 20, "the cache has only {cached} bytes");
        let first = self.report.findings.first().expect("something is found");
        assert_eq!(first.kind, "growth", "{titles:?}");
        let key = |finding: &Finding| finding.evidence["key"].as_str().unwrap_or_default().to_owned();
        for leak in self
            .report
            .findings
            .iter()
            .filter(|finding| finding.kind == "growth")
        {
            assert!(
                key(leak).ends_with(line),
                "{line} leaks and nothing else: {titles:?}"
            );
        }
        for finding in &self.report.findings {
            let named = is_on(self.row(finding), "fill_cache");
            assert!(!named, "the cache is named: {titles:?}");
        }
    }
}

fn is_on(row: &Row, function: &str) -> bool {
    let mut names = row.frames.iter().filter_map(|frame| frame.function.as_deref());
    names.any(|name| name.contains(function))
}
