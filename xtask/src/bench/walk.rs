//! What walking the stack costs: the same probes with and without it, on stacks of several depths and without frame
//! pointers.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::Result;

use super::{
    contestant::Contestant,
    pairs::{self, Pairs, Place},
    stats::Summary,
};
use crate::shell;

/// Frames from malloc's own to the thread's start, all included.
const DEPTHS: [u32; 3] = [20, 40, 100];

/// Readings of one depth, nanoseconds of CPU time a pair.
#[derive(Clone, Debug, Default)]
struct Depth {
    frames: u32,
    without: Vec<f64>,
    with: Vec<f64>,
}

#[derive(Clone, Debug, Default)]
pub struct Walk(Vec<Depth>);

impl Walk {
    pub fn measure(memwatch: &Path, rounds: usize, duration: Duration) -> Result<Self> {
        let program = pairs::compile(pairs::Frames::WithoutPointers)?;
        let without = Contestant::memwatch(memwatch, "--max-depth 1");
        let with = Contestant::memwatch(memwatch, "--max-depth 127");
        let mut walk = Self(DEPTHS.map(Depth::of).into());
        for round in 1..=rounds {
            for depth in &mut walk.0 {
                for (contestant, readings) in [(&without, &mut depth.without), (&with, &mut depth.with)] {
                    let target = Pairs::start_deep(&program, depth.frames, Place::Moving)?;
                    readings.push(contestant.measure(&target, duration)?.cpu_ns_per_pair);
                }
                shell::say(format!(
                    "walk of {} frames, round {round}/{rounds}: {:.0} ns/pair",
                    depth.frames,
                    depth.cost().map_or(0.0, |cost| cost.median),
                ));
            }
        }
        Ok(walk)
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "\n### The walk of the stack\n\n\
             The same program without frame pointers, so that every step needs the unwind tables, and with \
             its stack never where it was at the call before, so that every stack is walked; under memwatch with \
             `--max-depth 1`, and with whole stacks.\n\n\
             | frames | one frame kept | all kept | the walk | each frame beyond those above |\n\
             | ---: | ---: | ---: | ---: | ---: |\n",
        );
        let mut above: Option<(u32, f64)> = None;
        for depth in &self.0 {
            let (Some(without), Some(with), Some(cost)) = (
                Summary::of(depth.without.iter().copied()),
                Summary::of(depth.with.iter().copied()),
                depth.cost(),
            ) else {
                continue;
            };
            let each = above.map_or(String::new(), |(frames, below)| {
                format!(
                    "{:.1} ns",
                    (cost.median - below) / f64::from(depth.frames - frames)
                )
            });
            // Writing to a string cannot fail.
            _ = writeln!(
                text,
                "| {} | {:.0} ns | {:.0} ns | {:.0} ns ({:.0}–{:.0}) | {each} |",
                depth.frames, without.median, with.median, cost.median, cost.min, cost.max,
            );
            above = Some((depth.frames, cost.median));
        }
        text
    }
}

impl Depth {
    fn of(frames: u32) -> Self {
        Self {
            frames,
            ..Self::default()
        }
    }

    /// What the walk added, by pairs of readings that were taken one after the other.
    fn cost(&self) -> Option<Summary> {
        Summary::of(
            self.with
                .iter()
                .zip(&self.without)
                .map(|(with, without)| with - without),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_depth_is_set_against_the_one_above() {
        let depth = |frames, with: f64| Depth {
            frames,
            without: vec![1000.0, 1010.0, 990.0],
            with: vec![with, with + 10.0, with - 10.0],
        };
        let text = Walk(vec![depth(20, 1300.0), depth(40, 1700.0)]).markdown();
        assert!(
            text.contains("| 20 | 1000 ns | 1300 ns | 300 ns (300–300) |  |"),
            "{text}"
        );
        assert!(
            text.contains("| 40 | 1000 ns | 1700 ns | 700 ns (700–700) | 20.0 ns |"),
            "{text}"
        );
    }
}
