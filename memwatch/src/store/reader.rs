//! From bytes to a model at any tick.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use memwatch_common::counter::COUNTERS;

use super::compare::WithGone;
use super::error::StoreError;
use super::frame::{self, Head, Next, START_BYTES, Unpacker};
use super::header::{Header, TickFacts};
use super::names::SavedNames;
use super::processes::Processes;
use super::section::{self, Section};
use super::sites::Sites;
use crate::model::assemble::{self, Meta};
use crate::model::group::QueryError;
use crate::model::growth::GROWTH_TICKS;
use crate::model::health::Notice;
use crate::model::query::Query;
use crate::model::report::{Kind, Report};
use crate::model::state::replay::Change;
use crate::model::state::{Baseline, Model};
use crate::numbers::Bad;
use crate::numbers::Input;
use crate::symbolize::names::NamedStack;

/// How much a file may make the reader hold. Far above what memwatch writes; there for files that lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one tick, unpacked.
    pub frame_bytes: u32,
    /// Of all ticks, unpacked.
    pub total_bytes: u64,
    pub text_bytes: usize,
    pub sites: usize,
    pub processes: usize,
}

impl Bounds {
    pub const USUAL: Self = Self {
        frame_bytes: 1 << 29,
        total_bytes: 1 << 36,
        text_bytes: 1 << 29,
        sites: 1 << 22,
        processes: 1 << 20,
    };
    /// For fuzzers.
    pub const SMALL: Self = Self {
        frame_bytes: 1 << 20,
        total_bytes: 1 << 22,
        text_bytes: 1 << 20,
        sites: 1 << 12,
        processes: 1 << 10,
    };
}

/// What can be known of a tick without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickInfo {
    /// As it was numbered while recording; thinned recordings have gaps.
    pub tick: u64,
    /// `CLOCK_MONOTONIC` of the recorded host, nanoseconds.
    pub at_ns: u64,
    pub time: Option<jiff::Timestamp>,
    /// In use over all sites.
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    /// Of all watched processes that were alive.
    pub rss_bytes: Option<u64>,
}

/// How the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Complete,
    /// After a whole tick, but nobody ended the recording: it is still going on, or memwatch was killed.
    Unfinished,
    /// In the middle of a tick, which is lost.
    Cut { bytes: u64 },
    /// What follows the last good tick is not what was written.
    Damaged,
}

/// A tick that has been read: all that a live watch has.
pub struct Moment<'a> {
    pub model: &'a mut Model,
    pub names: &'a mut SavedNames,
    pub meta: &'a Meta,
    header: &'a Header,
}

impl Moment<'_> {
    /// As [`crate::watch::Watch::report`] makes it of a running watch.
    pub fn report(
        &mut self,
        query: &Query,
        kind: Kind,
        baseline: Option<&Baseline>,
    ) -> Result<Report, QueryError> {
        self.report_with(query, kind, baseline, &HashMap::new())
    }

    /// `gone`: stacks that only an older recording knows.
    pub(super) fn report_with(
        &mut self,
        query: &Query,
        kind: Kind,
        baseline: Option<&Baseline>,
        gone: &HashMap<(u32, u64), Arc<NamedStack>>,
    ) -> Result<Report, QueryError> {
        let (query, notice) = self.header.can_tell(query)?;
        self.model.count_older_than(query.older_than);
        let mut meta = Meta {
            kind,
            ..self.meta.clone()
        };
        meta.notices.extend(notice);
        let now_ns = self.model.at_ns();
        let mut names = WithGone {
            names: self.names,
            gone,
        };
        assemble::report(self.model, &query, &mut names, baseline, now_ns, &meta)
    }
}

trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// An open recording. Going forward costs what changed; going back reads from the beginning.
///
/// Growth is that of the last ticks, so the model has to have seen each of these; all ticks before are only read.
pub struct Recording {
    source: BufReader<Box<dyn Source>>,
    bounds: Bounds,
    header: Header,
    ticks: Vec<TickInfo>,
    ending: Ending,
    replay: Replay,
    /// Ticks that `replay` has seen.
    replayed: usize,
    /// The first of those from which on the model has seen each.
    seen_from: usize,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("ticks", &self.ticks.len())
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

impl Recording {
    pub fn read(source: impl Read + Seek + Send + 'static, bounds: &Bounds) -> Result<Self, StoreError> {
        let mut source = BufReader::new(Box::new(source) as Box<dyn Source>);
        source.seek(SeekFrom::Start(0))?;
        frame::read_start(&mut source)?;
        let mut buffer = Vec::new();
        let (heads, ending) = scan(&mut source, &mut buffer, bounds)?;
        if heads.is_empty() {
            return Err(StoreError::NoTick);
        }
        let mut recording = Self {
            source,
            bounds: *bounds,
            header: Header::default(),
            ticks: Vec::new(),
            ending,
            replay: Replay::new()?,
            replayed: 0,
            seen_from: 0,
            buffer,
        };
        recording.rewind()?;
        recording.step(true)?;
        recording.header = recording.replay.header.clone();
        recording.ticks = heads
            .iter()
            .map(|head| recording.header.tick_info(head))
            .collect();
        Ok(recording)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Never empty.
    pub fn ticks(&self) -> &[TickInfo] {
        &self.ticks
    }

    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// What was known at the tick with this index in [`Recording::ticks`].
    pub fn at(&mut self, index: usize) -> Result<Moment<'_>, StoreError> {
        self.on_the_way(index, index)
    }

