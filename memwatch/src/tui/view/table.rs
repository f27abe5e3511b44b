//! The table of groups.

use ratatui::Frame;
use ratatui::layout::{Alignment, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use crate::model::query::{GroupBy, View};
use crate::model::report::Row;
use crate::tui::filter::Filter;
use crate::tui::frames::{interesting, short, short_function};
use crate::tui::state::State;
use crate::tui::text::{clean, cut_middle, width};
use crate::tui::theme::Theme;
use crate::{format::seconds, tui::format::clock};

use super::columns::Grid;
use super::pieces::{Piece, Separator, fit};

/// Title and column names.
const HEAD: u16 = 2;
/// The mark of the selected row, seen without colours too.
const MARK: usize = 2;
const CALLED_BY: &str = " < ";

/// Rows that the area shows.
pub fn rows(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(HEAD))
}

/// Lines needed for all rows, or for the one line said in their place.
pub fn height(rows: u16) -> u16 {
    rows.max(1).saturating_add(HEAD)
}

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    let theme = state.theme;
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(theme.dim())
        .title_top(title(state, area.width))
        .title_top(Line::from(position(state)).alignment(Alignment::Right));
    let inner = block.inner(area);
    frame.render_widget(block, area);

    let room = usize::from(inner.width);
    let count = rows(area).min(state.order.len().saturating_sub(state.top));
    let shown: Vec<&Row> = (state.top..state.top + count)
        .filter_map(|place| state.row(place))
        .collect();
    let grid = Grid::new(state, &shown, room.saturating_sub(MARK));
    let name = room.saturating_sub(grid.width() + MARK);

    let mut head = vec![Span::raw(" ".repeat(MARK))];
    head.extend(grid.titles(theme.dim(), theme.accent().patch(theme.strong())));
    head.push(Span::styled(name_title(state.query.group_by), theme.dim()));
    let mut lines = vec![Line::from(head)];
    if shown.is_empty() {
        lines.push(Line::styled(format!("  {}", nothing(state)), theme.dim()));
    }
    for (place, row) in shown.iter().enumerate() {
        lines.push(line(place, row, &grid, name, state));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn line(place: usize, row: &Row, grid: &Grid, name: usize, state: &State) -> Line<'static> {
    let selected = state.top + place == state.selected;
    let mut spans = vec![Span::raw(if selected { "▶ " } else { "  " })];
    spans.extend(grid.row(place));
    spans.extend(group_name(row, name, state.query.group_by, state.theme));
    if !selected {
        return Line::from(spans);
    }
    let style = state.theme.selected();
    // The row's own colours would not be seen on the selection's.
    let mut line: Line = spans
        .into_iter()
        .map(|span| Span::styled(span.content, style))
        .collect();
    let used = line.width();
    line.push_span(Span::styled(
        " ".repeat((MARK + grid.width() + name).saturating_sub(used)),
        style,
    ));
    line
}

const fn name_title(group_by: GroupBy) -> &'static str {
    match group_by {
        GroupBy::Traceback => "Allocated in < called by",
        GroupBy::Line => "Line",
        GroupBy::File => "File",
        GroupBy::Function => "Function",
        GroupBy::Module => "Module",
        GroupBy::Thread => "Thread",
        GroupBy::Process => "Process",
        GroupBy::Container => "Container",
        GroupBy::Domain => "Domain",
        GroupBy::Size => "Block size",
    }
}

fn title(state: &State, columns: u16) -> Line<'static> {
    let theme = state.theme;
    let query = &state.query;
    let mut pieces = vec![
        Piece::labelled(9, " by", query.group_by.name(), theme.accent(), theme),
        match query.view {
            View::Inuse => Piece::new(5, "in use", theme.dim()),
            View::Alloc => Piece::new(7, "all that was ever allocated", theme.accent()),
        },
        Piece::labelled(6, "sorted by", query.sort.name(), theme.accent(), theme),
    ];
    if query.cumulative {
        pieces.push(Piece::new(7, "cumulative", theme.accent()));
    }
    let filter = Filter::of(query);
    if !filter.is_empty() {
        let text = clean(&filter.text()).into_owned();
        pieces.push(Piece::labelled(
            8,
            "only",
            cut_middle(&text, 40),
            theme.warn(),
            theme,
        ));
    }
    if state.is_diff() {
        pieces.push(Piece::new(8, against(state), theme.warn()));
    }
    let position = width(&position(state));
    let line = fit(
        pieces,
        usize::from(columns).saturating_sub(position + 2),
        Separator::dot(theme),
    );
    // The border would else make the title as dim as it is itself.
    let spans = line.spans.into_iter().map(|span| {
        let style = if span.style == theme.dim() {
            span.style
        } else {
            theme.on_border(span.style)
        };
        span.style(style)
    });
    spans.chain([Span::raw(" ")]).collect()
}

/// `against 14:03:11 UTC, 2m10s ago`
fn against(state: &State) -> String {
    let now = state.report.as_ref().map_or(0.0, |report| report.watched_seconds);
    match &state.baseline {
        Some(baseline) => {
            let passed = now - baseline.watched_seconds;
            let ago = if passed < 1.0 {
                "just now".to_owned()
            } else {
                format!("{} ago", seconds(passed))
            };
            format!("against {}, {ago}", clean(&clock(&baseline.time, false)))
        }
        None => "against the baseline".to_owned(),
    }
}

/// ` 3 of 412 `
fn position(state: &State) -> String {
    let total = state
        .report
        .as_ref()
        .map_or(0, |report| report.total_rows.max(state.order.len() as u64));
    if state.order.is_empty() {
        return String::new();
    }
    format!(" {} of {total} ", state.selected + 1)
}

fn nothing(state: &State) -> &'static str {
    if Filter::of(&state.query).is_empty() {
        "nothing was allocated since the watch began"
    } else {
        "nothing matches the filter (/ changes it)"
    }
}

fn group_name(row: &Row, room: usize, group_by: GroupBy, theme: Theme) -> Vec<Span<'static>> {
    let key = match group_by {
        GroupBy::Traceback => return traceback(row, room, theme),
        GroupBy::Function => clean(&short_function(&row.key)).into_owned(),
        _ => clean(&row.key).into_owned(),
    };
    vec![Span::raw(cut_middle(&key, room).into_owned())]
}

/// `a < b < c`, as many callers as fit; the row's key where the frames are not given.
fn traceback(row: &Row, room: usize, theme: Theme) -> Vec<Span<'static>> {
    let mut names: Vec<String> = interesting(&row.frames).into_iter().map(short).collect();
    if names.is_empty() {
        names = row.key.split(';').map(|name| clean(name).into_owned()).collect();
    }
    let mut spans: Vec<Span<'static>> = Vec::new();
    let mut left = room;
    for (at, name) in names.iter().enumerate() {
        let first = at == 0;
        let separator = if first { 0 } else { width(CALLED_BY) };
        // A caller of which only a few letters would be seen says nothing.
        if !first && left < separator + width(name).min(10) {
            break;
        }
        left -= separator;
        // When the innermost must be cut, it leaves a bit to its caller.
        let is_long = first && names.len() > 1 && width(name) > left;
        let most = if is_long {
            left.min((room * 3 / 4).max(16))
        } else {
            left
        };
        let name = cut_middle(name, most);
        left -= width(&name);
        if !first {
            spans.push(Span::styled(CALLED_BY, theme.dim()));
        }
        spans.push(Span::styled(
            name.into_owned(),
            if first { Style::new() } else { theme.dim() },
        ));
    }
    spans
}
