//! The rule: is this a leak? `docs/findings.md` tells it in words, and how often it is wrong.

use memwatch_common::hist::size_bucket_below;

use super::trend::{Slope, Steps, chance, falls, floors, slope, tau};
use crate::model::history::{SURVIVOR_SECONDS, Series};

/// The first part of a watch is left out: programs fill their tables when they start.
const WARM_UP: f64 = 0.1;
/// Less is not worth a line.
const LEAST_BYTES: f64 = 4096.0;
const LEAST_BLOCKS: f64 = 8.0;
/// Few blocks are of interest only when they are large.
const LARGE_BYTES: f64 = 1024.0 * 1024.0;
/// With thousands of sites, chance has thousands of tries.
const MOST_CHANCE: f64 = 0.001;
/// Windows, of the nine steps between them, that have to go up.
const LEAST_RISING: usize = 7;
/// The same for what is kept in portions, which leaves some windows as they were.
const LEAST_PORTIONS: usize = 5;
/// Of what is kept in portions hardly anything is freed again.
const MOST_FALLS: f64 = 0.05;
/// The last third has to add at least this part of an average third.
const LEAST_LATE: f64 = 0.5;
/// Growth that would come to an end within this many more watches levels off.
const SOON_LEVEL: f64 = 1.0;
/// Survivors are looked at from this age on: a part of the watch, so that there is time to see their number grow.
const SURVIVOR_PART: f64 = 0.25;

/// What the numbers of a site, or of several together, look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    Leak(Growth),
    /// Grew, but less and less, or not any more.
    Levels,
    Steady,
    TooShort,
}

/// Growth that does not end.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    pub by: Evidence,
    /// Never more than it is; what findings are ordered by.
    pub least_bytes_per_second: f64,
    /// None where only blocks could be counted, and they are of several sizes.
    pub bytes_per_second: Option<f64>,
    pub range: Option<Slope>,
    pub blocks_per_second: f64,
    pub bytes: Option<f64>,
    pub blocks: f64,
    /// 1 minus the chance that no growth at all would look like this.
    pub confidence: f64,
    pub tau: f64,
    pub rising: usize,
    /// What the last third added, as part of an average third.
    pub late: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evidence {
    /// The least that was in use in each window goes up.
    Floor,
    /// The number of blocks older than this goes up.
    Survivors { seconds: f64 },
}

/// The sizes that the blocks of a place have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    /// None is smaller.
    pub least: u64,
    /// All are about of this size; none when they differ.
    pub mean: Option<f64>,
}

impl Sizes {
    /// From the numbers of allocations in each bucket of sizes, and what they have in bytes.
    pub fn of(buckets: &[u64], alloc_bytes: u64) -> Self {
        let filled = || buckets.iter().enumerate().filter(|(_, objects)| **objects > 0);
        let least = filled()
            .next()
            .and_then(|(bucket, _)| size_bucket_below(bucket.checked_sub(1)?));
        let objects: u64 = buckets.iter().sum();
        Self {
            least: least.unwrap_or(0),
            mean: (filled().count() == 1).then(|| alloc_bytes as f64 / objects as f64),
        }
    }
}

pub fn judge(series: &Series, sizes: Sizes) -> Judgement {
    let from = warm(series);
    let seconds = &series.seconds[from..];
    let by_floor = trend(&series.inuse_bytes[from..]);
    let found = match &by_floor {
        Trend::Grows(found) => growth_of_bytes(series, from, found),
        _ => None,
    };
    let found = found.or_else(|| by_survivors(series, &by_floor, sizes));
    match (found, by_floor) {
        (Some(growth), _) => Judgement::Leak(growth),
        (None, Trend::TooShort) => Judgement::TooShort,
        (None, Trend::Levels) if !seconds.is_empty() => Judgement::Levels,
        (None, _) => Judgement::Steady,
    }
}

/// The first moment after the warm-up.
fn warm(series: &Series) -> usize {
    let until = series.seconds.first().unwrap_or(&0.0) + series.span() * WARM_UP;
    series.seconds.partition_point(|at| *at < until)
}

enum Trend {
    TooShort,
    /// Does not grow, or not in a way that says anything.
    Nothing,
    Levels,
    Grows(Found),
}

struct Found {
    steps: Steps,
    floors: [f64; super::trend::WINDOWS],
    confidence: f64,
    late: f64,
}

