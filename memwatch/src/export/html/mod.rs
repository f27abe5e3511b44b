//! The leak report as one HTML file that needs nothing else: its style, its scripts and its data are in it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;
use serde_json::ser::Formatter;

use super::leaks::{self, LeakOptions, evidence};
use crate::format::ByteFormat;
use crate::model::leaks::{LeakReport, Suppressed, TimelinePoint, owner_of};
use crate::model::report::{Delta, Frame, Report, Row};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
/// In the order in which they need each other.
const SCRIPTS: [&str; 7] = [
    include_str!("units.js"),
    include_str!("stacks.js"),
    include_str!("table.js"),
    include_str!("chart.js"),
    include_str!("flame.js"),
    include_str!("tree.js"),
    include_str!("main.js"),
];

/// What the scripts draw from: the JSON of the report, and what takes more than that to know.
#[derive(Serialize)]
struct Data<'a> {
    report: Head<'a>,
    rows: Vec<PageRow<'a>>,
    frames: Vec<&'a Frame>,
    /// The frame of each row that its blocks belong to.
    owners: Vec<Option<usize>>,
    /// The evidence of each finding.
    sentences: Vec<Vec<String>>,
}

/// The report, its rows apart.
#[derive(Serialize)]
struct Head<'a> {
    #[serde(flatten)]
    report: Report,
    timeline: &'a [TimelinePoint],
    baseline_seconds: f64,
    levelled_off: usize,
    too_short: bool,
    suppressed: &'a [Suppressed],
}

/// What the page shows of a row, with numbers in place of frames: thousands of stacks share most of theirs.
#[derive(Serialize)]
struct PageRow<'a> {
    /// Only what has no frames is called by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    pid: Option<u32>,
    domain: Option<&'a str>,
    mapping: Option<&'a str>,
    inuse_bytes: u64,
    inuse_objects: u64,
    alloc_bytes: u64,
    alloc_objects: u64,
    delta: Option<Delta>,
    truncated: bool,
    frames: Vec<usize>,
}

/// Every frame once.
#[derive(Default)]
struct Frames<'a> {
    all: Vec<&'a Frame>,
    /// Most stacks share the very same frame: then it need not be looked at.
    known: HashMap<*const Frame, usize>,
    numbers: HashMap<&'a Frame, usize>,
}

impl<'a> Frames<'a> {
    fn number(&mut self, frame: &'a Arc<Frame>) -> usize {
        *self.known.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            *self.numbers.entry(frame).or_insert_with(|| {
                self.all.push(frame);
                self.all.len() - 1
            })
        })
    }

    fn row(&mut self, row: &'a Row) -> PageRow<'a> {
        PageRow {
            key: row.frames.is_empty().then_some(&row.key),
            pid: row.pid,
            domain: row.domain.as_deref(),
            mapping: row.mapping.as_deref(),
            inuse_bytes: row.inuse_bytes,
            inuse_objects: row.inuse_objects,
            alloc_bytes: row.alloc_bytes,
            alloc_objects: row.alloc_objects,
            delta: row.delta,
            truncated: row.truncated,
            frames: row.frames.iter().map(|frame| self.number(frame)).collect(),
        }
    }
}

impl<'a> Data<'a> {
    fn new(leaks: &'a LeakReport) -> Self {
        let report = &leaks.report;
        let mut frames = Frames::default();
        let rows = report.rows.iter().map(|row| frames.row(row)).collect();
        let findings = report.findings.iter();
        Self {
            report: Head {
                report: report.without_rows(),
                timeline: &leaks.timeline,
                baseline_seconds: leaks.baseline_seconds,
                levelled_off: leaks.levelled_off,
                too_short: leaks.too_short,
                suppressed: &leaks.suppressed,
            },
            rows,
            frames: frames.all,
            owners: report.rows.iter().map(owner_of).collect(),
            sentences: findings
                .map(|finding| evidence::sentences(finding, ByteFormat::default()))
                .collect(),
        }
    }
}

