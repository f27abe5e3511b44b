//! `top` and `diff` of recordings.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::{Result, anyhow};

use super::error::{ExitCode, Failure};
use super::output::{Flow, Output};
use super::resolve::{Command, Format, Resolved, Screen, Span, Verbosity};
use super::units::When;
use crate::controller::{Printer, usage};
use crate::model::report::{Kind, Report};
use crate::store::compare::compare;
use crate::store::{self, Ending, Recording, TickInfo};

pub fn run(resolved: &Resolved, color: bool) -> Result<ExitCode> {
    let output = Output::open(&resolved.output.destination)?;
    if resolved.screen(std::io::stdout().is_terminal()) == Screen::Full {
        return screen(resolved, color);
    }
    let printer = Printer::new(resolved, resolved.output.format.unwrap_or(Format::Text), color);
    let mut view = View {
        resolved,
        printer,
        output,
    };
    let grown = match &resolved.command {
        Command::TopFile { path, span } => view.top(path, *span)?,
        Command::DiffFile { path, span } => view.diff(path, *span)?,
        Command::DiffFiles { old, new } => view.compare(old, new)?,
        _ => return Err(anyhow!("this command is not about a recording")),
    };
    view.output.finish()?;
    match resolved.fail_on_growth {
        Some(most) if grown > most => {
            let bytes = resolved.output.bytes;
            let error = anyhow!(
                "memory in use grew by {}, more than the {} of --fail-on-growth",
                bytes.size(grown),
                bytes.size(most)
            );
            Err(Failure::new(ExitCode::LimitPassed, error).into())
        }
        _ => Ok(ExitCode::Done),
    }
}

fn screen(resolved: &Resolved, color: bool) -> Result<ExitCode> {
    let (Command::TopFile { path, span } | Command::DiffFile { path, span }) = &resolved.command else {
        return Err(anyhow!("this command has no screen"));
    };
    let recording = open(path, resolved)?;
    let (first, last) = indexes(&recording, *span)?;
    let baseline = matches!(resolved.command, Command::DiffFile { .. }).then_some(first);
    crate::screen::recorded::run(
        recording,
        last,
        baseline,
        &path.display().to_string(),
        resolved,
        color,
    )
}

struct View<'a> {
    resolved: &'a Resolved,
    printer: Printer,
    output: Output,
}

impl View<'_> {
    /// Each gives how much memory in use grew.
    fn top(&mut self, path: &Path, span: Span) -> Result<u64> {
        let mut recording = open(path, self.resolved)?;
        let (first, last) = indexes(&recording, span)?;
        // Without a beginning, only the end is of interest.
        let from = if span.from.is_some() { first } else { last };
        for index in from..=last {
            let report = recording
                .at(index)
                .map_err(|error| unreadable(path, &error))?
                .report(&self.resolved.query, Kind::Top, None)
                .map_err(usage)?;
            if self.print(&report)? == Flow::Stop {
                break;
            }
        }
        Ok(grown(recording.ticks(), first, last))
    }

    fn diff(&mut self, path: &Path, span: Span) -> Result<u64> {
        let mut recording = open(path, self.resolved)?;
        let (first, last) = indexes(&recording, span)?;
        let wrong = |error| unreadable(path, &error);
        let baseline = recording.at(first).map_err(wrong)?.model.baseline();
        let report = recording
            .at(last)
            .map_err(wrong)?
            .report(&self.resolved.query, Kind::Diff, Some(&baseline))
            .map_err(usage)?;
        // A reader that is gone has seen enough.
        let _ = self.print(&report)?;
        Ok(grown(recording.ticks(), first, last))
    }

    fn compare(&mut self, old: &Path, new: &Path) -> Result<u64> {
        let mut before = open(old, self.resolved)?;
        let mut after = open(new, self.resolved)?;
        let inuse = |recording: &Recording| recording.ticks().last().map_or(0, |info| info.inuse_bytes);
        let grown = inuse(&after).saturating_sub(inuse(&before));
        let mut earlier = before.last().map_err(|error| unreadable(old, &error))?;
        let mut later = after.last().map_err(|error| unreadable(new, &error))?;
        let report = compare(&mut earlier, &mut later, &self.resolved.query).map_err(usage)?;
        let _ = self.print(&report)?;
        Ok(grown)
    }

    fn print(&mut self, report: &Report) -> Result<Flow> {
        Ok(self.output.write(&self.printer.print(report)?)?)
    }
}

