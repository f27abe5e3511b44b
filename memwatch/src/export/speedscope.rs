//! The file format of speedscope.app: one profile for each of the four numbers.

use std::collections::HashMap;

use serde::Serialize;

use super::folded::{self, TRUNCATED};
use super::weight::Weight;
use crate::model::label;
use crate::model::query::View;
use crate::model::report::{Report, Row};

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "$schema")]
    schema: &'static str,
    shared: Shared,
    profiles: Vec<Profile>,
    name: String,
    active_profile_index: usize,
    exporter: String,
}

#[derive(Default, Serialize)]
struct Shared {
    frames: Vec<SharedFrame>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct SharedFrame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    r#type: &'static str,
    name: &'static str,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Outermost first, as indexes into the shared frames.
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

pub fn file(report: &Report) -> Result<String, serde_json::Error> {
    let mut frames = Frames::default();
    let stacks: Vec<Vec<usize>> = report.rows.iter().map(|row| frames.stack(row)).collect();
    let profiles = Weight::ALL.map(|weight| profile(report, &stacks, weight));
    let leading = if report.options.view == View::Alloc.name() {
        Weight::AllocBytes
    } else {
        Weight::InuseBytes
    };
    let named: Vec<String> = report
        .processes
        .iter()
        .map(|process| format!("{} {}", process.pid, process.comm))
        .collect();
    let file = File {
        schema: SCHEMA,
        shared: Shared { frames: frames.all },
        profiles: profiles.into(),
        name: format!("{} at {}", named.join(", "), report.time),
        active_profile_index: Weight::ALL
            .iter()
            .position(|weight| *weight == leading)
            .unwrap_or(0),
        exporter: format!("memwatch {}", report.version),
    };
    serde_json::to_string(&file)
}

fn profile(report: &Report, stacks: &[Vec<usize>], weight: Weight) -> Profile {
    let with_weight = || {
        report
            .rows
            .iter()
            .zip(stacks)
            .map(|(row, stack)| (weight.of(row), stack))
            .filter(|(weight, _)| *weight > 0)
    };
    let weights: Vec<u64> = with_weight().map(|(weight, _)| weight).collect();
    Profile {
        r#type: "sampled",
        name: weight.title(),
        unit: if weight.is_bytes() { "bytes" } else { "none" },
        start_value: 0,
        end_value: weights.iter().sum(),
        samples: with_weight().map(|(_, stack)| stack.clone()).collect(),
        weights,
    }
}

#[derive(Default)]
struct Frames {
    all: Vec<SharedFrame>,
    ids: HashMap<SharedFrame, usize>,
}

impl Frames {
    fn stack(&mut self, row: &Row) -> Vec<usize> {
        let word = |name: &str| SharedFrame {
            name: name.to_owned(),
            file: None,
            line: None,
        };
        if row.frames.is_empty() {
            return vec![self.id(word(label::no_frames(row)))];
        }
        let mut stack = Vec::with_capacity(row.frames.len() + 1);
        if row.truncated {
            stack.push(self.id(word(TRUNCATED)));
        }
        for frame in row.frames.iter().rev() {
            stack.push(self.id(SharedFrame {
                name: folded::frame(frame),
                file: frame.file.clone().or_else(|| frame.module.clone()),
                line: frame.line,
            }));
        }
        stack
    }

    fn id(&mut self, frame: SharedFrame) -> usize {
        *self.ids.entry(frame).or_insert_with_key(|frame| {
            self.all.push(frame.clone());
            self.all.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::export::fixtures::{full, row, tick};

    /// Every rule of the published schema that applies to files of this kind.
    fn check_schema(file: &Value) {
        let text = |value: &Value| assert!(value.is_string(), "{value}");
        assert_eq!(file["$schema"], SCHEMA);
        text(&file["name"]);
        text(&file["exporter"]);
        let frames = file["shared"]["frames"].as_array().unwrap();
        for frame in frames {
            text(&frame["name"]);
            for key in frame.as_object().unwrap().keys() {
                assert!(["name", "file", "line", "col"].contains(&key.as_str()), "{key}");
            }
            assert!(frame.get("line").is_none_or(Value::is_u64));
            assert!(frame.get("file").is_none_or(Value::is_string));
        }
        let profiles = file["profiles"].as_array().unwrap();
        assert!(file["activeProfileIndex"].as_u64().unwrap() < profiles.len() as u64);
        for profile in profiles {
            assert_eq!(profile["type"], "sampled");
            text(&profile["name"]);
            let units = [
                "bytes",
                "microseconds",
                "milliseconds",
                "nanoseconds",
                "none",
                "seconds",
            ];
            assert!(units.contains(&profile["unit"].as_str().unwrap()));
            let (samples, weights) = (&profile["samples"], profile["weights"].as_array().unwrap());
            assert_eq!(samples.as_array().unwrap().len(), weights.len());
            let total: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
            assert_eq!(profile["endValue"].as_u64().unwrap(), total);
            assert_eq!(profile["startValue"], 0);
            for index in samples
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|sample| sample.as_array().unwrap())
            {
                assert!(index.as_u64().unwrap() < frames.len() as u64);
            }
        }
    }

    #[test]
    fn what_is_written_obeys_the_schema() {
        let other = Row {
            frames: Vec::new(),
            inuse_bytes: 0,
            ..row()
        };
        for report in [tick(Vec::new()), full(), tick(vec![row(), other])] {
            check_schema(&serde_json::from_str(&file(&report).unwrap()).unwrap());
        }
    }

    #[test]
    fn rows_without_weight_are_left_out_of_that_profile_only() {
        let freed = Row {
            inuse_bytes: 0,
            inuse_objects: 0,
            ..row()
        };
        let value: Value = serde_json::from_str(&file(&tick(vec![freed, row()])).unwrap()).unwrap();
        let count = |index: usize| value["profiles"][index]["samples"].as_array().unwrap().len();
        assert_eq!([0, 1, 2, 3].map(count), [2, 2, 1, 1]);
        assert_eq!(value["profiles"][3]["name"], "bytes in use");
        assert_eq!(value["activeProfileIndex"], 3);
    }
}
