//! What watching each of CPython's blocks would cost: its calls are counted before the watch begins, which costs the
//! program a third of watching them.

use std::{fmt, thread, time::Duration};

use anyhow::Result;
use memwatch_common::Counter;

use super::{Watch, overhead};
use crate::{collect::collector, model::report::Predicted, target::process::ticks_per_second};

/// How long calls are counted.
pub const TIME: Duration = Duration::from_secs(1);

/// From this share of one core on, for all that is watched together, the target is spared: a program that works all the
/// time would take half as long again.
pub const MOST_PERCENT: f64 = 50.0;

/// A program that works for more than this share of one core, on a machine that others use too…
const BUSY: f64 = 0.05;

/// … and spends this part of its work on being counted is spared too: counting slows it down so much that it makes fewer
/// calls than it would.
const MOST_COUNTING: f64 = 1.0 / 3.0;

/// Beside the trap, what a call costs while it is only counted.
const COUNTED_NS: f64 = 400.0;

/// Of a program that does next to nothing but allocate it cannot be told how much else it does: at least this part.
const LEAST_OWN: f64 = 0.1;

/// A larger slow-down is no more than guessed: little is left of the time when that of counting is taken off, and a
/// tenth more or less for each call would be most of it.
const SURE_SLOWDOWN: f64 = 3.0;

/// Calls of CPython's allocating and freeing functions in some time, and the time on a CPU that the target took
/// meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counted {
    allocations: u64,
    frees: u64,
    seconds: f64,
    cpu_seconds: f64,
}

/// What one call costs in nanoseconds, the probe and all behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prices {
    allocation: f64,
    free: f64,
    /// Of a call that is only counted.
    counted: f64,
}

impl Counted {
    fn predict(&self, prices: &Prices) -> Predicted {
        let (allocations, frees) = (self.allocations as f64, self.frees as f64);
        let hits = allocations + frees;
        let ns = allocations * prices.allocation + frees * prices.free;
        let own_seconds = self.cpu_seconds - hits * prices.counted / 1e9;
        Predicted {
            hits_per_second: hits / self.seconds,
            nanoseconds_per_hit: if hits > 0.0 { ns / hits } else { 0.0 },
            percent: ns / 1e7 / self.seconds,
            // /proc counts in hundredths of a second: less says nothing.
            slowdown: (self.cpu_seconds >= 0.05)
                .then(|| 1.0 + ns / 1e9 / own_seconds.max(self.cpu_seconds * LEAST_OWN)),
            in_force: !self.is_too_much(ns, prices),
        }
    }

    /// Whether the target is to be spared.
    fn is_too_much(&self, ns: f64, prices: &Prices) -> bool {
        let hits = (self.allocations + self.frees) as f64;
        let counting = hits * prices.counted / 1e9;
        let busy = self.cpu_seconds > self.seconds * BUSY;
        ns / 1e7 / self.seconds > MOST_PERCENT || busy && counting > self.cpu_seconds * MOST_COUNTING
    }
}

/// What is said before it begins.
impl fmt::Display for Predicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} calls a second at {:.1} µs each: about {:.1}% of a core",
            self.hits_per_second,
            self.nanoseconds_per_hit / 1e3,
            self.percent
        )?;
        match self.slowdown {
            Some(times) => {
                if times > SURE_SLOWDOWN {
                    return write!(
                        f,
                        ", its own work takes many times as long (a rough guess: {times:.0})"
                    );
                }
                write!(f, ", its own work takes {times:.1} times as long")
            }
            None => Ok(()),
        }
    }
}

impl Watch {
    /// Counts the calls for a while; the probes are in place and nothing is recorded. `None` where no CPython is among
    /// what is probed.
    pub(super) fn try_out(&mut self) -> Result<Option<Predicted>> {
        if !self.attacher.has_python() {
            return Ok(None);
        }
        let prices = Prices {
            allocation: overhead::python_allocation_ns(&self.attacher),
            free: overhead::python_free_ns(&self.attacher),
            counted: overhead::python_probe_ns(&self.attacher) + COUNTED_NS,
        };
        let before = self.counted()?;
        self.kernel.set_counting()?;
        let begin = std::time::Instant::now();
        thread::sleep(TIME);
        self.kernel.set_gate(false)?;
        let seconds = begin.elapsed().as_secs_f64();
        let after = self.counted()?;
        let counted = Counted {
            allocations: after.allocations - before.allocations,
            frees: after.frees - before.frees,
            seconds,
            // A process that ended meanwhile takes its time with it.
            cpu_seconds: (after.cpu_seconds - before.cpu_seconds).max(0.0),
        };
        Ok(Some(counted.predict(&prices)))
    }

    fn counted(&self) -> Result<Counted> {
        let counters = collector::counters(&self.kernel)?;
        let stats = self.alive.keys().filter_map(|pid| self.proc.stat(*pid).ok());
        let ticks: u64 = stats.map(|stat| stat.cpu_ticks).sum();
        Ok(Counted {
            allocations: counters[Counter::TriedAllocations as usize],
            frees: counters[Counter::TriedFrees as usize],
            seconds: 0.0,
            cpu_seconds: ticks as f64 / ticks_per_second() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices {
        allocation: 2_000.0,
        free: 1_000.0,
        counted: 600.0,
    };

    fn predicted(allocations: u64, frees: u64, cpu_seconds: f64) -> Predicted {
        let counted = Counted {
            allocations,
            frees,
            seconds: 2.0,
            cpu_seconds,
        };
        counted.predict(&PRICES)
    }

    #[test]
    fn a_busy_program_would_be_slowed_down_and_is_spared() {
        let busy = predicted(400_000, 400_000, 2.0);
        assert!((busy.hits_per_second - 400_000.0).abs() < 1e-6);
        assert!((busy.nanoseconds_per_hit - 1_500.0).abs() < 1e-6);
        assert!((busy.percent - 60.0).abs() < 1e-6);
        // Of its two seconds 0.48 went into being counted.
        assert!(predicted(400_000, 400_000, 0.5).slowdown.unwrap() > 20.0);
        assert!(
            predicted(400_000, 400_000, 0.5)
                .to_string()
                .contains("takes many times as long")
        );
        assert!((busy.slowdown.unwrap() - (1.0 + 1.2 / 1.52)).abs() < 1e-6);
        assert!(!busy.in_force);
        assert_eq!(
            busy.to_string(),
            "400000 calls a second at 1.5 µs each: about 60.0% of a core, its own work takes 1.8 times as long"
        );
    }

    #[test]
    fn a_program_that_hardly_gets_on_while_it_is_counted_is_spared() {
        // 30 % of a core, but two thirds of its work went into being counted.
        let slowed = predicted(200_000, 200_000, 0.36);
        assert!(slowed.percent < MOST_PERCENT && !slowed.in_force);
        assert!(predicted(200_000, 200_000, 1.9).in_force);
    }

    #[test]
    fn a_quiet_program_is_watched() {
        let quiet = predicted(1_000, 1_000, 0.01);
        assert!(quiet.in_force && quiet.slowdown.is_none());
        let silent = predicted(0, 0, 0.0);
        assert_eq!((silent.percent, silent.nanoseconds_per_hit), (0.0, 0.0));
        assert_eq!(
            silent.to_string(),
            "0 calls a second at 0.0 µs each: about 0.0% of a core"
        );
    }
}
