//! Programs of many kinds on a pymalloc of our own, seen by their pools as real ones are: the interval must hold the
//! truth. Some programs are such as nobody would write to please an estimator.

use std::collections::HashMap;

use memwatch_common::SiteTotals;
use memwatch_common::python::{OpenedPool, POOL_BYTES};
use memwatch_common::stack::STACK_BEFORE;

use super::*;
use crate::python::pool_sites::PoolSites;
use crate::python::pymalloc::{Pool, block_bytes};
use crate::random::Random;

#[test]
fn what_is_not_estimated_has_no_interval() {
    assert_eq!(Estimate::default().interval(5, None), None);
}

#[test]
fn the_exact_part_is_never_in_doubt() {
    let doubt = Doubt {
        less: 5000,
        more: 70,
        taken: 1000,
    };
    let interval = Estimate::of(1000, 10).interval(1_001_000, Some(doubt));
    assert_eq!(interval, Some((1_000_000, 1_001_070)));
}

#[test]
fn what_was_asked_for_is_between_what_blocks_take_and_a_step_less() {
    // 1,000 blocks of 32 bytes, asked for with 28 where it was seen.
    let doubt = Doubt {
        less: 100,
        more: 70,
        taken: 32_000,
    };
    let interval = Estimate::of(28_000, 1000).interval(128_000, Some(doubt));
    assert_eq!(
        interval,
        Some((100_000 + 28_000 - 100 - 15_000, 100_000 + 32_000 + 70))
    );
    // Ten of them.
    let interval = Estimate::of(280, 10).interval(280, Some(doubt));
    assert_eq!(interval, Some((280 - 100 - 150, 280 + 150 + 70)));
}

#[test]
fn no_number_overflows() {
    let doubt = Doubt {
        less: u64::MAX,
        more: u64::MAX,
        taken: u64::MAX,
    };
    let most = Estimate::of(u64::MAX, u64::MAX).interval(u64::MAX, Some(doubt));
    assert_eq!(most, Some((0, u64::MAX)));
}

#[test]
fn only_who_shares_a_size_is_in_much_doubt() {
    let class = ClassBytes {
        class: 3,
        bytes: 1 << 20,
        filled: 0,
    };
    let mut share = Share::default();
    share.add(1, &class, false);
    let doubt = |bytes, openers| share.doubt(|_, _| Some(ClassUse { bytes, openers })).unwrap();
    let unseen = 3 * POOL_BYTES;
    let alone = doubt(1 << 20, 1);
    assert_eq!((alone.less, alone.more), (unseen, unseen));
    let beside_what_was_before = doubt((1 << 20) + 100, 1);
    assert_eq!(beside_what_was_before.more, unseen + 100);
    let shared = doubt(5 << 20, 2);
    assert_eq!((shared.less, shared.more), (1 << 20, 4 << 20));
    assert_eq!(share.doubt(|_, _| None), None);
    // All who there are, together, are sure.
    share.add(
        1,
        &ClassBytes {
            class: 3,
            bytes: 4 << 20,
            filled: 0,
        },
        false,
    );
    let before = ClassBytes {
        class: 3,
        bytes: 64,
        filled: 0,
    };
    share.add(1, &before, true);
    let all = share.doubt(|_, _| {
        Some(ClassUse {
            bytes: (5 << 20) + 64,
            openers: 2,
        })
    });
    let taken = (5 << 20) + 64;
    assert_eq!(
        all,
        Some(Doubt {
            less: 0,
            more: 0,
            taken
        })
    );
}

/// pymalloc as far as it decides who opens pools: the pool that was last freed into is filled first, and an empty one
/// can go to another size.
#[derive(Default)]
struct Heap {
    pools: Vec<Pool>,
    opened: HashMap<u64, OpenedPool>,
    empty: Vec<usize>,
    partly: HashMap<usize, Vec<usize>>,
    clock: u64,
}

impl Heap {
    fn capacity(class: usize) -> u64 {
        (POOL_BYTES - 48) / block_bytes(class)
    }

