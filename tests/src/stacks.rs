//! memwatch's stacks against gdb's, by return addresses alone: names, lines and inlined functions do not enter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use memwatch::model::report::{Frame, FrameKind, Report, Row};

use crate::gdb::{GdbStack, Place};

/// The call sites of the frames, innermost first, without the allocation function's own address: a probe may sit some
/// instructions behind the entry where gdb stops.
type Returns = Vec<Place>;

/// What memwatch has seen.
#[derive(Debug, Default)]
pub struct Seen {
    stacks: HashSet<Returns>,
    /// Those that do not reach the start of their thread.
    short: HashSet<Returns>,
    pub objects: u64,
    pub whole_objects: u64,
}

fn physical(frames: &[Arc<Frame>]) -> impl Iterator<Item = Place> {
    frames
        .iter()
        .filter(|frame| frame.kind == FrameKind::Native && !frame.inlined)
        .map(|frame| {
            let module = frame.module.as_deref().unwrap_or_default();
            let file = module.starts_with('/') || module == "[vdso]";
            let module = if file { module } else { "" };
            (module.to_owned(), frame.address.unwrap_or_default())
        })
}

fn returns(row: &Row) -> Returns {
    physical(&row.frames).skip(1).collect()
}

impl Seen {
    pub fn of(report: &Report, pid: u32) -> Self {
        let mut seen = Self::default();
        let native = |row: &&Row| row.pid == Some(pid) && row.domain.as_deref() != Some("mmap");
        for row in report.rows.iter().filter(native) {
            seen.objects += row.alloc_objects;
            if row.truncated {
                seen.short.insert(returns(row));
            } else {
                seen.whole_objects += row.alloc_objects;
                seen.stacks.insert(returns(row));
            }
        }
        seen
    }

    /// Where whole stacks begin: calls in `main`, and what is further out; the function that a thread was started with.
    pub fn roots(&self) -> HashSet<Place> {
        /// `main`, two functions of libc, `_start`. Threads begin with one less, and whoever is called there stands for its
        /// caller.
        const OUTERMOST: usize = 4;
        self.stacks
            .iter()
            .flat_map(|stack| stack.iter().rev().take(OUTERMOST))
            .filter(|(module, _)| !module.is_empty())
            .cloned()
            .collect()
    }

    fn verdict(&self, stack: &GdbStack) -> Verdict {
        let returns = &stack.frames[1..];
        if self.stacks.contains(returns) {
            return Verdict::Equal;
        }
        // One allocation function called another: memwatch shows the outermost call.
        if (1..returns.len().min(4)).any(|inner| self.stacks.contains(&returns[inner..])) {
            return Verdict::EqualFromOutermost;
        }
        let with_same = |stacks: &HashSet<Returns>| {
            stacks
                .iter()
                .map(|other| returns.iter().zip(other).take_while(|(a, b)| a == b).count())
                .max()
        };
        let agreeing = with_same(&self.stacks).max(with_same(&self.short)).unwrap_or(0);
        if agreeing == returns.len() && !stack.whole {
            return Verdict::GdbEndsEarly;
        }
        if self.short.iter().any(|short| returns.starts_with(short)) {
            return Verdict::EndsEarly;
        }
        Verdict::Differs { agreeing }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Equal,
    EqualFromOutermost,
    /// gdb gave up; as far as it came they agree, and memwatch's goes on.
    GdbEndsEarly,
    EndsEarly,
    /// No stack of memwatch agrees in more than so many return addresses.
    Differs {
        agreeing: usize,
    },
}

/// How so many stacks of gdb's fared.
#[derive(Debug)]
pub struct Comparison {
    pub stops: usize,
    pub distinct: usize,
    pub frames: usize,
    verdicts: HashMap<GdbStack, (Verdict, usize)>,
}

impl Comparison {
    pub fn new(stacks: &[GdbStack], seen: &Seen) -> Self {
        let mut verdicts: HashMap<GdbStack, (Verdict, usize)> = HashMap::new();
        for stack in stacks {
            verdicts
                .entry(stack.clone())
                .or_insert_with(|| (seen.verdict(stack), 0))
                .1 += 1;
        }
        Self {
            stops: stacks.len(),
            distinct: verdicts.len(),
            frames: stacks.iter().map(|stack| stack.frames.len()).sum(),
            verdicts,
        }
    }

    pub fn count(&self, wanted: impl Fn(Verdict) -> bool) -> usize {
        self.verdicts
            .values()
            .filter(|(verdict, _)| wanted(*verdict))
            .map(|(_, times)| times)
            .sum()
    }

