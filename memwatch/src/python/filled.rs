//! Who filled the pools that were there before the watch.
//!
//! A pool of which no stack is known has room, and what is allocated there takes no pool into use. But what it has
//! above the least that it ever had is newer than the watch, for certain. Whose that is nobody saw; it is shared out among the
//! stacks that have taken pools into use for blocks of the same size, by what they have in these.

use std::collections::BTreeMap;

use memwatch_common::stack::STACK_BEFORE;

use super::classes::CLASSES;

/// Blocks of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    pub objects: u64,
    /// That they were asked for with, as far as that is known.
    pub asked: u64,
    /// That they take.
    pub takes: u64,
}

/// What one stack has of a size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// In pools that it opened; of what was there before, the least that was ever seen there.
    pub own: Blocks,
    /// Its share of what is newer in pools that nobody was seen to open.
    pub filled: Blocks,
}

/// By size class and stack.
pub type Parts = BTreeMap<(u8, u64), Part>;

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
        let share = |bytes: u64| {
            let bytes = u128::from(bytes) * u128::from(objects);
            let share = bytes.checked_div(u128::from(self.objects)).unwrap_or(0);
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        Self {
            objects,
            asked: share(self.asked),
            takes: share(self.takes),
        }
    }
}

/// Shares out what is newer in old pools, by size class. What nobody can have, for want of a stack that opens pools of
/// that size, stays with what was there before.
pub fn share_out(parts: &mut Parts, newer: &[Blocks; CLASSES]) -> Vec<Change> {
    let mut opened = [0_u64; CLASSES];
    for ((class, stack), part) in parts.iter() {
        if *stack != STACK_BEFORE {
            let sum = &mut opened[usize::from(*class)];
            *sum = sum.saturating_add(part.own.objects);
        }
    }
    let mut left = *newer;
    let mut changes = Vec::new();
    // STACK_BEFORE is the last of its class: it has what the others leave.
    for ((class, stack), part) in parts.iter_mut() {
        let at = usize::from(*class);
        let to = if *stack == STACK_BEFORE {
            left[at]
        } else {
            let share = u128::from(newer[at].objects) * u128::from(part.own.objects);
            let share = share.checked_div(u128::from(opened[at])).unwrap_or(0) as u64;
            left[at].objects = left[at].objects.saturating_sub(share);
            left[at] = newer[at].like(left[at].objects);
            part.own.like(share)
        };
        if to != part.filled {
            let from = std::mem::replace(&mut part.filled, to);
            let (class, stack) = (*class, *stack);
            changes.push(Change {
                class,
                stack,
                from,
                to,
            });
        }
    }
    changes
}

const _: () = assert!(STACK_BEFORE == u64::MAX);

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
            filled: Blocks::default(),
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
            ((3, 7), part(blocks(300, 60, 64))),
            ((3, 8), part(blocks(100, 50, 64))),
            ((3, STACK_BEFORE), part(blocks(1000, 64, 64))),
            ((4, 9), part(blocks(5000, 80, 80))),
        ]);
        let changes = share_out(&mut parts, &newer(3, blocks(40, 64, 64)));
        assert_eq!(parts[&(3, 7)].filled, blocks(30, 60, 64));
        assert_eq!(parts[&(3, 8)].filled, blocks(10, 50, 64));
        assert_eq!(parts[&(3, STACK_BEFORE)].filled, Blocks::default());
        assert_eq!(parts[&(4, 9)].filled, Blocks::default());
        assert_eq!(changes.len(), 2);
        // The same again is no change.
        assert_eq!(share_out(&mut parts, &newer(3, blocks(40, 64, 64))), []);
        // One has let go of all.
        parts.get_mut(&(3, 7)).unwrap().own = Blocks::default();
        share_out(&mut parts, &newer(3, blocks(40, 64, 64)));
        assert_eq!(parts[&(3, 7)].filled, Blocks::default());
        assert_eq!(parts[&(3, 8)].filled, blocks(40, 50, 64));
    }

    #[test]
    fn what_nobody_can_have_stays_with_what_was_there() {
        let mut parts = Parts::from([((3, STACK_BEFORE), part(blocks(1000, 64, 64)))]);
        let changes = share_out(&mut parts, &newer(3, blocks(40, 64, 64)));
        assert_eq!(parts[&(3, STACK_BEFORE)].filled, blocks(40, 64, 64));
        assert_eq!(
            (changes[0].stack, changes[0].from.objects, changes[0].to.objects),
            (STACK_BEFORE, 0, 40)
        );
    }

    proptest! {
        #[test]
        fn none_is_lost(owns in prop::collection::vec(any::<u64>(), 0..6), all in any::<u64>()) {
            let mut parts: Parts = owns
                .iter()
                .enumerate()
                .map(|(stack, objects)| {
                    let own = Blocks { objects: *objects, asked: *objects, takes: u64::MAX };
                    ((3, stack as u64), part(own))
                })
                .collect();
            parts.insert((3, STACK_BEFORE), Part::default());
            let all = Blocks { objects: all, asked: all, takes: all };
            share_out(&mut parts, &newer(3, all));
            let shared: u128 = parts.values().map(|part| u128::from(part.filled.objects)).sum();
            // Sums that no process has are cut off.
            let opened: u128 = owns.iter().map(|own| u128::from(*own)).sum();
            if opened <= u128::from(u64::MAX) {
                prop_assert_eq!(shared, u128::from(all.objects));
            }
        }
    }
}
