//! What every view draws from: one tick, grouped and named. Its JSON is the public schema `memwatch.report/1`;
//! fields may be added, never renamed, and a value that is not known is `null`, never 0.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::exit::Exit;

pub const SCHEMA: &str = "memwatch.report/1";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    pub kind: Kind,
    /// RFC 3339.
    pub time: String,
    /// When recording began, RFC 3339.
    pub since: String,
    /// Seconds between `since` and `time`, by the monotonic clock.
    pub watched_seconds: f64,
    pub interval_seconds: f64,
    /// 0 is the block printed when all probes are in place.
    pub tick: u64,
    pub host: Host,
    pub version: String,
    pub options: Options,
    pub health: Health,
    pub processes: Vec<Process>,
    pub rows: Vec<Row>,
    /// How many groups there are in all; `rows` holds the first of them.
    pub total_rows: u64,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Top,
    Diff,
    Report,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    pub arch: String,
}

impl Report {
    /// The same without its rows, of which there can be tens of thousands.
    #[must_use]
    pub fn without_rows(&self) -> Self {
        Self {
            schema: self.schema.clone(),
            kind: self.kind,
            time: self.time.clone(),
            since: self.since.clone(),
            watched_seconds: self.watched_seconds,
            interval_seconds: self.interval_seconds,
            tick: self.tick,
            host: self.host.clone(),
            version: self.version.clone(),
            options: self.options.clone(),
            health: self.health.clone(),
            processes: self.processes.clone(),
            rows: Vec::new(),
            total_rows: self.total_rows,
            findings: self.findings.clone(),
        }
    }
}

/// What the user asked for, as far as it changes the meaning of the numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub group_by: String,
    pub sort: String,
    pub view: String,
    pub cumulative: bool,
    /// 0: every block is counted.
    pub sample_bytes: u64,
    pub min_size: Option<u64>,
    pub max_size: Option<u64>,
    pub older_than_seconds: Option<f64>,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub domains: Vec<String>,
    /// Domains of which a part is estimated, and not counted block by block.
    #[serde(default)]
    pub estimated: Vec<String>,
    /// How long before this report that was estimated. Null where nothing was, and in recordings.
    #[serde(default)]
    pub estimated_age_seconds: Option<f64>,
    /// Domains of which small blocks are counted when they are handed out, but not when they are freed: what is in use of
    /// them is estimated.
    #[serde(default)]
    pub allocated_only: Vec<String>,
    pub follow: bool,
    pub max_depth: u32,
    pub limit: u64,
    /// How CPython is watched: `pools`, `exact` or `off`; null in recordings, which do not keep it.
    #[serde(default)]
    pub python: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Nothing was lost: the totals are exact for every watched process since `since`.
    pub complete: bool,
    /// One line for each thing that makes the numbers incomplete.
    pub reasons: Vec<String>,
    pub counters: BTreeMap<String, u64>,
    pub probes: Probes,
    pub overhead: Overhead,
    /// Bounds in force: name of a map -> used and most entries.
    pub limits: BTreeMap<String, Limit>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub used: u64,
    pub max: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    pub attached: u64,
    /// How: `uprobe.session`, `uprobe.multi` or `perf-event`.
    pub method: String,
    pub skipped: Vec<ProbeNote>,
    pub failed: Vec<ProbeNote>,
    /// Files with a CPython whose allocator was put into its callers, where each block is wanted.
    #[serde(default)]
    pub inlined: Vec<InlinedNote>,
}

/// Places at which CPython's allocator was put into its callers. What is handed out there is counted, and no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlinedNote {
    pub module: String,
    /// Places found in the code.
    pub found: u64,
    /// Those of which it is known for whom and how much they allocate; only these have a probe.
    pub probed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeNote {
    pub symbol: String,
    pub module: String,
    pub reason: String,
}

/// What watching each block of CPython was thought to cost before it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Calls of CPython's allocating and freeing functions.
    pub hits_per_second: f64,
    pub nanoseconds_per_hit: f64,
    /// Share of one core.
    pub percent: f64,
    /// How many times as long the target's own work takes; null where it worked too little to tell.
    pub slowdown: Option<f64>,
    /// False: it was too much, and pools are watched instead.
    pub in_force: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Probe hits since recording began.
    pub hits: u64,
    /// Share of one core that the hits of the last tick cost the targets, estimated from measured prices per hit.
    pub target_percent: Option<f64>,
    /// memwatch itself, share of one core over the last tick.
    pub self_cpu_percent: Option<f64>,
    pub self_rss_bytes: Option<u64>,
    /// Memory of all kernel maps.
    pub kernel_map_bytes: Option<u64>,
    /// With `--python exact`, where a running CPython is watched.
    #[serde(default)]
    pub predicted: Option<Predicted>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub ppid: Option<u32>,
    /// RFC 3339.
    pub start_time: Option<String>,
    pub comm: String,
    pub exe: Option<String>,
    pub cmdline: Vec<String>,
    pub cgroup: Option<String>,
    pub container: Option<Container>,
    pub pod: Option<Pod>,
    pub runtimes: Vec<Runtime>,
    pub rss_bytes: Option<u64>,
    pub peak_rss_bytes: Option<u64>,
    pub exited: bool,
    /// Null while it runs, and where it is not known.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// This pid's program was replaced by `exec`; the entry tells of the program before.
    pub replaced: bool,
    pub totals: BTreeMap<String, Totals>,
    /// Copies of the parent's blocks that a fork gave this process.
    pub inherited: Option<Inherited>,
    /// What an allocator mapped for itself; holds the blocks of the other domains and is not added to them.
    pub allocator_mapped_bytes: Option<u64>,
}

