//! From a model, tick by tick, to bytes. Each tick is handed out in one piece.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use memwatch_common::counter::COUNTERS;

use super::frame::{Head, Packer, write_start};
use super::header::{Header, SavedNotice, TickFacts};
use super::names::Interner;
use super::processes::Processes;
use super::section::Section;
use super::sites::Sites;
use crate::model::assemble::Meta;
use crate::model::counts::{Counts, SiteId};
use crate::model::health::Notice;
use crate::model::report::{Limit, Probes};
use crate::model::state::Model;
use crate::numbers::put_difference;
use crate::symbolize::names::StackNames;

/// Ages are written at most this often: with each tick they would be as much as all the rest, and they only
/// tell apart a second from ten, a minute, five minutes, and so on.
const AGES_EVERY_NS: u64 = 10_000_000_000;

/// The sums of a tick that was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub tick: u64,
    pub at_ns: u64,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    /// The whole frame.
    pub frame_bytes: u64,
}

pub struct Writer<W> {
    out: W,
    packer: Packer,
    /// Until it is written.
    header: Option<Header>,
    names: Interner,
    processes: Processes,
    sites: Sites,
    counters: [u64; COUNTERS],
    sent: Sent,
    written: Vec<Written>,
    bytes: u64,
}

/// What is written only when it changes.
#[derive(Debug, Default)]
struct Sent {
    probes: Probes,
    notices: Vec<Notice>,
    limits: BTreeMap<String, Limit>,
    aged_ns: Option<u64>,
}

impl<W: Write> Writer<W> {
    /// Nothing is written before the first tick.
    pub fn new(out: W, header: Header) -> io::Result<Self> {
        Ok(Self {
            out,
            packer: Packer::new()?,
            header: Some(header),
            names: Interner::default(),
            processes: Processes::default(),
            sites: Sites::default(),
            counters: [0; COUNTERS],
            sent: Sent::default(),
            written: Vec::new(),
            bytes: 0,
        })
    }

    /// Writes what changed since the tick before. After an error nothing more can be written.
    pub fn tick(&mut self, model: &Model, names: &mut dyn StackNames, meta: &Meta) -> io::Result<()> {
        let mut frame = Vec::new();
        let mut raw = Vec::new();
        if let Some(header) = self.header.take() {
            write_start(&mut frame);
            Section::Header.put(&mut raw, &serde_json::to_vec(&header)?);
        }
        let gone: HashSet<u32> = self.processes.write(model, &mut raw)?.into_iter().collect();
        self.names.forget(&gone);
        self.sites.forget(&gone);
        self.write_sites(model, names, &mut raw);
        let aged = self.write_ages(model, &mut raw);
        self.write_counters(model, &mut raw);
        let facts = self.facts(model, meta, aged);
        Section::Tick.put(&mut raw, &serde_json::to_vec(&facts)?);
        let head = head(model);
        frame.extend(self.packer.frame(&head, &raw)?);
        self.send(&frame)?;
        self.written.push(Written {
            tick: head.tick,
            at_ns: head.at_ns,
            inuse_bytes: head.inuse_bytes,
            inuse_objects: head.inuse_objects,
            frame_bytes: frame.len() as u64,
        });
        Ok(())
    }

    /// The next tick is the last: what was gone through is kept with it, however long ago it was kept before.
    pub fn last_tick_follows(&mut self) {
        self.sent.aged_ns = None;
    }