    fn allocate(&mut self, asked: u64, stack: Option<u64>) -> usize {
        let class = class_of(asked);
        self.clock += 1;
        let partly = self.partly.entry(class).or_default();
        if let Some(&at) = partly.last() {
            self.pools[at].in_use += 1;
            if self.pools[at].in_use == Self::capacity(class) {
                partly.pop();
            }
            return at;
        }
        let at = self.empty.pop().unwrap_or(self.pools.len());
        let pool = Pool {
            address: (at as u64 + 1) * POOL_BYTES,
            size_class: class,
            block_bytes: block_bytes(class),
            in_use: 1,
        };
        if at == self.pools.len() {
            self.pools.push(pool);
        } else {
            self.pools[at] = pool;
        }
        if let Some(stack) = stack {
            let born_ns = self.clock;
            self.opened.insert(
                pool.address,
                OpenedPool {
                    stack,
                    born_ns,
                    asked,
                },
            );
        }
        partly.push(at);
        at
    }

    fn free(&mut self, at: usize) {
        let pool = &mut self.pools[at];
        let partly = self.partly.entry(pool.size_class).or_default();
        if pool.in_use == Self::capacity(pool.size_class) {
            partly.push(at);
        }
        pool.in_use -= 1;
        if pool.in_use == 0 {
            partly.retain(|other| *other != at);
            self.empty.push(at);
        }
    }
}

const fn class_of(size: u64) -> usize {
    (size as usize).div_ceil(16) - 1
}

/// A line of a program.
#[derive(Clone, Copy)]
struct Line {
    size: u64,
    /// Of every second block.
    other_size: u64,
    /// How often, beside the others.
    often: u64,
    /// Of 100 blocks so many stay.
    stays: u64,
    /// The others live so many allocations on average.
    lives: u64,
}

const fn line(size: u64, often: u64, stays: u64, lives: u64) -> Line {
    Line {
        size,
        other_size: size,
        often,
        stays,
        lives,
    }
}

/// Who is next.
#[derive(Clone, Copy)]
enum Turns {
    Random,
    /// So many each, in order.
    Bursts(usize),
    /// One after the other has ended.
    Phases,
}

struct Shape {
    name: &'static str,
    lines: Vec<Line>,
    turns: Turns,
    /// Blocks of the first line's size that are there before the watch begins; every third of them is free then.
    before: usize,
    /// All that this line kept goes at three quarters.
    lets_go: Option<usize>,
}

fn shape(name: &'static str, lines: &[Line], turns: Turns) -> Shape {
    Shape {
        name,
        lines: lines.to_vec(),
        turns,
        before: 0,
        lets_go: None,
    }
}

const STEPS: usize = 3_000;
const LOOKS: usize = 8;

/// What each line holds at the end, as it asked for it.
fn play(
    shape: &Shape,
    random: &mut Random,
    heap: &mut Heap,
    sites: &mut PoolSites,
    shown: &mut Shown,
) -> Vec<u64> {
    let lines = &shape.lines;
    let mut holds = vec![0; lines.len()];
    let mut kept: Vec<Vec<(usize, u64)>> = vec![Vec::new(); lines.len()];
    let mut turns = vec![0; lines.len()];
    // By the step in which they go; what lives longer than the program stays.
    let mut due: Vec<Vec<(usize, usize, u64)>> = vec![Vec::new(); STEPS];
    let before: Vec<usize> = (0..shape.before)
        .map(|_| heap.allocate(lines[0].size, None))
        .collect();
    for at in before.iter().step_by(3) {
        heap.free(*at);
    }
    let often: u64 = lines.iter().map(|line| line.often).sum();
    for step in 0..STEPS {
        for (line, at, size) in std::mem::take(&mut due[step]) {
            heap.free(at);
            holds[line] -= size;
        }
        let line = match shape.turns {
            Turns::Bursts(length) => step / length % lines.len(),
            Turns::Phases => step * lines.len() / STEPS,
            Turns::Random => {
                let mut at = random.below(often);
                let ends = |line: &Line| {
                    let here = at < line.often;
                    at = at.saturating_sub(line.often);
                    here
                };
                lines.iter().position(ends).unwrap_or(0)
            }
        };
        turns[line] += 1;
        let size = [lines[line].size, lines[line].other_size][turns[line] % 2];
        let at = heap.allocate(size, Some(line as u64 + 1));
        holds[line] += size;
        if random.below(100) < lines[line].stays {
            kept[line].push((at, size));
        } else {
            let lives = 1 + random.below(2 * lines[line].lives) as usize;
            if let Some(then) = due.get_mut(step + lives) {
                then.push((line, at, size));
            }
        }
        if step == STEPS * 3 / 4
            && let Some(line) = shape.lets_go
        {
            for (at, size) in std::mem::take(&mut kept[line]) {
                heap.free(at);
                holds[line] -= size;
            }
        }
        if step % (STEPS / LOOKS) == 0 {
            look(heap, sites, shown);
        }
    }
    look(heap, sites, shown);
    holds
}

