//! What every site held over a whole watch, at a bounded number of moments: when there are too many, every second
//! one is let go. An hour or a month takes the same room.

use std::collections::HashMap;

use super::counts::{Counts, SiteId};
use super::state::{Baseline, Model, site_key};
use crate::collect::sample::{AGE_EDGES_SECONDS, SiteAges};
use crate::numbers::{Bad, Input, put, put_difference};

/// Enough to tell a steady slope from a bend; 10,000 sites that change all the time take some 20 MB.
pub const MOST_MOMENTS: usize = 120;

/// Blocks that are at least this old are survivors: one count for each.
pub const SURVIVOR_SECONDS: [f64; 4] = [10.0, 60.0, 300.0, 1800.0];

/// One moment of the watch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    pub tick: u64,
    pub at_ns: u64,
    /// Of all living processes together; none when not known.
    pub rss_bytes: Option<u64>,
    pub inuse_bytes: u64,
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
}

/// What a site had from a moment on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    moment: u32,
    pub counts: Counts,
    /// At least as old as each of [`SURVIVOR_SECONDS`]; none when ages were not counted.
    pub survivors: Option<[u32; SURVIVOR_SECONDS.len()]>,
}

impl Point {
    /// Written as what is different to `before`, which is what this costs: some ten bytes instead of sixty.
    fn put(&self, out: &mut Vec<u8>, before: &Self) {
        put(
            out,
            u64::from(self.moment - before.moment) << 1 | u64::from(self.survivors.is_some()),
        );
        for (now, before) in self.counts.numbers().into_iter().zip(before.counts.numbers()) {
            put_difference(out, now, before);
        }
        let Some(survivors) = self.survivors else { return };
        for (now, before) in survivors.into_iter().zip(before.survivors.unwrap_or_default()) {
            put_difference(out, u64::from(now), u64::from(before));
        }
    }

    fn read(input: &mut Input<'_>, before: &Self) -> Result<Self, Bad> {
        let head = input.number()?;
        let mut counts = before.counts.numbers();
        for count in &mut counts {
            *count = input.difference(*count)?;
        }
        let mut survivors = None;
        if head & 1 != 0 {
            let mut now = before.survivors.unwrap_or_default();
            for count in &mut now {
                *count = input.difference(u64::from(*count))? as u32;
            }
            survivors = Some(now);
        }
        Ok(Self {
            moment: before.moment + (head >> 1) as u32,
            counts: Counts::of_numbers(counts),
            survivors,
        })
    }
}

/// The points of one site. There are ten thousands of these, so all but the last are packed.
#[derive(Clone, Debug, Default)]
struct Track {
    packed: Vec<u8>,
    /// The last of the packed ones, against which the next is.
    before: Point,
    last: Option<Point>,
}

impl Track {
    fn points(&self) -> impl Iterator<Item = Point> {
        let (mut input, mut before) = (Input::new(&self.packed), Point::default());
        let packed = std::iter::from_fn(move || {
            // What is here was written here: it can be read.
            before = Point::read(&mut input, &before).ok()?;
            Some(before)
        });
        packed.chain(self.last)
    }

    fn at(&self, moment: usize) -> Point {
        let until = self.points().take_while(|point| point.moment as usize <= moment);
        until.last().unwrap_or_default()
    }

    fn put(&mut self, point: Point) {
        match &mut self.last {
            Some(last) if last.moment == point.moment => *last = point,
            Some(last) if last.counts == point.counts && last.survivors == point.survivors => {}
            Some(last) => {
                last.put(&mut self.packed, &self.before);
                (self.before, *last) = (*last, point);
            }
            None => self.last = Some(point),
        }
    }

    /// A change at a moment that goes is seen at the next one.
    fn thin(&mut self) {
        let mut kept = Self::default();
        for point in self.points() {
            kept.put(Point {
                moment: point.moment.div_ceil(2),
                ..point
            });
        }
        kept.packed.shrink_to_fit();
        *self = kept;
    }
}

#[derive(Clone, Debug)]
pub struct History {
    moments: Vec<Moment>,
    tracks: HashMap<SiteId, Track>,
    /// Ticks from one kept moment to the next. The last moment is always the last tick.
    every: u64,
    ticks: u64,
    scanned_at_ns: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            moments: Vec::new(),
            tracks: HashMap::new(),
            every: 1,
            ticks: 0,
            scanned_at_ns: 0,
        }
    }
}

impl History {
    pub fn new() -> Self {
        Self::default()
    }

