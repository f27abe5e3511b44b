//! What the screen shows and where the user is on it: plain data, changed by reports and keys, read by the
//! view.

use std::borrow::Cow;
use std::sync::Arc;

use crossterm::event::KeyEvent;

use crate::model::query::{GroupBy, Query, SortBy, View};
use crate::model::report::{Kind, Process, Report, Row};

use super::filter::Filter;
use super::history::{History, is_living};
use super::input::{self, Action, Direction, Edit, Mode, Move};
use super::request::{FreezeFormat, QueryChange, Request};
use super::theme::Theme;
use crate::format::ByteFormat;

/// Steps of attaching that are remembered.
const MOST_STEPS: usize = 100;

/// What does not change while the screen is up, and the query it starts with.
#[derive(Clone, Debug)]
pub struct Options {
    pub units: ByteFormat,
    pub color: bool,
    pub query: Query,
}

/// Where the stack of the selected row is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Beside or below the table.
    #[default]
    Pane,
    Full,
    Hidden,
}

/// The moment with which differences compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    pub time: String,
    pub watched_seconds: f64,
}

/// What the screen has room for, worked out by the view: how far paging and scrolling go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub table_rows: usize,
    /// Lines of the stack that do not fit.
    pub detail_excess: usize,
    pub help_excess: usize,
}

/// What makes a row the same row in the next report.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RowId {
    key: String,
    pid: Option<u32>,
    domain: Option<String>,
}

impl RowId {
    fn of(row: &Row) -> Self {
        Self {
            key: row.key.clone(),
            pid: row.pid,
            domain: row.domain.clone(),
        }
    }

    fn is(&self, row: &Row) -> bool {
        self.key == row.key && self.pid == row.pid && self.domain == row.domain
    }
}

#[derive(Clone, Debug)]
pub struct State {
    pub(super) target: String,
    pub(super) units: ByteFormat,
    pub(super) theme: Theme,
    pub(super) query: Query,
    /// What was done so far to attach, oldest first.
    pub(super) steps: Vec<String>,
    pub(super) report: Option<Arc<Report>>,
    /// Indexes of the report's rows, as shown.
    pub(super) order: Vec<usize>,
    /// Index into `order`.
    pub(super) selected: usize,
    /// Index into `order` of the first row on the screen.
    pub(super) top: usize,
    pub(super) detail: Detail,
    pub(super) detail_scroll: usize,
    pub(super) help: bool,
    pub(super) help_scroll: usize,
    /// The filter being typed.
    pub(super) typing: Option<String>,
    pub(super) paused: bool,
    pub(super) baseline: Option<Baseline>,
    pub(super) message: Option<String>,
    pub(super) history: History,
    pub(super) hits_per_second: Option<f64>,
    /// The row that the user chose; none until then, so that the first row stays selected whichever it is.
    followed: Option<RowId>,
    extent: Extent,
    /// Tick, hits and watched seconds of the last report that was counted in the courses.
    counted: Option<(u64, u64, f64)>,
}

impl State {
    /// `target` is shown until the first report tells more: `pid 1234`, `container web`.
    pub fn new(target: impl Into<String>, options: Options) -> Self {
        Self {
            target: target.into(),
            units: options.units,
            theme: Theme { color: options.color },
            query: options.query,
            steps: Vec::new(),
            report: None,
            order: Vec::new(),
            selected: 0,
            top: 0,
            detail: Detail::default(),
            detail_scroll: 0,
            help: false,
            help_scroll: 0,
            typing: None,
            paused: false,
            baseline: None,
            message: None,
            history: History::default(),
            hits_per_second: None,
            followed: None,
            extent: Extent::default(),
            counted: None,
        }
    }

    /// One step of attaching, shown until the first report.
    pub fn progress(&mut self, step: impl Into<String>) {
        if self.steps.len() == MOST_STEPS {
            self.steps.remove(0);
        }
        self.steps.push(step.into());
    }

