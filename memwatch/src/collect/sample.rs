//! What one tick reads out of the kernel: ids and numbers only, no names.

use std::collections::{BTreeMap, HashMap};

use memwatch_common::{Event, ProcessState, SiteKey, SiteTotals, counter::COUNTERS};

use crate::model::report::Limit;
use crate::python::classes::CLASSES;

/// Edges of the age histogram of live blocks, in seconds; one more bucket holds all that is older.
pub const AGE_EDGES_SECONDS: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0];

#[derive(Clone, Debug)]
pub struct Sample {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    pub tick: u64,
    /// Sites that changed since the sample before, with their totals since recording began.
    pub sites: Vec<(SiteKey, SiteTotals)>,
    /// Small Python objects by the stacks that opened their pools, as far as they changed.
    pub pools: Vec<PoolTotals>,
    /// When the pools were read for that, if they were.
    pub pools_ns: Option<u64>,
    /// The processes of these, by instance: how each uses its size classes.
    pub pool_classes: Vec<(u32, [ClassUse; CLASSES])>,
    /// In the order in which the kernel side sent them.
    pub events: Vec<Event>,
    /// Every watched process that has not ended, by pid.
    pub processes: Vec<(u32, ProcessState)>,
    /// Sums over all CPUs, indexed by [`memwatch_common::Counter`].
    pub counters: [u64; COUNTERS],
    /// The live blocks by site, in ticks in which they were gone through.
    pub live: Option<LiveScan>,
    /// Used and most entries of each map.
    pub limits: BTreeMap<String, Limit>,
    pub kernel_map_bytes: Option<u64>,
}

/// What is in the pools that one stack opened, with its share of what is new in older ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolTotals {
    pub key: SiteKey,
    pub totals: SiteTotals,
    /// Of each size class that it ever opened a pool for.
    pub classes: Vec<ClassBytes>,
}

/// What one stack has in pools of one size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassBytes {
    pub class: u8,
    pub bytes: u64,
    /// Of these, its share of what is new in pools that nobody was seen to open.
    pub filled: u64,
}

/// How a process uses pools of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassUse {
    /// In use, whoever opened them.
    pub bytes: u64,
    /// Stacks that have opened one since the watch began.
    pub openers: u32,
}

/// One pass over `LIVE`.
#[derive(Clone, Debug, Default)]
pub struct LiveScan {
    pub at_ns: u64,
    pub sites: HashMap<SiteKey, SiteAges>,
    /// What of each site was asked for by which thread, in the order of their ids.
    pub threads: HashMap<SiteKey, Vec<(u32, Held)>>,
}

/// What one thread has of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub objects: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteAges {
    /// Objects below each edge of [`AGE_EDGES_SECONDS`], and above the last.
    pub objects: [u64; AGE_EDGES_SECONDS.len() + 1],
    /// The bytes of these objects.
    pub bytes: [u64; AGE_EDGES_SECONDS.len() + 1],
    pub oldest_born_ns: u64,
    /// Blocks at least as old as the `--older-than` of the scan (all, when there is none).
    pub old_bytes: u64,
    pub old_objects: u64,
}
