//! A heap that a program allocates from and frees to, second by second, watched through the real model.

use memwatch_common::hist::{lifetime_bucket, size_bucket};
use memwatch_common::{Domain, SiteKey, SiteTotals};

use super::programs::Program;
use crate::collect::sample::{AGE_EDGES_SECONDS, LiveScan, SiteAges};
use crate::model::findings::{Group, Member, Sizes};
use crate::model::history::History;
use crate::model::report::Age;
use crate::model::state::Model;
use crate::model::testing::{SECOND, key, sample};

/// Steps of a program's work in a second.
pub const STEPS: u64 = 10;

#[derive(Clone, Copy)]
struct Block {
    born: f64,
    dies: f64,
    size: u64,
}

/// One line of a program: what it allocated and what is left.
pub struct Heap {
    blocks: Vec<Block>,
    pub totals: SiteTotals,
    pub now: f64,
    random: u64,
}

impl Heap {
    pub fn new(seed: u64) -> Self {
        Self {
            blocks: Vec::new(),
            totals: SiteTotals::ZERO,
            now: 0.0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1,
        }
    }

    /// From 0 to 1.
    pub fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.chance() * (high - low)
    }

    /// A life that ends at any moment with the same chance.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.chance()).ln()
    }

    pub fn keep(&mut self, size: u64) {
        self.allocate(size, f64::INFINITY);
    }

    /// A block that lives for so many seconds.
    pub fn allocate(&mut self, size: u64, life: f64) {
        self.totals.alloc_bytes += size;
        self.totals.alloc_objects += 1;
        self.totals.sizes[size_bucket(size)] += 1;
        self.blocks.push(Block {
            born: self.now,
            dies: self.now + life,
            size,
        });
    }

    /// `per_second` allocations, as many as fall into this step; by chance, so that no two steps are alike.
    pub fn arrivals(&mut self, per_second: f64) -> u64 {
        let mean = per_second / STEPS as f64;
        if mean > 50.0 {
            return (mean + (self.chance() + self.chance() + self.chance() - 1.5) * 2.0 * mean.sqrt()).max(0.0)
                as u64;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.chance(), 0);
        while product > limit {
            product *= self.chance();
            count += 1;
        }
        count
    }

    fn free_if(&mut self, mut is_free: impl FnMut(usize, &Block) -> bool) {
        let (now, totals) = (self.now, &mut self.totals);
        let mut index = 0;
        self.blocks.retain(|block| {
            let free = is_free(index, block);
            index += 1;
            if free {
                totals.freed_bytes += block.size;
                totals.freed_objects += 1;
                let life = (block.dies.min(now) - block.born).max(0.0);
                totals.lifetimes[lifetime_bucket((life * 1e9) as u64)] += 1;
            }
            !free
        });
    }

    /// Ends those whose time has come.
    pub fn expire(&mut self) {
        let now = self.now;
        self.free_if(|_, block| block.dies <= now);
    }

    /// Frees the oldest until `most` are left, as a cache does.
    pub fn evict_to(&mut self, most: usize) {
        let over = self.blocks.len().saturating_sub(most);
        if over > 0 {
            self.free_if(|index, _| index < over);
        }
    }

    pub fn free_all(&mut self) {
        self.free_if(|_, _| true);
    }

    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    fn ages(&self) -> SiteAges {
        let mut ages = SiteAges::default();
        for block in &self.blocks {
            let age = self.now - block.born;
            ages.objects[AGE_EDGES_SECONDS.partition_point(|edge| *edge <= age)] += 1;
        }
        ages
    }

    fn age_list(&self) -> Vec<Age> {
        let edges = AGE_EDGES_SECONDS.iter().map(|edge| Some(*edge)).chain([None]);
        let ages = self.ages();
        edges
            .zip(ages.objects)
            .map(|(below_seconds, objects)| Age {
                below_seconds,
                objects,
            })
            .collect()
    }

    fn lifetime_list(&self) -> Vec<Age> {
        let lifetimes = self.totals.lifetimes.iter().enumerate();
        lifetimes
            .map(|(bucket, objects)| Age {
                below_seconds: memwatch_common::hist::lifetime_bucket_below_seconds(bucket),
                objects: *objects,
            })
            .collect()
    }
}

/// One second of a program's life.
fn live_a_second(heap: &mut Heap, run: fn(&mut Heap), second: u64) {
    for step in 0..STEPS {
        heap.now = second as f64 + step as f64 / STEPS as f64;
        heap.expire();
        run(heap);
    }
    heap.now = (second + 1) as f64 - 1e-9;
    heap.expire();
}

/// Several lines of one process, watched every second. The first tick is before any of them allocates.
pub fn watch_lines(lines: &[fn(&mut Heap)], seconds: u64, seed: u64) -> (History, Vec<Group>) {
    let (mut model, mut history) = (Model::new(), History::new());
    let mut heaps: Vec<Heap> = (0..lines.len())
        .map(|line| Heap::new(seed * 1000 + line as u64 + 1))
        .collect();
    let site = |line: usize| -> SiteKey { key(1, Domain::Native, line as u64 + 1) };
    for tick in 0..=seconds {
        let mut sample = sample(tick).alive(100, 1);
        let mut scan = LiveScan {
            at_ns: (100 + tick) * SECOND,
            ..LiveScan::default()
        };
        for (line, heap) in heaps.iter_mut().enumerate() {
            if tick > 0 {
                live_a_second(heap, lines[line], tick - 1);
                sample = sample.site(site(line), heap.totals);
            }
            scan.sites.insert(site(line), heap.ages());
        }
        sample.live = Some(scan);
        model.apply(sample);
        history.take(&model);
    }
    let groups = heaps.iter().enumerate().map(|(line, heap)| Group {
        key: format!("program.c:{}", line + 1),
        pid: Some(100),
        domain: "native".to_owned(),
        sites: vec![Member {
            id: crate::model::state::site_id(&site(line)).unwrap(),
            sizes: Sizes::of(&heap.totals.sizes, heap.totals.alloc_bytes),
        }],
        lifetimes: heap.lifetime_list(),
        ages: Some(heap.age_list()),
    });
    (history, groups.collect())
}

pub fn watch(program: &Program, seed: u64) -> (History, Vec<Group>) {
    watch_lines(&[program.run], program.seconds, seed)
}
