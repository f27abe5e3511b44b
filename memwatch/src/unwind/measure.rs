//! What tables take, for the bench.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use memwatch_common::unwind::BLOCK_ROWS;
use serde_json::{Value, json};

use super::{Source, cache_format, kernel_tables::Maps, room::Room};
use crate::probe::load::KernelSide;

pub struct TableBench {
    room: Room<Maps>,
    rows: usize,
    slab_bytes: Option<u64>,
}

impl TableBench {
    pub fn new(kernel: &KernelSide, most_rows: u32) -> Result<Self> {
        let room = Room::new(Maps::new(kernel)?, most_rows).context("cannot write unwind rules")?;
        Ok(Self {
            room,
            rows: 0,
            slab_bytes: slab_bytes(),
        })
    }

    /// One file, so often; times are medians in nanoseconds.
    pub fn measure(&mut self, path: &Path, rounds: usize) -> Result<Value> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let source = || Source::read(&bytes).with_context(|| path.display().to_string());
        let fingerprint = source()?.fingerprint();
        let table = source()?.build();
        let kept = cache_format::write(&table, &fingerprint);
        let recognised = median(rounds, || source().map(|source| source.fingerprint()))?;
        let built = median(rounds, || source().map(|source| source.build()))?;
        let from_cache = median(rounds, || {
            cache_format::read(&kept, &fingerprint).context("it cannot be read back")
        })?;
        let mut puts = Vec::new();
        for round in (0..rounds.max(1)).rev() {
            let segments = table.segments.clone();
            let began = Instant::now();
            let number = self.room.add(Some(&fingerprint), segments, &table);
            puts.push(began.elapsed());
            let number = number.context("cannot write unwind rows")?;
            ensure!(self.room.lost() == 0, "no room for {}", path.display());
            if round > 0 {
                self.room
                    .take_away(number)
                    .context("cannot take unwind rows out")?;
            }
        }
        let put_in = middle(&mut puts);
        self.rows += table.rows.len();
        Ok(json!({
            "file": path.file_name().map(|name| name.to_string_lossy()),
            "rows": table.rows.len(),
            "rules": table.rules.len(),
            "blocks": table.rows.len().div_ceil(BLOCK_ROWS),
            "pages": table.pages.len(),
            "kept_bytes": kept.len(),
            "recognised_ns": recognised.as_nanos() as u64,
            "built_ns": built.as_nanos() as u64,
            "from_cache_ns": from_cache.as_nanos() as u64,
            "put_ns": put_in.as_nanos() as u64,
        }))
    }
}

impl TableBench {
    /// What all files so far take in the kernel: as its allocator tells, with what others took and gave back meanwhile.
    pub fn memory(&self) -> Value {
        let grown = slab_bytes().zip(self.slab_bytes);
        json!({
            "rows": self.rows,
            "places": self.room.rows_used(),
            "slab_bytes": grown.map(|(now, before)| now.saturating_sub(before)),
        })
    }
}

/// Of the sizes that the kernel's general allocator takes for a block of rows and for a page.
fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let caches = text.lines().filter(|line| {
        let name = line.split(' ').next().unwrap_or_default();
        name.starts_with("kmalloc-") && (name.ends_with("-8k") || name.ends_with("-96"))
    });
    let bytes = caches.map(|line| {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse::<u64>);
        let (active, _, size) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        Some(active * size)
    });
    bytes.sum()
}

impl std::fmt::Debug for TableBench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableBench").finish_non_exhaustive()
    }
}

fn median<T>(rounds: usize, mut what: impl FnMut() -> Result<T>) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let result = what()?;
        took.push(began.elapsed());
        drop(result);
    }
    Ok(middle(&mut took))
}

fn middle(took: &mut [Duration]) -> Duration {
    took.sort_unstable();
    took.get(took.len() / 2).copied().unwrap_or_default()
}
