//! What is told as JSON: the recording as a whole, and of each tick what is no table of numbers.

use std::collections::BTreeMap;

use memwatch_common::counter::{COUNTERS, Effect};
use memwatch_common::{Counter, Domain};
use serde::{Deserialize, Serialize};

use crate::format;
use crate::model::assemble::Meta;
use crate::model::group::QueryError;
use crate::model::health::Notice;
use crate::model::query::{Query, parse_domains};
use crate::model::report::{Host, Limit, Overhead, Probes};
use crate::model::state::replay::told_age;

/// What holds for the whole recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    pub host: Host,
    /// Of the memwatch that recorded it.
    pub version: String,
    /// RFC 3339.
    pub since: String,
    /// `CLOCK_MONOTONIC` of the host, nanoseconds.
    pub since_ns: u64,
    pub interval_seconds: f64,
    pub sample_bytes: u64,
    pub follow: bool,
    pub max_depth: u32,
    pub domains: Vec<String>,
    pub min_size: Option<u64>,
    pub max_size: Option<u64>,
    /// What was to be watched, as the user named it.
    pub target: String,
    /// The counters by their numbers in this file.
    pub(super) counters: Vec<CounterName>,
}

/// A counter of the kernel side with its meaning: other versions may have other ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CounterName {
    pub name: String,
    pub meaning: String,
    pub effect: String,
}

const EFFECTS: [(&str, Effect); 3] = [
    ("work", Effect::Work),
    ("stacks", Effect::Stacks),
    ("totals", Effect::Totals),
];

fn effect_name(effect: Effect) -> &'static str {
    EFFECTS
        .iter()
        .find(|(_, one)| *one == effect)
        .map_or("totals", |(name, _)| name)
}

/// What is not known is taken for the worst.
fn effect(name: &str) -> Effect {
    EFFECTS
        .iter()
        .find(|(one, _)| *one == name)
        .map_or(Effect::Totals, |(_, effect)| *effect)
}

impl Header {
    pub fn new(meta: &Meta, since_ns: u64, query: &Query, target: String) -> Self {
        let counter = |counter: &Counter| CounterName {
            name: counter.name().to_owned(),
            meaning: counter.meaning().to_owned(),
            effect: effect_name(counter.effect()).to_owned(),
        };
        Self {
            host: meta.host.clone(),
            version: meta.version.clone(),
            since: meta.since.clone(),
            since_ns,
            interval_seconds: meta.interval_seconds,
            sample_bytes: meta.sample_bytes,
            follow: meta.follow,
            max_depth: meta.max_depth,
            domains: meta
                .domains
                .iter()
                .map(|domain| domain.name().to_owned())
                .collect(),
            min_size: query.min_size,
            max_size: query.max_size,
            target,
            counters: Counter::ALL.iter().map(counter).collect(),
        }
    }

    /// What of the [`Meta`] stays the same over the recording.
    pub(super) fn meta(&self) -> Meta {
        let domains = self.domains.iter().filter_map(|name| parse_domains(name).ok());
        Meta {
            since: self.since.clone(),
            interval_seconds: self.interval_seconds,
            host: self.host.clone(),
            version: self.version.clone(),
            sample_bytes: self.sample_bytes,
            follow: self.follow,
            max_depth: self.max_depth,
            domains: domains.flatten().copied().collect::<Vec<Domain>>(),
            ..Meta::default()
        }
    }

    /// The query as the recording can answer it, and what has to be said about that: what was not recorded cannot be
    /// shown, so the sizes are those of then, and an age is the next one that was kept.
    pub fn can_tell(&self, query: &Query) -> Result<(Query, Option<Notice>), QueryError> {
        let older_than = match query.older_than {
            Some(age) => Some(told_age(age).ok_or(QueryError::AgeNotRecorded)?),
            None => None,
        };
        let notice = match (query.older_than, older_than) {
            (Some(asked), Some(told)) if asked != told => Some(Notice {
                text: format!(
                    "blocks of at least {} are shown, not {}: a recording keeps ages as below 1s, 10s, 1m, 5m, 30m, 2h, 8h and 24h",
                    format::duration(told),
                    format::duration(asked)
                ),
                effect: Effect::Stacks,
            }),
            _ => None,
        };
        let query = Query {
            min_size: self.min_size,
            max_size: self.max_size,
            older_than,
            ..query.clone()
        };
        Ok((query, notice))
    }

    /// RFC 3339.
    pub(super) fn time(&self, at_ns: u64) -> Option<jiff::Timestamp> {
        let since: jiff::Timestamp = self.since.parse().ok()?;
        let passed = std::time::Duration::from_nanos(at_ns.saturating_sub(self.since_ns));
        since.checked_add(passed).ok()
    }

    /// The counters as this version numbers them; losses that it has no counter for become notices.
    pub(super) fn counters(&self, values: &[u64]) -> ([u64; COUNTERS], Vec<Notice>) {
        let mut known = [0; COUNTERS];
        let mut notices = Vec::new();
        for (counter, value) in self.counters.iter().zip(values) {
            match Counter::ALL.iter().find(|known| known.name() == counter.name) {
                Some(index) => known[*index as usize] = *value,
                None if *value > 0 => notices.push(Notice {
                    text: format!("{}: {value}", counter.meaning),
                    effect: effect(&counter.effect),
                }),
                None => {}
            }
        }
        (known, notices)
    }
}

/// What a tick says in JSON; what did not change since the tick before is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TickFacts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Overhead>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notices: Option<Vec<SavedNotice>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, Limit>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_map_bytes: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub undecoded: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanned_ns: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedNotice {
    pub text: String,
    pub effect: String,
}

impl From<&Notice> for SavedNotice {
    fn from(notice: &Notice) -> Self {
        Self {
            text: notice.text.clone(),
            effect: effect_name(notice.effect).to_owned(),
        }
    }
}

impl From<SavedNotice> for Notice {
    fn from(saved: SavedNotice) -> Self {
        Self {
            effect: effect(&saved.effect),
            text: saved.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_by_name_and_an_unknown_loss_is_told() {
        let name = |name: &str, effect: &str| CounterName {
            name: name.into(),
            meaning: format!("what {name} means"),
            effect: effect.into(),
        };
        let header = Header {
            counters: vec![
                name("live_full", "totals"),
                name("gone", "stacks"),
                name("calm", "totals"),
                name("hits", "work"),
            ],
            ..Header::default()
        };
        let (known, notices) = header.counters(&[3, 4, 0, 5]);
        assert_eq!(
            (known[Counter::LiveFull as usize], known[Counter::Hits as usize]),
            (3, 5)
        );
        assert_eq!(
            notices,
            [Notice {
                text: "what gone means: 4".into(),
                effect: Effect::Stacks
            }]
        );
        assert_eq!(effect("of the future"), Effect::Totals);
    }

    #[test]
    fn a_header_with_fields_missing_or_unknown_is_read() {
        let header: Header = serde_json::from_str(r#"{"since":"2026-01-02T03:04:05Z","new":[1]}"#).unwrap();
        assert_eq!(
            header.time(1_500_000_000).unwrap().to_string(),
            "2026-01-02T03:04:06.5Z"
        );
    }
}
