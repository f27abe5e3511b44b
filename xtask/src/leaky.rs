//! A small program with a leak, much churn, and a cache that stops growing: three stories that look alike at first.

use std::{
    collections::HashMap,
    hint::black_box,
    io::{self, Read as _},
    process,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

#[derive(Args, Debug)]
pub struct Options {
    /// End when standard input does, so as not to outlive who started us
    #[arg(long)]
    until_stdin_ends: bool,
}

const CACHE_ENTRIES: u64 = 4_000;

pub fn run(options: &Options) -> Result<()> {
    start("leak", leak_session_records)?;
    start("churn", churn_through_buffers)?;
    start("cache", fill_cache_until_full)?;
    if options.until_stdin_ends {
        // An error means that nobody is there any more, as an end does.
        io::stdin().read_to_end(&mut Vec::new()).ok();
        process::exit(0);
    }
    loop {
        thread::park();
    }
}

fn start(name: &str, work: fn()) -> Result<()> {
    let builder = thread::Builder::new().name(name.into());
    builder
        .spawn(work)
        .with_context(|| format!("cannot start thread {name}"))?;
    Ok(())
}

/// Keeps every record for ever: this one is the leak.
#[inline(never)]
fn leak_session_records() {
    let mut sessions = Vec::new();
    loop {
        sessions.push(black_box(session_record()));
        black_box(&sessions);
        sleep(Duration::from_millis(5));
    }
}

#[inline(never)]
fn session_record() -> Box<[u8; 1536]> {
    Box::new([1; 1536])
}

/// Allocates much and gives everything back.
#[inline(never)]
fn churn_through_buffers() {
    loop {
        for size in (64..16_384).step_by(640) {
            black_box(scratch_buffer(size));
        }
        sleep(Duration::from_millis(2));
    }
}

#[inline(never)]
fn scratch_buffer(size: usize) -> Vec<u8> {
    vec![2; size]
}

/// Grows at first, then only replaces what it has.
#[inline(never)]
fn fill_cache_until_full() {
    let mut cache = HashMap::new();
    for number in 0u64.. {
        cache.insert(number % CACHE_ENTRIES, cached_page());
        black_box(&cache);
        sleep(Duration::from_millis(3));
    }
}

#[inline(never)]
fn cached_page() -> Box<[u8; 4096]> {
    Box::new([3; 4096])
}
