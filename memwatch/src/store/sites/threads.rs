//! What of a site each thread has.

use super::Known;
use crate::collect::sample::Held;
use crate::numbers::{Bad, Input, put, put_difference};

/// Gaps between site numbers, how many threads changed, their ids, objects, bytes.
pub(super) const COLUMNS: usize = 5;
pub(super) const GAPS: usize = 0;
const COUNT: usize = 1;
const IDS: usize = 2;
const OBJECTS: usize = 3;
const BYTES: usize = 4;

/// Of one site. A service of so many threads does not run.
const MOST: usize = 1 << 20;

pub(super) fn put_threads(columns: &mut [Vec<u8>; COLUMNS], known: &mut Known, now: &[(u32, Held)]) {
    let held = |list: &[(u32, Held)], thread| {
        let place = list.binary_search_by_key(&thread, |(one, _)| *one);
        place.map_or_else(|_| Held::default(), |place| list[place].1)
    };
    let mut ids: Vec<u32> = known
        .threads
        .iter()
        .chain(now)
        .map(|(thread, _)| *thread)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|thread| held(&known.threads, *thread) != held(now, *thread));
    put(&mut columns[COUNT], ids.len() as u64);
    let mut last = 0;
    for thread in ids {
        put(&mut columns[IDS], u64::from(thread - last));
        last = thread;
        let (before, now) = (held(&known.threads, thread), held(now, thread));
        put_difference(&mut columns[OBJECTS], now.objects, before.objects);
        put_difference(&mut columns[BYTES], now.bytes, before.bytes);
    }
    known.threads = now.to_vec();
}

/// A thread that has nothing left is not kept.
pub(super) fn read_threads(columns: &mut [Input<'_>; COLUMNS], known: &mut Known) -> Result<(), Bad> {
    let (count, mut id) = (columns[COUNT].number()?, 0_u32);
    for _ in 0..count {
        id = id
            .checked_add(columns[IDS].small()?)
            .ok_or(Bad("a thread has no id"))?;
        let place = known.threads.binary_search_by_key(&id, |(one, _)| *one);
        let before = place.map_or_else(|_| Held::default(), |place| known.threads[place].1);
        let now = Held {
            objects: columns[OBJECTS].difference(before.objects)?,
            bytes: columns[BYTES].difference(before.bytes)?,
        };
        match place {
            Ok(place) if now == Held::default() => {
                known.threads.remove(place);
            }
            Ok(place) => known.threads[place].1 = now,
            Err(_) if known.threads.len() >= MOST => return Err(Bad("a site has too many threads")),
            Err(_) if now == Held::default() => {}
            Err(place) => known.threads.insert(place, (id, now)),
        }
    }
    Ok(())
}
