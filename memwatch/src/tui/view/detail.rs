//! The selected row in full: its numbers, its stack, its histograms.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Padding, Paragraph};

use crate::model::query::GroupBy;
use crate::model::report::Row;
use crate::tui::state::{Detail, State};
use crate::tui::text::{clean, cut_middle};
use crate::{
    format::seconds,
    tui::format::{count, signed_count},
};

use super::bars::{self, Histogram};
use super::columns::about;
use super::pieces::{Piece, Separator, wrap};
use super::stack;

/// Lines of a block of bars, with its title.
const BARS_LINES: usize = 9;
const LEAST_BARS_LINES: usize = 5;
/// Cells between two blocks of bars.
const BARS_GAP: usize = 3;
/// With fewer lines than this after the numbers, bars would take them from the stack.
const ROOM_FOR_BARS: usize = 20;
const ROOM_FOR_A_LINE: usize = 9;
/// In fewer lines the numbers get no more than two, so that the stack is seen.
const ROOM_FOR_ALL_NUMBERS: usize = 12;

/// Columns of the pane beside the table.
pub fn side_width(all: u16) -> u16 {
    (all * 2 / 5).clamp(60, 110)
}

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    let block = block(area, state);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let Some(row) = state.row(state.selected) else {
        return;
    };
    let (columns, lines) = (usize::from(inner.width), usize::from(inner.height));
    let text = if state.detail == Detail::Full {
        everything(row, columns, state)
            .into_iter()
            .skip(state.detail_scroll)
            .take(lines)
            .collect()
    } else {
        in_pane(row, columns, lines, state)
    };
    frame.render_widget(Paragraph::new(text), inner);
}

/// How far the stack can be scrolled. Only the full view scrolls.
pub fn excess(area: Rect, state: &State) -> usize {
    match state.row(state.selected) {
        Some(row) if state.detail == Detail::Full => {
            let inner = block(area, state).inner(area);
            everything(row, usize::from(inner.width), state)
                .len()
                .saturating_sub(usize::from(inner.height))
        }
        _ => 0,
    }
}

fn block(area: Rect, state: &State) -> Block<'static> {
    let theme = state.theme;
    let beside = area.x > 0;
    let title = match state.row(state.selected) {
        Some(row) if state.query.group_by != GroupBy::Traceback => {
            cut_middle(&clean(&row.key), usize::from(area.width).saturating_sub(8)).into_owned()
        }
        _ => "Stack, innermost first".to_owned(),
    };
    let borders = if beside {
        Borders::TOP | Borders::LEFT
    } else {
        Borders::TOP
    };
    Block::new()
        .borders(borders)
        .border_style(theme.dim())
        .padding(Padding::horizontal(1))
        .title_top(Line::from(Span::styled(
            format!(" {title} "),
            theme.on_border(theme.strong()),
        )))
}

/// All there is, for the view that scrolls.
fn everything(row: &Row, columns: usize, state: &State) -> Vec<Line<'static>> {
    let mut lines = numbers(row, columns, state);
    lines.push(Line::default());
    lines.extend(stack::lines(row, columns, state.theme));
    let histograms = histograms(row, state);
    if !histograms.is_empty() {
        lines.push(Line::default());
        lines.extend(blocks(&histograms, columns, usize::MAX, state));
    }
    lines
}

/// What fits: the numbers, then as much of the stack as leaves room for bars when there is plenty.
fn in_pane(row: &Row, columns: usize, lines: usize, state: &State) -> Vec<Line<'static>> {
    let mut text = numbers(row, columns, state);
    text.truncate(if lines < ROOM_FOR_ALL_NUMBERS {
        2.min(lines)
    } else {
        lines
    });
    let histograms = histograms(row, state);
    let room = lines - text.len();
    let bars = match room {
        _ if histograms.is_empty() => Vec::new(),
        _ if room > row.frames.len() + LEAST_BARS_LINES => {
            blocks(&histograms, columns, room - row.frames.len() - 1, state)
        }
        ROOM_FOR_BARS.. => blocks(&histograms, columns, BARS_LINES, state),
        ROOM_FOR_A_LINE.. => {
            let pieces = histograms.iter().map(|bars| Piece {
                weight: 1,
                spans: bars.in_a_line(state.theme),
            });
            wrap(pieces.collect(), columns, Separator::dot(state.theme))
                .into_iter()
                .take(1)
                .collect()
        }
        _ => Vec::new(),
    };
    let gap = usize::from(bars.len() > 1);
    let room = room.saturating_sub(bars.len() + gap);
    text.extend(stack::some_lines(row, columns, room, state.theme));
    text.extend(std::iter::repeat_n(Line::default(), gap));
    text.extend(bars);
    text
}

