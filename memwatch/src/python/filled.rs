//! Who filled the pools that were there before the watch.
//!
//! A pool of which no stack is known has room, and what is allocated there takes no pool into use. But what it has
//! above the fewest that it ever had is newer than the watch, for certain. Whose that is nobody saw. It is shared out
//! among the stacks that have taken pools into use for blocks of the same size, by what they took when it was there to
//! be shared; what is left stays with what was there before. Nobody gets more than he has himself, and nobody who does
//! nothing gets anything by what others do.

use std::collections::BTreeMap;

use memwatch_common::stack::STACK_BEFORE;

use super::classes::CLASSES;

/// Blocks of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    pub objects: u64,
    /// Bytes that they were asked for with, as far as that is known.
    pub asked: u64,
    /// Bytes that they take.
    pub takes: u64,
}

/// What one stack has of a size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// In pools that it opened; of what was there before, the fewest that were ever seen.
    pub own: Blocks,
    /// Of what is newer in pools that nobody was seen to open; of what was there before, what nobody has.
    pub filled: Blocks,
    /// When it got that, on the average.
    pub filled_ns: u64,
    /// Blocks that are its share when all that was shared out is there.
    share: u64,
    /// Of its own so many have had their share.
    seen: u64,
}

/// By stack and size class. What was there before comes last.
pub type Parts = BTreeMap<(u64, u8), Part>;

const _: () = assert!(STACK_BEFORE == u64::MAX);

/// A part of which `filled` is another now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub class: u8,
    pub stack: u64,
    pub from: Blocks,
    pub to: Blocks,
}

impl Blocks {
    pub fn add(&mut self, other: &Self) {
        self.objects = self.objects.saturating_add(other.objects);
        self.asked = self.asked.saturating_add(other.asked);
        self.takes = self.takes.saturating_add(other.takes);
    }

    pub fn take(&mut self, other: &Self) {
        self.objects = self.objects.saturating_sub(other.objects);
        self.asked = self.asked.saturating_sub(other.asked);
        self.takes = self.takes.saturating_sub(other.takes);
    }

    /// So many blocks like these.
    fn like(&self, objects: u64) -> Self {
        let share = |bytes| part_of(bytes, objects, self.objects);
        Self {
            objects,
            asked: share(self.asked),
            takes: share(self.takes),
        }
    }
}

impl Part {
    /// What it has taken since others were given their shares.
    fn wants(&self) -> u64 {
        self.own.objects.saturating_sub(self.seen)
    }

    fn begin(&mut self) {
        if self.own.objects == 0 {
            (self.share, self.seen) = (0, 0);
        }
    }

    fn gets(&mut self, objects: u64) {
        self.share = self.share.saturating_add(objects);
        self.seen = self.seen.max(self.own.objects);
    }

    fn fill(&mut self, objects: u64, now_ns: u64) {
        let had = self.filled.objects;
        if objects <= had {
            self.filled = self.filled.like(objects);
            return;
        }
        let later = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self
            .filled_ns
            .saturating_add(part_of(later, objects - had, objects));
        self.filled.add(&self.own.like(objects - had));
    }
}

