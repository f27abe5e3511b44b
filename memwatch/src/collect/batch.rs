//! Reading whole hash maps in batches, which aya 0.14 does not offer (Linux 5.6).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use crate::probe::links::{call, zeroed_attr};

/// Entries read in one call.
const BATCH: usize = 4096;

/// Of large values fewer, so that the copy (2 MiB of sites) still fits the cache.
const BATCH_BYTES: usize = 2 << 20;
const LEAST_BATCH: usize = 256;

/// Calls `each` with every entry of a hash map. Entries that come or go meanwhile may or may not be seen.
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut size = (BATCH_BYTES / size_of::<V>().max(1)).clamp(LEAST_BATCH, BATCH);
    let mut keys: Vec<K> = zeroed(size);
    let mut values: Vec<V> = zeroed(size);
    let mut position: Option<u64> = None;
    loop {
        let mut next = 0_u64;
        let (count, end) = match lookup(map, position.as_ref(), &mut next, &mut keys, &mut values) {
            Ok(found) => found,
            // One bucket holds more than a whole batch.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                size *= 2;
                keys = zeroed(size);
                values = zeroed(size);
                continue;
            }
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            each(key, value);
        }
        if end {
            return Ok(());
        }
        position = Some(next);
    }
}

/// Takes the keys out of a map; those that have gone meanwhile are no error.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    for key in keys {
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
        match call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes one entry.
pub fn set<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// One entry.
pub fn get<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut values: Vec<V> = zeroed(1);
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = values.as_mut_ptr() as u64;
    match call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(values.pop()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One call: how many entries came, and whether they were the last.
fn lookup<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<&u64>,
    next: &mut u64,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let mut attr = zeroed_attr();
    attr.batch.map_fd = map.as_raw_fd() as u32;
    attr.batch.count = keys.len() as u32;
    attr.batch.in_batch = position.map_or(0, |position| std::ptr::from_ref(position) as u64);
    attr.batch.out_batch = std::ptr::from_mut(next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    let result = call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
    // SAFETY: the kernel writes back how many entries it copied; a plain integer either way.
    let count = unsafe { attr.batch.count } as usize;
    match result {
        Ok(_) => Ok((count, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, true)),
        Err(error) => Err(error),
    }
}

fn zeroed<T: Pod>(count: usize) -> Vec<T> {
    // SAFETY: Pod types are plain integers, for which all zeros is a value.
    (0..count).map(|_| unsafe { std::mem::zeroed() }).collect()
}
