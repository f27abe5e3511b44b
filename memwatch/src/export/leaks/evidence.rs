//! What a finding rests on, in sentences.

use serde_json::Value;

use crate::format::{self, ByteFormat};
use crate::model::report::Finding;

pub fn sentences(finding: &Finding, bytes: ByteFormat) -> Vec<String> {
    let evidence = Evidence { finding, bytes };
    let mut lines = match finding.kind.as_str() {
        "growth" => evidence.growth(),
        "outlives" => evidence.outlives(),
        "jump" => evidence.jump(),
        "churn" => evidence.churn(),
        _ => Vec::new(),
    };
    lines.extend(evidence.in_use());
    lines
}

struct Evidence<'a> {
    finding: &'a Finding,
    bytes: ByteFormat,
}

impl Evidence<'_> {
    fn number(&self, name: &str) -> Option<f64> {
        self.finding.evidence.get(name)?.as_f64()
    }

    fn count(&self, name: &str) -> u64 {
        self.number(name).unwrap_or(0.0) as u64
    }

    fn size(&self, name: &str) -> String {
        self.number(name).map_or_else(
            || "not known".to_owned(),
            |bytes| self.bytes.size(bytes.max(0.0) as u64),
        )
    }

    fn rate(&self, name: &str) -> String {
        self.number(name)
            .map_or_else(|| "not known".to_owned(), |bytes| self.bytes.rate(bytes))
    }

    fn growth(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.number("bytes_per_second").is_some() {
            lines.push(format!(
                "{} ({} to {} between any two windows), {} a day, {:.2} blocks a second",
                self.rate("bytes_per_second"),
                self.rate("bytes_per_second_low"),
                self.rate("bytes_per_second_high"),
                self.size("bytes_per_day"),
                self.number("blocks_per_second").unwrap_or(0.0)
            ));
        } else {
            lines.push(format!(
                "{:.2} blocks a second are kept; the blocks of this place are of several sizes, so the bytes are not known (at least {})",
                self.number("blocks_per_second").unwrap_or(0.0),
                self.rate("bytes_per_second_least")
            ));
        }
        let by = self.finding.evidence.get("by").and_then(Value::as_str);
        lines.push(format!(
            "{} went up in {} of {} steps; confidence {:.2}%, Kendall's tau {:.2}, the last third added {:.0}% of an average third",
            by.unwrap_or("what is in use"),
            self.count("windows_rising"),
            self.count("windows"),
            (self.number("confidence").unwrap_or(0.0) * 100.0).min(99.99),
            self.number("kendall_tau").unwrap_or(0.0),
            self.number("late_share").unwrap_or(0.0) * 100.0
        ));
        lines
    }

    fn outlives(&self) -> Vec<String> {
        vec![format!(
            "{} blocks, about {}, are older than {}; 99% of those that were freed lived less than {}",
            self.count("old_blocks"),
            self.size("old_bytes_estimate"),
            format::seconds(self.number("older_than_seconds").unwrap_or(0.0)),
            format::seconds(self.number("usual_life_seconds").unwrap_or(0.0))
        )]
    }

    fn jump(&self) -> Vec<String> {
        vec![format!(
            "{} more within {} at about {} after the start, and not given back",
            self.size("jump_bytes"),
            format::seconds(self.number("within_seconds").unwrap_or(0.0)),
            format::seconds(self.number("at_seconds").unwrap_or(0.0))
        )]
    }

    fn churn(&self) -> Vec<String> {
        vec![format!(
            "{:.0}% of all allocations and {:.0}% of all bytes; no leak, but work",
            self.number("part_of_allocations").unwrap_or(0.0) * 100.0,
            self.number("part_of_bytes").unwrap_or(0.0) * 100.0
        )]
    }

    fn in_use(&self) -> Option<String> {
        self.number("inuse_bytes")?;
        Some(format!(
            "{} in {} blocks in use now, on {} {}",
            self.size("inuse_bytes"),
            self.count("inuse_objects"),
            self.count("stacks"),
            if self.count("stacks") == 1 {
                "stack"
            } else {
                "stacks"
            }
        ))
    }
}