/// By stack; a site that has not changed is not told again.
type Shown = HashMap<u64, SiteTotals>;

fn look(heap: &Heap, sites: &mut PoolSites, shown: &mut Shown) {
    let changed = sites.update(&heap.pools, &heap.opened, heap.clock);
    shown.extend(changed.map(|(stack, site)| (stack, site.totals)));
}

/// How often the interval of a line that is shown holds the truth, and how often it is shown.
fn coverage(shape: &Shape, seeds: u64) -> (u64, u64) {
    let (mut holds, mut shown) = (0, 0);
    for seed in 1..=seeds {
        let (mut heap, mut sites) = (Heap::default(), PoolSites::default());
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut all = Shown::new();
        let truth = play(shape, &mut random, &mut heap, &mut sites, &mut all);
        for (line, truth) in truth.iter().enumerate() {
            let stack = line as u64 + 1;
            let Some(totals) = all.get(&stack).filter(|totals| totals.inuse_bytes() > 0) else {
                continue;
            };
            let mut share = Share::default();
            for class in sites.classes(stack) {
                share.add(1, &class, stack == STACK_BEFORE);
            }
            let uses = sites.uses();
            let doubt = share.doubt(|_, class| uses.get(usize::from(class)).copied());
            let bytes = totals.inuse_bytes();
            let (low, high) = Estimate::of(bytes, totals.inuse_objects())
                .interval(bytes, doubt)
                .unwrap();
            shown += 1;
            holds += u64::from((low..=high).contains(truth));
        }
    }
    (holds, shown)
}

/// Pools of 340 blocks: all are opened for the one size, or for the other.
fn two_sizes_of_one_class() -> [Shape; 3] {
    let two_sizes = |size, other_size| Line {
        other_size,
        ..line(size, 1, 100, 1)
    };
    [
        shape(
            "two sizes of one class, in turn",
            &[two_sizes(33, 48)],
            Turns::Random,
        ),
        shape("the other one first", &[two_sizes(48, 33)], Turns::Random),
        shape(
            "two sizes of one class, and another line",
            &[two_sizes(497, 512), line(512, 1, 0, 300)],
            Turns::Random,
        ),
    ]
}

fn with_old_pools() -> [Shape; 3] {
    let stays = |size| line(size, 1, 100, 1);
    let into = |name, before, lines: &[Line], turns| Shape {
        before,
        ..shape(name, lines, turns)
    };
    [
        into("into what was there before", 900, &[stays(128)], Turns::Random),
        into(
            "two into what was there before",
            900,
            &[stays(128), line(128, 3, 0, 100)],
            Turns::Random,
        ),
        // The first line never opens a pool: there is room for all that it wants.
        into(
            "beside one who only fills",
            5000,
            &[stays(512), stays(512)],
            Turns::Phases,
        ),
    ]
}

