//! Reading all functions of a file: rows in the order of the file, then sorted and without overlaps.

use gimli::{
    BaseAddresses, DebugFrame, EhFrame, FrameDescriptionEntry, LittleEndian, Register, UnwindTableRow,
};
use memwatch_common::unwind::x86_64::DWARF_RA;
use memwatch_common::unwind::{RULE_NONE, RULE_UNSUPPORTED, Rule};

use super::elf::{Elf, Segment};
use super::entries::{Kind, Reading, Storage, entry_at};
use super::rules::Interner;
use super::stats::{Dropped, TableStats};
use super::table::MAX_ROWS;
use super::x86_64::{Bytes, Converter, SIGNAL_TRAMPOLINE};

/// How much code without unwind information at the entry point is taken for the start of the stack.
const ENTRY_BYTES: u64 = 64;

const RECENT: usize = 256;

/// A row on its way into a page: `delta` from its function's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub delta: u32,
    pub rule: u16,
}

/// A function, and where its drafts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub start: u64,
    pub end: u64,
    pub first: usize,
    pub count: usize,
}

pub(super) struct Collected {
    pub spans: Vec<Span>,
    pub drafts: Vec<Draft>,
    pub rules: Vec<Rule>,
    pub stats: TableStats,
}

pub(super) struct Collector<'a> {
    elf: &'a Elf<'a>,
    spans: Vec<Span>,
    drafts: Vec<Draft>,
    interner: Interner,
    /// Rules met lately and their numbers; a few dozen make up nearly all rows.
    recent: [(Rule, u16); RECENT],
    stats: TableStats,
    /// Spans up to here are sorted; a further section must not touch their addresses.
    taken: usize,
}

impl<'a> Collector<'a> {
    pub fn new(elf: &'a Elf<'a>) -> Self {
        Self {
            elf,
            spans: Vec::new(),
            drafts: Vec::new(),
            interner: Interner::new(),
            recent: [(Rule::default(), RULE_NONE); RECENT],
            stats: TableStats::default(),
            taken: 0,
        }
    }

    /// Reads .eh_frame, and .debug_frame for what the former does not have: Go's code in a program that also has C.
    pub fn read_all(&mut self) {
        let elf = self.elf;
        let mut bases = BaseAddresses::default();
        bases.eh_frame.text = elf.text;
        bases.eh_frame.data = elf.got;
        if let Some(section) = &elf.eh_frame {
            bases.eh_frame.section = Some(section.address);
            let mut parsed = EhFrame::new(&section.bytes, LittleEndian);
            parsed.set_address_size(8);
            self.read(parsed, &section.bytes, &bases);
            self.settle();
        }
        if let Some(section) = &elf.debug_frame {
            bases.eh_frame.section = Some(section.address);
            let mut parsed = DebugFrame::new(&section.bytes, LittleEndian);
            parsed.set_address_size(8);
            self.read(parsed, &section.bytes, &bases);
            self.settle();
        }
    }

    fn read<'s, S: Kind<'s>>(&mut self, section: S, bytes: &'s [u8], bases: &'s BaseAddresses) {
        let mut reading = Reading::new(section, bytes, bases);
        let mut at = 0;
        while let Some(entry) = entry_at::<S>(bytes, at) {
            if reading.is_spent() || self.drafts.len() >= MAX_ROWS {
                self.stats.drop_bytes(Dropped::Limit, 0);
                return;
            }
            let Ok(entry) = entry else {
                self.stats.drop_bytes(Dropped::Entry, 0);
                return;
            };
            if entry.is_function && self.function(&mut reading, at).is_none() {
                self.stats.drop_bytes(Dropped::Entry, 0);
            }
            at = entry.end;
        }
    }

    /// Reads the function whose entry is at `at`; none when the entry is not valid.
    fn function<'s, S: Kind<'s>>(&mut self, reading: &mut Reading<'s, S>, at: usize) -> Option<()> {
        let function = reading.function(at)?;
        self.stats.functions += 1;

        let (start, size) = (function.initial_address(), function.len());
        let Some(end) = start.checked_add(size).filter(|&end| self.is_code(start, end)) else {
            self.stats.drop_bytes(Dropped::NoCode, size);
            return Some(());
        };
        if self.is_taken(start, end) {
            self.stats.drop_bytes(Dropped::Overlap, size);
            return Some(());
        }
        let first = self.drafts.len();
        if function.cie().return_address_register() == Register(DWARF_RA) {
            self.rows(reading, &function, first);
        } else {
            self.stats.drop_bytes(Dropped::ReturnAddress, size);
            self.draft(first, 0, RULE_UNSUPPORTED);
        }
        self.spans.push(Span {
            start,
            end,
            first,
            count: self.drafts.len() - first,
        });
        Some(())
    }

    /// Makes drafts of a function's rows.
    fn rows<'s, S: Kind<'s>>(
        &mut self,
        reading: &mut Reading<'s, S>,
        function: &FrameDescriptionEntry<Bytes<'s>>,
        first: usize,
    ) {
        let (section, bases) = (&reading.section, reading.bases);
        let (start, end) = (function.initial_address(), function.end_address());
        let converter = Converter {
            section,
            encoding: function.cie().encoding(),
            signal: function.is_signal_trampoline(),
        };
        let mut done = start;
        let mut valid = false;
        if let Ok(mut table) = function.rows(section, bases, &mut reading.context) {
            loop {
                let row = match table.next_row() {
                    Ok(Some(row)) => row,
                    Ok(None) => {
                        valid = true;
                        break;
                    }
                    Err(_) => break,
                };
                let (from, to) = (row.start_address(), row.end_address().min(end));
                if from >= to {
                    continue;
                }
                if self.drafts.len() >= MAX_ROWS {
                    break;
                }
                self.stats.source_rows += 1;
                let rule = self.convert(&converter, row, to - from);
                self.draft(first, (from - start) as u32, rule);
                done = to;
            }
        }
        if !valid {
            self.stats.drop_bytes(Dropped::Program, end - done);
            self.draft(first, (done - start) as u32, RULE_UNSUPPORTED);
        }
    }