pub fn write(report: &LeakReport, out: &mut dyn Write) -> io::Result<()> {
    let options = LeakOptions {
        bytes: ByteFormat::default(),
        shown: leaks::DEFAULT_SHOWN,
        frames: None,
    };
    let title = escaped(&leaks::title(&report.report));
    let verdict = escaped(&leaks::verdict(report));
    // For who has scripts switched off, and for search in the file.
    let text = escaped(&leaks::text(report, &options));
    let texts = [
        ("{title}", &title[..]),
        ("{verdict}", &verdict),
        ("{style}", STYLE),
        ("{text}", &text),
        ("{scripts}", &SCRIPTS.concat()),
    ];
    let (before, after) = PAGE.split_once("{data}").unwrap_or((PAGE, ""));
    fill(before, &texts, out)?;
    // The largest part is never kept whole.
    let mut data = serde_json::Serializer::with_formatter(&mut *out, ForScript);
    Data::new(report).serialize(&mut data)?;
    fill(after, &texts, out)
}

/// Puts each text where its mark stands, in one pass: a text that looks like a mark is only a text.
fn fill(mut page: &str, texts: &[(&str, &str)], out: &mut dyn Write) -> io::Result<()> {
    loop {
        let next = texts
            .iter()
            .filter_map(|(mark, text)| Some((page.find(mark)?, *mark, *text)))
            .min_by_key(|(place, ..)| *place);
        let Some((place, mark, text)) = next else {
            return out.write_all(page.as_bytes());
        };
        out.write_all(&page.as_bytes()[..place])?;
        out.write_all(text.as_bytes())?;
        page = &page[place + mark.len()..];
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        for c in line.chars().filter(|c| !c.is_control()) {
            match c {
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '&' => out.push_str("&amp;"),
                '"' => out.push_str("&quot;"),
                _ => out.push(c),
            }
        }
        out.push_str(end);
    }
    out
}

/// JSON inside a script element: no name in it can end the element.
struct ForScript;

impl Formatter for ForScript {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let ends = ['<', '\u{2028}', '\u{2029}'];
        for part in fragment.split_inclusive(ends) {
            let mut chars = part.chars();
            match chars.next_back().filter(|last| ends.contains(last)) {
                Some(last) => write!(out, "{}\\u{:04x}", chars.as_str(), u32::from(last))?,
                None => out.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::export::leaks::tests::leaky;

    fn page(report: &LeakReport) -> String {
        let mut page = Vec::new();
        write(report, &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&leaky());
        for outside in [
            "src=",
            "href=\"http",
            "@import",
            "url(http",
            "fetch(",
            "XMLHttpRequest",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        for mark in ["{title}", "{style}", "{data}", "{scripts}", "{text}", "{verdict}"] {
            assert!(!page.contains(mark), "{mark}");
        }
        assert!(page.contains("<noscript>"));
    }

    #[test]
    fn names_of_the_watched_program_cannot_become_part_of_the_page() {
        let mut report = leaky();
        let evil = "</script><script>alert(1)</script><!--{data}";
        Arc::make_mut(&mut report.report.rows[0].frames[0]).function = Some(evil.to_owned());
        report.report.processes[0].comm = evil.to_owned();
        let page = page(&report);
        assert!(!page.contains(evil));
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script>").count(), 2);
        assert_eq!(page.matches("<!--").count(), 0);
    }

    #[test]
    fn the_data_is_the_json_of_the_report() {
        let page = page(&leaky());
        let begin = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
        let end = begin + page[begin..].find("</script>").unwrap();
        let value: Value = serde_json::from_str(&page[begin..end]).unwrap();
        let whole = serde_json::to_value(leaky()).unwrap();
        assert_eq!(value["report"]["timeline"], whole["timeline"]);
        assert_eq!(value["report"]["findings"], whole["findings"]);
        for (row, all) in value["rows"]
            .as_array()
            .unwrap()
            .iter()
            .zip(whole["rows"].as_array().unwrap())
        {
            assert_eq!(
                (&row["inuse_bytes"], &row["delta"]),
                (&all["inuse_bytes"], &all["delta"])
            );
            let frames = row["frames"].as_array().unwrap().iter();
            assert_eq!(row["key"].is_null(), frames.len() > 0);
            let named: Vec<Value> = frames
                .map(|id| value["frames"][id.as_u64().unwrap() as usize].clone())
                .collect();
            assert_eq!(Value::from(named), all["frames"]);
        }
    }
}