    /// To be called once for each tick, after the model took it in.
    pub fn take(&mut self, model: &Model) {
        let moment = self.begin(model);
        let scan = model.live().filter(|scan| scan.at_ns > self.scanned_at_ns);
        if let Some(scan) = scan {
            self.scanned_at_ns = scan.at_ns;
        }
        for (id, site) in model.sites() {
            let track = self.tracks.entry(*id).or_default();
            let before = track.last.and_then(|point| point.survivors);
            let survivors = match scan {
                // Mappings are not in the map of live blocks.
                Some(_) if id.mapping.is_some() => None,
                Some(scan) => Some(scan.sites.get(&site_key(id)).map_or([0; 4], survivors)),
                None => before,
            };
            track.put(Point {
                moment,
                counts: Counts::from(&site.totals),
                survivors,
            });
        }
        // What the model let go of is gone for good.
        if self.tracks.len() > model.sites().count() {
            self.tracks.retain(|id, _| model.site(id).is_some());
        }
    }

    fn begin(&mut self, model: &Model) -> u32 {
        let provisional = self
            .moments
            .last()
            .is_some_and(|last| !last.tick.is_multiple_of(self.every));
        if provisional {
            self.moments.pop();
        } else if self.moments.len() >= MOST_MOMENTS {
            self.thin();
        }
        let totals = model.sites().fold(Counts::default(), |mut sum, (_, site)| {
            sum += Counts::from(&site.totals);
            sum
        });
        let alive = model.processes().iter().filter(|(_, process)| !process.ended());
        let rss_bytes = alive
            .filter_map(|(_, process)| process.facts.rss_bytes)
            .reduce(u64::saturating_add);
        self.moments.push(Moment {
            tick: self.ticks,
            at_ns: model.at_ns(),
            rss_bytes,
            inuse_bytes: totals.inuse_bytes(),
            alloc_bytes: totals.alloc_bytes,
            alloc_objects: totals.alloc_objects,
        });
        self.ticks += 1;
        self.moments.len() as u32 - 1
    }

    fn thin(&mut self) {
        let last = self.moments.len() - 1;
        let mut index = 0;
        self.moments.retain(|_| {
            let keep = index % 2 == 0 || index == last;
            index += 1;
            keep
        });
        self.every *= 2;
        for track in self.tracks.values_mut() {
            track.thin();
        }
        // The last one is only there until the next tick, unless it falls on the wider grid.
        if self
            .moments
            .last()
            .is_some_and(|last| !last.tick.is_multiple_of(self.every))
        {
            self.moments.pop();
        }
    }

    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    pub fn sites(&self) -> impl Iterator<Item = &SiteId> {
        self.tracks.keys()
    }

    /// What all these sites together had at each moment.
    pub fn series(&self, sites: &[SiteId]) -> Series {
        let mut series = Series::empty(self.seconds());
        for track in sites.iter().filter_map(|site| self.tracks.get(site)) {
            let (mut points, mut now) = (track.points().peekable(), Point::default());
            for moment in 0..self.moments.len() {
                while let Some(point) = points.next_if(|point| point.moment as usize <= moment) {
                    now = point;
                }
                series.add(moment, &now);
            }
        }
        series
    }

    /// Seconds since the first moment.
    pub fn seconds(&self) -> Vec<f64> {
        let first = self.moments.first().map_or(0, |moment| moment.at_ns);
        let since = |moment: &Moment| moment.at_ns.saturating_sub(first) as f64 / 1e9;
        self.moments.iter().map(since).collect()
    }

    /// All sites as they were at the last moment not after `seconds`.
    pub fn baseline(&self, seconds: f64) -> Baseline {
        let after = self.seconds().partition_point(|at| *at <= seconds);
        let moment = after.saturating_sub(1);
        let counts = self
            .tracks
            .iter()
            .map(|(id, track)| (*id, track.at(moment).counts))
            .collect();
        Baseline::new(self.moments.get(moment).map_or(0, |moment| moment.at_ns), counts)
    }
}

fn survivors(ages: &SiteAges) -> [u32; SURVIVOR_SECONDS.len()] {
    SURVIVOR_SECONDS.map(|seconds| {
        let old = AGE_EDGES_SECONDS.partition_point(|edge| *edge < seconds) + 1;
        let count: u64 = ages.objects[old..].iter().sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    })
}

/// What some sites held together, moment by moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub seconds: Vec<f64>,
    pub inuse_bytes: Vec<f64>,
    pub inuse_objects: Vec<f64>,
    pub alloc_bytes: Vec<f64>,
    pub alloc_objects: Vec<f64>,
    /// For each of [`SURVIVOR_SECONDS`]; none when ages of none of the sites are known.
    pub survivors: Option<[Vec<f64>; SURVIVOR_SECONDS.len()]>,
}

impl Series {
    fn empty(seconds: Vec<f64>) -> Self {
        let zeros = vec![0.0; seconds.len()];
        Self {
            seconds,
            inuse_bytes: zeros.clone(),
            inuse_objects: zeros.clone(),
            alloc_bytes: zeros.clone(),
            alloc_objects: zeros,
            survivors: None,
        }
    }

