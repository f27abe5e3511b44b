//! What the numbers are worth: each thing that was lost, in one line.

use std::collections::BTreeMap;

use memwatch_common::Counter;
use memwatch_common::counter::{COUNTERS, Effect};

use super::report::{Health, InlinedNote, Limit, Overhead, ProbeNote, Probes};

/// Of the places at which CPython's allocator was put into its callers, one in so many may have no probe before that is
/// told as a loss. Not all places that are found hand anything out: some print statistics, some only want large blocks.
const UNPROBED: u64 = 20;

/// Something that the kernel side has no counter for: a child found late, a library whose probes came late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    pub effect: Effect,
}

/// `complete` means that the totals are exact. Stacks that are not whole do not change totals; they are reasons
/// all the same.
pub fn health(
    counters: &[u64; COUNTERS],
    undecoded: u64,
    limits: BTreeMap<String, Limit>,
    probes: Probes,
    overhead: Overhead,
    notices: &[Notice],
) -> Health {
    let mut losses: Vec<(Effect, String)> = Vec::new();
    for counter in Counter::ALL {
        let count = counters[*counter as usize];
        if count > 0 && counter.effect() != Effect::Work {
            losses.push((counter.effect(), format!("{}: {count}", counter.meaning())));
        }
    }
    if undecoded > 0 {
        let text =
            format!("entries from the kernel side that this memwatch does not understand: {undecoded}");
        losses.push((Effect::Totals, text));
    }
    losses.extend(
        probes
            .failed
            .iter()
            .map(|note| (Effect::Totals, failed_probe(note))),
    );
    let unprobed = probes.inlined.iter().filter_map(unprobed_places);
    losses.extend(unprobed.map(|text| (Effect::Totals, text)));
    losses.extend(notices.iter().map(|notice| (notice.effect, notice.text.clone())));
    losses.retain(|(effect, _)| *effect != Effect::Work);
    Health {
        complete: losses.iter().all(|(effect, _)| *effect != Effect::Totals),
        reasons: ordered(losses),
        counters: Counter::ALL
            .iter()
            .map(|c| (c.name().to_owned(), counters[*c as usize]))
            .collect(),
        probes,
        overhead,
        limits,
    }
}

/// What makes totals wrong comes before what makes stacks short.
fn ordered(losses: Vec<(Effect, String)>) -> Vec<String> {
    let (totals, stacks): (Vec<_>, Vec<_>) = losses
        .into_iter()
        .partition(|(effect, _)| *effect == Effect::Totals);
    totals.into_iter().chain(stacks).map(|(_, text)| text).collect()
}

fn failed_probe(note: &ProbeNote) -> String {
    format!(
        "calls of {} in {} are not seen: {}",
        note.symbol, note.module, note.reason
    )
}

/// What is not counted where only a part of the places has a probe.
fn unprobed_places(note: &InlinedNote) -> Option<String> {
    let unprobed = note.found.saturating_sub(note.probed);
    (unprobed.saturating_mul(UNPROBED) > note.found).then(|| {
        format!(
            "{unprobed} of {} places at which {} hands out small objects are not probed: what is allocated there is not counted",
            note.found, note.module
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lost: &[(Counter, u64)], probes: Probes, notices: &[Notice]) -> Health {
        let mut counters = [0; COUNTERS];
        for (counter, count) in lost {
            counters[*counter as usize] = *count;
        }
        health(
            &counters,
            0,
            BTreeMap::new(),
            probes,
            Overhead::default(),
            notices,
        )
    }

    #[test]
    fn work_is_no_loss() {
        let health = check(
            &[(Counter::Hits, 1000), (Counter::RingFull, 3)],
            Probes::default(),
            &[],
        );
        assert!(health.complete && health.reasons.is_empty());
        assert_eq!((health.counters["hits"], health.counters["live_full"]), (1000, 0));
        assert_eq!(health.counters.len(), COUNTERS);
    }

    #[test]
    fn short_stacks_are_told_but_totals_stay_exact() {
        let health = check(&[(Counter::StackTruncated, 5)], Probes::default(), &[]);
        assert!(health.complete);
        assert_eq!(
            health.reasons,
            ["stacks cut at the frame limit (raise --max-depth): 5"]
        );
    }

    #[test]
    fn every_loss_of_totals_makes_the_numbers_incomplete() {
        for counter in Counter::ALL {
            let health = check(&[(*counter, 1)], Probes::default(), &[]);
            assert_eq!(health.complete, counter.effect() != Effect::Totals, "{counter:?}");
            assert_eq!(
                health.reasons.is_empty(),
                counter.effect() == Effect::Work,
                "{counter:?}"
            );
        }
    }

    #[test]
    fn failed_probes_and_notices_are_reasons_and_the_worse_come_first() {
        let note = ProbeNote {
            symbol: "free".into(),
            module: "/lib/libc.so.6".into(),
            reason: "busy".into(),
        };
        let probes = Probes {
            failed: vec![note.clone()],
            skipped: vec![note],
            ..Probes::default()
        };
        let notices = [
            Notice {
                text: "stacks of pid 7 have no names".into(),
                effect: Effect::Stacks,
            },
            Notice {
                text: "pid 8 was watched late".into(),
                effect: Effect::Totals,
            },
        ];
        let health = check(&[(Counter::StackBroken, 1)], probes, &notices);
        assert!(!health.complete);
        assert_eq!(
            health.reasons,
            [
                "calls of free in /lib/libc.so.6 are not seen: busy",
                "pid 8 was watched late",
                "stacks whose chain of frames broke before the thread's start: 1",
                "stacks of pid 7 have no names",
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_a_loss() {
        let health = health(
            &[0; COUNTERS],
            2,
            BTreeMap::new(),
            Probes::default(),
            Overhead::default(),
            &[],
        );
        assert!(!health.complete && health.reasons[0].ends_with(": 2"));
    }

    #[test]
    fn inlined_places_without_a_probe_are_a_loss_when_they_are_many() {
        let of = |found, probed| {
            let note = InlinedNote {
                module: "libpython3.13.so.1.0".into(),
                found,
                probed,
            };
            let probes = Probes {
                inlined: vec![note],
                ..Probes::default()
            };
            check(&[], probes, &[])
        };
        let few = of(200, 190);
        assert!(few.complete && few.reasons.is_empty(), "{:?}", few.reasons);
        let many = of(133, 89);
        assert!(!many.complete);
        assert_eq!(
            many.reasons,
            [
                "44 of 133 places at which libpython3.13.so.1.0 hands out small objects are not probed: what is allocated there is not counted"
            ]
        );
        assert!(!of(200, 189).complete && !of(1, 0).complete);
        assert!(of(0, 0).complete && of(3, 7).complete);
    }
}