impl Process {
    /// What became of it; none while it runs, or when another program took its place.
    pub fn end(&self) -> Option<String> {
        let words = self.exit.unwrap_or_default().words();
        self.exited.then_some(words)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub name: String,
    pub version: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub objects: u64,
    pub bytes: u64,
    pub freed_objects: u64,
    pub freed_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub allocations: u64,
    pub frees: u64,
    pub allocated_bytes: u64,
    pub freed_bytes: u64,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    /// Frees of blocks born before recording began.
    pub untracked_frees: u64,
    /// Their usable sizes where the allocator tells, else null.
    pub untracked_freed_bytes: Option<u64>,
    /// Calls that returned no block.
    pub failed_allocations: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The group's name: a line, a function, a file, … or for `traceback` the innermost named frames joined by `;`.
    pub key: String,
    /// Null where a group spans several.
    pub pid: Option<u32>,
    pub domain: Option<String>,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    /// The part of `inuse_bytes` that is an estimate: small Python objects, by their pools.
    #[serde(default)]
    pub estimated_bytes: u64,
    /// Between what numbers `inuse_bytes` lies in 95 of 100 cases; null where it is exact.
    #[serde(default)]
    pub inuse_low_bytes: Option<u64>,
    #[serde(default)]
    pub inuse_high_bytes: Option<u64>,
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
    pub freed_bytes: u64,
    pub freed_objects: u64,
    /// Change of `inuse_bytes` over the last ticks; null at tick 0.
    pub growth_bytes_per_second: Option<f64>,
    /// Against the tick before (top) or the baseline (diff); null where there is none.
    pub delta: Option<Delta>,
    /// Live blocks by age; null when not asked for or not yet counted.
    pub ages: Option<Vec<Age>>,
    /// Freed blocks by how long they lived.
    pub lifetimes: Vec<Age>,
    /// Allocations by size.
    pub sizes: Vec<SizeBucket>,
    /// Age of the oldest live block.
    pub oldest_seconds: Option<f64>,
    /// Innermost first. For groups of several stacks: the one that holds most.
    #[serde(with = "shared")]
    pub frames: Vec<Arc<Frame>>,
    /// The stack was cut or broke before its end.
    pub truncated: bool,
    /// Stacks in this group.
    pub stacks: u64,
    /// `anonymous` or `file` for domain `mmap`.
    pub mapping: Option<String>,
    /// What each thread has in use, as far as it is known; for rows of one stack only. Not in JSON: `--group-by thread` is.
    #[serde(skip)]
    pub threads: Vec<ThreadShare>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadShare {
    pub thread: u32,
    pub bytes: u64,
    pub objects: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub inuse_bytes: i64,
    pub inuse_objects: i64,
    pub alloc_bytes: i64,
    pub alloc_objects: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Age {
    /// Exclusive upper edge; null for the last bucket.
    pub below_seconds: Option<f64>,
    pub objects: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeBucket {
    /// Exclusive upper edge; null for the last bucket.
    pub below_bytes: Option<u64>,
    pub objects: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    pub kind: FrameKind,
    pub function: Option<String>,
    /// Bytes from the function's start.
    pub offset: Option<u64>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub module: Option<String>,
    pub build_id: Option<String>,
    /// Where the frame stands in its module's file (not in the process), so that it means the same tomorrow.
    pub address: Option<u64>,
    pub inlined: bool,
}

impl Frame {
    /// As stacks hold them.
    pub fn shared(frames: impl IntoIterator<Item = Self>) -> Vec<Arc<Self>> {
        frames.into_iter().map(Arc::new).collect()
    }
}

/// Stacks share most of their frames; in JSON each has its own.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Frame;

    pub fn serialize<S: Serializer>(frames: &[Arc<Frame>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(frames.iter().map(Arc::as_ref))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Arc<Frame>>, D::Error> {
        Vec::<Frame>::deserialize(deserializer).map(Frame::shared)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameKind {
    #[default]
    Native,
    Python,
    Kernel,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub kind: String,
    pub severity: String,
    pub title: String,
    pub evidence: BTreeMap<String, serde_json::Value>,
    /// Index into `rows`.
    pub row: Option<u64>,
}
