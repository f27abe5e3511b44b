use memwatch_common::EventKind;
use memwatch_common::event::MAPPING_EXECUTABLE;
use proptest::prelude::*;

use super::*;

const P: u64 = PAGE_BYTES;
const BASE: u64 = 0x7f00_0000_0000;
const STACK: u64 = 11;
const ANONYMOUS: MappingSite = (STACK, MappingKind::Anonymous);

fn event(kind: EventKind, begin_ns: u64, end_ns: u64) -> Event {
    Event {
        kind: kind as u32,
        begin_ns,
        end_ns,
        flags: MAPPING_ANONYMOUS,
        stack: STACK,
        ..Event::ZERO
    }
}

fn map(page: u64, bytes: u64, begin_ns: u64, end_ns: u64) -> Event {
    Event {
        address: BASE + page * P,
        a: bytes,
        ..event(EventKind::Map, begin_ns, end_ns)
    }
}

fn unmap(page: u64, count: u64, begin_ns: u64, end_ns: u64) -> Event {
    Event {
        address: BASE + page * P,
        a: count * P,
        ..event(EventKind::Unmap, begin_ns, end_ns)
    }
}

fn totals(set: &MappingSet, site: MappingSite) -> (u64, u64, u64, u64) {
    let t = set.totals.get(&site).copied().unwrap_or(SiteTotals::ZERO);
    (t.alloc_bytes, t.alloc_objects, t.freed_bytes, t.freed_objects)
}

#[test]
fn lengths_are_whole_pages() {
    let mut set = MappingSet::default();
    set.map(&map(0, 100, 1, 2));
    assert_eq!(totals(&set, ANONYMOUS), (P, 1, 0, 0));
    set.unmap(&Event {
        a: 1,
        ..unmap(0, 1, 3, 4)
    });
    assert_eq!(totals(&set, ANONYMOUS), (P, 1, P, 1));
    assert_eq!(set.untracked(), Untracked::default());
}

#[test]
fn a_hole_splits_a_mapping_that_stays_one_object_until_its_last_byte() {
    let mut set = MappingSet::default();
    set.map(&map(0, 5 * P, 1, 2));
    set.unmap(&unmap(2, 1, 3, 4));
    assert_eq!(totals(&set, ANONYMOUS), (5 * P, 1, P, 0));
    set.unmap(&unmap(0, 2, 5, 6));
    assert_eq!(totals(&set, ANONYMOUS), (5 * P, 1, 3 * P, 0));
    set.unmap(&unmap(3, 2, 7, 2_000_007));
    assert_eq!(totals(&set, ANONYMOUS), (5 * P, 1, 5 * P, 1));
    assert_eq!(set.totals[&ANONYMOUS].lifetimes[lifetime_bucket(2_000_005)], 1);
    assert!(set.segments.is_empty() && set.objects.is_empty());
}

#[test]
fn what_was_never_seen_being_mapped_is_untracked() {
    let mut set = MappingSet::default();
    set.map(&map(4, 2 * P, 1, 2));
    set.unmap(&unmap(2, 6, 3, 4));
    assert_eq!(totals(&set, ANONYMOUS), (2 * P, 1, 2 * P, 1));
    assert_eq!(
        set.untracked(),
        Untracked {
            calls: 1,
            bytes: 4 * P
        }
    );
}

#[test]
fn a_fixed_mapping_replaces_what_lies_under_it() {
    let mut set = MappingSet::default();
    set.map(&Event {
        flags: MAPPING_ANONYMOUS | MAPPING_NO_ACCESS,
        ..map(0, 10 * P, 1, 2)
    });
    set.map(&map(3, 4 * P, 3, 4));
    assert_eq!(
        totals(&set, (STACK, MappingKind::Reserved)),
        (10 * P, 1, 4 * P, 0)
    );
    assert_eq!(totals(&set, ANONYMOUS), (4 * P, 1, 0, 0));
}

/// munmap has freed the pages but not returned yet; another thread is given the same pages at once.
#[test]
fn a_removal_spares_what_took_its_place_while_it_ran() {
    let mut set = MappingSet::default();
    set.map(&map(0, 2 * P, 1, 2));
    set.map(&Event {
        stack: 22,
        ..map(0, P, 14, 16)
    });
    set.unmap(&unmap(0, 2, 10, 20));
    assert_eq!(totals(&set, ANONYMOUS), (2 * P, 1, 2 * P, 1));
    assert_eq!(totals(&set, (22, MappingKind::Anonymous)), (P, 1, 0, 0));
    assert_eq!(set.untracked(), Untracked::default());
}

