//! Whose small objects: the blocks of pymalloc's pools, by the stack that took each pool into use.
//!
//! A pool's blocks are not told apart, so all of them count for that stack; what is newer than the watch in a pool that
//! is older is shared out (`filled`). What was allocated and freed is what changed from one look to the next:
//! blocks that came and went in between are not seen.

use std::collections::{HashMap, HashSet};

use memwatch_common::{SiteTotals, hist::size_bucket, python::OpenedPool, stack::STACK_BEFORE};

use super::classes::{self, CLASSES};
use super::filled::{self, Blocks, Change, Parts};
use super::pymalloc::Pool;
use crate::collect::sample::{ClassBytes, ClassUse};

/// A stack's small objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSite {
    pub totals: SiteTotals,
    /// Pools that are in use now.
    pub pools: u64,
}

/// A pool as it was at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    opened: OpenedPool,
    pool: Pool,
    /// Where nobody was seen to open it: the most blocks that can be from before. So many were there at two looks, as
    /// one may have read what was changing.
    least: u64,
    /// Blocks in use that count for who opened it; where nobody was seen to, those that can be from before.
    counted: u64,
}

impl Held {
    fn is_from_before(&self) -> bool {
        self.opened == BEFORE
    }

    fn count(&mut self) {
        let in_use = self.pool.in_use;
        self.counted = if self.is_from_before() {
            self.least.min(in_use)
        } else {
            in_use
        };
    }

    fn blocks(&self, objects: u64) -> Blocks {
        Blocks {
            objects,
            asked: objects.saturating_mul(self.asked()),
            takes: objects.saturating_mul(self.pool.block_bytes),
        }
    }

    /// What each block was asked for with: what the first one was, or what a block takes where that is not known.
    fn asked(&self) -> u64 {
        let takes = self.pool.block_bytes;
        let asked = self.opened.asked;
        if classes::fits(self.pool.size_class, takes, asked) {
            asked
        } else {
            takes
        }
    }
}

/// The pools of one process, and what is known of its stacks by them.
#[derive(Debug, Default)]
pub struct PoolSites {
    held: HashMap<u64, Held>,
    /// Pools from before that were not found in use at the last look, or could not be read.
    missed: HashMap<u64, Held>,
    looked: bool,
    sites: HashMap<u64, PoolSite>,
    /// Blocks in use; none where none is left.
    parts: Parts,
}

/// A pool of which no stack is known was there before anybody looked.
const BEFORE: OpenedPool = OpenedPool {
    stack: STACK_BEFORE,
    born_ns: 0,
    asked: 0,
};

impl PoolSites {
    /// Takes in all pools in use, and who opened them by their addresses, as they are `now_ns`. Gives the sites that changed.
    pub fn update(
        &mut self,
        found: &[Pool],
        opened: &HashMap<u64, OpenedPool>,
        now_ns: u64,
    ) -> impl Iterator<Item = (u64, PoolSite)> {
        let mut changed = HashSet::new();
        let mut before = std::mem::take(&mut self.held);
        for pool in found.iter().filter(|pool| pool.in_use > 0) {
            let mut now = self.first(pool, opened);
            let known = before.remove(&pool.address);
            // A size class never changes while a pool is in use.
            let same = |known: &Held| {
                let of = |held: &Held| (held.opened, held.pool.size_class, held.pool.block_bytes);
                of(known) == of(&now)
            };
            let had = if let Some(known) = known.filter(same) {
                now.least = known.least.min(known.pool.in_use.max(pool.in_use));
                now.count();
                known.counted
            } else {
                if let Some(known) = known {
                    self.close(&known, &mut changed);
                }
                self.open(&now, &mut changed);
                0
            };
            if now.counted != had {
                changed.insert(now.opened.stack);
                self.change(&now, had, now.counted);
            }
            self.held.insert(pool.address, now);
        }
        self.close_all(&before, found, &mut changed);
        let newer = self.newer();
        for change in filled::share_out(&mut self.parts, &newer, now_ns) {
            self.site(change.stack).fill(&change);
            changed.insert(change.stack);
        }
        self.looked = true;
        changed
            .into_iter()
            .filter_map(|stack| Some((stack, *self.sites.get(&stack)?)))
    }

    /// A pool as it is when it was not there at the last look.
    fn first(&self, pool: &Pool, opened: &HashMap<u64, OpenedPool>) -> Held {
        let missed = self.missed.get(&pool.address);
        let missed = missed.filter(|held| held.pool.size_class == pool.size_class);
        let least = match missed {
            Some(held) => held.least,
            // It was empty, or nobody could note who opened it.
            None if self.looked => 0,
            None => pool.in_use,
        };
        let mut held = Held {
            opened: opened.get(&pool.address).copied().unwrap_or(BEFORE),
            pool: *pool,
            least,
            counted: 0,
        };
        held.count();
        held
    }

