//! The one loop: ticks, events from the kernel, signals, and the end.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use crate::{
    cli::{
        error::{ExitCode, Failure},
        output::{Flow, Output},
        resolve::{Command, Format, Resolved},
    },
    export::{json, style::Style, text},
    format,
    model::{
        query::Query,
        report::{Kind, Report},
        state::Baseline,
    },
    watch::Watch,
};

/// Why a watch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As many ticks, or as much time, as was asked for.
    Finished,
    Interrupted,
    /// Nobody reads the output any more.
    NobodyReads,
    TargetsEnded,
}

/// What a tick of the loop is for.
pub enum Wake {
    Tick,
    Event,
    Signal,
}

/// The times and signals of a loop.
pub struct Pace {
    interval: tokio::time::Interval,
    ring: AsyncFd<OwnedFd>,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    until: Option<Instant>,
}

impl Pace {
    pub fn new(watch: &Watch, interval: Duration, duration: Option<Duration>) -> Result<Self> {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            interval: ticks,
            ring: readable(watch.ring_fd())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            until: duration.map(|duration| Instant::now() + duration),
        })
    }

    pub async fn next(&mut self) -> Result<Wake> {
        let until = self.until;
        let timeout = async {
            match until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Ok(Wake::Signal),
            _ = self.terminate.recv() => Ok(Wake::Signal),
            ready = self.ring.readable() => {
                ready.context("cannot wait for the kernel side")?.clear_ready();
                Ok(Wake::Event)
            }
            _ = self.interval.tick() => Ok(Wake::Tick),
            () = timeout => Ok(Wake::Tick),
        }
    }

    pub fn over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Waits for the next tick, acting on events meanwhile. `Some` when the watch is over.
    pub async fn tick(&mut self, watch: &mut Watch) -> Result<Option<End>> {
        loop {
            match self.next().await? {
                Wake::Tick => return Ok(self.over().then_some(End::Finished)),
                Wake::Signal => return Ok(Some(End::Interrupted)),
                Wake::Event => {
                    watch.react()?;
                    if watch.all_ended() {
                        return Ok(Some(End::TargetsEnded));
                    }
                }
            }
        }
    }
}

/// A descriptor of its own for the event loop, so that neither depends on the other's life.
fn readable(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>> {
    let fd = fd
        .try_clone_to_owned()
        .context("cannot wait for the kernel side")?;
    // SAFETY: the descriptor is owned by the AsyncFd and never changes.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(std::io::Error::from)
        .context("cannot wait for the kernel side")
}

/// How blocks look.
pub struct Printer {
    pub format: Format,
    pub text: text::TextOptions,
}

impl Printer {
    pub fn new(resolved: &Resolved, format: Format, color: bool) -> Self {
        Self {
            format,
            text: text::TextOptions {
                bytes: resolved.output.bytes,
                style: Style::new(color),
                frames: resolved.query.frames,
            },
        }
    }

    pub fn print(&self, report: &Report) -> Result<String> {
        match self.format {
            Format::Json => json::line(report).context("cannot write the report as JSON"),
            Format::Text => Ok(text::block(report, &self.text)),
        }
    }
}

/// Prints one block a tick.
pub async fn blocks(
    mut watch: Watch,
    resolved: &Resolved,
    printer: &Printer,
    mut output: Output,
) -> Result<ExitCode> {
    let mut pace = Pace::new(&watch, resolved.interval, resolved.duration)?;
    let mut blocks = Blocks::new(resolved);
    let mut end = blocks.print(&mut watch, printer, &mut output)?;
    while end.is_none() {
        end = pace.tick(&mut watch).await?;
        if end != Some(End::NobodyReads) {
            let printed = blocks.print(&mut watch, printer, &mut output)?;
            end = end.or(printed);
        }
    }
    watch.stop()?;
    output.finish()?;
    let grown = watch.inuse_bytes().saturating_sub(blocks.inuse_at_start);
    verdict(grown, blocks.began.elapsed(), resolved)
}

/// Watches to the end and prints nothing; `each` is called after each tick. Gives what was in use at tick 0.
pub async fn gather(watch: &mut Watch, resolved: &Resolved, mut each: impl FnMut(&Watch)) -> Result<u64> {
    let mut pace = Pace::new(watch, resolved.interval, resolved.duration)?;
    watch.tick(&resolved.query, None)?;
    each(watch);
    let at_start = watch.inuse_bytes();
    let mut end = None;
    while end.is_none() && !watch.all_ended() {
        end = pace.tick(watch).await?;
        let tick = watch.tick_number();
        watch.tick(&resolved.query, None)?;
        each(watch);
        if resolved.ticks.is_some_and(|most| tick >= most) {
            break;
        }
    }
    watch.stop()?;
    Ok(at_start)
}

/// What goes from one block to the next.
struct Blocks<'a> {
    query: &'a Query,
    kind: Kind,
    baseline_after: Option<Duration>,
    baseline: Option<Baseline>,
    most: Option<u64>,
    began: Instant,
    inuse_at_start: u64,
}

impl<'a> Blocks<'a> {
    fn new(resolved: &'a Resolved) -> Self {
        let (kind, baseline_after) = match resolved.command {
            Command::Diff { baseline } => (Kind::Diff, Some(baseline)),
            _ => (Kind::Top, None),
        };
        Self {
            query: &resolved.query,
            kind,
            baseline_after,
            baseline: None,
            most: resolved.ticks,
            began: Instant::now(),
            inuse_at_start: 0,
        }
    }

    /// One tick and its block. `Some` when it was the last.
    fn print(&mut self, watch: &mut Watch, printer: &Printer, output: &mut Output) -> Result<Option<End>> {
        let tick = watch.tick_number();
        watch.tick(self.query, None)?;
        if tick == 0 {
            self.inuse_at_start = watch.inuse_bytes();
        }
        if self.baseline.is_none()
            && self
                .baseline_after
                .is_some_and(|after| self.began.elapsed() >= after)
        {
            self.baseline = Some(watch.baseline());
        }
        let report = watch
            .report(self.query, self.kind, self.baseline.as_ref())
            .map_err(usage)?;
        if output.write(&printer.print(&report)?)? == Flow::Stop {
            return Ok(Some(End::NobodyReads));
        }
        if self.most.is_some_and(|most| tick >= most) {
            return Ok(Some(End::Finished));
        }
        Ok(watch.all_ended().then_some(End::TargetsEnded))
    }
}

/// The quality gate: `--fail-on-growth`.
pub fn verdict(grown: u64, within: Duration, resolved: &Resolved) -> Result<ExitCode> {
    let Some(most) = resolved.fail_on_growth else {
        return Ok(ExitCode::Done);
    };
    if grown <= most {
        return Ok(ExitCode::Done);
    }
    let bytes = resolved.output.bytes;
    Err(Failure::new(
        ExitCode::LimitPassed,
        anyhow!(
            "memory in use grew by {} in {}, more than the {} of --fail-on-growth",
            bytes.size(grown),
            format::duration(within),
            bytes.size(most)
        ),
    )
    .into())
}

/// A query that cannot be answered is a command line that is wrong.
pub fn usage(error: crate::model::group::QueryError) -> anyhow::Error {
    Failure::new(ExitCode::Usage, error).into()
}
