//! What the keys do, what the columns mean, and all that is known about losses and limits.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Padding, Paragraph};

use super::facts;
use crate::tui::format::count;
use crate::tui::state::State;
use crate::tui::text::{clean, left, width};
use crate::tui::theme::Theme;

const MOST_WIDTH: u16 = 92;
const KEY_WIDTH: usize = 13;

const KEYS: &[(&str, &str)] = &[
    (
        "↑ ↓  j k",
        "move; PgUp PgDn Home End too. Home stays on the first row",
    ),
    ("Enter", "stack: in its pane, on the whole screen, hidden"),
    (
        "← →",
        "row before or after, also while the stack fills the screen",
    ),
    (
        "s S  < >",
        "sort by the next or previous number; 1 to 7 choose one",
    ),
    (
        "g G",
        "group by the next or previous: traceback, line, file, function, …",
    ),
    ("a", "what is in use now, or all that was ever allocated"),
    ("c", "cumulative: count a block for every frame of its stack"),
    (
        "/",
        "filter by file, function or module of any frame; !word leaves out",
    ),
    ("space", "pause the screen; recording goes on"),
    ("b B", "compare with now from here on; stop comparing"),
    (
        "[ ]  { }",
        "in a recording: a tick, or a twentieth of it, back or forward",
    ),
    ("f F", "save what is shown as JSON; as text"),
    ("h ?", "this help"),
    ("q  Ctrl-C", "quit; Esc goes back first"),
];

const COLUMNS: &[(&str, &str)] = &[
    (
        "In use",
        "bytes allocated since the watch began and not freed yet",
    ),
    ("%", "share of all that is in use (or allocated)"),
    ("Objects", "blocks that these bytes are in"),
    ("Growth/s", "change of what is in use over the last ticks"),
    ("Allocated", "all bytes ever allocated here, freed or not"),
    ("Oldest", "age of the oldest block still in use"),
    ("Δ", "change since the baseline"),
    (
        "explained",
        "what is in use, as part of the resident memory: blocks from before the watch are missing, and memory \
         that was never touched is not resident",
    ),
];

/// How far the help can be scrolled.
pub fn excess(area: Rect, state: &State) -> usize {
    if !state.help {
        return 0;
    }
    let inner = block(state).inner(place(area, state));
    lines(state, usize::from(inner.width))
        .len()
        .saturating_sub(usize::from(inner.height))
}

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    let area = place(area, state);
    let block = block(state);
    let inner = block.inner(area);
    let text: Vec<Line<'static>> = lines(state, usize::from(inner.width))
        .into_iter()
        .skip(state.help_scroll)
        .collect();
    frame.render_widget(Clear, area);
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(text), inner);
}

fn block(state: &State) -> Block<'static> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(state.theme.accent())
        .padding(Padding::horizontal(1))
        .title_top(Line::styled(" help ", state.theme.strong()))
        .title_bottom(Line::styled(" ↑↓ scroll · Esc closes ", Style::new()))
}

/// In the middle, as high as needed.
fn place(area: Rect, state: &State) -> Rect {
    let width = area.width.min(MOST_WIDTH);
    let wanted =
        u16::try_from(lines(state, usize::from(width.saturating_sub(4))).len() + 2).unwrap_or(u16::MAX);
    let height = area.height.min(wanted);
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

fn lines(state: &State, width: usize) -> Vec<Line<'static>> {
    let theme = state.theme;
    let heading = |text: &'static str| Line::styled(text, theme.strong());
    let mut lines = vec![heading("Keys")];
    lines.extend(KEYS.iter().flat_map(|entry| entry_lines(entry, width, theme)));
    lines.extend([Line::default(), heading("Numbers")]);
    lines.extend(COLUMNS.iter().flat_map(|entry| entry_lines(entry, width, theme)));
    if let Some(report) = &state.report {
        lines.extend([Line::default(), heading("Are the numbers whole?")]);
        if report.health.complete {
            let text = if facts::has_losses(report) {
                "every total is exact since the watch began"
            } else {
                "nothing was lost: every total is exact since the watch began"
            };
            lines.push(Line::styled(text, theme.good()));
        }
        for reason in &report.health.reasons {
            lines.extend(styled(folded(reason, width), facts::losses_style(report, theme)));
        }
        for note in &report.health.probes.failed {
            let text = format!("no probe on {} in {}: {}", note.symbol, note.module, note.reason);
            lines.extend(styled(folded(&text, width), theme.warn()));
        }
        if !report.health.limits.is_empty() {
            lines.extend([Line::default(), heading("Limits in the kernel")]);
        }
        for (name, limit) in &report.health.limits {
            let text = format!("{} of {}", count(limit.used), count(limit.max));
            lines.push(Line::from_iter([
                Span::styled(left(&clean(name), KEY_WIDTH), theme.accent()),
                Span::raw(format!(" {text}")),
            ]));
        }
    }
    lines
}

fn styled(lines: Vec<String>, style: Style) -> impl Iterator<Item = Line<'static>> {
    lines.into_iter().map(move |line| Line::styled(line, style))
}

fn entry_lines((key, what): &(&str, &str), width: usize, theme: Theme) -> Vec<Line<'static>> {
    let texts = folded(what, width.saturating_sub(KEY_WIDTH));
    let line = |(at, text): (usize, String)| {
        let key = if at == 0 { *key } else { "" };
        Line::from_iter([
            Span::styled(left(key, KEY_WIDTH), theme.accent()),
            Span::raw(text),
        ])
    };
    texts.into_iter().enumerate().map(line).collect()
}

/// A sentence over as many lines as it needs.
fn folded(text: &str, cells: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in clean(text).split_whitespace() {
        let used = lines.last().map_or(0, |line| width(line));
        if used > 0 && used + 1 + width(word) > cells {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
