//! What a report names, worst first: leaks, blocks that outlive all of their kind, sudden jumps, churn. Each with the
//! numbers that it rests on.

mod judge;
mod others;
#[cfg(test)]
mod tests;
mod trend;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use self::judge::{Evidence, Growth, Judgement, Sizes, judge};
use super::counts::SiteId;
use super::history::{History, Series};
use super::report::Age;
use crate::format::ByteFormat;

/// Findings shown at most; the worst come first, and more would not be read.
pub const MOST_FINDINGS: usize = 20;

/// Sites that belong to the same line of the same process.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// `app/cache.py:88`
    pub key: String,
    pub pid: Option<u32>,
    pub domain: String,
    pub sites: Vec<Member>,
    /// Of freed blocks, by how long they lived.
    pub lifetimes: Vec<Age>,
    /// Of live blocks; none when not counted.
    pub ages: Option<Vec<Age>>,
}

/// One site of a group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub id: SiteId,
    pub sizes: Sizes,
}

impl Group {
    fn ids(&self) -> Vec<SiteId> {
        self.sites.iter().map(|site| site.id).collect()
    }

    fn sizes(&self) -> Sizes {
        match self.sites.as_slice() {
            [one] => one.sizes,
            several => Sizes {
                least: several.iter().map(|site| site.sizes.least).min().unwrap_or(0),
                mean: None,
            },
        }
    }
}

/// A finding before it points to the row of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub kind: Kind,
    pub severity: Severity,
    pub title: String,
    pub key: String,
    /// Orders findings of one severity.
    pub weight: f64,
    pub evidence: BTreeMap<String, Value>,
    /// The sites that it is about, the one that matters most first.
    pub sites: Vec<SiteId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Growth,
    Outlives,
    Jump,
    Churn,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Outlives => "outlives",
            Self::Jump => "jump",
            Self::Churn => "churn",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    High,
    Medium,
    Low,
    Info,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Info => "info",
        }
    }
}

/// All that was found, and what was looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    pub found: Vec<Found>,
    /// Places that grew and levelled off: not named, but counted.
    pub levelled: usize,
    /// The watch was too short to tell a leak from anything else.
    pub too_short: bool,
}

/// Growth from which on a leak is of high severity: a gigabyte in some forty days.
const HIGH_BYTES_PER_HOUR: f64 = 1024.0 * 1024.0;

pub fn find(history: &History, groups: &[Group]) -> Findings {
    let mut all = Findings::default();
    let whole = history.series(&history.sites().copied().collect::<Vec<_>>());
    for group in groups {
        let series = history.series(&group.ids());
        let judgement = judge(&series, group.sizes());
        match &judgement {
            Judgement::TooShort => all.too_short = true,
            Judgement::Levels => all.levelled += 1,
            Judgement::Leak(_) | Judgement::Steady => {}
        }
        let leaks = leaks(history, group, &series, judgement);
        if leaks.is_empty() {
            all.found.extend(others::find(group, &series, &whole));
        } else {
            all.found.extend(leaks);
        }
    }
    all.found.sort_by(|a, b| {
        (a.severity, a.kind)
            .cmp(&(b.severity, b.kind))
            .then_with(|| b.weight.total_cmp(&a.weight))
            .then_with(|| a.key.cmp(&b.key))
    });
    all.found.truncate(MOST_FINDINGS);
    all
}

/// The line as a whole, or else each of its stacks for itself: one caller may leak through a function that others
/// use well.
fn leaks(history: &History, group: &Group, series: &Series, judgement: Judgement) -> Vec<Found> {
    match judgement {
        // Survivors cannot tell whose they are, so the stacks are asked first.
        Judgement::Leak(growth) if growth.by == Evidence::Floor => {
            vec![leak(group, by_growth(history, group), &growth, series)]
        }
        Judgement::Leak(growth) => {
            let alone = leaks_of_stacks(history, group);
            if alone.is_empty() {
                vec![leak(group, by_growth(history, group), &growth, series)]
            } else {
                alone
            }
        }
        _ => leaks_of_stacks(history, group),
    }
}

fn leaks_of_stacks(history: &History, group: &Group) -> Vec<Found> {
    if group.sites.len() < 2 {
        return Vec::new();
    }
    let leaks = group.sites.iter().filter_map(|site| {
        let series = history.series(&[site.id]);
        match judge(&series, site.sizes) {
            Judgement::Leak(growth) => Some(leak(group, vec![site.id], &growth, &series)),
            _ => None,
        }
    });
    leaks.collect()
}