#[test]
fn an_event_that_comes_late_does_not_undo_a_newer_one() {
    let mut set = MappingSet::default();
    set.map(&Event {
        stack: 22,
        ..map(1, P, 10, 12)
    });
    set.map(&map(0, 3 * P, 1, 2));
    assert_eq!(totals(&set, ANONYMOUS), (3 * P, 1, P, 0));
    assert_eq!(totals(&set, (22, MappingKind::Anonymous)), (P, 1, 0, 0));
    set.map(&map(1, P, 3, 4));
    assert_eq!(totals(&set, ANONYMOUS), (4 * P, 2, 2 * P, 1));
}

#[test]
fn remap_is_a_new_object_of_the_old_kind_from_the_new_stack() {
    let mut set = MappingSet::default();
    set.map(&Event {
        flags: MAPPING_EXECUTABLE,
        ..map(0, 2 * P, 1, 2)
    });
    let remap = Event {
        address: BASE,
        a: 2 * P,
        b: 5 * P,
        c: BASE + 100 * P,
        stack: 22,
        flags: 0,
        ..event(EventKind::Remap, 3, 4)
    };
    set.remap(&remap);
    assert_eq!(totals(&set, (STACK, MappingKind::File)), (2 * P, 1, 2 * P, 1));
    assert_eq!(totals(&set, (22, MappingKind::File)), (5 * P, 1, 0, 0));
    set.unmap(&unmap(100, 5, 5, 6));
    assert_eq!(totals(&set, (22, MappingKind::File)), (5 * P, 1, 5 * P, 1));
}

#[test]
fn remap_with_no_old_size_maps_a_second_time() {
    let mut set = MappingSet::default();
    set.map(&Event {
        flags: 0,
        ..map(0, 2 * P, 1, 2)
    });
    set.remap(&Event {
        address: BASE,
        a: 0,
        b: 2 * P,
        c: BASE + 8 * P,
        flags: 0,
        ..event(EventKind::Remap, 3, 4)
    });
    assert_eq!(totals(&set, (STACK, MappingKind::File)), (4 * P, 2, 0, 0));
}

#[test]
fn the_break_moves_both_ways_byte_by_byte() {
    let mut set = MappingSet::default();
    let grow = |from, to, at| Event {
        address: from,
        a: to,
        flags: 0,
        ..event(EventKind::Break, at, at + 1)
    };
    set.program_break(&grow(1000, 1500, 1));
    set.program_break(&grow(1500, 2500, 3));
    set.program_break(&grow(2500, 1200, 5));
    assert_eq!(totals(&set, ANONYMOUS), (1500, 2, 1300, 1));
    set.program_break(&grow(1200, 900, 7));
    assert_eq!(totals(&set, ANONYMOUS), (1500, 2, 1500, 2));
    assert_eq!(set.untracked(), Untracked { calls: 1, bytes: 100 });
}

#[test]
fn what_allocators_map_for_themselves_is_counted_apart() {
    let mut set = MappingSet::default();
    set.map(&Event {
        flags: MAPPING_ANONYMOUS | MAPPING_ALLOCATOR,
        ..map(0, 4 * P, 1, 2)
    });
    assert_eq!(set.allocator_bytes(), 4 * P);
    set.unmap(&unmap(1, 1, 3, 4));
    assert_eq!(set.allocator_bytes(), 3 * P);
    assert!(set.take_changes().is_empty());
}

#[test]
fn a_child_owns_nothing_of_what_it_inherits() {
    let mut parent = MappingSet::default();
    parent.map(&map(0, 4 * P, 1, 2));
    let mut child = parent.inherit();
    assert_eq!(child.inherited_bytes(), 4 * P);
    child.unmap(&unmap(0, 1, 3, 4));
    child.map(&map(10, P, 5, 6));
    assert_eq!(child.inherited_bytes(), 3 * P);
    assert_eq!(totals(&child, ANONYMOUS), (P, 1, 0, 0));
    assert_eq!(child.untracked(), Untracked::default());
    assert_eq!(totals(&parent, ANONYMOUS), (4 * P, 1, 0, 0));
}