    fn convert<'s, S: Kind<'s>>(
        &mut self,
        converter: &Converter<'_, S>,
        row: &UnwindTableRow<usize, Storage>,
        bytes: u64,
    ) -> u16 {
        let rule = match converter.rule(row) {
            Ok((rule, None)) => rule,
            Ok((rule, Some(lost))) => {
                self.stats.drop_bytes(lost, bytes);
                rule
            }
            Err(reason) => {
                self.stats.drop_bytes(reason, bytes);
                return RULE_UNSUPPORTED;
            }
        };
        let slot = recent_slot(&rule);
        if self.recent[slot].0 != rule {
            let Some(number) = self.interner.intern(rule) else {
                self.stats.drop_bytes(Dropped::Rules, bytes);
                return RULE_UNSUPPORTED;
            };
            self.recent[slot] = (rule, number);
        }
        self.recent[slot].1
    }

    /// Adds a draft to the function whose drafts begin at `first`, unless the rule stays the same.
    fn draft(&mut self, first: usize, delta: u32, rule: u16) {
        let same = self.drafts[first..].last().is_some_and(|last| last.rule == rule);
        if !same {
            self.drafts.push(Draft { delta, rule });
        }
    }

    /// Whether the range is code, and short enough for a draft. Linkers set the address of what they discard to 0.
    fn is_code(&self, start: u64, end: u64) -> bool {
        let inside = |segment: &Segment| segment.address <= start && end <= segment.end();
        let code = &self.elf.code;
        start > 0 && start < end && u32::try_from(end - start).is_ok() && code.iter().any(|(s, _)| inside(s))
    }

    fn is_taken(&self, start: u64, end: u64) -> bool {
        let taken = &self.spans[..self.taken];
        let after = taken.partition_point(|span| span.end <= start);
        taken.get(after).is_some_and(|span| span.start < end)
    }

    /// Sorts the spans and cuts each where the next begins; of two with one start, the first in the file stays.
    fn settle(&mut self) {
        self.spans.sort_by_key(|span| span.start);
        let stats = &mut self.stats;
        self.spans.dedup_by(|later, earlier| {
            let same = later.start == earlier.start;
            if same {
                stats.drop_bytes(Dropped::Overlap, later.end - later.start);
            }
            same
        });
        for at in 1..self.spans.len() {
            let start = self.spans[at].start;
            let before = &mut self.spans[at - 1];
            if before.end > start {
                stats.drop_bytes(Dropped::Overlap, before.end - start);
                before.end = start;
            }
        }
        self.taken = self.spans.len();
    }

    /// Code that has no unwind information but is known all the same: signal trampolines and the entry point.
    pub fn fill_gaps(&mut self) {
        let elf = self.elf;
        let mut found = Vec::new();
        for (segment, bytes) in &elf.code {
            let first = self.spans.partition_point(|span| span.end <= segment.address);
            let mut gap_start = segment.address;
            let inside = self.spans[first..]
                .iter()
                .take_while(|span| span.start < segment.end());
            for (start, end) in inside
                .map(|span| (span.start, span.end))
                .chain([(segment.end(), u64::MAX)])
            {
                if gap_start < start {
                    let from = (gap_start - segment.address) as usize;
                    let gap = &bytes[from..(start - segment.address) as usize];
                    known_code(gap, gap_start, elf.entry, &mut found);
                }
                gap_start = end;
            }
        }
        for (start, end, rule) in found {
            let Some(rule) = self.interner.intern(rule) else {
                continue;
            };
            let first = self.drafts.len();
            self.drafts.push(Draft { delta: 0, rule });
            self.spans.push(Span {
                start,
                end,
                first,
                count: 1,
            });
        }
        self.spans.sort_by_key(|span| span.start);
        for at in 1..self.spans.len() {
            let start = self.spans[at].start;
            self.spans[at - 1].end = self.spans[at - 1].end.min(start);
        }
    }

    pub fn finish(self) -> Collected {
        let Self {
            spans,
            drafts,
            interner,
            stats,
            ..
        } = self;
        Collected {
            spans,
            drafts,
            rules: interner.rules().to_vec(),
            stats,
        }
    }
}

fn recent_slot(rule: &Rule) -> usize {
    let offsets = (rule.cfa_offset as usize >> 3) ^ (rule.rbp_offset as u16 as usize) << 2;
    (offsets ^ (usize::from(rule.cfa_kind) << 5) ^ usize::from(rule.rbp_kind)) % RECENT
}

/// Looks for known code in a gap between functions.
fn known_code(gap: &[u8], start: u64, entry: u64, found: &mut Vec<(u64, u64, Rule)>) {
    let end = start + gap.len() as u64;
    // Libraries have no entry point: 0.
    if entry > 0 && (start..end).contains(&entry) {
        found.push((entry, end.min(entry + ENTRY_BYTES), Rule::END));
    }
    let length = SIGNAL_TRAMPOLINE.len();
    let mut at = 0;
    while let Some(next) = gap[at..]
        .windows(length)
        .position(|window| window == SIGNAL_TRAMPOLINE)
    {
        // A handler returns to the first byte; the lookup is for the byte before, even if a function ends there.
        let address = start + (at + next) as u64;
        found.push((address - 1, address + length as u64, Rule::SIGNAL));
        at += next + length;
    }
}
