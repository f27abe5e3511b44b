use super::*;
use crate::python::pymalloc::block_bytes;

const A: u64 = 0x7f00_0000_0000;
const B: u64 = 0x7f00_0000_4000;
const NOW: u64 = 1_000;

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
        .update(&[pool(A, 3, 10), pool(B, 0, 5)], &by, NOW)
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
        .update(&[page(A, 256 << 10), page(B, 512 << 10)], &by, NOW)
        .for_each(drop);
    assert_eq!(inuse(&sites, 7), (200_704 + (512 << 10), 2, 2));
    let taken: u64 = sites.classes(7).iter().map(|class| class.bytes).sum();
    assert_eq!(taken, (256 << 10) + (512 << 10));
    // Another block at the same place.
    sites.update(&[page(A, 1 << 20)], &by, NOW).for_each(drop);
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
    sites
        .update(&[pool(A, 1, 10), pool(B, 2, 5)], &by, NOW)
        .for_each(drop);
    assert_eq!(inuse(&sites, 7), (280 + 240, 15, 2));
    assert_eq!(sites.sites[&7].totals.sizes[size_bucket(32)], 15);
    assert_eq!(sites.ages().map(|(_, _, _, bytes)| bytes).sum::<u64>(), 280 + 240);
    // What they take.
    let classes: u64 = sites.classes(7).iter().map(|class| class.bytes).sum();
    assert_eq!(classes, 320 + 240);
    sites.update(&[], &by, NOW).for_each(drop);
    assert_eq!(inuse(&sites, 7), (0, 0, 0));
}

#[test]
fn pools_of_nobody_were_there_before() {
    let mut sites = PoolSites::default();
    let none = HashMap::new();
    sites
        .update(&[pool(A, 0, 10), pool(B, 1, 10)], &none, NOW)
        .for_each(drop);
    assert_eq!(inuse(&sites, STACK_BEFORE), (480, 20, 2));
    assert_eq!(sites.ages().count(), 0);
}

#[test]
fn what_is_newer_in_old_pools_is_of_those_who_open_new_ones() {
    let mut sites = PoolSites::default();
    let look = |sites: &mut PoolSites, in_use| {
        let pools = [pool(A, 3, in_use)];
        sites.update(&pools, &HashMap::new(), NOW).for_each(drop);
    };
    // Some of it goes, which two looks must see, and comes again; nobody has opened a pool.
    for in_use in [100, 60, 60, 20, 90] {
        look(&mut sites, in_use);
    }
    assert_eq!(inuse(&sites, STACK_BEFORE), (5760, 90, 1));
    // Now one has.
    let mut by = opened(&[(B, 7, 500)]);
    by.entry(B).or_default().asked = 50;
    let now = [pool(A, 3, 95), pool(B, 3, 10)];
    let changed: HashSet<u64> = sites.update(&now, &by, NOW).map(|(stack, _)| stack).collect();
    assert_eq!(changed, HashSet::from([7, STACK_BEFORE]));
    assert_eq!(inuse(&sites, STACK_BEFORE), (85 * 64, 85, 1));
    assert_eq!(inuse(&sites, 7), (20 * 50, 20, 1));
    let ages: Vec<_> = sites.ages().collect();
    assert_eq!(ages, [(7, 500, 10, 500), (7, NOW, 10, 500)]);
    let class = ClassBytes {
        class: 3,
        bytes: 20 * 64,
        filled: 10 * 64,
    };
    assert_eq!(sites.classes(7), [class]);
    assert_eq!(sites.uses()[3].bytes, 105 * 64);
    // It lets go of all that it has.
    look(&mut sites, 60);
    assert_eq!((inuse(&sites, 7), inuse(&sites, STACK_BEFORE).1), ((0, 0, 0), 60));
}

#[test]
fn a_pool_that_was_empty_has_nothing_old() {
    let mut sites = PoolSites::default();
    let mut by = opened(&[(B, 7, 500)]);
    let mut look = |of_a: &[u64], of_b| {
        let mut pools: Vec<Pool> = of_a.iter().map(|in_use| pool(A, 3, *in_use)).collect();
        pools.push(pool(B, 3, of_b));
        sites.update(&pools, &by, NOW).for_each(drop);
        (inuse(&sites, STACK_BEFORE).1, inuse(&sites, 7).1)
    };
    assert_eq!(look(&[200], 250), (200, 250));
    // It could not be read.
    assert_eq!(look(&[], 250), (0, 250));
    assert_eq!(look(&[210], 260), (200, 270));
    assert_eq!(look(&[0], 260), (0, 260));
    // All are new, and 40 besides the 10 are for who has taken 40.
    assert_eq!(look(&[200], 300), (150, 350));
    // One that comes later, and nobody knows of whom.
    by.clear();
    let pools = [pool(A, 3, 200), pool(B, 3, 250)];
    sites.update(&pools, &by, NOW).for_each(drop);
    assert_eq!(inuse(&sites, STACK_BEFORE).1, 450);
}

#[test]
fn what_did_not_change_is_not_told_again() {
    let mut sites = PoolSites::default();
    let by = opened(&[(A, 7, 100)]);
    assert_eq!(sites.update(&[pool(A, 3, 10)], &by, NOW).count(), 1);
    assert_eq!(sites.update(&[pool(A, 3, 10)], &by, NOW).count(), 0);
}

#[test]
fn counts_only_grow_and_their_difference_is_what_is_in_use() {
    let mut sites = PoolSites::default();
    let by = opened(&[(A, 7, 100)]);
    let mut last = SiteTotals::ZERO;
    for in_use in [10, 30, 5, 5, 40, 0, 3] {
        sites.update(&[pool(A, 1, in_use)], &by, NOW).for_each(drop);
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
        .update(&[pool(A, 1, 10)], &opened(&[(A, 7, 100)]), NOW)
        .for_each(drop);
    sites
        .update(&[pool(A, 2, 4)], &opened(&[(A, 8, 300)]), NOW)
        .for_each(drop);
    assert_eq!((inuse(&sites, 7), inuse(&sites, 8)), ((0, 0, 0), (192, 4, 1)));
    // By the same stack at another time.
    sites
        .update(&[pool(A, 2, 4)], &opened(&[(A, 8, 500)]), NOW)
        .for_each(drop);
    assert_eq!(inuse(&sites, 8), (192, 4, 1));
    assert_eq!(sites.sites[&8].totals.alloc_objects, 8);
}

#[test]
fn pools_that_are_gone_hold_nothing() {
    let mut sites = PoolSites::default();
    let by = opened(&[(A, 7, 100), (B, 7, 100)]);
    sites
        .update(&[pool(A, 1, 10), pool(B, 1, 20)], &by, NOW)
        .for_each(drop);
    assert!(sites.holds(A));
    sites.update(&[pool(B, 1, 20)], &by, NOW).for_each(drop);
    assert_eq!(inuse(&sites, 7), (640, 20, 1));
    assert!(!sites.holds(A));
    sites.update(&[], &by, NOW).for_each(drop);
    assert_eq!(inuse(&sites, 7), (0, 0, 0));
}
