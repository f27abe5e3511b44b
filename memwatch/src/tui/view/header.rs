//! The lines above the table: who is watched, how much memory it has, whether the numbers are whole, and what
//! watching costs.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, RenderDirection, Sparkline};

use crate::model::report::{Process, Runtime};
use crate::tui::history::is_living;
use crate::tui::state::State;
use crate::tui::text::{clean, cut_end};

use super::bars;
use super::facts;
use super::pieces::{Piece, Separator, fit};

/// From this width on the course of memory has a drawing of its own, on the lines from the second on.
const ROOM_FOR_COURSE: u16 = 110;
/// Cells for the numbers beside it.
const SCALE_WIDTH: u16 = 8;
/// Processes named one by one.
const NAMED: usize = 4;

/// Something is to be said about what the numbers are worth.
pub fn has_losses(state: &State) -> bool {
    state.report.as_deref().is_some_and(facts::has_losses)
}

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    let [first, rest] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let badges = badges(state);
    let taken = u16::try_from(badges.width()).unwrap_or(u16::MAX);
    let [name, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(taken)]).areas(first);
    frame.render_widget(Paragraph::new(who(state, usize::from(name.width))), name);
    frame.render_widget(Paragraph::new(badges).alignment(Alignment::Right), right);
    let Some(report) = &state.report else {
        return;
    };
    let drawn = rest.height >= 2 && rest.width >= ROOM_FOR_COURSE;
    let course_width = if drawn { (rest.width / 4).clamp(30, 72) } else { 0 };
    let [facts, course] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(course_width)]).areas(rest);
    let lines = facts::lines(
        report,
        usize::from(facts.width),
        usize::from(facts.height),
        !drawn,
        state,
    );
    frame.render_widget(Paragraph::new(lines), facts);
    if drawn {
        draw_course(frame, course, state);
    }
}

fn badges(state: &State) -> Line<'static> {
    let theme = state.theme;
    let mut badges = Vec::new();
    let mut add = |text: &str, color| {
        badges.push(Span::raw(" "));
        badges.push(Span::styled(format!(" {text} "), theme.badge(color)));
    };
    if state
        .report
        .as_ref()
        .is_some_and(|report| !report.health.complete)
    {
        add("INCOMPLETE", Color::Red);
    }
    if state.is_diff() {
        add("DIFF", Color::Yellow);
    }
    if state.why_ended().is_some() {
        add("ENDED", Color::Yellow);
    } else if state.paused {
        add("PAUSED", Color::Yellow);
    }
    Line::from(badges)
}

fn who(state: &State, width: usize) -> Line<'static> {
    let theme = state.theme;
    let mut pieces = vec![Piece::new(9, " memwatch", theme.accent().patch(theme.strong()))];
    let processes = state.report.as_ref().map_or(&[][..], |report| &report.processes);
    match processes {
        [] => pieces.push(Piece::new(8, clean(&state.target).into_owned(), theme.strong())),
        [process] => {
            let pid = format!(" pid {}", process.pid);
            pieces.push(
                Piece::new(8, clean(&process.comm).into_owned(), theme.strong()).then(pid, Style::new()),
            );
        }
        many => pieces.extend(several(many, state)),
    }
    if let Some(place) = shared(processes, place_of) {
        pieces.push(Piece::new(6, place, Style::new()));
    }
    if let Some(runtimes) = shared(processes, runtimes_of) {
        pieces.push(Piece::new(5, runtimes, theme.dim()));
    }
    if let [process] = processes
        && !process.cmdline.is_empty()
    {
        // The rest of the line, cut here, so that it does not go as a whole when it is too long.
        let used: usize = pieces.iter().map(|piece| piece.width() + 3).sum();
        if width > used + 12 {
            let line = process
                .cmdline
                .iter()
                .map(|arg| clean(arg))
                .collect::<Vec<_>>()
                .join(" ");
            let line = cut_end(&line, width - used).into_owned();
            pieces.push(Piece::new(7, line, theme.dim()));
        }
    }
    fit(pieces, width, Separator::dot(theme))
}

/// What is the same for all processes.
fn shared(processes: &[Process], fact: impl Fn(&Process) -> Option<String>) -> Option<String> {
    let (first, others) = processes.split_first()?;
    let found = fact(first)?;
    others
        .iter()
        .all(|other| fact(other).as_ref() == Some(&found))
        .then_some(found)
}

fn runtimes_of(process: &Process) -> Option<String> {
    let name = |runtime: &Runtime| match &runtime.version {
        Some(version) => format!("{} {version}", runtime.name),
        None => runtime.name.clone(),
    };
    let names: Vec<String> = process.runtimes.iter().map(name).collect();
    (!names.is_empty()).then(|| clean(&names.join(", ")).into_owned())
}

fn several(processes: &[Process], state: &State) -> Vec<Piece> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for process in processes {
        *names.entry(&process.comm).or_default() += 1;
    }
    let mut names: Vec<(&str, usize)> = names.into_iter().collect();
    names.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let more = if names.len() > NAMED { ", …" } else { "" };
    let list: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|(name, number)| {
            if *number > 1 {
                format!("{} ×{number}", clean(name))
            } else {
                clean(name).into_owned()
            }
        })
        .collect();
    let ended = processes.iter().filter(|process| !is_living(process)).count();
    let mut pieces = vec![
        Piece::new(8, clean(&state.target).into_owned(), state.theme.strong()),
        Piece::new(7, format!("{} processes", processes.len()), Style::new()),
        Piece::new(4, format!("{}{more}", list.join(", ")), state.theme.dim()),
    ];
    if ended > 0 {
        pieces.push(Piece::new(6, format!("{ended} ended"), state.theme.warn()));
    }
    pieces
}

fn place_of(process: &Process) -> Option<String> {
    if let Some(pod) = &process.pod {
        return Some(format!("pod {}/{}", clean(&pod.namespace), clean(&pod.name)));
    }
    let container = process.container.as_ref()?;
    let short = container.id.get(..12).unwrap_or(&container.id);
    let name = clean(container.name.as_deref().unwrap_or(short));
    Some(match &container.image {
        Some(image) => format!("container {name} ({})", clean(image)),
        None => format!("container {name}"),
    })
}

/// The course of the resident memory with its least and greatest value beside it.
fn draw_course(frame: &mut Frame, area: Rect, state: &State) {
    let [drawing, _, scale, _] = Layout::horizontal([
        Constraint::Fill(1),
        Constraint::Length(1),
        Constraint::Length(SCALE_WIDTH),
        Constraint::Length(1),
    ])
    .areas(area);
    let values: Vec<u64> = state.history.total.last(usize::from(drawing.width)).collect();
    let (Some(least), Some(greatest)) = (values.iter().min(), values.iter().max()) else {
        return;
    };
    let top = u64::from(drawing.height) * 8;
    let newest_first = bars::scaled(&values, top).unwrap_or_default().into_iter().rev();
    let sparkline = Sparkline::default()
        .data(newest_first)
        .max(top)
        .direction(RenderDirection::RightToLeft)
        .style(state.theme.bar());
    frame.render_widget(sparkline, drawing);
    let dim = state.theme.dim();
    let mut lines = vec![Line::styled("RSS", dim); usize::from(scale.height)];
    if let [first, .., last] = &mut lines[..] {
        *first = Line::styled(state.units.size(*greatest), dim);
        *last = Line::styled(state.units.size(*least), dim);
    }
    for line in lines.iter_mut().skip(2).rev().skip(1) {
        *line = Line::default();
    }
    frame.render_widget(Paragraph::new(lines).alignment(Alignment::Right), scale);
}
