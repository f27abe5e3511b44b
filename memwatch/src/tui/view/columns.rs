//! The columns of numbers: what they hold, how wide they are, which of them there is room for.

use ratatui::style::Style;
use ratatui::text::Span;

use crate::model::query::{GroupBy, SortBy, View};
use crate::model::report::Row;
use crate::tui::history::sum;
use crate::tui::state::State;
use crate::tui::text::{clean, left, right, width};
use crate::{
    format::seconds,
    tui::format::{count, signed_count},
};

/// Cells between two columns.
pub const GAP: usize = 2;
const UNKNOWN: &str = "–";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    InuseBytes,
    Share,
    DeltaBytes,
    InuseObjects,
    DeltaObjects,
    Growth,
    AllocBytes,
    AllocObjects,
    FreedBytes,
    Average,
    Oldest,
    Stacks,
    Pid,
    Domain,
}

use Column::{
    AllocBytes, AllocObjects, Average, DeltaBytes, DeltaObjects, Domain, FreedBytes, Growth, InuseBytes,
    InuseObjects, Oldest, Pid, Share, Stacks,
};

/// From left to right, each with a weight: the least goes first when there is no room. The leading number
/// never goes.
const INUSE: &[(Column, u8)] = &[
    (InuseBytes, 99),
    (Share, 4),
    (DeltaBytes, 98),
    (InuseObjects, 9),
    (DeltaObjects, 7),
    (Growth, 10),
    (AllocBytes, 6),
    (FreedBytes, 0),
    (Average, 1),
    (Oldest, 8),
    (Stacks, 2),
    (Pid, 5),
    (Domain, 3),
];
const ALLOC: &[(Column, u8)] = &[
    (AllocBytes, 99),
    (Share, 4),
    (DeltaBytes, 98),
    (AllocObjects, 9),
    (DeltaObjects, 7),
    (InuseBytes, 10),
    (InuseObjects, 0),
    (Growth, 8),
    (FreedBytes, 2),
    (Average, 1),
    (Oldest, 6),
    (Stacks, 2),
    (Pid, 5),
    (Domain, 3),
];
/// Fewer cells than this for the group's name are of no use.
const LEAST_NAME: usize = 24;

impl Column {
    fn title(self, view: View) -> &'static str {
        match self {
            InuseBytes => "In use",
            Share => "%",
            DeltaBytes if view == View::Alloc => "Δ alloc",
            DeltaBytes => "Δ in use",
            InuseObjects if view == View::Alloc => "Live",
            InuseObjects => "Objects",
            DeltaObjects if view == View::Alloc => "Δ allocs",
            DeltaObjects => "Δ objects",
            Growth => "Growth/s",
            AllocBytes => "Allocated",
            AllocObjects => "Allocs",
            FreedBytes => "Freed",
            Average => "Average",
            Oldest => "Oldest",
            Stacks => "Stacks",
            Pid => "Pid",
            Domain => "Domain",
        }
    }

    /// Room kept for usual values, so that columns do not move at every tick.
    const fn usual_width(self) -> usize {
        match self {
            InuseBytes | FreedBytes | Average | AllocBytes => 8,
            Share => 4,
            DeltaBytes | DeltaObjects | Growth => 9,
            InuseObjects | AllocObjects | Pid => 7,
            Oldest | Stacks => 6,
            Domain => 13,
        }
    }

    const fn sort(self) -> Option<SortBy> {
        match self {
            InuseBytes => Some(SortBy::InuseBytes),
            InuseObjects => Some(SortBy::InuseObjects),
            AllocBytes => Some(SortBy::AllocBytes),
            AllocObjects => Some(SortBy::AllocObjects),
            Growth => Some(SortBy::Growth),
            Oldest => Some(SortBy::Age),
            DeltaBytes => Some(SortBy::Difference),
            _ => None,
        }
    }

    /// The text in the column's width with the gap after it: words at the left, numbers at the right.
    fn padded(self, text: &str, cells: usize) -> String {
        let text = if self == Domain {
            left(text, cells)
        } else {
            right(text, cells)
        };
        format!("{text}{:GAP$}", "")
    }

    /// Whether it says anything in this state.
    fn is_useful(self, state: &State) -> bool {
        let group_by = state.query.group_by;
        match self {
            DeltaBytes | DeltaObjects => state.is_diff(),
            Stacks => group_by != GroupBy::Traceback,
            Pid => {
                state
                    .report
                    .as_ref()
                    .is_some_and(|report| report.processes.len() > 1)
                    && group_by != GroupBy::Process
            }
            Domain => group_by != GroupBy::Domain,
            _ => true,
        }
    }
}

/// One number of a row.
struct Cell {
    text: String,
    style: Style,
}

