//! Small blocks of CPython that are counted where they are handed out, and no further: at places where its allocator was
//! put into its callers there is no address to follow.

use memwatch_common::{
    Config, Cookie, Counter, Domain, Function, ProcessState, SiteKey,
    cookie::FLAG_IF_EQUAL,
    python::SMALL_BYTES,
    site::{ALLOCATED_ONLY, UNKNOWN_SMALL},
    stack::STACK_UNKNOWN,
};

use crate::{
    account::size_count,
    arch::Registers,
    atomic,
    maps::{self, count},
    size, slot, unwind,
};

/// Before the watch: only counts what would be work.
#[inline(always)]
pub fn try_out(cookie: Cookie, registers: Registers<'_>) {
    let pool = [Function::PythonPool as u8, Function::PythonPoolSite as u8].contains(&cookie.function());
    if pool || cookie.domain() == Domain::Native as u8 {
        return;
    }
    if cookie.function() == Function::Free as u8 {
        count(Counter::TriedFrees);
    } else if is_meant(cookie, registers) {
        count(Counter::TriedAllocations);
    }
}

/// A block is handed out by pymalloc. Larger ones are libc's, which are seen there.
#[inline(always)]
pub fn handed_out(config: &Config, state: &ProcessState, cookie: Cookie, registers: Registers<'_>) {
    if !is_meant(cookie, registers) {
        return;
    }
    let bytes = asked(cookie, registers);
    if bytes == 0 || bytes < config.min_bytes || bytes > config.max_bytes {
        return;
    }
    let Some(slot) = slot::current() else { return };
    let stack = unwind::walk(config, state, slot, &unwind::Start::at(registers));
    account(config, state.instance, u32::from(cookie.domain()), stack, bytes);
}

/// On a branch that asks whether the allocator is pymalloc: it is.
#[inline(always)]
fn is_meant(cookie: Cookie, registers: Registers<'_>) -> bool {
    !cookie.has_flag(FLAG_IF_EQUAL) || registers.was_equal()
}

/// What the block was asked for with, 0 where pymalloc has none of that size.
#[inline(always)]
fn asked(cookie: Cookie, registers: Registers<'_>) -> u64 {
    let Some(asked) = size::number(cookie.size(), registers) else {
        count(Counter::SizeUnreadable);
        return 0;
    };
    if asked > SMALL_BYTES { 0 } else { asked }
}

#[inline(always)]
fn account(config: &Config, instance: u32, domain: u32, stack: u64, bytes: u64) {
    let mut key = SiteKey {
        instance,
        domain: domain | ALLOCATED_ONLY,
        stack,
    };
    let site = if let Some(site) = maps::site(&key) {
        site
    } else {
        count(Counter::SitesFull);
        key = SiteKey {
            instance,
            domain: UNKNOWN_SMALL,
            stack: STACK_UNKNOWN,
        };
        let Some(site) = maps::site(&key) else {
            count(Counter::SiteLost);
            return;
        };
        site
    };
    atomic::add(&mut site.alloc_bytes, bytes);
    atomic::add(&mut site.alloc_objects, 1);
    atomic::add(size_count(site, bytes), 1);
    maps::touch(config, &key, site);
}