    /// One line for the user, shown until the next key.
    pub fn message(&mut self, text: impl Into<String>) {
        self.message = Some(text.into());
    }

    pub fn has_message(&self) -> bool {
        self.message.is_some()
    }

    /// Whether keys are text now.
    pub fn is_typing(&self) -> bool {
        self.typing.is_some()
    }

    /// The course of the resident memory up to what is shown, where it is known ahead.
    pub fn set_course(&mut self, rss_bytes: impl Iterator<Item = u64>) {
        self.history.set_total(rss_bytes);
    }

    pub fn update(&mut self, report: Arc<Report>) {
        self.count(&report);
        if self.paused && !self.answers_query(&report) {
            return;
        }
        let sorted = report.options.sort.is_empty() || report.options.sort == self.query.sort.name();
        self.order = (0..report.rows.len()).collect();
        self.report = Some(report);
        if !sorted {
            self.sort_here();
        }
        self.follow();
    }

    /// While paused: the same sample seen another way may pass, newer ones may not.
    fn answers_query(&self, report: &Report) -> bool {
        self.report
            .as_ref()
            .is_none_or(|shown| shown.tick == report.tick || shown.options != report.options)
    }

    /// Adds a tick to the courses, once however often its sample is asked again.
    fn count(&mut self, report: &Report) {
        if self.counted.is_some_and(|(tick, ..)| tick == report.tick) {
            return;
        }
        self.history.push(&report.processes);
        let (hits, seconds) = (report.health.overhead.hits, report.watched_seconds);
        let (_, hits_before, seconds_before) = self.counted.unwrap_or_default();
        let passed = seconds - seconds_before;
        self.hits_per_second = (passed > 0.0).then(|| hits.saturating_sub(hits_before) as f64 / passed);
        self.counted = Some((report.tick, hits, seconds));
    }

    /// Orders what is here at once; the report in this order is on its way. A difference is ordered by the
    /// model only.
    fn sort_here(&mut self) {
        let Some(report) = &self.report else { return };
        if report.kind == Kind::Diff {
            return;
        }
        let sort = self.query.sort;
        self.order
            .sort_by(|a, b| measure(&report.rows[*b], sort).total_cmp(&measure(&report.rows[*a], sort)));
    }

    /// Puts the selection back on the row that the user chose; if that is gone, it stays at its height.
    fn follow(&mut self) {
        let Some(report) = &self.report else { return };
        self.selected = match &self.followed {
            None => 0,
            Some(id) => {
                let found = self.order.iter().position(|index| id.is(&report.rows[*index]));
                found.unwrap_or_else(|| self.selected.min(self.order.len().saturating_sub(1)))
            }
        };
        self.keep_in_sight();
    }

    fn keep_in_sight(&mut self) {
        let rows = self.extent.table_rows.max(1);
        let last_top = self.order.len().saturating_sub(rows);
        self.top = self
            .top
            .clamp((self.selected + 1).saturating_sub(rows), self.selected)
            .min(last_top);
    }

    /// Told before drawing, whenever the screen's size or content may have changed.
    pub(super) fn fit(&mut self, extent: Extent) {
        self.extent = extent;
        self.detail_scroll = self.detail_scroll.min(extent.detail_excess);
        self.help_scroll = self.help_scroll.min(extent.help_excess);
        self.keep_in_sight();
    }

    pub(super) fn row(&self, place: usize) -> Option<&Row> {
        self.report.as_ref()?.rows.get(*self.order.get(place)?)
    }

    pub(super) fn is_diff(&self) -> bool {
        self.baseline.is_some()
            || self
                .report
                .as_ref()
                .is_some_and(|report| report.kind == Kind::Diff)
    }