    /// The same for who goes on to `last`, and asks for growth only there.
    pub fn on_the_way(&mut self, index: usize, last: usize) -> Result<Moment<'_>, StoreError> {
        let count = self.ticks.len();
        if index >= count {
            return Err(StoreError::NoSuchTick { index, count });
        }
        // One more than growth needs: the change of a site over the first of them.
        let see_from = last.saturating_sub(GROWTH_TICKS + 1);
        let is_behind = index < self.replayed.saturating_sub(1);
        let has_missed = self.replayed > see_from && self.seen_from > see_from;
        if is_behind || has_missed {
            self.rewind()?;
        }
        while self.replayed <= index {
            let see = self.replayed >= see_from || self.replayed == index;
            self.step(see)?;
        }
        Ok(Moment {
            model: &mut self.replay.model,
            names: &mut self.replay.names,
            meta: &self.replay.meta,
            header: &self.header,
        })
    }

    /// The state at the last tick.
    pub fn last(&mut self) -> Result<Moment<'_>, StoreError> {
        self.at(self.ticks.len() - 1)
    }

    fn rewind(&mut self) -> Result<(), StoreError> {
        self.source.seek(SeekFrom::Start(START_BYTES))?;
        self.replay = Replay::new()?;
        (self.replayed, self.seen_from) = (0, 0);
        Ok(())
    }

    fn step(&mut self, see: bool) -> Result<(), StoreError> {
        if !self
            .replay
            .step(&mut self.source, &mut self.buffer, &self.bounds)?
        {
            // It was there when the file was opened.
            let gone = Bad("the file has become shorter");
            return Err(StoreError::bad(self.replayed as u64, gone));
        }
        if see {
            self.replay.settle();
        } else {
            self.seen_from = self.replayed + 1;
        }
        self.replayed += 1;
        Ok(())
    }
}

impl Header {
    fn tick_info(&self, head: &Head) -> TickInfo {
        TickInfo {
            tick: head.tick,
            at_ns: head.at_ns,
            time: self.time(head.at_ns),
            inuse_bytes: head.inuse_bytes,
            inuse_objects: head.inuse_objects,
            rss_bytes: head.rss_bytes,
        }
    }
}

/// Every whole tick, and what comes after the last.
fn scan(
    source: &mut dyn Read,
    buffer: &mut Vec<u8>,
    bounds: &Bounds,
) -> Result<(Vec<Head>, Ending), StoreError> {
    let mut heads = Vec::new();
    loop {
        let ending = match frame::next(source, buffer, bounds)? {
            Next::Frame(head, _) if head.end => Ending::Complete,
            Next::Frame(head, _) => {
                heads.push(head);
                continue;
            }
            Next::Nothing => Ending::Unfinished,
            Next::Cut(bytes) => Ending::Cut { bytes },
            Next::Damaged => Ending::Damaged,
        };
        return Ok((heads, ending));
    }
}

/// A file being read from its beginning, tick by tick.
pub(super) struct Replay {
    unpacker: Unpacker,
    pub header: Header,
    pub names: SavedNames,
    processes: Processes,
    sites: Sites,
    counters: Vec<u64>,
    pub model: Model,
    pub meta: Meta,
    /// As told, without those that counters of other versions became.
    notices: Vec<Notice>,
    raw: Vec<u8>,
    ticks: u64,
}

impl Replay {
    pub fn new() -> Result<Self, StoreError> {
        Ok(Self {
            unpacker: Unpacker::new()?,
            header: Header::default(),
            names: SavedNames::default(),
            processes: Processes::default(),
            sites: Sites::default(),
            counters: vec![0; COUNTERS],
            model: Model::for_recording(0),
            meta: Meta::default(),
            notices: Vec::new(),
            raw: Vec::new(),
            ticks: 0,
        })
    }

