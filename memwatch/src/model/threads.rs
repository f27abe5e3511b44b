//! A site's numbers by thread.
//!
//! The kernel side adds up by site. Which thread asked for a block it knows of each block that is alive, and user space goes
//! through those from time to time. So what a thread has in use is known as of the last pass; of what is gone, and of what no
//! pass has seen yet, the thread is not known: that is a share of its own. The shares add up to the site's numbers.

use super::counts::Counts;
use super::group::Numbers;
use super::report::{Delta, ThreadShare};
use crate::collect::sample::Held;

/// `before`: at the baseline, when there is one. None stands for threads that are not known.
pub(super) fn by_thread(
    now: &[(u32, Held)],
    before: Option<&[(u32, Held)]>,
    numbers: &Numbers,
) -> Vec<(Option<u32>, Numbers)> {
    let mut rest = *numbers;
    // Changes are known by thread or not at all.
    (rest.delta, rest.growth) = (None, None);
    let gone = before
        .unwrap_or_default()
        .iter()
        .filter(|(thread, _)| find(now, *thread).is_none());
    let all = now
        .iter()
        .copied()
        .chain(gone.map(|(thread, _)| (*thread, Held::default())));
    let mut shares: Vec<(Option<u32>, Numbers)> = all
        .map(|(thread, held)| {
            // Some may have been freed since the pass.
            let bytes = held.bytes.min(rest.inuse_bytes);
            let objects = held.objects.min(rest.inuse_objects);
            rest.inuse_bytes -= bytes;
            rest.inuse_objects -= objects;
            rest.total.alloc_bytes -= bytes.min(rest.total.alloc_bytes);
            rest.total.alloc_objects -= objects.min(rest.total.alloc_objects);
            let delta = before.map(|before| {
                let was = find(before, thread).unwrap_or_default();
                let (bytes, objects) = (change(bytes, was.bytes), change(objects, was.objects));
                Delta {
                    inuse_bytes: bytes,
                    inuse_objects: objects,
                    alloc_bytes: bytes,
                    alloc_objects: objects,
                }
            });
            let share = Numbers {
                inuse_bytes: bytes,
                inuse_objects: objects,
                total: Counts {
                    alloc_bytes: bytes,
                    alloc_objects: objects,
                    ..Counts::default()
                },
                delta,
                ..Numbers::default()
            };
            (Some(thread), share)
        })
        .collect();
    shares.push((None, rest));
    shares
}

/// Without what no thread is known of.
pub(super) fn known_threads(now: &[(u32, Held)], numbers: &Numbers) -> Vec<ThreadShare> {
    by_thread(now, None, numbers)
        .into_iter()
        .filter_map(|(thread, share)| {
            Some(ThreadShare {
                thread: thread?,
                bytes: share.inuse_bytes,
                objects: share.inuse_objects,
            })
        })
        .collect()
}

fn find(held: &[(u32, Held)], thread: u32) -> Option<Held> {
    let found = held.iter().find(|(one, _)| *one == thread)?;
    Some(found.1)
}

const fn change(now: u64, before: u64) -> i64 {
    now.wrapping_sub(before).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        Numbers {
            inuse_bytes: 100,
            inuse_objects: 10,
            total: Counts {
                alloc_bytes: 500,
                alloc_objects: 50,
                freed_bytes: 400,
                freed_objects: 40,
            },
            growth: Some(5.0),
            ..Numbers::default()
        }
    }

    fn held(bytes: u64, objects: u64) -> Held {
        Held { objects, bytes }
    }

    #[test]
    fn shares_add_up_to_the_site_and_what_is_gone_is_of_no_known_thread() {
        let shares = by_thread(&[(7, held(30, 3)), (8, held(50, 5))], None, &numbers());
        let told: Vec<_> = shares
            .iter()
            .map(|(thread, share)| {
                (
                    *thread,
                    share.inuse_bytes,
                    share.total.alloc_bytes,
                    share.total.freed_bytes,
                )
            })
            .collect();
        assert_eq!(
            told,
            [(Some(7), 30, 30, 0), (Some(8), 50, 50, 0), (None, 20, 420, 400)]
        );
        assert!(
            shares
                .iter()
                .all(|(_, share)| share.delta.is_none() && share.growth.is_none())
        );
    }

    #[test]
    fn what_was_freed_after_the_pass_is_in_use_no_more() {
        let shares = by_thread(&[(7, held(90, 9)), (8, held(90, 9))], None, &numbers());
        let bytes: Vec<u64> = shares.iter().map(|(_, share)| share.inuse_bytes).collect();
        assert_eq!(bytes, [90, 10, 0]);
    }

    #[test]
    fn a_difference_has_the_threads_of_both_times() {
        let before = [(7, held(40, 4)), (9, held(20, 2))];
        let shares = by_thread(&[(7, held(30, 3)), (8, held(50, 5))], Some(&before), &numbers());
        let told: Vec<_> = shares
            .iter()
            .map(|(thread, share)| {
                (
                    *thread,
                    share.delta.map(|delta| (delta.inuse_bytes, delta.inuse_objects)),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (Some(7), Some((-10, -1))),
                (Some(8), Some((50, 5))),
                (Some(9), Some((-20, -2))),
                (None, None)
            ]
        );
    }
}
