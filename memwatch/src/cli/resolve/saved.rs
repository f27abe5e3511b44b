//! `report` and `export`: both of a running process or of a recording.

use std::path::PathBuf;
use std::time::Duration;

use super::parts::{DEFAULT_INTERVAL, bounds, known_to_this_version, output, query, target, time};
use super::recorded::{Span, no_span};
use super::{Command, Resolved, TargetSpec, UsageError};
use crate::cli::args::{ExportArgs, LimitArgs, ReportArgs, SavedArgs, SpanArgs, WatchArgs};
use crate::export::format::ExportFormat;
use crate::format;
use crate::model::query::GroupBy;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    Text,
    Markdown,
    Json,
    Html,
}

impl ReportFormat {
    fn parse(name: String) -> Result<Self, UsageError> {
        match name.as_str() {
            "text" => Ok(Self::Text),
            "markdown" => Ok(Self::Markdown),
            "json" => Ok(Self::Json),
            "html" => Ok(Self::Html),
            _ => Err(UsageError::Value {
                option: "--format",
                value: name,
                reason: "`memwatch report` prints text, json, markdown or html".to_owned(),
            }),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSpec {
    pub format: ReportFormat,
    /// Rows in each table.
    pub shown: usize,
    pub source: SourceSpec,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    pub format: ExportFormat,
    pub source: SourceSpec,
}

/// What is reported on, besides the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceSpec {
    /// A recording; then there is no target.
    pub file: Option<PathBuf>,
    /// The part of the recording.
    pub span: Span,
    /// How long after the start the state to compare with was.
    pub baseline: Option<Duration>,
    pub suppressions: Option<PathBuf>,
}

pub(super) fn report(mut arguments: ReportArgs) -> Result<Resolved, UsageError> {
    let format = arguments.watch.output.format.take();
    let format = format.map_or(Ok(ReportFormat::Text), ReportFormat::parse)?;
    let limit = arguments.watch.query.limit.take();
    let source = source(arguments.saved, arguments.span, &arguments.watch)?;
    let mut resolved = resolved("report", arguments.watch, &source)?;
    let shown = limit.unwrap_or(resolved.query.limit);
    whole_stacks("report", &mut resolved)?;
    Ok(Resolved {
        command: Command::Report(ReportSpec {
            format,
            shown,
            source,
        }),
        ..resolved
    })
}

pub(super) fn export(mut arguments: ExportArgs) -> Result<Resolved, UsageError> {
    let format = ExportFormat::parse(&arguments.to).ok_or_else(|| UsageError::Value {
        option: "--to",
        value: arguments.to.clone(),
        reason: format!("the forms are {}", ExportFormat::NAMES.join(", ")),
    })?;
    if arguments.watch.output.format.is_some() {
        return Err(UsageError::Conflict {
            first: "--format",
            second: "--to",
            advice: "the form of an export is --to, leave --format out",
        });
    }
    if arguments.saved.baseline.is_some() && !format.has_differences() {
        return Err(UsageError::Value {
            option: "--baseline",
            value: format!("--to {}", arguments.to),
            reason: "differences can be told in collapsed, flamegraph, json and csv; with pprof, export twice and use `go tool pprof -diff_base`"
                .to_owned(),
        });
    }
    let limit = arguments.watch.query.limit.take();
    if arguments.saved.file.is_none() && arguments.at.is_some() {
        return Err(UsageError::Conflict {
            first: "--at",
            second: "a running target",
            advice: "name a recording to look into the past",
        });
    }
    let span = SpanArgs {
        from: None,
        to: arguments.at,
    };
    let source = source(arguments.saved, span, &arguments.watch)?;
    let mut resolved = resolved("export", arguments.watch, &source)?;
    whole_stacks("export", &mut resolved)?;
    if let Some(limit) = limit {
        resolved.query.limit = limit;
    }
    Ok(Resolved {
        command: Command::Export(ExportSpec { format, source }),
        ..resolved
    })
}

fn source(saved: SavedArgs, span: SpanArgs, watch: &WatchArgs) -> Result<SourceSpec, UsageError> {
    if let (Some(baseline), Some(duration)) = (saved.baseline, watch.time.duration)
        && baseline >= duration
    {
        return Err(UsageError::Value {
            option: "--baseline",
            value: format::duration(baseline),
            reason: format!(
                "the watch ends after --duration {}, before it",
                format::duration(duration)
            ),
        });
    }
    if saved.file.is_none() {
        no_span(&span)?;
    }
    Ok(SourceSpec {
        file: saved.file,
        span: span.into(),
        baseline: saved.baseline,
        suppressions: saved.suppressions,
    })
}

fn resolved(name: &'static str, arguments: WatchArgs, source: &SourceSpec) -> Result<Resolved, UsageError> {
    known_to_this_version(&arguments.other)?;
    let python = arguments.python.mode.unwrap_or_default();
    let follow = !arguments.target.no_follow;
    let scope = arguments.target.probe_scope.unwrap_or_default();
    let method = arguments.target.probe_method.unwrap_or_default();
    let target = target(arguments.target)?;
    match (&target, &source.file) {
        (None, None) => return Err(UsageError::NoSource { command: name }),
        (Some(_), Some(_)) => {
            return Err(UsageError::Conflict {
                first: "FILE",
                second: "a target",
                advice: "choose a recording or a running process",
            });
        }
        _ => {}
    }
    let limits = match &target {
        Some(target) => bounds(&arguments.limits, target)?,
        None => bounds(&LimitArgs::default(), &TargetSpec::All)?,
    };
    let (interval, duration, ticks) = match source.file {
        Some(_) => (DEFAULT_INTERVAL, None, None),
        None => time(&arguments.time)?,
    };
    Ok(Resolved {
        command: Command::Top,
        follow,
        python,
        force: arguments.python.force,
        cache: !arguments.limits.no_cache,
        interval,
        duration,
        ticks,
        query: query(arguments.query)?,
        limits,
        fail_on_growth: arguments.limits.fail_on_growth,
        scope,
        method,
        output: output(name, arguments.output)?,
        target,
    })
}

/// Both are made of whole stacks, of which none is left out.
fn whole_stacks(name: &'static str, resolved: &mut Resolved) -> Result<(), UsageError> {
    if resolved.query.group_by != GroupBy::Traceback {
        return Err(UsageError::Value {
            option: "--group-by",
            value: resolved.query.group_by.to_string(),
            reason: format!("`memwatch {name}` is made of whole stacks, leave the option out"),
        });
    }
    resolved.query.limit = usize::MAX;
    Ok(())
}