    fn close_all(&mut self, gone: &HashMap<u64, Held>, found: &[Pool], changed: &mut HashSet<u64>) {
        for held in gone.values() {
            self.close(held, changed);
        }
        let old = gone
            .iter()
            .filter(|(_, held)| held.is_from_before() && held.least > 0);
        self.missed.extend(old.map(|(address, held)| (*address, *held)));
        // What is in use is held, and mimalloc's empty pages have none of their old blocks left.
        for pool in found {
            self.missed.remove(&pool.address);
        }
    }

    /// What has been allocated since the watch began in pools that are older, by size class.
    fn newer(&self) -> [Blocks; CLASSES] {
        let mut newer = [Blocks::default(); CLASSES];
        for held in self.held.values().filter(|held| held.is_from_before()) {
            if let Some(sum) = newer.get_mut(held.pool.size_class) {
                sum.add(&held.blocks(held.pool.in_use.saturating_sub(held.counted)));
            }
        }
        newer
    }

    /// What a stack has of each size class that it ever opened a pool for.
    pub fn classes(&self, stack: u64) -> Vec<ClassBytes> {
        let own = self.parts.range((stack, 0)..=(stack, u8::MAX));
        own.map(|((_, class), part)| ClassBytes {
            class: *class,
            bytes: part.own.takes.saturating_add(part.filled.takes),
            filled: part.filled.takes,
        })
        .collect()
    }

    /// How the process uses its size classes.
    pub fn uses(&self) -> [ClassUse; CLASSES] {
        let mut uses = [ClassUse::default(); CLASSES];
        for ((stack, class), part) in &self.parts {
            if let Some(used) = uses.get_mut(usize::from(*class)) {
                let bytes = part.own.takes.saturating_add(part.filled.takes);
                used.bytes = used.bytes.saturating_add(bytes);
                used.openers += u32::from(*stack != STACK_BEFORE);
            }
        }
        uses
    }

    /// When blocks of known stacks came to be: stack, time, blocks and bytes that these were asked for with. Those in its
    /// own pools are as old as the pools, at most.
    pub fn ages(&self) -> impl Iterator<Item = (u64, u64, u64, u64)> {
        let pools = self.held.values().filter(|held| !held.is_from_before());
        let own = pools.map(|held| {
            let blocks = held.blocks(held.counted);
            (
                held.opened.stack,
                held.opened.born_ns,
                blocks.objects,
                blocks.asked,
            )
        });
        let parts = self
            .parts
            .iter()
            .filter(|((stack, _), part)| *stack != STACK_BEFORE && part.filled.objects > 0);
        let filled =
            parts.map(|((stack, _), part)| (*stack, part.filled_ns, part.filled.objects, part.filled.asked));
        own.chain(filled)
    }

    pub fn holds(&self, address: u64) -> bool {
        self.held.contains_key(&address)
    }

    fn site(&mut self, stack: u64) -> &mut PoolSite {
        self.sites.entry(stack).or_insert(PoolSite {
            totals: SiteTotals::ZERO,
            pools: 0,
        })
    }

    fn change(&mut self, held: &Held, from: u64, to: u64) {
        let (from, to) = (held.blocks(from), held.blocks(to));
        let (stack, class) = (held.opened.stack, held.pool.size_class);
        self.site(stack).change(&from, &to, held.pool.block_bytes);
        let part = self.parts.entry((stack, class as u8)).or_default();
        part.own.add(&to);
        part.own.take(&from);
    }

    fn open(&mut self, held: &Held, changed: &mut HashSet<u64>) {
        let part = (held.opened.stack, held.pool.size_class as u8);
        self.parts.entry(part).or_default();
        self.site(held.opened.stack).pools += 1;
        changed.insert(held.opened.stack);
    }

    fn close(&mut self, held: &Held, changed: &mut HashSet<u64>) {
        self.site(held.opened.stack).pools -= 1;
        self.change(held, held.counted, 0);
        changed.insert(held.opened.stack);
    }
}

impl PoolSite {
    fn change(&mut self, from: &Blocks, to: &Blocks, takes: u64) {
        let totals = &mut self.totals;
        // What a process says of itself may be anything.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut totals.alloc_objects, to.objects.saturating_sub(from.objects));
        add(&mut totals.alloc_bytes, to.asked.saturating_sub(from.asked));
        add(&mut totals.freed_objects, from.objects.saturating_sub(to.objects));
        add(&mut totals.freed_bytes, from.asked.saturating_sub(to.asked));
        // As what it is counted in is found by its size class.
        let more = to.objects.saturating_sub(from.objects);
        add(&mut totals.sizes[size_bucket(takes)], more);
    }

    fn fill(&mut self, change: &Change) {
        let of = [&change.from, &change.to]
            .into_iter()
            .find(|blocks| blocks.objects > 0);
        let takes = of.map_or(0, |blocks| blocks.takes / blocks.objects);
        self.change(&change.from, &change.to, takes);
    }
}

#[cfg(test)]
#[path = "pool_sites_tests.rs"]
mod tests;
