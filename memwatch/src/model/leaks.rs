//! A [`Report`] on whole stacks, with what was found in them and how memory went over the watch.

use std::collections::{BTreeMap, HashMap};

use memwatch_common::Domain;
use serde::Serialize;

use super::assemble::{Meta, report_by_site};
use super::counts::SiteId;
use super::findings::{self, Found, Group, Member, Sizes};
use super::group::QueryError;
use super::history::History;
use super::keys;
use super::label;
use super::query::{GroupBy, Query, View};
use super::report::{Finding, Report, Row};
use super::state::{Baseline, Model};
use super::suppress::Suppressions;
use crate::symbolize::names::StackNames;

/// The JSON is that of the report, with fields of its own beside.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LeakReport {
    #[serde(flatten)]
    pub report: Report,
    pub timeline: Vec<TimelinePoint>,
    /// Seconds after the start of the state that `delta` of the rows compares with.
    pub baseline_seconds: f64,
    /// Places that grew and levelled off: not named.
    pub levelled_off: usize,
    /// Watched too shortly to tell a leak from anything else.
    pub too_short: bool,
    pub suppressed: Vec<Suppressed>,
}

/// Memory of all watched processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimelinePoint {
    pub seconds: f64,
    pub rss_bytes: Option<u64>,
    /// What is explained by known blocks.
    pub inuse_bytes: u64,
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
}

/// What one pattern left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Suppressed {
    pub pattern: String,
    pub stacks: u64,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
}

/// What a report is made from, besides the model.
pub struct Sources<'a> {
    pub query: &'a Query,
    pub history: &'a History,
    pub baseline: &'a Baseline,
    pub suppressions: &'a Suppressions,
}

pub fn report(
    model: &Model,
    sources: &Sources<'_>,
    names: &mut dyn StackNames,
    now_ns: u64,
    meta: &Meta,
) -> Result<LeakReport, QueryError> {
    let baseline = Some(sources.baseline);
    let (mut report, mut ids) = stacks(model, sources.query, names, baseline, now_ns, meta)?;
    let suppressed = suppress(&mut report, &mut ids, sources.suppressions);
    let findings = findings::find(sources.history, &groups(model, &report.rows, &ids));
    let rows: HashMap<SiteId, u64> = ids.iter().copied().zip(0..).collect();
    let began_ns = sources.history.moments().first().map_or(0, |moment| moment.at_ns);
    let found = findings.found.into_iter();
    report.findings = found.map(|found| finding(found, &rows)).collect();
    Ok(LeakReport {
        report,
        timeline: timeline(sources.history),
        baseline_seconds: sources.baseline.at_ns.saturating_sub(began_ns) as f64 / 1e9,
        levelled_off: findings.levelled,
        too_short: findings.too_short || sources.history.moments().is_empty(),
        suppressed,
    })
}

/// A report with all stacks, freed ones too, and the site of each: what is cut off or left out would be missing from
/// totals. Those that hold most come first.
pub fn stacks(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    now_ns: u64,
    meta: &Meta,
) -> Result<(Report, Vec<SiteId>), QueryError> {
    let whole = Query {
        group_by: GroupBy::Traceback,
        view: View::Alloc,
        limit: usize::MAX,
        frames: None,
        ..query.clone()
    };
    let (mut report, ids) = report_by_site(model, &whole, names, baseline, now_ns, meta)?;
    query.view.name().clone_into(&mut report.options.view);
    report.options.limit = query.limit as u64;
    Ok((report, ids))
}

