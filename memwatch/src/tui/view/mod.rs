//! Drawing. The view reads the state and never changes it; only how much the screen can show goes back, as an
//! [`Extent`].

mod attach;
mod bars;
mod columns;
mod detail;
mod facts;
mod footer;
mod header;
mod help;
mod pieces;
mod stack;
mod table;

#[cfg(test)]
mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};

use super::state::{Detail, Extent, State};

/// From this width on the stack stands beside the table, below it otherwise.
const WIDE: u16 = 160;
/// With fewer lines between header and footer there is only the table.
const LEAST_SPLIT: u16 = 11;

struct Areas {
    header: Rect,
    table: Option<Rect>,
    detail: Option<Rect>,
    footer: Rect,
}

pub fn draw(frame: &mut Frame, state: &mut State) {
    let area = frame.area();
    state.fit(extent(area, state));
    paint(frame, area, state);
}

fn paint(frame: &mut Frame, area: Rect, state: &State) {
    let areas = areas(area, state);
    header::draw(frame, areas.header, state);
    if state.report.is_none() {
        if let Some(area) = areas.table {
            attach::draw(frame, area, state);
        }
    } else {
        if let Some(area) = areas.table {
            table::draw(frame, area, state);
        }
        if let Some(area) = areas.detail {
            detail::draw(frame, area, state);
        }
    }
    footer::draw(frame, areas.footer, state);
    if state.help {
        help::draw(frame, area, state);
    }
}

fn extent(area: Rect, state: &State) -> Extent {
    let areas = areas(area, state);
    Extent {
        table_rows: areas.table.map_or(0, table::rows),
        detail_excess: areas.detail.map_or(0, |area| detail::excess(area, state)),
        help_excess: help::excess(area, state),
    }
}

fn areas(area: Rect, state: &State) -> Areas {
    let losses = u16::from(header::has_losses(state));
    let header = match area.height {
        _ if state.report.is_none() => 1,
        20.. => 4 + losses,
        14.. => 3,
        8.. => 2,
        _ => 1,
    };
    let footer = u16::from(area.height >= 5);
    let [header, body, footer] = Layout::vertical([
        Constraint::Length(header),
        Constraint::Fill(1),
        Constraint::Length(footer),
    ])
    .areas(area);
    let (table, detail) = match state.detail {
        _ if state.report.is_none() => (Some(body), None),
        Detail::Full => (None, Some(body)),
        Detail::Pane if body.width >= WIDE => {
            let [table, detail] = Layout::horizontal([
                Constraint::Fill(1),
                Constraint::Length(detail::side_width(body.width)),
            ])
            .areas(body);
            (Some(table), Some(detail))
        }
        Detail::Pane if body.height >= LEAST_SPLIT => {
            let rows = u16::try_from(state.order.len()).unwrap_or(u16::MAX);
            let wanted = table::height(rows);
            let share = body.height - body.height * 9 / 20;
            let table = wanted.clamp(4, share);
            let [table, detail] =
                Layout::vertical([Constraint::Length(table), Constraint::Fill(1)]).areas(body);
            (Some(table), Some(detail))
        }
        Detail::Pane | Detail::Hidden => (Some(body), None),
    };
    Areas {
        header,
        table,
        detail,
        footer,
    }
}
