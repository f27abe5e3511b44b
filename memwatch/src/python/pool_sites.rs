//! Whose small objects: the blocks of pymalloc's pools, by the stack that took each pool into use.
//!
//! A pool's blocks are not told apart, so all of them count for that stack; what is newer than the watch in a pool that
//! is older is [shared out](super::filled). What was allocated and freed is what changed from one look to the next:
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
    /// Blocks in use that count for who opened it. Where nobody was seen to, the fewest that were ever there: others
    /// are newer.
    counted: u64,
}

impl Held {
    fn is_from_before(&self) -> bool {
        self.opened == BEFORE
    }

    /// As it is at its first look.
    fn first(pool: &Pool, opened: &HashMap<u64, OpenedPool>) -> Self {
        Self {
            opened: opened.get(&pool.address).copied().unwrap_or(BEFORE),
            pool: *pool,
            counted: pool.in_use,
        }
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
    sites: HashMap<u64, PoolSite>,
    /// Blocks in use, by size class and stack; none where none is left.
    parts: Parts,
}

/// A pool of which no stack is known was there before anybody looked.
const BEFORE: OpenedPool = OpenedPool {
    stack: STACK_BEFORE,
    born_ns: 0,
    asked: 0,
};

impl PoolSites {
    /// Takes in all pools in use, and who opened them by their addresses. Gives the sites that changed.
    pub fn update(
        &mut self,
        found: &[Pool],
        opened: &HashMap<u64, OpenedPool>,
    ) -> impl Iterator<Item = (u64, PoolSite)> {
        let mut changed = HashSet::new();
        let mut before = std::mem::take(&mut self.held);
        for pool in found.iter().filter(|pool| pool.in_use > 0) {
            let mut now = Held::first(pool, opened);
            let known = before.remove(&pool.address);
            // A size class never changes while a pool is in use.
            let same = |known: &Held| {
                let of = |held: &Held| (held.opened, held.pool.size_class, held.pool.block_bytes);
                of(known) == of(&now)
            };
            let had = match known {
                Some(known) if same(&known) => {
                    if now.is_from_before() {
                        now.counted = now.counted.min(known.counted);
                    }
                    known.counted
                }
                Some(known) => {
                    self.close(&known, &mut changed);
                    self.open(&now, &mut changed);
                    0
                }
                None => {
                    self.open(&now, &mut changed);
                    0
                }
            };
            if now.counted != had {
                changed.insert(now.opened.stack);
                self.change(&now, had, now.counted);
            }
            self.held.insert(pool.address, now);
        }
        for gone in before.values() {
            self.close(gone, &mut changed);
        }
        let newer = self.newer();
        for change in filled::share_out(&mut self.parts, &newer) {
            self.site(change.stack).fill(&change);
            changed.insert(change.stack);
        }
        changed
            .into_iter()
            .filter_map(|stack| Some((stack, *self.sites.get(&stack)?)))
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
        let own = self.parts.iter().filter(|((_, of), _)| *of == stack);
        own.map(|((class, _), part)| ClassBytes {
            class: *class,
            bytes: part.own.takes.saturating_add(part.filled.takes),
            filled: part.filled.takes,
        })
        .collect()
    }

    /// How the process uses its size classes.
    pub fn uses(&self) -> [ClassUse; CLASSES] {
        let mut uses = [ClassUse::default(); CLASSES];
        for ((class, stack), part) in &self.parts {
            if let Some(used) = uses.get_mut(usize::from(*class)) {
                let bytes = part.own.takes.saturating_add(part.filled.takes);
                used.bytes = used.bytes.saturating_add(bytes);
                used.openers += u32::from(*stack != STACK_BEFORE);
            }
        }
        uses
    }

    /// When each pool of a known stack was opened: stack, time, blocks and bytes that these were asked for with. What
    /// filled older pools did so before new ones were opened, so it is as old as the stack's first of that size.
    pub fn ages(&self) -> impl Iterator<Item = (u64, u64, u64, u64)> {
        let mut first: HashMap<(u8, u64), u64> = HashMap::new();
        let known: Vec<&Held> = self.held.values().filter(|held| !held.is_from_before()).collect();
        for held in &known {
            let part = (held.pool.size_class as u8, held.opened.stack);
            let born_ns = first.entry(part).or_insert(held.opened.born_ns);
            *born_ns = held.opened.born_ns.min(*born_ns);
        }
        let filled = first.into_iter().filter_map(|(part, born_ns)| {
            let filled = self.parts.get(&part)?.filled;
            (filled.objects > 0).then_some((part.1, born_ns, filled.objects, filled.asked))
        });
        let own = known.into_iter().map(|held| {
            let blocks = held.blocks(held.counted);
            (
                held.opened.stack,
                held.opened.born_ns,
                blocks.objects,
                blocks.asked,
            )
        });
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
        let part = self.parts.entry((class as u8, stack)).or_default();
        part.own.add(&to);
        part.own.take(&from);
    }

