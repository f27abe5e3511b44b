//! The header's lines of numbers: memory, whether it is all of it, and what watching costs.

use ratatui::style::Style;
use ratatui::text::Line;

use crate::model::report::{Process, Report};
use crate::tui::history::{is_living, sum};
use crate::tui::state::State;
use crate::tui::text::{clean, cut_end};
use crate::tui::theme::Theme;
use crate::{
    format::seconds,
    tui::format::{clock, percent, rate},
};

use super::bars;
use super::pieces::{Piece, Separator, fit};

/// Samples in the small drawing on the memory line.
const SMALL_COURSE: usize = 16;
const DAY_SECONDS: f64 = 86_400.0;

/// As many lines as there is room for, those that matter most first.
pub fn lines(
    report: &Report,
    width: usize,
    height: usize,
    with_course: bool,
    state: &State,
) -> Vec<Line<'static>> {
    let mut lines = vec![
        memory(report, width, with_course, state),
        health(report, width, height < 4, state),
        overhead(report, width, state),
    ];
    if has_losses(report) && height >= 4 {
        lines.insert(2, losses(report, width, state));
    }
    lines.truncate(height);
    lines
}

/// Totals are not exact, or stacks not whole, or something is not done as it was asked for.
pub fn has_losses(report: &Report) -> bool {
    !report.health.complete || !report.health.reasons.is_empty()
}

/// Wrong totals are worse than stacks that are not whole.
pub fn losses_style(report: &Report, theme: Theme) -> Style {
    if report.health.complete {
        theme.warn()
    } else {
        theme.bad()
    }
}

/// The processes whose sizes are added up: the living, or all when none lives any more and the last numbers
/// stay.
fn counted(report: &Report) -> Vec<&Process> {
    let living: Vec<&Process> = report
        .processes
        .iter()
        .filter(|process| is_living(process))
        .collect();
    if living.is_empty() {
        report.processes.iter().collect()
    } else {
        living
    }
}

fn memory(report: &Report, width: usize, with_course: bool, state: &State) -> Line<'static> {
    let (theme, units) = (state.theme, state.units);
    let processes = counted(report);
    let rss = sum(processes.iter().map(|process| process.rss_bytes));
    let totals = processes.iter().flat_map(|process| process.totals.values());
    let inuse = sum(totals.map(|totals| Some(totals.inuse_bytes)));
    let text = rss.map_or_else(|| "unknown".to_owned(), |rss| units.size(rss));
    let mut pieces = vec![Piece::labelled(9, " RSS", text, theme.strong(), theme)];
    let course = bars::course(&state.history.total.last(SMALL_COURSE).collect::<Vec<_>>());
    if with_course && !course.is_empty() {
        pieces.push(Piece::new(5, course, theme.bar()));
    }
    if let [process] = processes[..]
        && let Some(peak) = process.peak_rss_bytes
    {
        pieces.push(Piece::plain(6, "peak", units.size(peak), theme));
    }
    if let Some(inuse) = inuse {
        let share = rss
            .filter(|rss| *rss > 0)
            .map(|rss| inuse as f64 / rss as f64 * 100.0);
        let share = share.map_or_else(String::new, |share| format!(" = {} of RSS", percent(share)));
        pieces.push(Piece::plain(
            7,
            "explained",
            format!("{}{share}", units.size(inuse)),
            theme,
        ));
    }
    fit(pieces, width, Separator::dot(theme))
}

fn health(report: &Report, width: usize, with_reason: bool, state: &State) -> Line<'static> {
    let theme = state.theme;
    let mode = match report.options.sample_bytes {
        0 if !report.options.allocated_only.is_empty() => {
            "every block, small Python objects when allocated, in use (~) by pools".to_owned()
        }
        0 if !report.options.estimated.is_empty() => {
            "every block, small Python objects (~) by pools".to_owned()
        }
        0 => "every block".to_owned(),
        bytes => format!("sampled, one block each {}", state.units.size(bytes)),
    };
    let mut pieces = vec![Piece::plain(7, " mode", mode, theme)];
    if report.health.complete {
        let text = if has_losses(report) {
            "totals exact"
        } else {
            "nothing lost"
        };
        pieces.push(Piece::new(9, text, theme.good()));
    } else if with_reason {
        pieces.push(Piece::new(
            9,
            reason(report, width.saturating_sub(1)),
            theme.bad(),
        ));
    }
    let long = report.watched_seconds >= DAY_SECONDS;
    let watched = match &report.since[..] {
        "" => seconds(report.watched_seconds),
        since => format!(
            "{} since {}",
            seconds(report.watched_seconds),
            clean(&clock(since, long))
        ),
    };
    pieces.push(Piece::plain(6, "watched", watched, theme));
    let interval = seconds(report.interval_seconds);
    pieces.push(Piece::plain(5, "every", interval, theme));
    let probes = &report.health.probes;
    pieces.push(Piece::plain(4, "probes", probes.attached.to_string(), theme));
    if !probes.failed.is_empty() {
        let text = format!("{} failed", probes.failed.len());
        pieces.push(Piece::new(8, text, theme.warn()));
    }
    fit(pieces, width, Separator::dot(theme))
}

fn losses(report: &Report, width: usize, state: &State) -> Line<'static> {
    Line::styled(
        format!(" {}", reason(report, width.saturating_sub(1))),
        losses_style(report, state.theme),
    )
}

/// What the numbers lack: the first reason and how many more there are.
fn reason(report: &Report, room: usize) -> String {
    let reasons = &report.health.reasons;
    let more = match reasons.len() {
        0 | 1 => String::new(),
        reasons => format!(" (+{}, ? tells)", reasons - 1),
    };
    let first = reasons
        .first()
        .map_or("the numbers are incomplete", String::as_str);
    format!(
        "{}{more}",
        cut_end(&clean(first), room.saturating_sub(more.len()))
    )
}

fn overhead(report: &Report, width: usize, state: &State) -> Line<'static> {
    let (theme, units) = (state.theme, state.units);
    let overhead = &report.health.overhead;
    let hits = state.hits_per_second.map_or_else(|| "–".to_owned(), rate);
    let mut cost = Piece::plain(9, " cost", format!("{hits} hits/s"), theme);
    if let Some(share) = overhead.target_percent {
        cost = cost.then(format!(", {} CPU", percent(share)), Style::new());
    }
    if let Some(predicted) = overhead.predicted.filter(|predicted| predicted.in_force) {
        cost = cost.then(
            format!(" (predicted {})", percent(predicted.percent)),
            Style::new(),
        );
    }
    let own = [
        overhead
            .self_cpu_percent
            .map(|share| format!("{} CPU", percent(share))),
        overhead.self_rss_bytes.map(|bytes| units.size(bytes)),
    ];
    let own: Vec<String> = own.into_iter().flatten().collect();
    let mut pieces = vec![cost];
    if !own.is_empty() {
        pieces.push(Piece::plain(8, "memwatch", own.join(", "), theme));
    }
    if let Some(bytes) = overhead.kernel_map_bytes {
        pieces.push(Piece::plain(7, "kernel", units.size(bytes), theme));
    }
    fit(pieces, width, Separator::dot(theme))
}
