//! The leak report as one HTML file that needs nothing else: its style, its scripts and its data are in it.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::leaks::{self, LeakOptions, evidence};
use crate::format::ByteFormat;
use crate::model::leaks::{LeakReport, owner_of};

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
struct Data {
    /// Its rows have numbers in place of frames, which are in `frames`: thousands of stacks share most of theirs.
    report: Value,
    frames: Vec<Value>,
    /// The frame of each row that its blocks belong to.
    owners: Vec<Option<usize>>,
    /// The evidence of each finding.
    sentences: Vec<Vec<String>>,
}

/// Of a row, what the page does not show.
const NOT_SHOWN: [&str; 4] = ["sizes", "lifetimes", "ages", "growth_bytes_per_second"];

impl Data {
    fn new(leaks: &LeakReport) -> Result<Self, serde_json::Error> {
        let mut report = serde_json::to_value(leaks)?;
        let (mut frames, mut ids) = (Vec::new(), HashMap::new());
        let rows = report.get_mut("rows").and_then(Value::as_array_mut);
        for row in rows.into_iter().flatten().filter_map(Value::as_object_mut) {
            for field in NOT_SHOWN {
                row.remove(field);
            }
            // Only what has no frames is called by its key.
            if row
                .get("frames")
                .and_then(Value::as_array)
                .is_some_and(|frames| !frames.is_empty())
            {
                row.remove("key");
            }
            for frame in row
                .get_mut("frames")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let id = *ids.entry(frame.to_string()).or_insert_with(|| {
                    frames.push(frame.clone());
                    frames.len() - 1
                });
                *frame = Value::from(id);
            }
        }
        let findings = leaks.report.findings.iter();
        Ok(Self {
            report,
            frames,
            owners: leaks.report.rows.iter().map(owner_of).collect(),
            sentences: findings
                .map(|finding| evidence::sentences(finding, ByteFormat::default()))
                .collect(),
        })
    }
}

pub fn page(report: &LeakReport) -> Result<String, serde_json::Error> {
    let data = for_script(&serde_json::to_string(&Data::new(report)?)?);
    let options = LeakOptions {
        bytes: ByteFormat::default(),
        shown: leaks::DEFAULT_SHOWN,
        frames: None,
    };
    // For who has scripts switched off, and for search in the file.
    let text = leaks::text(report, &options);
    Ok(fill(
        PAGE,
        &[
            ("{title}", &escaped(&leaks::title(&report.report))),
            ("{verdict}", &escaped(&leaks::verdict(report))),
            ("{style}", STYLE),
            ("{text}", &escaped(&text)),
            ("{data}", &data),
            ("{scripts}", &SCRIPTS.concat()),
        ],
    ))
}

/// Puts each text where its mark stands, in one pass: a text that looks like a mark is only a text.
fn fill(mut page: &str, texts: &[(&str, &str)]) -> String {
    let mut out = String::new();
    loop {
        let next = texts
            .iter()
            .filter_map(|(mark, text)| Some((page.find(mark)?, *mark, *text)))
            .min_by_key(|(place, ..)| *place);
        let Some((place, mark, text)) = next else {
            out.push_str(page);
            return out;
        };
        out.push_str(&page[..place]);
        out.push_str(text);
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
fn for_script(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::leaks::tests::leaky;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&leaky()).unwrap();
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
        report.report.rows[0].frames[0].function = Some(evil.to_owned());
        report.report.processes[0].comm = evil.to_owned();
        let page = page(&report).unwrap();
        assert!(!page.contains(evil));
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script>").count(), 2);
        assert_eq!(page.matches("<!--").count(), 0);
    }

    #[test]
    fn the_data_is_the_json_of_the_report() {
        let page = page(&leaky()).unwrap();
        let begin = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
        let end = begin + page[begin..].find("</script>").unwrap();
        let value: Value = serde_json::from_str(&page[begin..end]).unwrap();
        let whole = serde_json::to_value(leaky()).unwrap();
        assert_eq!(value["report"]["timeline"], whole["timeline"]);
        assert_eq!(value["report"]["findings"], whole["findings"]);
        for (row, all) in value["report"]["rows"]
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
