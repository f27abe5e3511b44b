//! What a site has allocated and freed.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use memwatch_common::{
    Config, Counter, Domain, LiveValue, SiteKey, SiteTotals, hist,
    limits::{LIFETIME_BUCKETS, SIZE_BUCKETS},
    stack::STACK_UNKNOWN,
};

use crate::{
    atomic,
    bound::mask,
    maps::{self, count},
};

/// Where a process's blocks are counted when there is no room for their site.
const fn unknown(instance: u32) -> SiteKey {
    SiteKey {
        instance,
        domain: Domain::Native as u32,
        stack: STACK_UNKNOWN,
    }
}

#[inline(always)]
pub fn allocated(config: &Config, instance: u32, value: &LiveValue) {
    let mut key = SiteKey {
        instance,
        domain: value.domain,
        stack: value.stack,
    };
    let site = if let Some(site) = maps::site(&key) {
        site
    } else {
        count(Counter::SitesFull);
        // Every process has had its place for unknown stacks since it is watched.
        key = unknown(instance);
        let Some(site) = maps::site(&key) else {
            count(Counter::SiteLost);
            return;
        };
        site
    };
    atomic::add(&mut site.alloc_bytes, value.bytes);
    atomic::add(&mut site.alloc_objects, 1);
    atomic::add(size_count(site, value.bytes), 1);
    maps::touch(config, &key, site);
}

#[inline(always)]
pub fn freed(config: &Config, instance: u32, value: &LiveValue) {
    let mut key = SiteKey {
        instance,
        domain: value.domain,
        stack: value.stack,
    };
    let site = if let Some(site) = maps::existing_site(&key) {
        site
    } else {
        key = unknown(instance);
        let Some(site) = maps::existing_site(&key) else {
            count(Counter::SiteLost);
            return;
        };
        site
    };
    // SAFETY: no arguments.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(value.born_ns);
    atomic::add(&mut site.freed_bytes, value.bytes);
    atomic::add(&mut site.freed_objects, 1);
    atomic::add(lifetime_count(site, age), 1);
    maps::touch(config, &key, site);
}

#[inline(always)]
pub fn size_count(site: &mut SiteTotals, bytes: u64) -> &mut u64 {
    const MASK: i32 = SIZE_BUCKETS as i32 - 1;
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        site.sizes
            .get_unchecked_mut(mask::<MASK>(hist::size_bucket(bytes) as u64))
    }
}

#[inline(always)]
fn lifetime_count(site: &mut SiteTotals, age_ns: u64) -> &mut u64 {
    const MASK: i32 = LIFETIME_BUCKETS as i32 - 1;
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        site.lifetimes
            .get_unchecked_mut(mask::<MASK>(hist::lifetime_bucket(age_ns) as u64))
    }
}
