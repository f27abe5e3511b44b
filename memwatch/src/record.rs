//! `memwatch record`: a watch that is saved tick by tick.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::cli::error::{ExitCode, Failure};
use crate::cli::output::{Flow, Output};
use crate::cli::resolve::{Resolved, Verbosity};
use crate::controller::{End, Pace};
use crate::format;
use crate::store::Header;
use crate::store::file::Recorder;
use crate::watch::Watch;

/// Records until the end that was asked for, the end of the targets, or Ctrl-C.
pub async fn run(
    mut watch: Watch,
    resolved: &Resolved,
    output: Output,
    most_bytes: u64,
    target: String,
) -> Result<ExitCode> {
    let mut pace = Pace::new(&watch, resolved.interval, resolved.duration)?;
    let progress = Progress::new(resolved);
    watch.tick(&resolved.query, None)?;
    let since_ns = watch.since_ns();
    let (_, _, meta) = watch.parts();
    let header = Header::new(meta, since_ns, &resolved.query, target);
    let mut recorder = Recorder::new(output, header, most_bytes)?;
    let mut end = save(&mut watch, resolved, &mut recorder)?;
    let inuse_at_start = recorder.inuse_bytes();
    progress.ready();
    while end.is_none() {
        progress.show(&recorder);
        end = pace.tick(&mut watch).await?;
        if end.is_some() {
            recorder.last_tick_follows();
        }
        // Also of a target that ended: its last state is still in the kernel.
        watch.tick(&resolved.query, None)?;
        let saved = save(&mut watch, resolved, &mut recorder)?;
        end = end.or(saved);
    }
    watch.stop()?;
    progress.done(&recorder);
    let grown = recorder.inuse_bytes().saturating_sub(inuse_at_start);
    recorder.finish()?;
    match resolved.fail_on_growth {
        Some(most) if grown > most => Err(too_much(resolved, grown, most, progress.began)),
        _ => Ok(ExitCode::Done),
    }
}

/// Saves the tick. `Some` when it was the last.
fn save(watch: &mut Watch, resolved: &Resolved, recorder: &mut Recorder) -> Result<Option<End>> {
    // The number of the tick that was just made.
    let tick = watch.tick_number().saturating_sub(1);
    let (model, names, meta) = watch.parts();
    if recorder.tick(model, names, meta)? == Flow::Stop {
        return Ok(Some(End::NobodyReads));
    }
    if resolved.ticks.is_some_and(|most| tick >= most) {
        return Ok(Some(End::Finished));
    }
    Ok(watch.all_ended().then_some(End::TargetsEnded))
}

fn too_much(resolved: &Resolved, grown: u64, most: u64, began: Instant) -> anyhow::Error {
    let bytes = resolved.output.bytes;
    let error = anyhow!(
        "memory in use grew by {} in {}, more than the {} of --fail-on-growth",
        bytes.size(grown),
        format::duration(began.elapsed()),
        bytes.size(most)
    );
    Failure::new(ExitCode::LimitPassed, error).into()
}

/// What is said on stderr meanwhile: a line that changes, on a terminal only.
struct Progress {
    is_terminal: bool,
    is_quiet: bool,
    bytes: format::ByteFormat,
    began: Instant,
}

impl Progress {
    fn new(resolved: &Resolved) -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            is_quiet: resolved.output.verbosity == Verbosity::Quiet,
            bytes: resolved.output.bytes,
            began: Instant::now(),
        }
    }

    /// From here on nothing is missed: what scripts wait for.
    fn ready(&self) {
        if !self.is_terminal && !self.is_quiet {
            let _ = writeln!(std::io::stderr(), "memwatch: recording");
        }
    }

    fn show(&self, recorder: &Recorder) {
        if self.is_terminal && !self.is_quiet {
            let line = format!(
                "recording for {}: {} in use, {} written (Ctrl-C ends and keeps it)",
                format::duration(self.began.elapsed()),
                self.bytes.size(recorder.inuse_bytes()),
                self.bytes.size(recorder.bytes())
            );
            // To the start of the line, and what is longer than the new one away.
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        }
    }

    fn done(&self, recorder: &Recorder) {
        if self.is_quiet {
            return;
        }
        let line = format!(
            "memwatch: {} ticks over {} saved in {}",
            recorder.ticks(),
            format::duration(self.began.elapsed()),
            self.bytes.size(recorder.bytes())
        );
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{clear}{line}");
        if let Some(why) = recorder.why_not_thinned() {
            let _ = writeln!(
                std::io::stderr(),
                "memwatch: the recording is larger than asked for, older ticks could not be thinned out: {why}"
            );
        }
    }
}