fn shapes() -> Vec<Shape> {
    use Turns::{Bursts, Phases, Random};
    let stays = |size, often| line(size, often, 100, 1);
    let goes = |size, often, lives| line(size, often, 0, lives);
    let mut shapes = vec![
        shape("one line", &[stays(64, 1)], Random),
        shape("one line of many pools", &[stays(480, 1)], Random),
        shape("one line of odd sizes", &[stays(49, 1)], Random),
        shape("one line of the largest blocks", &[stays(512, 1)], Random),
        shape(
            "different sizes",
            &[stays(32, 1), stays(64, 1), stays(512, 1)],
            Random,
        ),
        shape("two at random", &[stays(256, 1), stays(256, 1)], Random),
        shape("nine to one", &[stays(256, 9), stays(256, 1)], Random),
        shape("a hundred to one", &[stays(256, 100), stays(256, 1)], Random),
        shape("eight at random", &[stays(240, 1); 8], Random),
        shape("in step", &[stays(256, 1), stays(256, 1)], Bursts(1)),
        shape(
            "in step of three",
            &[stays(128, 1), stays(128, 1), stays(128, 1)],
            Bursts(7),
        ),
        shape("bursts", &[stays(256, 1), stays(256, 1)], Bursts(500)),
        shape("bursts of a pool", &[stays(256, 1), stays(256, 1)], Bursts(63)),
        shape(
            "one after the other",
            &[stays(256, 1), stays(256, 1), stays(256, 1)],
            Phases,
        ),
        shape(
            "one goes at once, one stays",
            &[goes(256, 1, 1), stays(256, 1)],
            Random,
        ),
        shape(
            "many go at once, few stay",
            &[goes(256, 9, 1), stays(256, 1)],
            Random,
        ),
        shape(
            "many live a while, few stay",
            &[goes(256, 4, 300), stays(256, 1)],
            Random,
        ),
        shape(
            "most live long, few stay",
            &[goes(256, 9, 3000), stays(256, 1)],
            Random,
        ),
        shape(
            "one in a hundred stays",
            &[goes(256, 99, 50), stays(256, 1)],
            Random,
        ),
        shape(
            "two that keep some",
            &[line(256, 1, 50, 100), line(256, 1, 5, 100)],
            Random,
        ),
        shape("all of it goes", &[goes(256, 1, 200), goes(256, 1, 800)], Random),
        shape(
            "sizes that change hands",
            &[goes(64, 1, 500), goes(496, 1, 500), stays(240, 1)],
            Phases,
        ),
    ];
    shapes.extend(two_sizes_of_one_class());
    shapes.push(Shape {
        lets_go: Some(0),
        ..shape("the larger one goes", &[stays(256, 3), stays(256, 1)], Random)
    });
    shapes.push(Shape {
        lets_go: Some(0),
        ..shape(
            "the first goes",
            &[stays(256, 1), stays(256, 1), stays(256, 1)],
            Phases,
        )
    });
    shapes.extend(with_old_pools());
    shapes
}

#[test]
fn what_fills_old_pools_is_not_taken_for_old() {
    let shape = Shape {
        before: 900,
        ..shape("alone", &[line(128, 1, 100, 1)], Turns::Random)
    };
    let (mut heap, mut sites) = (Heap::default(), PoolSites::default());
    let mut shown = Shown::new();
    let truth = play(&shape, &mut Random(1), &mut heap, &mut sites, &mut shown);
    // The block of the first step was there at the first look.
    assert_eq!(shown[&1].inuse_bytes(), truth[0] - 128);
    assert_eq!(shown[&STACK_BEFORE].inuse_objects(), 600 + 1);
}

#[test]
fn the_interval_holds_the_truth_in_95_of_100_cases() {
    const SEEDS: u64 = 100;
    let shapes = shapes();
    assert!(shapes.len() >= 20);
    let mut failures = Vec::new();
    for shape in &shapes {
        let (holds, shown) = coverage(shape, SEEDS);
        println!("{}: {holds} of {shown}", shape.name);
        assert!(shown >= SEEDS / 2, "{} is hardly ever shown: {shown}", shape.name);
        if holds * 100 < shown * 95 {
            failures.push(format!("{}: {holds} of {shown}", shape.name));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