#[test]
fn changes_are_told_once() {
    let mut set = MappingSet::default();
    set.map(&map(0, P, 1, 2));
    set.map(&map(1, P, 3, 4));
    let changes = set.take_changes();
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].0, changes[0].1.alloc_objects), (ANONYMOUS, 2));
    assert!(set.take_changes().is_empty());
}

#[test]
fn ages_tell_how_much_is_how_old() {
    let mut set = MappingSet::default();
    let second = 1_000_000_000;
    set.map(&map(0, P, second, second));
    set.map(&map(1, 2 * P, 50 * second, 50 * second));
    let ages = set.ages(61 * second, 20 * second)[&ANONYMOUS];
    assert_eq!(ages.objects, [0, 0, 1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(
        (ages.old_objects, ages.old_bytes, ages.oldest_born_ns),
        (1, P, second)
    );
}

#[test]
fn addresses_at_the_very_end_do_not_overflow() {
    let mut set = MappingSet::default();
    set.unmap(&Event {
        address: u64::MAX - 5,
        a: u64::MAX,
        ..unmap(0, 1, 1, 2)
    });
    set.map(&Event {
        address: 8192,
        a: u64::MAX,
        ..map(0, 1, 1, 2)
    });
    set.remap(&Event {
        a: 0,
        b: 0,
        c: 0,
        ..map(0, 1, 1, 2)
    });
    assert_eq!(set.objects.len(), 1);
}

/// One step of one thread, for the oracle and the set alike.
#[derive(Clone, Debug)]
enum Step {
    /// The kernel picks free pages.
    Map { thread: usize, pages: u64, delay: u64 },
    /// Part of something that is there, picked by the two numbers.
    Unmap {
        thread: usize,
        pick: usize,
        first: u64,
        count: u64,
        delay: u64,
    },
    Remap {
        thread: usize,
        pick: usize,
        pages: u64,
        delay: u64,
    },
    /// Over anything of one's own that is there.
    MapFixed {
        thread: usize,
        pick: usize,
        pages: u64,
        delay: u64,
    },
}

const THREADS: usize = 4;
const PAGES: usize = 64;

/// One array cell per page: which call's page it is. Slow and simple.
struct Oracle {
    pages: [Option<usize>; PAGES],
    /// stack, bytes mapped, when the call returned
    calls: Vec<(u64, u64, u64)>,
    events: Vec<Event>,
    /// Until when each thread is inside its call.
    busy_until: [u64; THREADS],
    now: u64,
}

impl Oracle {
    fn new() -> Self {
        Self {
            pages: [None; PAGES],
            calls: vec![],
            events: vec![],
            busy_until: [0; THREADS],
            now: 1000,
        }
    }

    /// A call of `thread` takes effect now; it began a little before and returns a little later.
    fn call(&mut self, thread: usize, delay: u64) -> (u64, u64) {
        self.now = self.now.max(self.busy_until[thread] + 2) + 2;
        let begin = (self.now - 1 - delay.min(20)).max(self.busy_until[thread] + 1);
        let end = self.now + 1 + delay * 3;
        self.busy_until[thread] = end;
        (begin, end)
    }

    fn free_run(&self, count: usize) -> Option<usize> {
        (0..=PAGES - count).find(|start| self.pages[*start..start + count].iter().all(Option::is_none))
    }

    /// A run of pages of one call that had returned before `begin`: only then can another call name them.
    fn known_run(&self, pick: usize, begin: u64) -> Option<(usize, usize)> {
        let known = |page: usize| self.pages[page].filter(|call| self.calls[*call].2 <= begin);
        let pages: Vec<usize> = (0..PAGES).filter(|page| known(*page).is_some()).collect();
        let start = *pages.get(pick.checked_rem(pages.len())?)?;
        let call = known(start);
        let end = (start..PAGES).find(|page| known(*page) != call).unwrap_or(PAGES);
        Some((start, end))
    }

    fn make(&mut self, start: usize, count: usize, end_ns: u64) -> u64 {
        let stack = 1 + self.calls.len() as u64 % 5;
        self.calls.push((stack, count as u64 * P, end_ns));
        self.pages[start..start + count].fill(Some(self.calls.len() - 1));
        stack
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Map { thread, pages, delay } => {
                let (begin, end) = self.call(thread, delay);
                let Some(start) = self.free_run(pages as usize) else {
                    return;
                };
                let stack = self.make(start, pages as usize, end);
                self.events.push(Event {
                    stack,
                    ..map(start as u64, pages * P, begin, end)
                });
            }
            Step::Unmap {
                thread,
                pick,
                first,
                count,
                delay,
            } => {
                let (begin, end) = self.call(thread, delay);
                let Some((from, to)) = self.known_run(pick, begin) else {
                    return;
                };
                let from = (from + first as usize).min(to - 1);
                let to = (from + count as usize).min(to);
                self.pages[from..to].fill(None);
                self.events
                    .push(unmap(from as u64, (to - from) as u64, begin, end));
            }
            Step::Remap {
                thread,
                pick,
                pages,
                delay,
            } => {
                let (begin, end) = self.call(thread, delay);
                let Some((from, to)) = self.known_run(pick, begin) else {
                    return;
                };
                let Some(new) = self.free_run(pages as usize) else {
                    return;
                };
                self.pages[from..to].fill(None);
                let stack = self.make(new, pages as usize, end);
                self.events.push(Event {
                    address: BASE + from as u64 * P,
                    a: (to - from) as u64 * P,
                    b: pages * P,
                    c: BASE + new as u64 * P,
                    stack,
                    ..event(EventKind::Remap, begin, end)
                });
            }
            Step::MapFixed {
                thread,
                pick,
                pages,
                delay,
            } => {
                let (begin, end) = self.call(thread, delay);
                let Some((from, to)) = self.known_run(pick, begin) else {
                    return;
                };
                let count = (pages as usize).min(to - from);
                let stack = self.make(from, count, end);
                self.events.push(Event {
                    stack,
                    ..map(from as u64, count as u64 * P, begin, end)
                });
            }
        }
    }

    fn totals(&self, stack: u64) -> (u64, u64, u64, u64) {
        let mut sum = (0, 0, 0, 0);
        for (index, (_, bytes, _)) in self.calls.iter().enumerate().filter(|(_, call)| call.0 == stack) {
            let left = self.pages.iter().filter(|page| **page == Some(index)).count() as u64 * P;
            sum = (
                sum.0 + bytes,
                sum.1 + 1,
                sum.2 + bytes - left,
                sum.3 + u64::from(left == 0),
            );
        }
        sum
    }
}

fn step() -> impl Strategy<Value = Step> {
    let thread = 0..THREADS;
    let (pick, pages, delay) = (0..1000_usize, 1..9_u64, 0..12_u64);
    prop_oneof![
        4 => (thread.clone(), pages.clone(), delay.clone())
            .prop_map(|(thread, pages, delay)| Step::Map { thread, pages, delay }),
        4 => (thread.clone(), pick.clone(), 0..4_u64, pages.clone(), delay.clone())
            .prop_map(|(thread, pick, first, count, delay)| Step::Unmap { thread, pick, first, count, delay }),
        1 => (thread.clone(), pick.clone(), pages.clone(), delay.clone())
            .prop_map(|(thread, pick, pages, delay)| Step::Remap { thread, pick, pages, delay }),
        1 => (thread, pick, pages, delay)
            .prop_map(|(thread, pick, pages, delay)| Step::MapFixed { thread, pick, pages, delay }),
    ]
}

proptest! {
    /// Calls of several threads take effect in one order; their events come in the order in which they return.
    #[test]
    fn totals_equal_those_of_an_array_of_pages(steps in prop::collection::vec(step(), 1..200)) {
        let mut oracle = Oracle::new();
        for step in &steps {
            oracle.step(step);
        }
        let mut events = oracle.events.clone();
        events.sort_by_key(|event| event.end_ns);
        let mut set = MappingSet::default();
        for event in &events {
            match EventKind::from_u32(event.kind) {
                Some(EventKind::Map) => set.map(event),
                Some(EventKind::Unmap) => set.unmap(event),
                _ => set.remap(event),
            }
        }
        for stack in 1..=5 {
            prop_assert_eq!(totals(&set, (stack, MappingKind::Anonymous)), oracle.totals(stack), "stack {}", stack);
        }
        let mapped: u64 = set.segments.iter().map(|(from, segment)| segment.end - from).sum();
        prop_assert_eq!(mapped, oracle.pages.iter().flatten().count() as u64 * P);
        prop_assert_eq!(mapped, set.objects.values().map(|object| object.bytes_left).sum::<u64>());
    }
}