    fn add(&mut self, moment: usize, point: &Point) {
        self.inuse_bytes[moment] += point.counts.inuse_bytes() as f64;
        self.inuse_objects[moment] += point.counts.inuse_objects() as f64;
        self.alloc_bytes[moment] += point.counts.alloc_bytes as f64;
        self.alloc_objects[moment] += point.counts.alloc_objects as f64;
        let Some(survivors) = point.survivors else { return };
        let moments = self.seconds.len();
        let sums = self
            .survivors
            .get_or_insert_with(|| std::array::from_fn(|_| vec![0.0; moments]));
        for (sum, count) in sums.iter_mut().zip(survivors) {
            sum[moment] += f64::from(count);
        }
    }

    /// Seconds from the first moment to the last.
    pub fn span(&self) -> f64 {
        match (self.seconds.first(), self.seconds.last()) {
            (Some(first), Some(last)) => last - first,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use memwatch_common::Domain;
    use proptest::prelude::*;

    use super::super::testing::{SECOND, blocks, key, sample};
    use super::*;

    fn growing(ticks: u64) -> (Model, History) {
        let (mut model, mut history) = (Model::new(), History::new());
        for tick in 0..ticks {
            let mut sample = sample(tick);
            if tick > 0 {
                sample = sample.site(key(1, Domain::Native, 9), blocks(10, tick, 0));
            }
            model.apply(sample);
            history.take(&model);
        }
        (model, history)
    }

    fn only_site(history: &History) -> Vec<SiteId> {
        history.sites().copied().collect()
    }

    #[test]
    fn every_length_of_watch_keeps_its_first_and_last_tick_and_its_values() {
        for ticks in 1..1000_u64 {
            let (_, history) = growing(ticks);
            let moments = history.moments();
            assert!(moments.len() <= MOST_MOMENTS, "{ticks}");
            assert_eq!((moments[0].tick, moments[moments.len() - 1].tick), (0, ticks - 1));
            if ticks > 1 {
                let series = history.series(&only_site(&history));
                for (moment, bytes) in moments.iter().zip(&series.inuse_bytes) {
                    assert_eq!(*bytes as u64, moment.tick * 10, "tick {} of {ticks}", moment.tick);
                }
            }
        }
    }

    #[test]
    fn thinning_keeps_at_least_half_of_the_moments() {
        for ticks in [119, 120, 121, 122, 240, 500, 5000] {
            let (_, history) = growing(ticks);
            assert!(history.moments().len() >= MOST_MOMENTS / 2, "{ticks}");
        }
    }

    #[test]
    fn a_site_that_does_not_change_takes_one_point() {
        let (mut model, mut history) = growing(2);
        for tick in 2..500 {
            model.apply(sample(tick));
            history.take(&model);
        }
        assert!(history.tracks.values().all(|track| track.points().count() == 1));
        let series = history.series(&only_site(&history));
        assert!(series.inuse_bytes[1..].iter().all(|bytes| *bytes as u64 == 10));
    }

    #[test]
    fn a_baseline_is_what_was_there_then() {
        let (_, history) = growing(100);
        let site = only_site(&history)[0];
        assert_eq!(history.baseline(0.0).counts(&site), Counts::default());
        assert_eq!(history.baseline(30.5).counts(&site).alloc_bytes, 300);
        assert_eq!(history.baseline(1e9).counts(&site).alloc_bytes, 990);
        assert_eq!(history.baseline(30.5).at_ns, 130 * SECOND);
    }

    proptest! {
        /// Also numbers that go back, and ages that are known at times only.
        #[test]
        fn packed_points_come_back(values in prop::collection::vec((0..3_u32, any::<[u32; 4]>(), prop::option::of(any::<[u32; 4]>())), 1..40)) {
            let (mut track, mut plain, mut moment) = (Track::default(), Vec::<Point>::new(), 0);
            for (step, counts, survivors) in values {
                moment += step;
                let point = Point {
                    moment,
                    counts: Counts::of_numbers(counts.map(|count| u64::from(count) << 20)),
                    survivors,
                };
                track.put(point);
                plain.retain(|before| before.moment < moment);
                plain.push(point);
            }
            plain.dedup_by(|next, kept| (next.counts, next.survivors) == (kept.counts, kept.survivors));
            prop_assert_eq!(track.points().collect::<Vec<_>>(), plain);
        }
    }

    #[test]
    fn survivors_are_counted_from_the_ages() {
        let ages = SiteAges {
            objects: [1, 2, 4, 8, 16, 32, 64, 128, 256],
            ..SiteAges::default()
        };
        assert_eq!(survivors(&ages), [508, 504, 496, 480]);
    }
}