fn trend(values: &[f64]) -> Trend {
    let Some(floors) = floors(values) else {
        return Trend::TooShort;
    };
    let steps = Steps::of(&floors);
    let thirds = steps.thirds();
    if steps.total() <= 0.0 {
        return Trend::Nothing;
    }
    let by_chance = chance(steps.t());
    let rises = by_chance <= MOST_CHANCE && steps.rising() >= LEAST_RISING;
    // A floor that never falls and goes up in each third: kept in portions, as by a job that runs now and then.
    let in_portions = steps.never_falls()
        && steps.rising() >= LEAST_PORTIONS
        && thirds.iter().all(|third| *third > 0.0)
        && falls(values) <= MOST_FALLS;
    let late = thirds[2] / (steps.total() / 3.0);
    let ends = steps.watches_until_level().is_some_and(|more| more < SOON_LEVEL);
    if late < LEAST_LATE || ends {
        return Trend::Levels;
    }
    if !rises && !in_portions {
        return Trend::Nothing;
    }
    let portions = 0.5_f64.powi(super::trend::WINDOWS as i32 - 1);
    Trend::Grows(Found {
        steps,
        floors,
        confidence: 1.0 - if rises { by_chance } else { portions },
        late,
    })
}

fn growth_of_bytes(series: &Series, from: usize, found: &Found) -> Option<Growth> {
    let blocks = floors(&series.inuse_objects[from..]).map_or(0.0, |floors| Steps::of(&floors).total());
    let bytes = found.steps.total();
    if !matters(bytes, blocks) {
        return None;
    }
    let window = window_seconds(&series.seconds[from..]);
    let at: Vec<f64> = (0..found.floors.len())
        .map(|index| index as f64 * window)
        .collect();
    let range = slope(&at, &found.floors);
    Some(Growth {
        by: Evidence::Floor,
        least_bytes_per_second: found.steps.mean() / window,
        bytes_per_second: Some(found.steps.mean() / window),
        range: Some(range),
        blocks_per_second: blocks / (window * (at.len() - 1) as f64),
        bytes: Some(bytes),
        blocks,
        confidence: found.confidence,
        tau: tau(&series.inuse_bytes[from..]),
        rising: found.steps.rising(),
        late: found.late,
    })
}

/// Leaked blocks among many that come and go: too few to raise the floor, but they grow old and the others do not.
fn by_survivors(series: &Series, by_floor: &Trend, sizes: Sizes) -> Option<Growth> {
    let all = series.survivors.as_ref()?;
    let span = series.span();
    let which = SURVIVOR_SECONDS
        .iter()
        .rposition(|seconds| *seconds <= span * SURVIVOR_PART)?;
    let age = SURVIVOR_SECONDS[which];
    // Before, no block can be that old; and what began with the watch is warm-up.
    let first = series.seconds.first().unwrap_or(&0.0) + age + span * WARM_UP;
    let from = series.seconds.partition_point(|at| *at < first);
    let Trend::Grows(found) = trend(&all[which][from..]) else {
        return None;
    };
    // What is in use does not grow any more, so in the end neither do those that are old.
    if matches!(by_floor, Trend::Levels) && levels_at_end(series) {
        return None;
    }
    let blocks = found.steps.total();
    let window = window_seconds(&series.seconds[from..]);
    let blocks_per_second = found.steps.mean() / window;
    if !matters(blocks * sizes.least as f64, blocks) {
        return None;
    }
    let size = sizes.mean;
    let at: Vec<f64> = (0..found.floors.len())
        .map(|index| index as f64 * window)
        .collect();
    let range = slope(&at, &found.floors);
    Some(Growth {
        by: Evidence::Survivors { seconds: age },
        least_bytes_per_second: blocks_per_second * sizes.least as f64,
        bytes_per_second: size.map(|size| blocks_per_second * size),
        range: size.map(|size| Slope {
            low: range.low * size,
            middle: range.middle * size,
            high: range.high * size,
        }),
        blocks_per_second,
        bytes: size.map(|size| blocks * size),
        blocks,
        confidence: found.confidence,
        tau: tau(&all[which][from..]),
        rising: found.steps.rising(),
        late: found.late,
    })
}

/// The blocks in use are, at the end, no more than some time before: old ones take the place of young ones, as when
/// a cache has filled up.
fn levels_at_end(series: &Series) -> bool {
    let from = series.seconds.len() * 2 / 3;
    let part = &series.inuse_objects[from..];
    let (Some(first), Some(last)) = (part.first(), part.last()) else {
        return true;
    };
    last - first <= 0.01 * series.inuse_objects.iter().copied().fold(0.0, f64::max)
}

fn matters(bytes: f64, blocks: f64) -> bool {
    bytes >= LARGE_BYTES || (bytes >= LEAST_BYTES && blocks >= LEAST_BLOCKS)
}

fn window_seconds(seconds: &[f64]) -> f64 {
    let span = match (seconds.first(), seconds.last()) {
        (Some(first), Some(last)) => last - first,
        _ => 0.0,
    };
    (span / super::trend::WINDOWS as f64).max(1e-9)
}
