//! `memwatch report` and `memwatch export`: watch to the end, or read a file, then write one document.

use std::{
    fs,
    io::{IsTerminal as _, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use memwatch_common::counter::Effect;

use super::{
    error::{ExitCode, Failure},
    output::{Destination, Output},
    recorded::{grown, indexes, open, unreadable},
    resolve::{Command, ExportSpec, ReportFormat, ReportSpec, Resolved, SourceSpec, Span, Verbosity},
    run::settings,
};
use crate::{
    controller,
    export::{html, json, leaks, weight::Weight},
    model::{
        assemble::Meta,
        health::Notice,
        history::{History, MOST_MOMENTS},
        leaks::{self as model_leaks, LeakReport, Sources, Suppressed},
        query::Query,
        report::{Kind, Report},
        state::{Baseline, Model},
        suppress::Suppressions,
    },
    store::{Ending, Recording, StoreError},
    symbolize::names::StackNames,
    watch::{Watch, start},
};

/// Where the difference of a report begins when nothing was said: programs fill their tables when they start.
const USUAL_BASELINE: f64 = 0.25;

pub fn run(resolved: &Resolved) -> Result<ExitCode> {
    match &resolved.command {
        Command::Report(spec) => run_with(resolved, &spec.source, |seen, out| {
            report(resolved, spec, seen, out)
        }),
        Command::Export(spec) => {
            if spec.format.is_binary()
                && resolved.output.destination == Destination::Stdout
                && std::io::stdout().is_terminal()
            {
                return Err(Failure::new(
                    ExitCode::Usage,
                    anyhow!("an export of this form is no text for a terminal"),
                )
                .hint("write it to a file with -o FILE")
                .into());
            }
            run_with(resolved, &spec.source, |seen, out| {
                export(resolved, spec, seen, out)
            })
        }
        _ => Err(anyhow!("neither a report nor an export")),
    }
}

/// All that is known at the end.
struct Seen<'a> {
    model: &'a Model,
    names: &'a mut dyn StackNames,
    meta: &'a Meta,
    query: &'a Query,
    history: &'a History,
    suppressions: &'a Suppressions,
}

fn run_with(
    resolved: &Resolved,
    source: &SourceSpec,
    write: impl FnOnce(&mut Seen<'_>, &mut dyn Write) -> Result<Vec<Suppressed>>,
) -> Result<ExitCode> {
    // What cannot be read or written is found before anything is probed.
    let suppressions = suppressions(source.suppressions.as_deref())?;
    let output = Output::open(&resolved.output.destination)?;
    match &source.file {
        Some(path) => recorded(resolved, path, source.span, &suppressions, output, write),
        None => watched(resolved, &suppressions, output, write),
    }
}

fn recorded(
    resolved: &Resolved,
    path: &Path,
    span: Span,
    suppressions: &Suppressions,
    mut output: Output,
    write: impl FnOnce(&mut Seen<'_>, &mut dyn Write) -> Result<Vec<Suppressed>>,
) -> Result<ExitCode> {
    let mut recording = open(path, resolved)?;
    let (first, last) = indexes(&recording, span)?;
    let broken = |error: StoreError| unreadable(path, &error);
    let history = history_of(&mut recording, first, last).map_err(broken)?;
    // Reading leaves much behind, and the rows take as much again.
    start::give_back_memory();
    let note = ending_note(recording.ending());
    let (query, age_note) = recording
        .header()
        .can_tell(&resolved.query)
        .map_err(controller::usage)?;
    let grown = grown(recording.ticks(), first, last);
    let moment = recording.at(last).map_err(broken)?;
    moment.model.count_older_than(query.older_than);
    let mut meta = Meta {
        kind: kind(resolved),
        ..moment.meta.clone()
    };
    meta.notices.extend(note.into_iter().chain(age_note));
    let mut seen = Seen {
        model: moment.model,
        names: moment.names,
        meta: &meta,
        query: &query,
        history: &history,
        suppressions,
    };
    let suppressed = output.write_with(|out| write(&mut seen, out))?;
    output.finish()?;
    let within = Duration::from_secs_f64(history.seconds().last().copied().unwrap_or(0.0));
    controller::verdict(grown.saturating_sub(accepted(&suppressed)), within, resolved)
}

/// No more of a long recording than a history keeps.
fn history_of(recording: &mut Recording, first: usize, last: usize) -> Result<History, StoreError> {
    let every = (last - first + 1).div_ceil(MOST_MOMENTS).max(1);
    let mut history = History::new();
    for index in (first..=last).filter(|index| (last - index).is_multiple_of(every)) {
        history.take(recording.on_the_way(index, last)?.model);
    }
    Ok(history)
}

fn ending_note(ending: Ending) -> Option<Notice> {
    let text = match ending {
        Ending::Complete => return None,
        Ending::Unfinished => "the recording was not ended: what came later is not in it",
        Ending::Cut { .. } => "the recording was cut off: what came after its last whole tick is lost",
        Ending::Damaged => "the recording is damaged: what came after its last good tick is lost",
    };
    // Up to there the totals are exact.
    Some(Notice {
        text: text.to_owned(),
        effect: Effect::Stacks,
    })
}

fn accepted(suppressed: &[Suppressed]) -> u64 {
    suppressed.iter().map(|suppressed| suppressed.inuse_bytes).sum()
}

fn watched(
    resolved: &Resolved,
    suppressions: &Suppressions,
    mut output: Output,
    write: impl FnOnce(&mut Seen<'_>, &mut dyn Write) -> Result<Vec<Suppressed>>,
) -> Result<ExitCode> {
    let settings = settings(resolved)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let mut progress = |told: start::Told<'_>| told.say(resolved.output.verbosity);
    let mut history = History::new();
    let began = Instant::now();
    let (mut watch, at_start) = runtime.block_on(async {
        let mut watch = start::start(&settings, &mut progress)?;
        say_that_it_watches(resolved);
        let at_start = controller::gather(&mut watch, resolved, |watch| history.take(watch.model())).await?;
        anyhow::Ok((watch, at_start))
    })?;
    let within = began.elapsed();
    let write = |out: &mut dyn Write| from_watch(&mut watch, &history, suppressions, resolved, write, out);
    let suppressed = output.write_with(write)?;
    output.finish()?;
    let grown = watch
        .inuse_bytes()
        .saturating_sub(at_start)
        .saturating_sub(accepted(&suppressed));
    controller::verdict(grown, within, resolved)
}

fn from_watch(
    watch: &mut Watch,
    history: &History,
    suppressions: &Suppressions,
    resolved: &Resolved,
    write: impl FnOnce(&mut Seen<'_>, &mut dyn Write) -> Result<Vec<Suppressed>>,
    out: &mut dyn Write,
) -> Result<Vec<Suppressed>> {
    let (model, names, meta) = watch.parts();
    let meta = Meta {
        kind: kind(resolved),
        ..meta.clone()
    };
    let mut seen = Seen {
        model,
        names,
        meta: &meta,
        query: &resolved.query,
        history,
        suppressions,
    };
    write(&mut seen, out)
}

fn kind(resolved: &Resolved) -> Kind {
    match &resolved.command {
        Command::Report(_) => Kind::Report,
        Command::Export(spec) if spec.source.baseline.is_some() => Kind::Diff,
        _ => Kind::Top,
    }
}

/// Nothing is printed until the end, so say that from here on nothing is missed, and how to end it.
fn say_that_it_watches(resolved: &Resolved) {
    if resolved.output.verbosity == Verbosity::Quiet {
        return;
    }
    let until = match (resolved.duration, resolved.ticks) {
        (Some(duration), _) => format!("for {}", crate::format::duration(duration)),
        (None, Some(ticks)) => format!("for {ticks} ticks"),
        (None, None) => "until Ctrl-C".to_owned(),
    };
    let _ = writeln!(std::io::stderr(), "memwatch: watching {until}");
}

fn suppressions(path: Option<&Path>) -> Result<Suppressions> {
    let Some(path) = path else {
        return Ok(Suppressions::default());
    };
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the suppressions in `{}`", path.display()));
    let text = text.map_err(|error| Failure::new(ExitCode::Failed, error))?;
    Suppressions::parse(&text)
        .with_context(|| format!("cannot use the suppressions in `{}`", path.display()))
        .map_err(|error| Failure::new(ExitCode::Usage, error).into())
}

fn baseline(seen: &Seen<'_>, source: &SourceSpec) -> Baseline {
    let span = seen.history.seconds().last().copied().unwrap_or(0.0);
    let asked = source.baseline.as_ref().map(Duration::as_secs_f64);
    seen.history.baseline(asked.unwrap_or(span * USUAL_BASELINE))
}

fn report(
    resolved: &Resolved,
    spec: &ReportSpec,
    seen: &mut Seen<'_>,
    out: &mut dyn Write,
) -> Result<Vec<Suppressed>> {
    let sources = Sources {
        query: seen.query,
        history: seen.history,
        baseline: &baseline(seen, &spec.source),
        suppressions: seen.suppressions,
    };
    let now_ns = seen.model.at_ns();
    let report = model_leaks::report(seen.model, &sources, seen.names, now_ns, seen.meta)
        .map_err(controller::usage)?;
    document(&report, resolved, spec, out)?;
    Ok(report.suppressed)
}

fn document(
    report: &LeakReport,
    resolved: &Resolved,
    spec: &ReportSpec,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let options = leaks::LeakOptions {
        bytes: resolved.output.bytes,
        shown: spec.shown,
        frames: resolved.query.frames,
    };
    match spec.format {
        ReportFormat::Text => out.write_all(leaks::text(report, &options).as_bytes()),
        ReportFormat::Markdown => out.write_all(leaks::markdown(report, &options).as_bytes()),
        ReportFormat::Json => json::write(report, out),
        ReportFormat::Html => html::write(report, out),
    }
}

fn export(
    resolved: &Resolved,
    spec: &ExportSpec,
    seen: &mut Seen<'_>,
    out: &mut dyn Write,
) -> Result<Vec<Suppressed>> {
    let weight = Weight::of_query(&resolved.query);
    let baseline = spec.source.baseline.map(|_| baseline(seen, &spec.source));
    let now_ns = seen.model.at_ns();
    let (mut report, mut ids) = model_leaks::stacks(
        seen.model,
        seen.query,
        seen.names,
        baseline.as_ref(),
        now_ns,
        seen.meta,
    )
    .map_err(controller::usage)?;
    let suppressed = model_leaks::suppress(&mut report, &mut ids, seen.suppressions);
    for suppressed in suppressed.iter().filter(|suppressed| suppressed.stacks > 0) {
        report.health.reasons.push(format!(
            "left out as `leak:{}` asks: {} stacks",
            suppressed.pattern, suppressed.stacks
        ));
    }
    shorten(&mut report, weight, resolved.query.limit);
    spec.format.write(&report, weight, out)?;
    Ok(suppressed)
}

/// `-n`: those with most weight.
fn shorten(report: &mut Report, weight: Weight, limit: usize) {
    if report.rows.len() > limit {
        report.rows.sort_by_key(|row| std::cmp::Reverse(weight.of(row)));
        report.rows.truncate(limit);
    }
}
