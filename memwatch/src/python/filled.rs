//! Who filled the pools that were there before the watch.
//!
//! A pool of which no stack is known has room, and what is allocated there takes no pool into use. But what it has
//! above the fewest that it ever had is newer than the watch, for certain. Whose that is nobody saw. It is shared out
//! among the stacks that have taken pools into use for blocks of the same size, by what they have in these and at most
//! as much again; what is left stays with what was there before. A share is kept until such blocks go: lines that do
//! nothing must not seem to.

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
    /// Its share of what is newer in pools that nobody was seen to open; of what was there before, what nobody has.
    pub filled: Blocks,
    /// When it got that, on the average.
    pub filled_ns: u64,
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
    /// What it may have more.
    fn room(&self) -> u64 {
        self.own.objects.saturating_sub(self.filled.objects)
    }

    fn gets(&mut self, objects: u64, now_ns: u64) {
        let had = self.filled.objects;
        let all = had.saturating_add(objects);
        let later = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.saturating_add(part_of(later, objects, all));
        self.filled.add(&self.own.like(objects));
    }
}

/// `value * part / all`, or nothing of nothing.
fn part_of(value: u64, part: u64, all: u64) -> u64 {
    let product = u128::from(value) * u128::from(part);
    let share = product.checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Of one size class.
#[derive(Clone, Copy, Default)]
struct Sums {
    room: u64,
    filled: u64,
}

/// Shares out what is newer in old pools, by size class.
pub fn share_out(parts: &mut Parts, newer: &[Blocks; CLASSES], now_ns: u64) -> Vec<Change> {
    let mut before = [Sums::default(); CLASSES];
    for ((stack, class), part) in parts.iter() {
        if *stack != STACK_BEFORE && part.own.objects > 0 {
            let sums = &mut before[usize::from(*class)];
            sums.room = sums.room.saturating_add(part.room());
            sums.filled = sums.filled.saturating_add(part.filled.objects);
        }
    }
    let mut left = newer.map(|blocks| blocks.objects);
    let mut changes = Vec::new();
    for ((stack, class), part) in parts.iter_mut() {
        let at = usize::from(*class);
        let from = part.filled;
        if *stack == STACK_BEFORE {
            part.filled = newer[at].like(left[at]);
        } else {
            share(part, newer[at].objects, &before[at], now_ns);
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

/// A stack's share of `all` that is newer.
fn share(part: &mut Part, all: u64, before: &Sums, now_ns: u64) {
    if part.own.objects == 0 {
        part.filled = Blocks::default();
    } else if all < before.filled {
        let fewer = part_of(part.filled.objects, all, before.filled);
        part.filled = part.filled.like(fewer);
    } else {
        let unshared = (all - before.filled).min(before.room);
        part.gets(part_of(unshared, part.room(), before.room), now_ns);
    }
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
    fn openers_share_by_what_they_have_and_in_their_own_sizes() {
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
        // As many again, and at another time.
        share_out(&mut parts, &newer(3, blocks(80, 64, 64)), 300);
        assert_eq!(parts[&(7, 3)].filled, blocks(60, 60, 64));
        assert_eq!(parts[&(7, 3)].filled_ns, 200);
        // Half of them go.
        share_out(&mut parts, &newer(3, blocks(40, 64, 64)), 400);
        assert_eq!(parts[&(7, 3)].filled, blocks(30, 60, 64));
        assert_eq!(
            (parts[&(8, 3)].filled, parts[&(8, 3)].filled_ns),
            (blocks(10, 50, 64), 200)
        );
    }

    #[test]
    fn nobody_gets_more_than_he_has() {
        let mut parts = Parts::from([
            ((7, 3), part(blocks(5, 64, 64))),
            ((STACK_BEFORE, 3), part(blocks(1000, 64, 64))),
        ]);
        let all = newer(3, blocks(300_000, 64, 64));
        share_out(&mut parts, &all, 100);
        assert_eq!(parts[&(7, 3)].filled.objects, 5);
        assert_eq!(parts[&(STACK_BEFORE, 3)].filled.objects, 299_995);
        // When it has more.
        parts.get_mut(&(7, 3)).unwrap().own = blocks(1000, 64, 64);
        share_out(&mut parts, &all, 200);
        assert_eq!(parts[&(7, 3)].filled.objects, 1000);
        // When nothing.
        parts.get_mut(&(7, 3)).unwrap().own = Blocks::default();
        share_out(&mut parts, &all, 300);
        assert_eq!(parts[&(7, 3)].filled, Blocks::default());
        assert_eq!(parts[&(STACK_BEFORE, 3)].filled.objects, 300_000);
    }

    #[test]
    fn what_others_do_changes_nobodys_share() {
        let mut parts = Parts::from([
            ((7, 3), part(blocks(320, 64, 64))),
            ((8, 3), part(blocks(3200, 64, 64))),
            ((STACK_BEFORE, 3), Part::default()),
        ]);
        let all = newer(3, blocks(1000, 64, 64));
        share_out(&mut parts, &all, 100);
        let share = parts[&(7, 3)];
        for own in [2000, 320, 5000, 10, 9000] {
            parts.get_mut(&(8, 3)).unwrap().own = blocks(own, 64, 64);
            share_out(&mut parts, &all, 200);
            let rounded = parts[&(7, 3)].filled.objects - share.filled.objects;
            assert!(rounded <= 1, "{own}: {rounded}");
        }
    }

    fn small_blocks() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..50_u64, 0..100_000_u64]
    }

    proptest! {
        #[test]
        fn none_is_lost_and_nothing_changes_by_itself(
            looks in prop::collection::vec((prop::collection::vec(small_blocks(), 4), small_blocks()), 1..6),
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
                }
                prop_assert_eq!((shared.objects, shared.takes), (all[3].objects, all[3].takes));
                share_out(&mut parts, &all, 100);
                // What was left by rounding.
                let settled = share_out(&mut parts, &all, 100);
                prop_assert!(settled.iter().all(|change| change.from.objects.abs_diff(change.to.objects) <= 4));
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