    pub fn equal(&self) -> usize {
        self.count(|verdict| matches!(verdict, Verdict::Equal | Verdict::EqualFromOutermost))
    }

    pub fn gdb_ends_early(&self) -> usize {
        self.count(|verdict| verdict == Verdict::GdbEndsEarly)
    }
}

/// Stacks shown in full.
const SHOWN: usize = 8;

/// The figures, and stacks that are not equal.
impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let mean = self.frames as f64 / self.stops.max(1) as f64;
        let (stops, distinct, equal) = (self.stops, self.distinct, self.equal());
        let outer = self.count(|verdict| verdict == Verdict::EqualFromOutermost);
        write!(
            formatter,
            "{stops} stacks ({distinct} distinct, {mean:.1} frames): {equal} equal, {outer} of them from an outer allocation function on"
        )?;
        let mut other: BTreeMap<Verdict, Vec<(&GdbStack, usize)>> = BTreeMap::new();
        for (stack, (verdict, times)) in &self.verdicts {
            if !matches!(verdict, Verdict::Equal | Verdict::EqualFromOutermost) {
                other.entry(*verdict).or_default().push((stack, *times));
            }
        }
        for (verdict, (stack, times)) in other
            .iter()
            .flat_map(|(verdict, stacks)| stacks.iter().take(2).map(move |stack| (verdict, stack)))
            .take(SHOWN)
        {
            let end = if stack.whole { "whole" } else { "not whole" };
            write!(formatter, "\n  {verdict:?}, {times} times, {end}:")?;
            for (module, address) in &stack.frames {
                let file = module.rsplit('/').next().unwrap_or_default();
                write!(formatter, " {file}+{address:#x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(addresses: &[u64]) -> Vec<Place> {
        addresses
            .iter()
            .map(|address| ("/lib".to_owned(), *address))
            .collect()
    }

    fn row(addresses: &[u64], truncated: bool) -> Row {
        let frame = |address: &u64| Frame {
            module: Some("/lib".to_owned()),
            address: Some(*address),
            ..Frame::default()
        };
        let mut frames: Vec<Frame> = addresses.iter().map(frame).collect();
        // An inlined function is no frame of its own.
        frames.insert(
            1,
            Frame {
                inlined: true,
                ..frames[1].clone()
            },
        );
        Row {
            pid: Some(7),
            frames: Frame::shared(frames),
            truncated,
            alloc_objects: 1,
            ..Row::default()
        }
    }

    fn seen() -> Seen {
        let rows = vec![row(&[1, 20, 30, 40], false), row(&[1, 21, 31], true)];
        let report = Report {
            rows,
            ..Report::default()
        };
        Seen::of(&report, 7)
    }

    fn verdict(addresses: &[u64], whole: bool) -> Verdict {
        let frames = places(addresses);
        seen().verdict(&GdbStack { frames, whole })
    }

    #[test]
    fn return_addresses_decide() {
        assert_eq!(
            verdict(&[5, 20, 30, 40], true),
            Verdict::Equal,
            "the first is the function itself"
        );
        assert_eq!(verdict(&[5, 20, 30, 41], true), Verdict::Differs { agreeing: 2 });
        assert_eq!(
            verdict(&[5, 20, 30], true),
            Verdict::Differs { agreeing: 2 },
            "too short"
        );
        assert_eq!(
            verdict(&[5, 20, 30, 40, 50], true),
            Verdict::Differs { agreeing: 3 }
        );
        assert_eq!(verdict(&[5, 99, 20, 30, 40], true), Verdict::EqualFromOutermost);
        assert_eq!(verdict(&[5, 20, 30], false), Verdict::GdbEndsEarly);
        assert_eq!(verdict(&[5, 20, 31], false), Verdict::Differs { agreeing: 1 });
        assert_eq!(verdict(&[5, 21, 31, 41], true), Verdict::EndsEarly);
    }

    #[test]
    fn each_stop_counts() {
        let stacks: Vec<GdbStack> = [[1, 20, 30, 40], [1, 20, 30, 40], [1, 20, 30, 41]]
            .iter()
            .map(|addresses| GdbStack {
                frames: places(addresses),
                whole: true,
            })
            .collect();
        let comparison = Comparison::new(&stacks, &seen());
        assert_eq!(
            (comparison.stops, comparison.distinct, comparison.equal()),
            (3, 2, 2)
        );
        assert_eq!((seen().objects, seen().whole_objects), (2, 1));
    }
}