    /// Marks the recording as one that ended as it should.
    pub fn finish(&mut self) -> io::Result<()> {
        let head = Head {
            end: true,
            ..Head::default()
        };
        let frame = self.packer.frame(&head, &[])?;
        self.send(&frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.out.write_all(frame)?;
        self.out.flush()?;
        self.bytes += frame.len() as u64;
        Ok(())
    }

    fn write_sites(&mut self, model: &Model, names: &mut dyn StackNames, raw: &mut Vec<u8>) {
        let mut new: Vec<SiteId> = model
            .sites()
            .map(|(id, _)| *id)
            .filter(|id| !self.sites.contains(id))
            .collect();
        // Hash maps have no order of their own; the same watch shall make the same file.
        new.sort_unstable();
        let unnamed = new.iter().map(|id| (id.instance, id.stack));
        for (instance, stack) in unnamed.chain(self.names.raw()) {
            if self.names.wants(instance, stack) {
                self.names.add(instance, stack, &names.stack(instance, stack));
            }
        }
        self.names.send(raw);
        let mut section = Vec::new();
        self.sites.add_new(new.into_iter(), &mut section);
        Section::Sites.put(raw, &section);
        section.clear();
        let sites = model.sites().map(|(id, site)| (id, &site.totals));
        self.sites.write_totals(sites, &mut section);
        Section::Totals.put(raw, &section);
    }

    /// When the live blocks that were written were gone through.
    fn write_ages(&mut self, model: &Model, raw: &mut Vec<u8>) -> Option<u64> {
        let live = model.live()?;
        // More often at first: a short recording shall have them too.
        let began_ns = self.written.first().map_or(live.at_ns, |first| first.at_ns);
        let every_ns = AGES_EVERY_NS.min(live.at_ns.saturating_sub(began_ns) / 2);
        let due = self
            .sent
            .aged_ns
            .is_none_or(|before| live.at_ns.saturating_sub(before) >= every_ns);
        if !due || self.sent.aged_ns == Some(live.at_ns) {
            return None;
        }
        self.sent.aged_ns = Some(live.at_ns);
        let mappings: HashMap<SiteId, _> = model.mapping_ages(model.at_ns(), None);
        let ages = |id: &SiteId| {
            let found = if id.mapping.is_some() {
                mappings.get(id)
            } else {
                live.sites.get(&crate::model::state::site_key(id))
            };
            found.copied().unwrap_or_default()
        };
        let mut section = Vec::new();
        self.sites.write_ages(ages, &mut section);
        Section::Ages.put(raw, &section);
        section.clear();
        self.sites.write_threads(|id| model.threads(id), &mut section);
        Section::Threads.put(raw, &section);
        Some(live.at_ns)
    }

    fn write_counters(&mut self, model: &Model, raw: &mut Vec<u8>) {
        let now = model.counters();
        if now != &self.counters {
            let mut section = Vec::new();
            for (now, before) in now.iter().zip(&self.counters) {
                put_difference(&mut section, *now, *before);
            }
            Section::Counters.put(raw, &section);
            self.counters = *now;
        }
    }

    fn facts(&mut self, model: &Model, meta: &Meta, scanned_ns: Option<u64>) -> TickFacts {
        let first = self.written.is_empty();
        let mut facts = TickFacts {
            overhead: Some(meta.overhead.clone()),
            kernel_map_bytes: model.kernel_map_bytes(),
            undecoded: model.undecoded(),
            scanned_ns,
            ..TickFacts::default()
        };
        if first || self.sent.probes != meta.probes {
            self.sent.probes.clone_from(&meta.probes);
            facts.probes = Some(meta.probes.clone());
        }
        if self.sent.notices != meta.notices {
            self.sent.notices.clone_from(&meta.notices);
            facts.notices = Some(meta.notices.iter().map(SavedNotice::from).collect());
        }
        if &self.sent.limits != model.limits() {
            self.sent.limits.clone_from(model.limits());
            facts.limits = Some(model.limits().clone());
        }
        facts
    }

    /// Takes over what only the writer of the same recording before this one knows.
    pub(super) fn go_on_for<O>(&mut self, before: &Writer<O>) {
        self.names.take_raw(&before.names);
    }

    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    pub fn into_inner(self) -> W {
        self.out
    }

    /// The ticks so far.
    pub fn written(&self) -> &[Written] {
        &self.written
    }

    /// What is written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn head(model: &Model) -> Head {
    let (mut bytes, mut objects) = (0_u64, 0_u64);
    for (_, site) in model.sites() {
        let counts = Counts::from(&site.totals);
        bytes = bytes.saturating_add(counts.inuse_bytes());
        objects = objects.saturating_add(counts.inuse_objects());
    }
    let alive = model.processes().iter().filter(|(_, instance)| !instance.ended());
    let rss = alive.filter_map(|(_, instance)| instance.facts.rss_bytes);
    Head {
        end: false,
        tick: model.tick(),
        at_ns: model.at_ns(),
        inuse_bytes: bytes,
        inuse_objects: objects,
        rss_bytes: rss.reduce(u64::saturating_add),
        raw_bytes: 0,
    }
}
