//! Findings that are no leaks for sure, but worth a look.

use serde_json::json;

use super::trend::{Steps, floors};
use super::{Found, Group, Kind, Severity, common};
use crate::format::ByteFormat;
use crate::model::history::Series;
use crate::model::report::Age;

/// Freed blocks from which on there is something like a usual life.
const LEAST_FREED: u64 = 100;
/// Part of the freed blocks whose lives count as usual.
const USUAL: f64 = 0.99;
/// A block outlives its kind when it is older than this many usual lives, and than this many seconds.
const TIMES_OLDER: f64 = 10.0;
const LEAST_OLD_SECONDS: f64 = 10.0;
const LEAST_OLD_BLOCKS: u64 = 3;
const LEAST_OLD_BYTES: f64 = 4096.0;

/// A jump is worth a line from this size on, or this part of all that is in use, whichever is more.
const LEAST_JUMP_BYTES: f64 = 1024.0 * 1024.0;
const LEAST_JUMP_PART: f64 = 0.1;
/// Part of a place's whole growth that comes at once.
const SUDDEN: f64 = 0.7;

/// Churn: this part of all allocations of the watch, at this rate, nearly all of it freed again.
const LEAST_CHURN_PART: f64 = 0.2;
const LEAST_CHURN_BLOCKS_PER_SECOND: f64 = 1000.0;
const LEAST_CHURN_BYTES_PER_SECOND: f64 = 10.0 * 1024.0 * 1024.0;
const CHURN_FREED: f64 = 0.95;

pub(super) fn find(group: &Group, series: &Series, whole: &Series) -> Vec<Found> {
    [
        outlives(group, series),
        jump(group, series, whole),
        churn(group, series, whole),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn found(
    kind: Kind,
    severity: Severity,
    group: &Group,
    series: &Series,
    title: String,
    weight: f64,
    evidence: impl IntoIterator<Item = (&'static str, serde_json::Value)>,
) -> Found {
    let mut all = common(group, series);
    all.extend(evidence.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Found {
        kind,
        severity,
        title,
        key: group.key.clone(),
        weight,
        evidence: all,
        sites: group.ids(),
    }
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or(0.0)
}

/// Nearly all blocks of this place live shortly, and some do not go.
fn outlives(group: &Group, series: &Series) -> Option<Found> {
    let usual = usual_life(&group.lifetimes)?;
    let at_least = (usual * TIMES_OLDER).max(LEAST_OLD_SECONDS);
    let old = older_than(group.ages.as_deref()?, at_least)?;
    // What was allocated while the program started is not of the kind that comes after.
    let early = series.seconds.partition_point(|at| *at < series.span() * 0.1);
    let at_start = series.inuse_objects.get(early).copied().unwrap_or(0.0) as u64;
    let blocks = old.objects.saturating_sub(at_start);
    let objects = last(&series.inuse_objects).max(1.0);
    let bytes = blocks as f64 * last(&series.inuse_bytes) / objects;
    if blocks < LEAST_OLD_BLOCKS || bytes < LEAST_OLD_BYTES {
        return None;
    }
    let title = format!(
        "{} has {blocks} blocks older than {:.0} s, where nearly all others are freed within {}",
        group.key,
        old.seconds,
        crate::format::seconds(usual)
    );
    let evidence = [
        ("usual_life_seconds", json!(usual)),
        ("older_than_seconds", json!(old.seconds)),
        ("old_blocks", json!(blocks)),
        ("old_bytes_estimate", json!(bytes as u64)),
    ];
    Some(found(
        Kind::Outlives,
        Severity::Medium,
        group,
        series,
        title,
        bytes,
        evidence,
    ))
}

/// Seconds within which nearly all of the freed blocks were freed.
fn usual_life(lifetimes: &[Age]) -> Option<f64> {
    let freed: u64 = lifetimes.iter().map(|age| age.objects).sum();
    if freed < LEAST_FREED {
        return None;
    }
    let mut sum = 0;
    for age in lifetimes {
        sum += age.objects;
        if sum as f64 >= freed as f64 * USUAL {
            return age.below_seconds;
        }
    }
    None
}

struct Old {
    seconds: f64,
    objects: u64,
}

/// Live blocks above the first edge of the histogram that is not below `seconds`.
fn older_than(ages: &[Age], seconds: f64) -> Option<Old> {
    let edge = ages
        .iter()
        .position(|age| age.below_seconds.is_some_and(|below| below >= seconds))?;
    Some(Old {
        seconds: ages[edge].below_seconds?,
        objects: ages[edge + 1..].iter().map(|age| age.objects).sum(),
    })
}

/// Much at once, and it stayed.
fn jump(group: &Group, series: &Series, whole: &Series) -> Option<Found> {
    let floors = floors(&series.inuse_bytes)?;
    let steps = Steps::of(&floors);
    // The first is the start, which is when programs fill their tables.
    let (place, bytes, total) = steps.largest();
    // What was growing before goes on, which is nothing sudden.
    let goes_on = floors[place] - floors[place - 1] > bytes * (1.0 - SUDDEN);
    let least = LEAST_JUMP_BYTES.max(last(&whole.inuse_bytes) * LEAST_JUMP_PART);
    let stays = floors[place + 1..]
        .iter()
        .all(|floor| *floor >= floors[place] + bytes * SUDDEN);
    if bytes < least || bytes < total * SUDDEN || goes_on || !stays {
        return None;
    }
    let window = series.span() / floors.len() as f64;
    let at = window * (place + 1) as f64;
    let title = format!(
        "{} took {} more at about second {at:.0} and kept them",
        group.key,
        ByteFormat::default().size(bytes as u64)
    );
    let evidence = [
        ("jump_bytes", json!(bytes as u64)),
        ("at_seconds", json!(at)),
        ("within_seconds", json!(window)),
    ];
    Some(found(
        Kind::Jump,
        Severity::Low,
        group,
        series,
        title,
        bytes,
        evidence,
    ))
}

/// Much of all the allocating, for nothing that stays.
fn churn(group: &Group, series: &Series, whole: &Series) -> Option<Found> {
    let span = series.span();
    if span <= 0.0 {
        return None;
    }
    let (blocks, bytes) = (last(&series.alloc_objects), last(&series.alloc_bytes));
    let freed = blocks - last(&series.inuse_objects);
    let part_blocks = blocks / last(&whole.alloc_objects).max(1.0);
    let part_bytes = bytes / last(&whole.alloc_bytes).max(1.0);
    let many = part_blocks >= LEAST_CHURN_PART && blocks / span >= LEAST_CHURN_BLOCKS_PER_SECOND;
    let much = part_bytes >= LEAST_CHURN_PART && bytes / span >= LEAST_CHURN_BYTES_PER_SECOND;
    if !(many || much) || freed < blocks * CHURN_FREED {
        return None;
    }
    let title = format!(
        "{} allocates {} in {:.0} blocks a second and frees nearly all of them",
        group.key,
        ByteFormat::default().size((bytes / span) as u64),
        blocks / span
    );
    let evidence = [
        ("blocks_per_second", json!(blocks / span)),
        ("bytes_per_second", json!(bytes / span)),
        ("part_of_allocations", json!(part_blocks)),
        ("part_of_bytes", json!(part_bytes)),
        ("usual_life_seconds", json!(usual_life(&group.lifetimes))),
    ];
    Some(found(
        Kind::Churn,
        Severity::Info,
        group,
        series,
        title,
        part_bytes.max(part_blocks),
        evidence,
    ))
}