pub(super) fn grown(ticks: &[TickInfo], first: usize, last: usize) -> u64 {
    ticks[last].inuse_bytes.saturating_sub(ticks[first].inuse_bytes)
}

/// The first and the last tick of the span; what lies outside the recording is its first or last tick.
pub(super) fn indexes(recording: &Recording, span: Span) -> Result<(usize, usize), Failure> {
    let ticks = recording.ticks();
    let first = span.from.map_or(0, |when| index(recording, when));
    let last = span.to.map_or(ticks.len() - 1, |when| index(recording, when));
    if first > last {
        let error = anyhow!(
            "--from is tick {}, after --to, which is tick {}",
            ticks[first].tick,
            ticks[last].tick
        );
        return Err(Failure::new(ExitCode::Usage, error));
    }
    Ok((first, last))
}

/// The last tick that is not after this.
fn index(recording: &Recording, when: When) -> usize {
    let since_ns = recording.header().since_ns;
    let after = recording.ticks().partition_point(|info| match when {
        When::Tick(tick) => info.tick <= tick,
        When::After(passed) => u128::from(info.at_ns.saturating_sub(since_ns)) <= passed.as_nanos(),
        When::At(time) => info.time.is_none_or(|at| at <= time),
    });
    after.saturating_sub(1)
}

/// Opens a recording, and says on stderr when it does not end as it should.
pub fn open(path: &Path, resolved: &Resolved) -> Result<Recording> {
    let recording = store::open(path).map_err(|error| unreadable(path, &error))?;
    if resolved.output.verbosity > Verbosity::Quiet
        && let Some(note) = note(&recording)
    {
        let _ = writeln!(
            std::io::stderr(),
            "memwatch: note: {}",
            super::error::one_line(&format!("`{}` {note}", path.display()))
        );
    }
    Ok(recording)
}

fn note(recording: &Recording) -> Option<String> {
    let last = recording.ticks().last()?;
    let at = last.time.map_or_else(String::new, |time| format!(" at {time}"));
    let last = format!("its last whole tick is {}{at}", last.tick);
    Some(match recording.ending() {
        Ending::Complete => return None,
        Ending::Unfinished => {
            format!("was not ended (it is still being recorded, or memwatch was killed): {last}")
        }
        Ending::Cut { bytes } => {
            format!("is cut off, the last {bytes} bytes are part of a tick and are left out: {last}")
        }
        Ending::Damaged => format!("is damaged and read only up to there: {last}"),
    })
}

pub(super) fn unreadable(path: &Path, error: &store::StoreError) -> anyhow::Error {
    let name = path.display().to_string();
    let is_missing =
        matches!(error, store::StoreError::Io(cause) if cause.kind() == std::io::ErrorKind::NotFound);
    let failure = Failure::new(ExitCode::Failed, anyhow!("cannot read `{name}`: {error}"));
    if is_missing && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return failure.hint(format!("a process is given as --pid {name}")).into();
    }
    failure.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Its ticks are 0, 1, 2, 3, 13 and 14, a second apart from one number to the next.
    fn recording() -> Recording {
        store::open(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/version-1.memwatch"
        )))
        .unwrap()
    }

    #[test]
    fn a_place_in_time_is_the_last_tick_that_is_not_later() {
        let recording = recording();
        let after = |milliseconds| When::After(Duration::from_millis(milliseconds));
        let at = |time: &str| When::At(time.parse().unwrap());
        for (when, index_in_file) in [
            (When::Tick(0), 0),
            (When::Tick(3), 3),
            (When::Tick(12), 3),
            (When::Tick(13), 4),
            (When::Tick(999), 5),
            (after(0), 0),
            (after(2999), 2),
            (after(13_000), 4),
            (at("2026-01-02T03:04:01.5Z"), 1),
            (at("2025-01-01T00:00:00Z"), 0),
            (at("2027-01-01T00:00:00Z"), 5),
        ] {
            assert_eq!(index(&recording, when), index_in_file, "{when:?}");
        }
    }

    #[test]
    fn a_span_goes_forward() {
        let recording = recording();
        let span = |from, to| Span {
            from: Some(When::Tick(from)),
            to: Some(When::Tick(to)),
        };
        assert_eq!(indexes(&recording, Span::default()).unwrap(), (0, 5));
        assert_eq!(indexes(&recording, span(1, 13)).unwrap(), (1, 4));
        assert_eq!(indexes(&recording, span(4, 12)).unwrap(), (3, 3));
        let failure = indexes(&recording, span(14, 13)).unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage);
    }
}