    fn open(&mut self, held: &Held, changed: &mut HashSet<u64>) {
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
mod tests {
    use super::*;
    use crate::python::pymalloc::block_bytes;

    const A: u64 = 0x7f00_0000_0000;
    const B: u64 = 0x7f00_0000_4000;

    fn pool(address: u64, size_class: usize, in_use: u64) -> Pool {
        Pool {
            address,
            size_class,
            block_bytes: block_bytes(size_class),
            in_use,
        }
    }

    fn opened(pools: &[(u64, u64, u64)]) -> HashMap<u64, OpenedPool> {
        pools
            .iter()
            .map(|&(address, stack, born_ns)| {
                let asked = 0;
                (
                    address,
                    OpenedPool {
                        stack,
                        born_ns,
                        asked,
                    },
                )
            })
            .collect()
    }

    fn inuse(sites: &PoolSites, stack: u64) -> (u64, u64, u64) {
        let site = &sites.sites[&stack];
        (site.totals.inuse_bytes(), site.totals.inuse_objects(), site.pools)
    }

    #[test]
    fn a_pools_blocks_count_for_the_stack_that_opened_it() {
        let mut sites = PoolSites::default();
        let by = opened(&[(A, 7, 100), (B, 8, 200)]);
        let mut changed: Vec<u64> = sites
            .update(&[pool(A, 3, 10), pool(B, 0, 5)], &by)
            .map(|(stack, _)| stack)
            .collect();
        changed.sort_unstable();
        assert_eq!(changed, [7, 8]);
        assert_eq!(inuse(&sites, 7), (640, 10, 1));
        assert_eq!(inuse(&sites, 8), (80, 5, 1));
        assert_eq!(sites.sites[&7].totals.sizes[size_bucket(64)], 10);
    }

    #[test]
    fn a_block_with_a_page_of_its_own_is_as_large_as_it_was_asked_for_with() {
        let mut sites = PoolSites::default();
        let page = |address, block_bytes: u64| Pool {
            address,
            size_class: classes::of_page(0, block_bytes).unwrap().into(),
            block_bytes,
            in_use: 1,
        };
        let mut by = opened(&[(A, 7, 100), (B, 7, 200)]);
        by.entry(A).or_default().asked = 200_704;
        // From another time.
        by.entry(B).or_default().asked = 100_000;
        sites
            .update(&[page(A, 256 << 10), page(B, 512 << 10)], &by)
            .for_each(drop);
        assert_eq!(inuse(&sites, 7), (200_704 + (512 << 10), 2, 2));
        let taken: u64 = sites.classes(7).iter().map(|class| class.bytes).sum();
        assert_eq!(taken, (256 << 10) + (512 << 10));
        // Another block at the same place.
        sites.update(&[page(A, 1 << 20)], &by).for_each(drop);
        assert_eq!(inuse(&sites, 7), (1 << 20, 1, 1));
    }

    #[test]
    fn blocks_are_as_large_as_the_first_was_asked_for_with() {
        let mut sites = PoolSites::default();
        let mut by = opened(&[(A, 7, 100), (B, 7, 200)]);
        let asked = |by: &mut HashMap<u64, OpenedPool>, at, asked| {
            by.entry(at).or_default().asked = asked;
        };
        asked(&mut by, A, 28);
        // No such size is in a pool of blocks of 48.
        asked(&mut by, B, 32);
        sites.update(&[pool(A, 1, 10), pool(B, 2, 5)], &by).for_each(drop);
        assert_eq!(inuse(&sites, 7), (280 + 240, 15, 2));
        assert_eq!(sites.sites[&7].totals.sizes[size_bucket(32)], 15);
        assert_eq!(sites.ages().map(|(_, _, _, bytes)| bytes).sum::<u64>(), 280 + 240);
        // What they take.
        let classes: u64 = sites.classes(7).iter().map(|class| class.bytes).sum();
        assert_eq!(classes, 320 + 240);
        sites.update(&[], &by).for_each(drop);
        assert_eq!(inuse(&sites, 7), (0, 0, 0));
    }

    #[test]
    fn pools_of_nobody_were_there_before() {
        let mut sites = PoolSites::default();
        let none = HashMap::new();
        sites
            .update(&[pool(A, 0, 10), pool(B, 1, 10)], &none)
            .for_each(drop);
        assert_eq!(inuse(&sites, STACK_BEFORE), (480, 20, 2));
        assert_eq!(sites.ages().count(), 0);
    }

    #[test]
    fn what_is_newer_in_old_pools_is_of_those_who_open_new_ones() {
        let mut sites = PoolSites::default();
        let none = HashMap::new();
        sites.update(&[pool(A, 3, 100)], &none).for_each(drop);
        // Some of it goes, and comes again; nobody has opened a pool.
        sites.update(&[pool(A, 3, 60)], &none).for_each(drop);
        sites.update(&[pool(A, 3, 90)], &none).for_each(drop);
        assert_eq!(inuse(&sites, STACK_BEFORE), (5760, 90, 1));
        // Now one has.
        let mut by = opened(&[(B, 7, 500)]);
        by.entry(B).or_default().asked = 50;
        let now = [pool(A, 3, 95), pool(B, 3, 10)];
        let changed: HashSet<u64> = sites.update(&now, &by).map(|(stack, _)| stack).collect();
        assert_eq!(changed, HashSet::from([7, STACK_BEFORE]));
        assert_eq!(inuse(&sites, STACK_BEFORE), (3840, 60, 1));
        assert_eq!(inuse(&sites, 7), (45 * 50, 45, 1));
        let ages: Vec<_> = sites.ages().collect();
        assert_eq!(ages, [(7, 500, 10, 500), (7, 500, 35, 1750)]);
        let class = ClassBytes {
            class: 3,
            bytes: 45 * 64,
            filled: 35 * 64,
        };
        assert_eq!(sites.classes(7), [class]);
        assert_eq!(sites.uses()[3].bytes, 105 * 64);
        // It lets go of all that it has.
        sites.update(&[pool(A, 3, 60)], &by).for_each(drop);
        assert_eq!((inuse(&sites, 7), inuse(&sites, STACK_BEFORE).1), ((0, 0, 0), 60));
    }

    #[test]
    fn what_did_not_change_is_not_told_again() {
        let mut sites = PoolSites::default();
        let by = opened(&[(A, 7, 100)]);
        assert_eq!(sites.update(&[pool(A, 3, 10)], &by).count(), 1);
        assert_eq!(sites.update(&[pool(A, 3, 10)], &by).count(), 0);
    }

    #[test]
    fn counts_only_grow_and_their_difference_is_what_is_in_use() {
        let mut sites = PoolSites::default();
        let by = opened(&[(A, 7, 100)]);
        let mut last = SiteTotals::ZERO;
        for in_use in [10, 30, 5, 5, 40, 0, 3] {
            sites.update(&[pool(A, 1, in_use)], &by).for_each(drop);
            let totals = sites.sites[&7].totals;
            assert!(totals.alloc_objects >= last.alloc_objects && totals.freed_objects >= last.freed_objects);
            assert_eq!(totals.inuse_objects(), in_use);
            assert_eq!(totals.inuse_bytes(), in_use * 32);
            last = totals;
        }
        assert_eq!((last.alloc_objects, last.freed_objects), (30 + 35 + 3, 25 + 40));
    }

    #[test]
    fn a_pool_used_again_goes_over_to_its_new_stack() {
        let mut sites = PoolSites::default();
        sites
            .update(&[pool(A, 1, 10)], &opened(&[(A, 7, 100)]))
            .for_each(drop);
        sites
            .update(&[pool(A, 2, 4)], &opened(&[(A, 8, 300)]))
            .for_each(drop);
        assert_eq!((inuse(&sites, 7), inuse(&sites, 8)), ((0, 0, 0), (192, 4, 1)));
        // By the same stack at another time.
        sites
            .update(&[pool(A, 2, 4)], &opened(&[(A, 8, 500)]))
            .for_each(drop);
        assert_eq!(inuse(&sites, 8), (192, 4, 1));
        assert_eq!(sites.sites[&8].totals.alloc_objects, 8);
    }

    #[test]
    fn pools_that_are_gone_hold_nothing() {
        let mut sites = PoolSites::default();
        let by = opened(&[(A, 7, 100), (B, 7, 100)]);
        sites
            .update(&[pool(A, 1, 10), pool(B, 1, 20)], &by)
            .for_each(drop);
        assert!(sites.holds(A));
        sites.update(&[pool(B, 1, 20)], &by).for_each(drop);
        assert_eq!(inuse(&sites, 7), (640, 20, 1));
        assert!(!sites.holds(A));
        sites.update(&[], &by).for_each(drop);
        assert_eq!(inuse(&sites, 7), (0, 0, 0));
    }
}