/// `value * part / all`, or nothing of nothing.
fn part_of(value: u64, part: u64, all: u64) -> u64 {
    let product = u128::from(value) * u128::from(part);
    let share = product.checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Of all stacks, in one size class.
#[derive(Clone, Copy, Default)]
struct Sums {
    wanted: u64,
    shares: u64,
}

impl Sums {
    fn add(&mut self, part: &Part) {
        self.wanted = self.wanted.saturating_add(part.wants());
        self.shares = self.shares.saturating_add(part.share);
    }
}

fn sums(parts: &Parts) -> [Sums; CLASSES] {
    let mut sums = [Sums::default(); CLASSES];
    for ((stack, class), part) in parts {
        if *stack != STACK_BEFORE {
            sums[usize::from(*class)].add(part);
        }
    }
    sums
}

/// Shares out what is newer in old pools, by size class.
pub fn share_out(parts: &mut Parts, newer: &[Blocks; CLASSES], now_ns: u64) -> Vec<Change> {
    parts.values_mut().for_each(Part::begin);
    let before = sums(parts);
    for ((stack, class), part) in parts.iter_mut() {
        let (all, sums) = (newer[usize::from(*class)].objects, &before[usize::from(*class)]);
        if *stack != STACK_BEFORE {
            let unshared = all.saturating_sub(sums.shares).min(sums.wanted);
            part.gets(part_of(unshared, part.wants(), sums.wanted));
        }
    }
    let shared = sums(parts);
    let mut left = newer.map(|blocks| blocks.objects);
    let mut changes = Vec::new();
    for ((stack, class), part) in parts.iter_mut() {
        let at = usize::from(*class);
        let from = part.filled;
        if *stack == STACK_BEFORE {
            part.filled = newer[at].like(left[at]);
        } else {
            let shares = shared[at].shares;
            // Where not all that was shared out is there any more, everybody has less.
            let there = part_of(part.share, newer[at].objects.min(shares), shares);
            part.fill(there.min(part.own.objects), now_ns);
            left[at] = left[at].saturating_sub(part.filled.objects);
        }
        if part.filled != from {
            changes.push(Change {
                class: *class,
                stack: *stack,
                from,
                to: part.filled,
            });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(objects: u64, asked: u64, takes: u64) -> Blocks {
        Blocks {
            objects,
            asked: objects * asked,
            takes: objects * takes,
        }
    }

    fn part(own: Blocks) -> Part {
        Part {
            own,
            ..Part::default()
        }
    }

    fn newer(class: usize, blocks: Blocks) -> [Blocks; CLASSES] {
        let mut newer = [Blocks::default(); CLASSES];
        newer[class] = blocks;
        newer
    }

    #[test]
    fn openers_share_by_what_they_take_and_in_their_own_sizes() {
        let mut parts = Parts::from([
            ((7, 3), part(blocks(300, 60, 64))),
            ((8, 3), part(blocks(100, 50, 64))),
            ((9, 4), part(blocks(5000, 80, 80))),
            ((STACK_BEFORE, 3), part(blocks(1000, 64, 64))),
        ]);
        let changes = share_out(&mut parts, &newer(3, blocks(40, 64, 64)), 100);
        assert_eq!(parts[&(7, 3)].filled, blocks(30, 60, 64));
        assert_eq!(parts[&(8, 3)].filled, blocks(10, 50, 64));
        assert_eq!(parts[&(9, 4)].filled, Blocks::default());
        assert_eq!(parts[&(STACK_BEFORE, 3)].filled, Blocks::default());
        assert_eq!(changes.len(), 2);
        // As many again, at another time, when only one of them has taken more.
        parts.get_mut(&(7, 3)).unwrap().own = blocks(400, 60, 64);
        share_out(&mut parts, &newer(3, blocks(70, 64, 64)), 300);
        assert_eq!(
            (parts[&(7, 3)].filled, parts[&(7, 3)].filled_ns),
            (blocks(60, 60, 64), 200)
        );
        assert_eq!(parts[&(8, 3)].filled, blocks(10, 50, 64));
        // Half of them go, and come again.
        share_out(&mut parts, &newer(3, blocks(35, 64, 64)), 400);
        assert_eq!(parts[&(7, 3)].filled, blocks(30, 60, 64));
        assert_eq!(parts[&(8, 3)].filled, blocks(5, 50, 64));
        share_out(&mut parts, &newer(3, blocks(70, 64, 64)), 200);
        assert_eq!(parts[&(7, 3)].filled, blocks(60, 60, 64));
    }

    #[test]
    fn nobody_gets_more_than_he_has() {
        let mut parts = Parts::from([
            ((7, 3), part(blocks(5, 64, 64))),
            ((STACK_BEFORE, 3), part(blocks(1000, 64, 64))),
        ]);
        let all = newer(3, blocks(300_000, 64, 64));
        let mut with = |own| {
            parts.get_mut(&(7, 3)).unwrap().own = blocks(own, 64, 64);
            share_out(&mut parts, &all, 100);
            let of = |stack| parts[&(stack, 3)].filled.objects;
            (of(7), of(STACK_BEFORE))
        };
        assert_eq!(with(5), (5, 299_995));
        assert_eq!(with(1000), (1000, 299_000));
        assert_eq!(with(10), (10, 299_990));
        assert_eq!(with(900), (900, 299_100));
        assert_eq!(with(0), (0, 300_000));
        assert_eq!(with(7), (7, 299_993));
    }

    fn few_or_many() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..50_u64, 0..100_000_u64, 300_000..400_000_u64]
    }

    proptest! {
        #[test]
        fn none_is_lost(
            looks in prop::collection::vec((prop::collection::vec(few_or_many(), 4), few_or_many()), 1..6),
        ) {
            let mut parts = Parts::from([((STACK_BEFORE, 3), Part::default())]);
            for (owns, all) in looks {
                for (stack, own) in owns.iter().enumerate() {
                    parts.entry((stack as u64, 3)).or_default().own = blocks(*own, 60, 64);
                }
                let all = newer(3, blocks(all, 64, 64));
                share_out(&mut parts, &all, 100);
                let mut shared = Blocks::default();
                for part in parts.values() {
                    shared.add(&part.filled);
                    prop_assert!(part.filled.objects <= part.own.objects || part.own.objects == 0);
                }
                prop_assert_eq!((shared.objects, shared.takes), (all[3].objects, all[3].takes));
                prop_assert_eq!(share_out(&mut parts, &all, 100), []);
            }
        }

        #[test]
        fn who_does_nothing_gets_nothing_more(
            before in few_or_many(),
            others in prop::collection::vec((few_or_many(), few_or_many()), 1..20),
        ) {
            let mut parts = Parts::from([
                ((7, 3), part(blocks(1000, 64, 64))),
                ((8, 3), Part::default()),
                ((STACK_BEFORE, 3), Part::default()),
            ]);
            share_out(&mut parts, &newer(3, blocks(before, 64, 64)), 100);
            let most = parts[&(7, 3)].filled.objects;
            for (own, all) in others {
                parts.get_mut(&(8, 3)).unwrap().own = blocks(own, 64, 64);
                share_out(&mut parts, &newer(3, blocks(all, 64, 64)), 200);
                prop_assert!(parts[&(7, 3)].filled.objects <= most);
            }
        }

        #[test]
        fn no_number_overflows(owns in prop::collection::vec(any::<u64>(), 0..6), all in any::<u64>()) {
            let blocks = |objects| Blocks { objects, asked: u64::MAX, takes: u64::MAX };
            let mut parts: Parts = owns.iter().enumerate().map(|(stack, own)| ((stack as u64, 3), part(blocks(*own)))).collect();
            parts.insert((STACK_BEFORE, 3), Part::default());
            for all in [all, all / 2, u64::MAX] {
                share_out(&mut parts, &newer(3, blocks(all)), u64::MAX);
            }
        }
    }
}
