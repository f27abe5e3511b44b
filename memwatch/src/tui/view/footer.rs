//! The last line: keys, a message, or the filter being typed.

use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::model::query::View;
use crate::tui::state::{Detail, State};
use crate::tui::text::{clean, cut_end, width};

use super::pieces::{Piece, Separator, fit};

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    if area.is_empty() {
        return;
    }
    if let Some(text) = &state.typing {
        typing(frame, area, text, state);
        return;
    }
    let columns = usize::from(area.width);
    let line = match (&state.message, state.why_ended()) {
        (Some(message), _) => Line::styled(
            cut_end(&format!(" {}", clean(message)), columns).into_owned(),
            state.theme.warn(),
        ),
        (None, Some(why)) => ended(&why, columns, state),
        (None, None) => keys(state, columns, Vec::new()),
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn typing(frame: &mut Frame, area: Rect, text: &str, state: &State) {
    const PROMPT: &str = " filter: ";
    const HINT: &str =
        "  words or globs on file, function, module; !word leaves out · Enter applies · Esc cancels";
    let theme = state.theme;
    let columns = usize::from(area.width);
    let room = columns.saturating_sub(width(PROMPT) + 1);
    // The end is what is being typed, so the beginning is what goes.
    let text = clean(text);
    let mut shown: &str = &text;
    while width(shown) > room {
        let mut chars = shown.chars();
        chars.next();
        shown = chars.as_str();
    }
    let cursor = width(PROMPT) + width(shown);
    let rest = columns.saturating_sub(cursor + 1);
    let (tail, style) = match &state.message {
        Some(message) => (format!("  {}", clean(message)), theme.bad()),
        None => (HINT.to_owned(), theme.dim()),
    };
    let line = Line::from_iter([
        Span::styled(PROMPT, theme.accent().patch(theme.strong())),
        Span::raw(shown.to_owned()),
        Span::raw(" "),
        Span::styled(cut_end(&tail, rest).into_owned(), style),
    ]);
    frame.render_widget(Paragraph::new(line), area);
    let x = area
        .x
        .saturating_add(u16::try_from(cursor).unwrap_or(u16::MAX))
        .min(area.right().saturating_sub(1));
    frame.set_cursor_position(Position::new(x, area.y));
}

fn ended(why: &str, columns: usize, state: &State) -> Line<'static> {
    let text = format!(" {}: these are the last numbers", clean(why));
    keys(
        state,
        columns,
        vec![Piece::new(
            99,
            cut_end(&text, columns).into_owned(),
            state.theme.warn(),
        )],
    )
}

fn keys(state: &State, columns: usize, mut pieces: Vec<Piece>) -> Line<'static> {
    let theme = state.theme;
    let mut add = |weight, key: &str, what: &str| {
        let piece = Piece::new(weight, format!(" {key}"), theme.accent().patch(theme.strong()));
        pieces.push(piece.then(format!(" {what}"), Style::new()));
    };
    add(20, "q", "quit");
    if state.report.is_some() {
        let detail = match state.detail {
            Detail::Pane => "whole stack",
            Detail::Full => "hide stack",
            Detail::Hidden => "stack",
        };
        add(16, "Enter", detail);
        if state.detail == Detail::Full {
            add(17, "↑↓", "scroll");
            add(16, "←→", "other row");
        } else {
            add(6, "↑↓", "move");
        }
        add(14, "s", "sort");
        add(15, "g", "group");
        add(
            13,
            "a",
            if state.query.view == View::Inuse {
                "allocated"
            } else {
                "in use"
            },
        );
        add(5, "c", "cumulative");
        add(12, "/", "filter");
        add(11, "space", if state.paused { "go on" } else { "pause" });
        add(
            10,
            "b",
            if state.baseline.is_some() {
                "new baseline"
            } else {
                "baseline"
            },
        );
        if state.baseline.is_some() {
            add(9, "B", "no baseline");
        }
        add(7, "f", "save");
    }
    add(19, "?", "help");
    fit(
        pieces,
        columns,
        Separator {
            text: " ",
            style: Style::new(),
        },
    )
}
