//! Command lines about recordings.

use std::path::PathBuf;

use super::parts::{DEFAULT_INTERVAL, bounds, known_to_this_version, output, query};
use super::{Command, Resolved, TargetSpec, UsageError};
use crate::cli::args::{DiffArgs, LimitArgs, SpanArgs, WatchArgs};
use crate::cli::units::When;
use crate::probe::links::Method;
use crate::watch::start::{PythonMode, ScopeChoice};

/// Holds an hour of ten thousand busy sites, and is sent by mail.
const DEFAULT_FILE_BYTES: u64 = 16 << 20;

/// Below this even the names of a small program would be written anew all the time.
const SMALLEST_FILE_BYTES: u64 = 1 << 20;

/// Which part of a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub from: Option<When>,
    pub to: Option<When>,
}

impl From<SpanArgs> for Span {
    fn from(arguments: SpanArgs) -> Self {
        Self {
            from: arguments.from,
            to: arguments.to,
        }
    }
}

pub(super) fn most_bytes(asked: Option<u64>) -> Result<u64, UsageError> {
    match asked {
        Some(bytes) if bytes < SMALLEST_FILE_BYTES => Err(UsageError::Value {
            option: "--max-file-size",
            value: bytes.to_string(),
            reason: "it must be at least 1 MiB".to_owned(),
        }),
        asked => Ok(asked.unwrap_or(DEFAULT_FILE_BYTES)),
    }
}

/// There is no time but the present in what is running.
pub(super) fn no_span(span: &SpanArgs) -> Result<(), UsageError> {
    let given = [("--from", span.from), ("--to", span.to)];
    match given.iter().find(|(_, when)| when.is_some()) {
        Some((option, _)) => Err(UsageError::Conflict {
            first: option,
            second: "a running target",
            advice: "name a recording to look into the past",
        }),
        None => Ok(()),
    }
}

pub(super) fn top(path: PathBuf, span: SpanArgs, watch: WatchArgs) -> Result<Resolved, UsageError> {
    let span = span.into();
    file("top", Command::TopFile { path, span }, watch)
}

pub(super) fn diff(arguments: DiffArgs) -> Result<Resolved, UsageError> {
    if arguments.baseline.is_some() {
        return Err(UsageError::Conflict {
            first: "--baseline",
            second: "a recording",
            advice: "use --from",
        });
    }
    let mut files = arguments.files.into_iter();
    let command = match (files.next(), files.next()) {
        (Some(old), Some(new)) => {
            if arguments.span.from.is_some() || arguments.span.to.is_some() {
                return Err(UsageError::Conflict {
                    first: "--from and --to",
                    second: "two recordings",
                    advice: "two are compared at their ends, leave them out",
                });
            }
            Command::DiffFiles { old, new }
        }
        (path, _) => Command::DiffFile {
            path: path.unwrap_or_default(),
            span: arguments.span.into(),
        },
    };
    file("diff", command, arguments.watch)
}

fn file(name: &'static str, command: Command, arguments: WatchArgs) -> Result<Resolved, UsageError> {
    known_to_this_version(&arguments.other)?;
    if let Some((first, advice)) = only_while_watching(&arguments) {
        return Err(UsageError::Conflict {
            first,
            second: "a recording",
            advice,
        });
    }
    Ok(Resolved {
        command,
        target: None,
        follow: false,
        python: PythonMode::default(),
        force: false,
        cache: false,
        interval: DEFAULT_INTERVAL,
        duration: None,
        ticks: None,
        query: query(arguments.query)?,
        limits: bounds(&LimitArgs::default(), &TargetSpec::All)?,
        fail_on_growth: arguments.limits.fail_on_growth,
        scope: ScopeChoice::default(),
        method: Method::default(),
        output: output(name, arguments.output)?,
    })
}

/// The first option that a recording has no answer to any more.
fn only_while_watching(arguments: &WatchArgs) -> Option<(&'static str, &'static str)> {
    let (target, time, limits) = (&arguments.target, &arguments.time, &arguments.limits);
    let select = &target.select;
    let is_target = "it is watched or read, not both";
    let is_past = "it was decided while recording, leave it out";
    let is_time = "it has its own times, use --from and --to";
    [
        (!select.pids.is_empty(), "--pid", is_target),
        (select.comm.is_some(), "--comm", is_target),
        (select.cgroup.is_some(), "--cgroup", is_target),
        (select.all, "--all", is_target),
        (select.container.is_some(), "--container", is_target),
        (select.pod.is_some(), "--pod", is_target),
        (!target.command.is_empty(), "-- COMMAND", is_target),
        (target.no_follow, "--no-follow", is_past),
        (target.probe_scope.is_some(), "--probe-scope", is_past),
        (time.interval.is_some(), "--interval", is_time),
        (time.duration.is_some(), "--duration", is_time),
        (time.count.is_some(), "--count", is_time),
        (time.once, "--once", is_time),
        (arguments.query.min_size.is_some(), "--min-size", is_past),
        (arguments.query.max_size.is_some(), "--max-size", is_past),
        (arguments.python.mode.is_some(), "--python", is_past),
        (arguments.other.sample_bytes.is_some(), "--sample-bytes", is_past),
        (limits.max_depth.is_some(), "--max-depth", is_past),
        (limits.max_blocks.is_some(), "--max-blocks", is_past),
        (
            limits.max_blocks_per_process.is_some(),
            "--max-blocks-per-process",
            is_past,
        ),
        (limits.max_sites.is_some(), "--max-sites", is_past),
        (limits.max_stacks.is_some(), "--max-stacks", is_past),
        (limits.max_processes.is_some(), "--max-processes", is_past),
        (limits.max_unwind_rows.is_some(), "--max-unwind-rows", is_past),
        (limits.no_cache, "--no-cache", is_past),
    ]
    .into_iter()
    .find_map(|(is_given, option, advice)| is_given.then_some((option, advice)))
}