    /// Brings the model's sites to the tick that was read last. Until then they are as they were at an earlier one: what
    /// nobody looks at costs only being read.
    pub fn settle(&mut self) {
        let model = &mut self.model;
        self.sites.settle(|site| {
            model.restore_site(site.id, site.totals, site.ages);
            if let Some(threads) = site.threads {
                model.restore_threads(site.id, threads);
            }
        });
    }

    /// The next tick; false when there is none. [`Replay::settle`] is for whoever wants to look at it.
    pub fn step(
        &mut self,
        source: &mut dyn Read,
        buffer: &mut Vec<u8>,
        bounds: &Bounds,
    ) -> Result<bool, StoreError> {
        let Next::Frame(head, packed) = frame::next(source, buffer, bounds)? else {
            return Ok(false);
        };
        if head.end {
            return Ok(false);
        }
        let mut raw = std::mem::take(&mut self.raw);
        let read = self
            .unpacker
            .unpack(&head, &buffer[packed..], &mut raw, bounds)
            .and_then(|()| self.apply(&head, &raw, bounds));
        self.raw = raw;
        read.map_err(|bad| StoreError::bad(head.tick, bad))?;
        self.ticks += 1;
        Ok(true)
    }

    fn apply(&mut self, head: &Head, raw: &[u8], bounds: &Bounds) -> Result<(), Bad> {
        let mut change = Change {
            at_ns: head.at_ns,
            tick: head.tick,
            ..Change::default()
        };
        let mut told = BTreeSet::new();
        let mut input = Input::new(raw);
        while let Some((section, bytes)) = section::next(&mut input)? {
            match section {
                Section::Header => self.read_header(bytes)?,
                Section::Tick => self.read_facts(bytes, &mut change)?,
                Section::Strings => self.names.read_strings(bytes, bounds)?,
                Section::Frames => self.names.read_frames(bytes)?,
                Section::Stacks => self.names.read_stacks(bytes)?,
                Section::StackOf => self.names.read_known(bytes)?,
                Section::Processes => told.extend(self.processes.read_identities(bytes, bounds)?),
                Section::ProcessNumbers => told.extend(self.processes.read_numbers(bytes)?),
                Section::Forgotten => {
                    change.forgotten.extend(self.processes.read_forgotten(bytes)?);
                    self.sites.forget(&change.forgotten.iter().copied().collect());
                }
                Section::Sites => self.sites.read_new(bytes, bounds)?,
                Section::Totals1 => self.sites.read_totals_1(bytes)?,
                Section::Ages1 => self.sites.read_ages_1(bytes)?,
                Section::Totals => self.sites.read_totals(bytes)?,
                Section::Ages => self.sites.read_ages(bytes)?,
                Section::Threads => self.sites.read_threads(bytes)?,
                Section::Counters => self.read_counters(bytes)?,
            }
        }
        for number in told {
            if let Some((instance, mapped)) = self.processes.get(number) {
                change.processes.push((number, instance));
                change.mapped.push((number, mapped));
            }
        }
        let (counters, unknown) = self.header.counters(&self.counters);
        change.counters = counters;
        self.meta.notices.clone_from(&self.notices);
        self.meta.notices.extend(unknown);
        self.meta.time = self
            .header
            .time(head.at_ns)
            .map_or_else(String::new, |time| time.to_string());
        self.model.restore(change);
        Ok(())
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        if self.ticks > 0 {
            return Err(Bad("it begins twice"));
        }
        self.header = serde_json::from_slice(bytes).map_err(|_| Bad("its header cannot be read"))?;
        self.meta = self.header.meta();
        self.model = Model::for_recording(self.header.since_ns);
        self.counters = vec![0; self.header.counters.len()];
        Ok(())
    }

    fn read_facts(&mut self, bytes: &[u8], change: &mut Change) -> Result<(), Bad> {
        let facts: TickFacts =
            serde_json::from_slice(bytes).map_err(|_| Bad("what is told of the tick cannot be read"))?;
        if let Some(overhead) = facts.overhead {
            self.meta.overhead = overhead;
        }
        if let Some(probes) = facts.probes {
            self.meta.probes = probes;
        }
        if let Some(notices) = facts.notices {
            self.notices = notices.into_iter().map(Notice::from).collect();
        }
        change.limits = facts.limits;
        change.kernel_map_bytes = facts.kernel_map_bytes;
        change.undecoded = facts.undecoded;
        change.scanned_ns = facts.scanned_ns;
        Ok(())
    }

    fn read_counters(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        for value in &mut self.counters {
            if input.is_empty() {
                break;
            }
            *value = input.difference(*value)?;
        }
        Ok(())
    }
}