    /// Why there will be no newer numbers.
    pub(super) fn why_ended(&self) -> Option<Cow<'_, str>> {
        let processes = &self.report.as_ref()?.processes;
        if processes.is_empty() || processes.iter().any(is_living) {
            return None;
        }
        Some(match how_ended(processes) {
            Some(how) => Cow::Owned(format!("the target {how}")),
            None => Cow::Borrowed("the target ended"),
        })
    }

    pub fn key(&mut self, key: KeyEvent) -> Option<Request> {
        let mode = if self.typing.is_some() {
            Mode::Filter
        } else {
            Mode::Table
        };
        let action = input::action(key, mode)?;
        self.message = None;
        if self.help
            && !matches!(
                action,
                Action::Quit | Action::Back | Action::Move(_) | Action::ToggleHelp
            )
        {
            self.help = false;
        }
        match action {
            Action::Quit => return Some(Request::Quit),
            Action::Back => return self.back(),
            Action::Move(step) => self.go(step),
            Action::Neighbour(direction) => self.select(stepped(self.selected, direction)),
            Action::ToggleDetail => self.toggle_detail(),
            Action::Sort(_)
            | Action::SortNumber(_)
            | Action::Group(_)
            | Action::ToggleView
            | Action::ToggleCumulative => {
                let change = self.asked_change(action)?;
                return Some(self.change(change));
            }
            Action::EditFilter => self.typing = Some(Filter::of(&self.query).text()),
            Action::Edit(edit) => return self.edit_filter(edit),
            Action::TogglePause => {
                self.paused = !self.paused;
                return Some(Request::Pause(self.paused));
            }
            Action::SetBaseline => return self.set_baseline(),
            Action::ClearBaseline => {
                self.baseline = None;
                return Some(Request::ClearBaseline);
            }
            Action::FreezeJson => return self.freeze(FreezeFormat::Json),
            Action::FreezeText => return self.freeze(FreezeFormat::Text),
            Action::Time(step) => return Some(Request::Time(step)),
            Action::ToggleHelp => {
                self.help = !self.help;
                self.help_scroll = 0;
            }
        }
        None
    }

    fn asked_change(&self, action: Action) -> Option<QueryChange> {
        let query = &self.query;
        Some(match action {
            Action::Sort(direction) => QueryChange::Sort(cycled(SortBy::ALL, query.sort, direction)),
            Action::SortNumber(number) => QueryChange::Sort(*SortBy::ALL.get(number)?),
            Action::Group(direction) => QueryChange::GroupBy(cycled(GroupBy::ALL, query.group_by, direction)),
            Action::ToggleView => QueryChange::View(cycled(View::ALL, query.view, Direction::Next)),
            Action::ToggleCumulative => QueryChange::Cumulative(!query.cumulative),
            _ => return None,
        })
    }

    fn back(&mut self) -> Option<Request> {
        if self.help {
            self.help = false;
        } else if self.detail == Detail::Full {
            self.detail = Detail::Pane;
            self.detail_scroll = 0;
        } else {
            return Some(Request::Quit);
        }
        None
    }

    fn toggle_detail(&mut self) {
        self.detail_scroll = 0;
        self.detail = match self.detail {
            Detail::Pane => Detail::Full,
            Detail::Full => Detail::Hidden,
            Detail::Hidden => Detail::Pane,
        };
    }

    fn go(&mut self, step: Move) {
        if self.help {
            self.help_scroll = moved(self.help_scroll, self.extent.help_excess, 10, step);
        } else if self.detail == Detail::Full {
            self.detail_scroll = moved(self.detail_scroll, self.extent.detail_excess, 10, step);
        } else {
            let last = self.order.len().saturating_sub(1);
            let page = self.extent.table_rows.max(2) - 1;
            self.select(moved(self.selected, last, page, step));
            if step == Move::First {
                self.followed = None;
            }
        }
    }

    fn select(&mut self, place: usize) {
        let Some(id) = self.row(place).map(RowId::of) else {
            return;
        };
        if place != self.selected {
            self.detail_scroll = 0;
        }
        self.selected = place;
        self.followed = Some(id);
        self.keep_in_sight();
    }

    fn change(&mut self, change: QueryChange) -> Request {
        change.apply(&mut self.query);
        match &change {
            QueryChange::GroupBy(_) | QueryChange::Cumulative(_) => {
                self.followed = None;
                self.selected = 0;
                self.top = 0;
                self.detail_scroll = 0;
            }
            QueryChange::Sort(_) | QueryChange::View(_) => {
                self.sort_here();
                self.follow();
            }
            QueryChange::Filter(_) => {}
        }
        Request::Query(change)
    }

    fn edit_filter(&mut self, edit: Edit) -> Option<Request> {
        let text = self.typing.as_mut()?;
        match edit {
            Edit::Insert(c) => text.push(c),
            Edit::Backspace => {
                text.pop();
            }
            Edit::DeleteWord => text.truncate(text.trim_end().rfind(' ').map_or(0, |at| at + 1)),
            Edit::Clear => text.clear(),
            Edit::Cancel => self.typing = None,
            Edit::Apply => match Filter::parse(text) {
                Ok(filter) => {
                    self.typing = None;
                    return Some(self.change(QueryChange::Filter(filter)));
                }
                Err(error) => self.message = Some(error),
            },
        }
        None
    }

    fn set_baseline(&mut self) -> Option<Request> {
        let Some(report) = &self.report else {
            self.message("nothing to compare with yet");
            return None;
        };
        self.baseline = Some(Baseline {
            time: report.time.clone(),
            watched_seconds: report.watched_seconds,
        });
        Some(Request::SetBaseline)
    }

    fn freeze(&mut self, format: FreezeFormat) -> Option<Request> {
        let Some(report) = &self.report else {
            self.message("nothing to save yet");
            return None;
        };
        Some(Request::Freeze {
            report: Arc::clone(report),
            format,
        })
    }
}