fn numbers(row: &Row, columns: usize, state: &State) -> Vec<Line<'static>> {
    let (theme, units) = (state.theme, state.units);
    let plain = Style::new();
    let mut pieces = vec![
        Piece::new(1, about(row, units.size(row.inuse_bytes)), theme.strong())
            .then(format!(" in {} blocks", count(row.inuse_objects)), plain),
    ];
    let mut add = |label: &str, value: String, style: Style| {
        pieces.push(Piece::labelled(1, label, value, style, theme));
    };
    if let (Some(low), Some(high)) = (row.inuse_low_bytes, row.inuse_high_bytes) {
        add(
            "between",
            format!("{} and {}", units.size(low), units.size(high)),
            plain,
        );
    }
    if let Some(average) = row.inuse_bytes.checked_div(row.inuse_objects) {
        add("average", units.size(average), plain);
    }
    if let Some(growth) = row.growth_bytes_per_second {
        let growth = growth.round();
        add(
            "growth",
            format!("{}/s", units.change(growth as i64)),
            theme.change(growth),
        );
    }
    if let (true, Some(delta)) = (state.is_diff(), row.delta) {
        let text = format!(
            "{}, {} blocks",
            units.change(delta.inuse_bytes),
            signed_count(delta.inuse_objects)
        );
        add("change", text, theme.change(delta.inuse_bytes as f64));
    }
    add(
        "allocated",
        format!("{} in {}", units.size(row.alloc_bytes), count(row.alloc_objects)),
        plain,
    );
    add(
        "freed",
        format!("{} in {}", units.size(row.freed_bytes), count(row.freed_objects)),
        plain,
    );
    if let Some(oldest) = row.oldest_seconds {
        add("oldest", seconds(oldest), plain);
    }
    if let Some(pid) = row.pid {
        let comm = state
            .report
            .iter()
            .flat_map(|report| &report.processes)
            .find(|process| process.pid == pid);
        let name = comm.map_or_else(String::new, |process| format!(" {}", clean(&process.comm)));
        add("pid", format!("{pid}{name}"), plain);
        if state
            .report
            .as_ref()
            .is_some_and(|report| report.processes.len() > 1)
            && let Some(course) = state.history.process(pid)
        {
            add(
                "rss",
                bars::course(&course.last(12).collect::<Vec<_>>()),
                theme.bar(),
            );
        }
    }
    if let Some(domain) = &row.domain {
        let mapping = row
            .mapping
            .as_deref()
            .map_or_else(String::new, |mapping| format!(" ({})", clean(mapping)));
        add("domain", format!("{}{mapping}", clean(domain)), plain);
    }
    if row.stacks > 1 {
        add(
            "stacks",
            format!("{}, this one holds most", count(row.stacks)),
            plain,
        );
    }
    let mut lines = wrap(pieces, columns, Separator::dot(theme));
    lines.extend(findings(row, state));
    lines
}

fn findings(row: &Row, state: &State) -> Vec<Line<'static>> {
    let Some(report) = &state.report else {
        return Vec::new();
    };
    let is_this = |index: u64| {
        report
            .rows
            .get(index as usize)
            .is_some_and(|found| std::ptr::eq(found, row))
    };
    let found = report
        .findings
        .iter()
        .filter(|finding| finding.row.is_some_and(is_this));
    found
        .map(|finding| Line::styled(format!("! {}", clean(&finding.title)), state.theme.warn()))
        .collect()
}

fn histograms(row: &Row, state: &State) -> Vec<Histogram> {
    let ages = row
        .ages
        .as_deref()
        .and_then(|ages| Histogram::times("age of live blocks", ages));
    let lifetimes = Histogram::times("lifetime of freed blocks", &row.lifetimes);
    [ages, Histogram::sizes(&row.sizes, state.units), lifetimes]
        .into_iter()
        .flatten()
        .collect()
}

/// The histograms, as many side by side as there is width for, the others below while there are lines.
fn blocks(histograms: &[Histogram], columns: usize, lines: usize, state: &State) -> Vec<Line<'static>> {
    let fitting = ((columns + BARS_GAP) / (bars::LEAST_WIDTH + BARS_GAP)).clamp(1, histograms.len().max(1));
    let cells = (columns.saturating_sub(BARS_GAP * (fitting - 1)) / fitting).min(48);
    let mut text: Vec<Line<'static>> = Vec::new();
    for side_by_side in histograms.chunks(fitting) {
        let block = |bars: &Histogram| bars.block(cells, lines.min(BARS_LINES), state.theme);
        let row = beside(&side_by_side.iter().map(block).collect::<Vec<_>>(), cells);
        let gap = usize::from(!text.is_empty());
        if text.len() + gap + row.len() > lines {
            break;
        }
        text.extend(std::iter::repeat_n(Line::default(), gap));
        text.extend(row);
    }
    text
}

fn beside(blocks: &[Vec<Line<'static>>], cells: usize) -> Vec<Line<'static>> {
    let height = blocks.iter().map(Vec::len).max().unwrap_or(0);
    let row = |at: usize| {
        let mut line = Line::default();
        for (number, block) in blocks.iter().enumerate() {
            line.push_span(Span::raw(" ".repeat(if number > 0 { BARS_GAP } else { 0 })));
            match block.get(at) {
                Some(part) => line.extend(part.spans.iter().cloned()),
                None => line.push_span(Span::raw(" ".repeat(cells))),
            }
        }
        line
    };
    (0..height).map(row).collect()
}