fn cell(column: Column, row: &Row, state: &State, whole: Option<u64>) -> Cell {
    let (units, theme) = (state.units, state.theme);
    let plain = |value: u64, text: String| Cell {
        text,
        style: if value == 0 { theme.dim() } else { Style::new() },
    };
    let known = |text: Option<String>, style: Style| match text {
        Some(text) => Cell { text, style },
        None => Cell {
            text: UNKNOWN.to_owned(),
            style: theme.dim(),
        },
    };
    let alloc = state.query.view == View::Alloc;
    match column {
        InuseBytes => plain(row.inuse_bytes, about(row, units.size(row.inuse_bytes))),
        InuseObjects => plain(row.inuse_objects, count(row.inuse_objects)),
        AllocBytes => plain(row.alloc_bytes, units.size(row.alloc_bytes)),
        AllocObjects => plain(row.alloc_objects, count(row.alloc_objects)),
        FreedBytes => plain(row.freed_bytes, units.size(row.freed_bytes)),
        Share => {
            let part = if alloc { row.alloc_bytes } else { row.inuse_bytes };
            known(
                whole.map(|whole| format!("{:.1}", part as f64 / whole as f64 * 100.0)),
                theme.dim(),
            )
        }
        DeltaBytes => {
            let delta = row.delta.map(|delta| {
                if alloc {
                    delta.alloc_bytes
                } else {
                    delta.inuse_bytes
                }
            });
            known(
                delta.map(|delta| units.change(delta)),
                theme.change(delta.unwrap_or(0) as f64),
            )
        }
        DeltaObjects => {
            let delta = row.delta.map(|delta| {
                if alloc {
                    delta.alloc_objects
                } else {
                    delta.inuse_objects
                }
            });
            known(delta.map(signed_count), theme.change(delta.unwrap_or(0) as f64))
        }
        Growth => {
            let growth = row.growth_bytes_per_second;
            known(
                growth.map(|growth| units.change(growth.round() as i64)),
                theme.change(growth.unwrap_or(0.0).round()),
            )
        }
        Average => {
            let (bytes, objects) = if alloc {
                (row.alloc_bytes, row.alloc_objects)
            } else {
                (row.inuse_bytes, row.inuse_objects)
            };
            known(
                bytes.checked_div(objects).map(|average| units.size(average)),
                Style::new(),
            )
        }
        Oldest => known(row.oldest_seconds.map(seconds), Style::new()),
        Stacks => plain(row.stacks, count(row.stacks)),
        Pid => known(row.pid.map(|pid| pid.to_string()), Style::new()),
        Domain => known(
            row.domain.as_deref().map(|domain| clean(domain).into_owned()),
            theme.dim(),
        ),
    }
}

/// In-use or allocated bytes of all processes and domains, of which a row is a share. None when there is
/// nothing to share.
fn whole(state: &State) -> Option<u64> {
    let report = state.report.as_ref()?;
    let totals = report
        .processes
        .iter()
        .flat_map(|process| process.totals.values());
    let whole = match state.query.view {
        View::Inuse => sum(totals.map(|totals| Some(totals.inuse_bytes))),
        View::Alloc => sum(totals.map(|totals| Some(totals.allocated_bytes))),
    };
    whole.filter(|whole| *whole > 0)
}

/// The columns of one screen with the texts of the rows on it.
pub struct Grid {
    columns: Vec<(Column, usize)>,
    view: View,
    sort: SortBy,
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    pub fn new(state: &State, rows: &[&Row], room: usize) -> Self {
        let view = state.query.view;
        let weighted = match view {
            View::Inuse => INUSE,
            View::Alloc => ALLOC,
        };
        let whole = whole(state);
        let mut columns: Vec<(Column, usize, u8)> = weighted
            .iter()
            .filter(|(column, _)| column.is_useful(state))
            .map(|(column, weight)| {
                let cells = rows
                    .iter()
                    .map(|row| width(&cell(*column, row, state, whole).text))
                    .max()
                    .unwrap_or(0);
                // The arrow of the sorted column needs a cell of its own, whether it is there or not.
                let title = width(column.title(view)) + usize::from(column.sort().is_some());
                (*column, cells.max(title).max(column.usual_width()), *weight)
            })
            .collect();
        let name = LEAST_NAME.max(room * 2 / 5);
        while columns.len() > 1
            && columns.iter().map(|(_, cells, _)| cells + GAP).sum::<usize>() + name > room
        {
            let least = columns.iter().map(|(.., weight)| *weight).min();
            if let Some(at) = columns.iter().rposition(|(.., weight)| Some(*weight) == least) {
                columns.remove(at);
            }
        }
        let columns: Vec<(Column, usize)> = columns
            .into_iter()
            .map(|(column, cells, _)| (column, cells))
            .collect();
        let rows = rows
            .iter()
            .map(|row| {
                columns
                    .iter()
                    .map(|(column, _)| cell(*column, row, state, whole))
                    .collect()
            })
            .collect();
        Self {
            columns,
            view,
            sort: state.query.sort,
            rows,
        }
    }

    /// Cells of all number columns with the gaps after them.
    pub fn width(&self) -> usize {
        self.columns.iter().map(|(_, cells)| cells + GAP).sum()
    }

    pub fn titles(&self, plain: Style, sorted: Style) -> Vec<Span<'static>> {
        let title = |(column, cells): &(Column, usize)| {
            let title = column.title(self.view);
            let (title, style) = if column.sort() == Some(self.sort) {
                (format!("{title}▼"), sorted)
            } else {
                (title.to_owned(), plain)
            };
            Span::styled(column.padded(&title, *cells), style)
        };
        self.columns.iter().map(title).collect()
    }

    /// The numbers of the row with this place among the rows given.
    pub fn row(&self, place: usize) -> Vec<Span<'static>> {
        let Some(cells) = self.rows.get(place) else {
            return Vec::new();
        };
        let span = |(cell, (column, cells)): (&Cell, &(Column, usize))| {
            Span::styled(column.padded(&cell.text, *cells), cell.style)
        };
        cells.iter().zip(&self.columns).map(span).collect()
    }
}

/// A size that is an estimate says so.
pub(super) fn about(row: &Row, size: String) -> String {
    if row.estimated_bytes > 0 {
        format!("~{size}")
    } else {
        size
    }
}