/// By what a row is ordered; rows without that number come last.
fn measure(row: &Row, sort: SortBy) -> f64 {
    match sort {
        SortBy::InuseBytes => row.inuse_bytes as f64,
        SortBy::InuseObjects => row.inuse_objects as f64,
        SortBy::AllocBytes => row.alloc_bytes as f64,
        SortBy::AllocObjects => row.alloc_objects as f64,
        SortBy::Growth => row.growth_bytes_per_second.unwrap_or(f64::NEG_INFINITY),
        SortBy::Age => row.oldest_seconds.unwrap_or(f64::NEG_INFINITY),
        SortBy::Difference => row
            .delta
            .map_or(f64::NEG_INFINITY, |delta| delta.inuse_bytes.unsigned_abs() as f64),
    }
}

fn cycled<T: Copy + PartialEq>(all: &[T], now: T, direction: Direction) -> T {
    let at = all.iter().position(|item| *item == now).unwrap_or(0);
    let step = match direction {
        Direction::Next => 1,
        Direction::Previous => all.len().saturating_sub(1),
    };
    all.get((at + step) % all.len().max(1)).copied().unwrap_or(now)
}

const fn stepped(from: usize, direction: Direction) -> usize {
    match direction {
        Direction::Next => from.saturating_add(1),
        Direction::Previous => from.saturating_sub(1),
    }
}

fn moved(from: usize, last: usize, page: usize, step: Move) -> usize {
    match step {
        Move::Up => from.saturating_sub(1),
        Move::Down => from.saturating_add(1),
        Move::PageUp => from.saturating_sub(page),
        Move::PageDown => from.saturating_add(page),
        Move::First => 0,
        Move::Last => last,
    }
    .min(last)
}

/// How the last of them ended that is not said by its being gone.
fn how_ended(processes: &[Process]) -> Option<String> {
    let mut exits = processes.iter().rev().filter_map(|process| process.exit);
    let told = exits.find(|exit| exit.code != Some(0))?;
    Some(told.words())
}