/// Takes out the rows that are suppressed, with their sites, and tells what each pattern took.
pub fn suppress(report: &mut Report, ids: &mut Vec<SiteId>, suppressions: &Suppressions) -> Vec<Suppressed> {
    let mut all: Vec<Suppressed> = suppressions
        .patterns()
        .map(|pattern| Suppressed {
            pattern: pattern.to_owned(),
            ..Suppressed::default()
        })
        .collect();
    if suppressions.is_empty() {
        return all;
    }
    let mut kept = Vec::with_capacity(ids.len());
    let mut sites = ids.iter();
    report.rows.retain(|row| {
        let site = sites.next();
        let which = suppressions.find(&row.frames);
        let Some(sum) = which.and_then(|index| all.get_mut(index)) else {
            kept.extend(site);
            return true;
        };
        sum.stacks += 1;
        sum.inuse_bytes += row.inuse_bytes;
        sum.inuse_objects += row.inuse_objects;
        false
    });
    report.total_rows = report.rows.len() as u64;
    *ids = kept;
    all
}

fn finding(found: Found, rows: &HashMap<SiteId, u64>) -> Finding {
    let mut evidence = found.evidence;
    let stacks: Vec<u64> = found
        .sites
        .iter()
        .filter_map(|site| rows.get(site).copied())
        .collect();
    evidence.insert("rows".to_owned(), serde_json::json!(stacks));
    Finding {
        kind: found.kind.name().to_owned(),
        severity: found.severity.name().to_owned(),
        title: found.title,
        evidence,
        row: stacks.first().copied(),
    }
}

fn timeline(history: &History) -> Vec<TimelinePoint> {
    let moments = history.moments().iter().zip(history.seconds());
    moments
        .map(|(moment, seconds)| TimelinePoint {
            seconds,
            rss_bytes: moment.rss_bytes,
            inuse_bytes: moment.inuse_bytes,
            alloc_bytes: moment.alloc_bytes,
            alloc_objects: moment.alloc_objects,
        })
        .collect()
}

/// The sites of each line of each process.
fn groups(model: &Model, rows: &[Row], ids: &[SiteId]) -> Vec<Group> {
    let mut groups: BTreeMap<(u32, Domain, String), Group> = BTreeMap::new();
    for (row, id) in rows.iter().zip(ids) {
        let line = line_of(row);
        let group = groups
            .entry((id.instance, id.domain, line.clone()))
            .or_insert_with(|| Group {
                key: line,
                pid: row.pid,
                domain: id.domain.name().to_owned(),
                ages: row.ages.as_ref().map(|_| Vec::new()),
                ..Group::default()
            });
        let totals = model.site(id).map(|site| &site.totals);
        group.sites.push(Member {
            id: *id,
            sizes: totals.map_or_else(Sizes::default, |totals| {
                Sizes::of(&totals.sizes, totals.alloc_bytes)
            }),
        });
        add(&mut group.lifetimes, &row.lifetimes);
        match (&mut group.ages, &row.ages) {
            (Some(sums), Some(ages)) => add(sums, ages),
            (sums, _) => *sums = None,
        }
    }
    groups.into_values().collect()
}

/// The line that a stack's blocks belong to.
pub fn line_of(row: &Row) -> String {
    owner_of(row).map_or_else(
        || label::no_frames(row).to_owned(),
        |owner| label::line(&row.frames[owner]),
    )
}

/// The frame that a stack's blocks belong to.
pub fn owner_of(row: &Row) -> Option<usize> {
    let domain = row.domain.as_deref();
    let domain = Domain::ALL.into_iter().find(|known| Some(known.name()) == domain);
    keys::owner(domain.unwrap_or(Domain::Native), &row.frames)
}

/// Adds histograms of which buckets without blocks may be left out.
fn add(sums: &mut Vec<super::report::Age>, ages: &[super::report::Age]) {
    let order = |below: Option<f64>| below.unwrap_or(f64::INFINITY);
    for age in ages {
        let place = sums.partition_point(|sum| order(sum.below_seconds) < order(age.below_seconds));
        match sums.get_mut(place) {
            Some(sum) if sum.below_seconds == age.below_seconds => sum.objects += age.objects,
            _ => sums.insert(place, *age),
        }
    }
}