/// The sites of a group, the one that grew most first.
fn by_growth(history: &History, group: &Group) -> Vec<SiteId> {
    let grown = |site: SiteId| {
        let bytes = history.series(&[site]).inuse_bytes;
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0.0);
        at(bytes.len().saturating_sub(1)) - at(bytes.len() / 4)
    };
    let mut sites: Vec<(f64, SiteId)> = group.ids().into_iter().map(|site| (grown(site), site)).collect();
    sites.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    sites.into_iter().map(|(_, site)| site).collect()
}

fn leak(group: &Group, sites: Vec<SiteId>, growth: &Growth, series: &Series) -> Found {
    let per_hour = growth.least_bytes_per_second * 3600.0;
    let severity = if per_hour >= HIGH_BYTES_PER_HOUR {
        Severity::High
    } else {
        Severity::Medium
    };
    let mut evidence = common(group, series);
    let how = match growth.by {
        Evidence::Floor => "the least in use of each tenth of the watch".to_owned(),
        Evidence::Survivors { seconds } => {
            evidence.insert("survivor_seconds".to_owned(), json!(seconds));
            format!("the number of blocks older than {seconds:.0} s")
        }
    };
    evidence.extend([
        ("by".to_owned(), json!(how)),
        ("bytes_per_second".to_owned(), json!(growth.bytes_per_second)),
        (
            "bytes_per_second_least".to_owned(),
            json!(growth.least_bytes_per_second),
        ),
        (
            "bytes_per_second_low".to_owned(),
            json!(growth.range.map(|range| range.low)),
        ),
        (
            "bytes_per_second_high".to_owned(),
            json!(growth.range.map(|range| range.high)),
        ),
        ("blocks_per_second".to_owned(), json!(growth.blocks_per_second)),
        (
            "bytes_per_day".to_owned(),
            json!(growth.bytes_per_second.map(|bytes| bytes * 86_400.0)),
        ),
        ("grown_bytes".to_owned(), json!(growth.bytes)),
        ("grown_blocks".to_owned(), json!(growth.blocks)),
        ("confidence".to_owned(), json!(growth.confidence)),
        ("kendall_tau".to_owned(), json!(growth.tau)),
        ("windows_rising".to_owned(), json!(growth.rising)),
        ("windows".to_owned(), json!(trend::WINDOWS - 1)),
        ("late_share".to_owned(), json!(growth.late)),
    ]);
    Found {
        kind: Kind::Growth,
        severity,
        title: leak_title(group, growth),
        key: group.key.clone(),
        weight: growth.least_bytes_per_second,
        evidence,
        sites,
    }
}

fn leak_title(group: &Group, growth: &Growth) -> String {
    let bytes = ByteFormat::default();
    let key = &group.key;
    match growth.bytes_per_second {
        Some(rate) if rate >= 10.0 => format!("{key} grows by {}/s", bytes.size(rate as u64)),
        Some(rate) => format!("{key} grows by {}/h", bytes.size((rate * 3600.0) as u64)),
        None if growth.blocks_per_second >= 1.0 => {
            format!(
                "{key} keeps {:.0} blocks of every second",
                growth.blocks_per_second
            )
        }
        None => format!(
            "{key} keeps {:.0} blocks of every hour",
            growth.blocks_per_second * 3600.0
        ),
    }
}

/// What every finding tells.
fn common(group: &Group, series: &Series) -> BTreeMap<String, Value> {
    let last = |values: &[f64]| json!(values.last().copied().unwrap_or(0.0) as u64);
    BTreeMap::from([
        ("key".to_owned(), json!(group.key)),
        ("pid".to_owned(), json!(group.pid)),
        ("domain".to_owned(), json!(group.domain)),
        ("stacks".to_owned(), json!(group.sites.len())),
        ("inuse_bytes".to_owned(), last(&series.inuse_bytes)),
        ("inuse_objects".to_owned(), last(&series.inuse_objects)),
        ("watched_seconds".to_owned(), json!(series.span())),
        ("series".to_owned(), numbers(series)),
    ])
}

/// The numbers themselves, to be drawn.
fn numbers(series: &Series) -> Value {
    let whole = |values: &[f64]| values.iter().map(|value| *value as u64).collect::<Vec<u64>>();
    // Older than the least of the ages.
    let survivors = series.survivors.as_ref().map(|all| whole(&all[0]));
    json!({
        "seconds": series.seconds.iter().map(|at| (at * 10.0).round() / 10.0).collect::<Vec<f64>>(),
        "inuse_bytes": whole(&series.inuse_bytes),
        "survivors": survivors,
    })
}
