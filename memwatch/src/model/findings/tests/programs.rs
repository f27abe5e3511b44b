//! Programs that leak and programs that do not. Each is one line of code that allocates; what runs is one tenth of a
//! second of its work.

use super::sim::{Heap, STEPS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    Leak,
    Healthy,
    /// A leak that cannot be told from health in a watch of this length.
    HardLeak,
    /// Healthy, but grows up to the end of the watch like a leak.
    HardHealthy,
}

#[derive(Clone, Copy)]
pub struct Program {
    pub name: &'static str,
    pub truth: Truth,
    pub seconds: u64,
    pub run: fn(&mut Heap),
}

const fn leak(name: &'static str, seconds: u64, run: fn(&mut Heap)) -> Program {
    Program {
        name,
        truth: Truth::Leak,
        seconds,
        run,
    }
}

const fn healthy(name: &'static str, seconds: u64, run: fn(&mut Heap)) -> Program {
    Program {
        name,
        truth: Truth::Healthy,
        seconds,
        run,
    }
}

const fn hard(truth: Truth, name: &'static str, seconds: u64, run: fn(&mut Heap)) -> Program {
    Program {
        name,
        truth,
        seconds,
        run,
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * 1024;

/// Whether a job that runs every so many seconds begins in this step.
fn every(heap: &Heap, seconds: f64) -> bool {
    (heap.now + 1e-6) % seconds < 1.0 / STEPS as f64 - 1e-6
}

fn times(heap: &mut Heap, per_second: f64, mut work: impl FnMut(&mut Heap)) {
    for _ in 0..heap.arrivals(per_second) {
        work(heap);
    }
}

/// 500 MB in use, all of it gone within two seconds.
pub fn churn(heap: &mut Heap) {
    times(heap, 2000.0, |heap| {
        let life = heap.between(0.05, 2.0);
        heap.allocate(256 * KIB, life);
    });
}

pub fn request_leak(heap: &mut Heap) {
    times(heap, 100.0, |heap| heap.keep(100));
}

/// Grows for half a minute, then throws out as much as it takes in.
pub fn filling_cache(heap: &mut Heap) {
    times(heap, 400.0, |heap| heap.keep(5000));
    heap.evict_to(12_000);
}

pub fn start_up(heap: &mut Heap) {
    if heap.now < 3.0 {
        times(heap, 2000.0, |heap| heap.keep(8 * KIB));
    }
}

/// New keys get rarer as the cache knows more of them.
fn coupons(heap: &mut Heap, keys: f64, asked_per_second: f64) {
    times(heap, asked_per_second, |heap| {
        let known = heap.len() as f64 / keys;
        if heap.chance() >= known {
            heap.keep(1000);
        }
    });
}

/// As many live blocks as there are clients: `load` at a time.
fn follow_load(heap: &mut Heap, load: f64) {
    let now = heap.len() as f64;
    if now < load {
        for _ in 0..(load - now) as u64 {
            heap.keep(4 * KIB);
        }
    } else {
        heap.evict_to(load as usize);
    }
}

fn wave(heap: &Heap, period: f64) -> f64 {
    (heap.now * std::f64::consts::TAU / period).sin()
}

pub const PROGRAMS: &[Program] = &[
    leak("100 B of every request, 200 a second", 60, |heap| {
        times(heap, 200.0, |heap| heap.keep(100));
    }),
    leak("100 B of every request, 5 a second", 60, |heap| {
        times(heap, 5.0, |heap| heap.keep(100));
    }),
    leak(
        "one request in 100 keeps 2 KiB, the others are freed",
        60,
        |heap| {
            times(heap, 500.0, |heap| {
                let life = if heap.chance() < 0.01 { f64::INFINITY } else { 0.05 };
                heap.allocate(2 * KIB, life);
            });
        },
    ),
    leak("leak within 500 MB of churn at the same line", 60, |heap| {
        churn(heap);
        times(heap, 100.0, |heap| heap.keep(100));
    }),
    leak("1 MiB of every job, a job each 9 s", 90, |heap| {
        if every(heap, 9.0) {
            heap.keep(MIB);
        }
    }),
    leak("half of the sessions never end", 60, |heap| {
        times(heap, 50.0, |heap| {
            let life = if heap.chance() < 0.5 {
                f64::INFINITY
            } else {
                heap.exponential(3.0)
            };
            heap.allocate(600, life);
        });
    }),
    leak("a listener every half second", 60, |heap| {
        if every(heap, 0.5) {
            heap.keep(256);
        }
    }),
    leak("queue without a reader", 60, |heap| {
        times(heap, 50.0, |heap| heap.keep(KIB));
    }),
    leak("random sizes at random times", 60, |heap| {
        times(heap, 20.0, |heap| {
            let size = heap.between(16.0, 4096.0) as u64;
            heap.keep(size);
        });
    }),
    leak("load in waves of 8 s", 60, |heap| {
        let load = 60.0 * (1.0 + wave(heap, 8.0));
        times(heap, load, |heap| heap.keep(500));
    }),
    leak(
        "garbage is collected every 5 s, one block in 50 stays",
        120,
        |heap| {
            times(heap, 400.0, |heap| {
                let stays = heap.chance() < 0.02;
                let life = if stays {
                    f64::INFINITY
                } else {
                    5.0 - heap.now % 5.0
                };
                heap.allocate(300, life);
            });
        },
    ),
    leak("4 KiB every 10 s for an hour", 3600, |heap| {
        if every(heap, 10.0) {
            heap.keep(4 * KIB);
        }
    }),
    leak("after 50 MB at the start", 60, |heap| {
        start_up(heap);
        times(heap, 100.0, |heap| heap.keep(200));
    }),
    leak("64 B, 10 a second, for ten minutes", 600, |heap| {
        times(heap, 10.0, |heap| heap.keep(64));
    }),
    leak("long sessions, one in ten never ends", 180, |heap| {
        times(heap, 60.0, |heap| {
            let life = if heap.chance() < 0.1 {
                f64::INFINITY
            } else {
                heap.exponential(10.0)
            };
            heap.allocate(2000, life);
        });
    }),
    leak("a thread's stack of 8 MiB every 5 s", 60, |heap| {
        if every(heap, 5.0) {
            heap.keep(8 * MIB);
        }
    }),
    leak("cache whose keys never come again", 60, |heap| {
        times(heap, 300.0, |heap| heap.keep(2 * KIB));
    }),
    leak("faster and faster", 60, |heap| {
        let load = 5.0 + heap.now * 3.0;
        times(heap, load, |heap| heap.keep(300));
    }),
    leak(
        "quiet nights: every second minute nothing happens",
        1200,
        |heap| {
            if heap.now % 120.0 < 60.0 {
                times(heap, 20.0, |heap| heap.keep(100));
            }
        },
    ),
    leak("one error in 1000 forgets its 16 KiB", 300, |heap| {
        times(heap, 300.0, |heap| {
            let life = if heap.chance() < 0.001 {
                f64::INFINITY
            } else {
                heap.exponential(0.5)
            };
            heap.allocate(16 * KIB, life);
        });
    }),
    healthy("constant", 60, |heap| {
        if heap.now < 0.05 {
            for _ in 0..1000 {
                heap.keep(KIB);
            }
        }
    }),
    healthy("50 MB in the first 3 s", 60, start_up),
    healthy("start-up of 10 s", 60, |heap| {
        if heap.now < 10.0 {
            times(heap, 500.0, |heap| heap.keep(4 * KIB));
        }
    }),
    healthy("cache that knows its 5000 keys after 20 s", 60, |heap| {
        coupons(heap, 5000.0, 1000.0);
    }),
    healthy("cache that knows most of its keys at the end", 60, |heap| {
        coupons(heap, 20_000.0, 1000.0);
    }),
    healthy("cache that still learns keys at the end", 60, |heap| {
        coupons(heap, 40_000.0, 1000.0);
    }),
    healthy("cache that is full after half the watch", 60, filling_cache),
    healthy("cache that is full after two thirds of the watch", 90, |heap| {
        times(heap, 200.0, |heap| heap.keep(3 * KIB));
        heap.evict_to(12_000);
    }),
    healthy("full cache of random sizes", 60, |heap| {
        times(heap, 300.0, |heap| {
            let size = heap.between(100.0, 20_000.0) as u64;
            heap.keep(size);
        });
        heap.evict_to(1000);
    }),
    healthy("connections of 5 s", 60, |heap| {
        times(heap, 40.0, |heap| {
            let life = heap.exponential(5.0);
            heap.allocate(16 * KIB, life);
        });
    }),
    healthy("connections of 20 s", 120, |heap| {
        times(heap, 40.0, |heap| {
            let life = heap.exponential(20.0);
            heap.allocate(16 * KIB, life);
        });
    }),
    healthy("few connections of 10 s", 60, |heap| {
        times(heap, 1.0, |heap| {
            let life = heap.exponential(10.0);
            heap.allocate(256 * KIB, life);
        });
    }),
    healthy("sessions that end after 60 s", 300, |heap| {
        times(heap, 50.0, |heap| heap.allocate(2 * KIB, 60.0));
    }),
    healthy("churn of 500 MB", 60, churn),
    healthy("collected every 5 s", 60, |heap| {
        times(heap, 300.0, |heap| {
            let life = 5.0 - heap.now % 5.0;
            heap.allocate(500, life);
        });
    }),
    healthy("collected every 13 s", 60, |heap| {
        times(heap, 300.0, |heap| {
            let life = 13.0 - heap.now % 13.0;
            heap.allocate(500, life);
        });
    }),
    healthy("collected every 25 s", 60, |heap| {
        times(heap, 300.0, |heap| {
            let life = 25.0 - heap.now % 25.0;
            heap.allocate(500, life);
        });
    }),
    healthy("collected when there is twice as much, at random", 120, |heap| {
        times(heap, 300.0, |heap| heap.keep(500));
        let limit = heap.between(3000.0, 9000.0);
        if heap.len() as f64 > limit {
            heap.free_all();
        }
    }),
    healthy("a queue that grows and shrinks by chance", 60, |heap| {
        let step = heap.between(-200.0, 200.0);
        let load = (heap.len() as f64 + step).max(0.0) + if heap.now < 0.05 { 5000.0 } else { 0.0 };
        follow_load(heap, load);
    }),
    healthy("a long queue that grows and shrinks by chance", 600, |heap| {
        let step = heap.between(-50.0, 50.0);
        let load = (heap.len() as f64 + step).max(0.0) + if heap.now < 0.05 { 5000.0 } else { 0.0 };
        follow_load(heap, load);
    }),
    healthy("clients come and go in waves of 20 s", 60, |heap| {
        let load = 1000.0 * (1.1 + wave(heap, 20.0));
        follow_load(heap, load);
    }),
    healthy("load goes up and down again", 60, |heap| {
        let load = 2000.0 * (1.0 - (heap.now / 30.0 - 1.0).abs());
        follow_load(heap, load);
    }),
    healthy("a table that doubles", 60, |heap| {
        let size = (heap.now * 100.0).max(1.0).log2().ceil().exp2() as u64 * KIB;
        if heap.len() == 0 || every(heap, 1.0) {
            heap.free_all();
            heap.keep(size);
        }
    }),
    healthy("64 MiB at second 30, kept", 60, |heap| {
        if heap.now < 0.05 || (heap.now - 30.0).abs() < 0.05 {
            for _ in 0..64 {
                heap.keep(MIB);
            }
        }
    }),
    healthy("a job each 20 s takes 10 MB for 5 s", 120, |heap| {
        if every(heap, 20.0) {
            for _ in 0..100 {
                heap.allocate(100 * KIB, 5.0);
            }
        }
    }),
    healthy("names that become known: ever fewer new ones", 120, |heap| {
        let rate = 2000.0 / (2.0 + heap.now);
        times(heap, rate, |heap| heap.keep(80));
    }),
    healthy("pool as large as the largest rush so far", 120, |heap| {
        let rush = (heap.exponential(100.0) + 50.0) as usize;
        while heap.len() < rush {
            heap.keep(32 * KIB);
        }
    }),
    healthy("lives of very different lengths", 120, |heap| {
        times(heap, 200.0, |heap| {
            let life = 0.1 * (1.0 - heap.chance()).powf(-1.0 / 1.5);
            heap.allocate(KIB, life);
        });
    }),
    healthy("shrinking", 60, |heap| {
        let load = 3000.0 - heap.now * 40.0;
        follow_load(heap, load);
    }),
    healthy(
        "a handful of 1000 requests a second is forgotten at second 20",
        60,
        |heap| {
            times(heap, 1000.0, |heap| heap.allocate(2 * KIB, 0.02));
            if (heap.now - 20.0).abs() < 0.05 {
                for _ in 0..8 {
                    heap.keep(2 * KIB);
                }
            }
        },
    ),
    hard(
        Truth::HardLeak,
        "100 B every 10 s, watched for a minute",
        60,
        |heap| {
            if every(heap, 10.0) {
                heap.keep(100);
            }
        },
    ),
    hard(
        Truth::HardLeak,
        "begins in the last third of the watch",
        60,
        |heap| {
            if heap.now > 42.0 {
                times(heap, 100.0, |heap| heap.keep(100));
            }
        },
    ),
    hard(Truth::HardLeak, "load fades away during the watch", 60, |heap| {
        let load = 100.0 * (1.0 - heap.now / 60.0);
        times(heap, load, |heap| heap.keep(200));
    }),
    hard(
        Truth::HardLeak,
        "1 MiB of every job, a job each 30 s, watched for a minute",
        60,
        |heap| {
            if every(heap, 30.0) {
                heap.keep(MIB);
            }
        },
    ),
    hard(
        Truth::HardHealthy,
        "cache that takes ten minutes to fill, watched for one",
        60,
        |heap| {
            times(heap, 400.0, |heap| heap.keep(5000));
            heap.evict_to(240_000);
        },
    ),
    hard(
        Truth::HardHealthy,
        "sessions that end after 60 s, watched for 60 s from the first",
        60,
        |heap| {
            times(heap, 50.0, |heap| heap.allocate(2 * KIB, 60.0));
        },
    ),
    hard(
        Truth::HardHealthy,
        "morning: load rises through the whole watch",
        600,
        |heap| {
            let load = 1000.0 + heap.now * 10.0;
            follow_load(heap, load);
        },
    ),
];
