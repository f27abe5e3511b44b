//! A made-up service: so many sites, of which some are busy, most are seldom, and a few leak.

use memwatch_common::hist::{lifetime_bucket, size_bucket};
use memwatch_common::{Domain, SiteKey, SiteTotals};

use crate::collect::sample::{LiveScan, Sample, SiteAges};
use crate::model::assemble::Meta;
use crate::model::processes::ProcessFacts;
use crate::model::report::{Frame, Host};
use crate::model::state::Model;
use crate::model::testing::{SECOND, key, sample};
use crate::symbolize::names::{NamedStack, StackTable};

pub fn meta() -> Meta {
    Meta {
        since: "2026-01-02T03:04:00Z".into(),
        interval_seconds: 1.0,
        host: Host {
            name: "node-1".into(),
            kernel: "6.1.0".into(),
            arch: "x86_64".into(),
        },
        version: "0.1.0".into(),
        follow: true,
        max_depth: 127,
        domains: Domain::ALL.to_vec(),
        ..Meta::default()
    }
}

fn frame(number: u64) -> Frame {
    Frame {
        function: Some(format!("service::part_{}::handler_{number}", number % 40)),
        offset: Some(number % 600),
        file: Some(format!(
            "/src/service/part_{}/file_{}.cc",
            number % 40,
            number % 300
        )),
        line: Some((number % 900) as u32 + 1),
        module: Some(format!("/usr/lib/libpart{}.so.1", number % 40)),
        build_id: Some(format!(
            "{:040x}",
            (number % 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )),
        address: Some(0x1000 + number * 37),
        ..Frame::default()
    }
}

/// Paths through a tree of calls: near its root they share their frames.
pub fn stack(number: u64, depth: u64) -> NamedStack {
    let frames = (0..depth).map(|level| frame((number >> (level / 2)) + level * 7919 % 1000));
    NamedStack {
        frames: Frame::shared(frames),
        truncated: number.is_multiple_of(97),
        raw: false,
    }
}

pub fn names() -> StackTable {
    let mut table = StackTable::new();
    for instance in 1..=3 {
        for hash in [10, 20, 30] {
            table.insert(instance, hash, stack(hash, 5));
        }
    }
    table
}

/// xorshift: the same each time.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

struct Place {
    key: SiteKey,
    totals: SiteTotals,
    size: u64,
    /// Allocations in a tick in which it does anything.
    rate: u64,
    /// One tick in so many.
    seldom: u64,
    leaks: bool,
    ages: SiteAges,
}

pub struct Service {
    pub model: Model,
    pub names: StackTable,
    places: Vec<Place>,
    random: Random,
    tick: u64,
    /// Blocks of a place have any size, and not one of two.
    any_size: bool,
}

impl Service {
    /// `busy` of a thousand sites do something in every tick; the others one tick in 20 to 2000.
    pub fn new(sites: u64, seed: u64) -> Self {
        Self::with_activity(sites, seed, 50)
    }

    pub fn with_activity(sites: u64, seed: u64, busy: u64) -> Self {
        let mut random = Random(seed * 2 + 1);
        let mut names = StackTable::new();
        let places = (0..sites).map(|number| {
            let hash = random.next();
            names.insert(1, hash, stack(number, 12 + number % 30));
            Place {
                key: key(1, Domain::Native, hash),
                totals: SiteTotals::ZERO,
                size: 16 + random.below(40) * random.below(40),
                rate: 1 + (random.next() & 0xfff) / (1 + random.below(512)),
                seldom: if number % 1000 < busy {
                    1
                } else {
                    20 + random.below(2000)
                },
                leaks: number % 100 == 3,
                ages: SiteAges::default(),
            }
        });
        let places = places.collect();
        Self {
            model: Model::new(),
            names,
            places,
            random,
            tick: 0,
            any_size: false,
        }
    }

    #[must_use]
    pub fn of_any_size(self) -> Self {
        Self {
            any_size: true,
            ..self
        }
    }

    pub fn tick(&mut self) {
        let mut next: Sample = sample(self.tick).alive(100, 1);
        for place in &mut self.places {
            if self.random.below(place.seldom) != 0 {
                continue;
            }
            place.act(&mut self.random, self.any_size);
            next.sites.push((place.key, place.totals));
        }
        next.counters[0] = self.tick * 100_000 + self.random.below(1000);
        next.live = Some(self.scan());
        self.model.apply(next);
        let facts = ProcessFacts {
            comm: "service".into(),
            rss_bytes: Some((300 << 20) + self.random.below(1 << 24)),
            ..ProcessFacts::default()
        };
        self.model.describe(1, facts);
        self.tick += 1;
    }

    fn scan(&self) -> LiveScan {
        let mut scan = LiveScan {
            at_ns: (100 + self.tick) * SECOND,
            ..LiveScan::default()
        };
        for place in &self.places {
            if place.totals.alloc_objects > 0 {
                scan.sites.insert(place.key, place.ages);
            }
        }
        scan
    }
}

impl Place {
    fn act(&mut self, random: &mut Random, any_size: bool) {
        let allocated = 1 + random.below(self.rate);
        for _ in 0..2 {
            let size = if any_size {
                self.size + random.below(3 * self.size)
            } else if random.below(3) == 0 {
                self.size
            } else {
                self.size * 2
            };
            self.totals.alloc_objects += allocated;
            self.totals.alloc_bytes += allocated * size;
            self.totals.sizes[size_bucket(size)] += allocated;
        }
        let inuse = self.totals.inuse_objects();
        let freed = if self.leaks {
            random.below(inuse + 1) / 2
        } else {
            inuse - random.below(inuse / 8 + 1)
        };
        let mean = self.totals.inuse_bytes() / inuse.max(1);
        self.totals.freed_objects += freed;
        self.totals.freed_bytes += freed * mean;
        for part in 0..3 {
            let bucket = lifetime_bucket(1000 << (8 + 3 * part));
            let share = if part == 2 {
                freed - 2 * (freed / 3)
            } else {
                freed / 3
            };
            self.totals.lifetimes[bucket] += share;
        }
        let mut left = self.totals.inuse_objects();
        self.ages.oldest_born_ns = 100 * SECOND;
        for bucket in 0..4 {
            let objects = random.below(left + 1);
            (self.ages.objects[bucket], self.ages.bytes[bucket]) = (objects, objects * self.size);
            left -= objects;
        }
    }
}
