//! The full screen on a recording: the same as live, and time goes where the user wants.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::{Input, freeze, keys, wide_query};
use crate::cli::error::ExitCode;
use crate::cli::resolve::{Format, Resolved};
use crate::controller::{Printer, usage};
use crate::model::query::Query;
use crate::model::report::{Kind, Report};
use crate::model::state::Baseline;
use crate::store::Recording;
use crate::tui::{Direction, Options, Request, Screen, State, Step};

/// Parts in which `{` and `}` go through a recording.
const PARTS: usize = 20;

/// Shows the tick with this index, with the differences to another one if there is one to compare with.
pub fn run(
    recording: Recording,
    index: usize,
    baseline: Option<usize>,
    name: &str,
    resolved: &Resolved,
    color: bool,
) -> Result<ExitCode> {
    let options = Options {
        units: resolved.output.bytes,
        color,
        query: wide_query(resolved),
    };
    let mut view = View {
        recording,
        index,
        query: wide_query(resolved),
        baseline: None,
        state: State::new(name, options),
        printer: Printer::new(resolved, Format::Text, false),
    };
    // What cannot be answered is said before the terminal is taken over.
    view.baseline = baseline.map(|index| view.baseline_at(index)).transpose()?;
    view.show()?;
    let mut screen = Screen::enter().context("cannot take over the terminal")?;
    let mut keys = keys()?;
    loop {
        if !view.state.is_typing() && !view.state.has_message() {
            let place = view.place();
            view.state.message(place);
        }
        screen.draw(&mut view.state)?;
        match keys.blocking_recv() {
            Some(Input::Key(key)) => {
                let request = view.state.key(key);
                if request == Some(Request::Quit) {
                    return Ok(ExitCode::Done);
                }
                view.answer(request)?;
            }
            Some(Input::Resize) => {}
            // The terminal is gone.
            None => return Ok(ExitCode::Done),
        }
    }
}

struct View {
    recording: Recording,
    /// Of the tick that is shown.
    index: usize,
    query: Query,
    baseline: Option<Baseline>,
    state: State,
    printer: Printer,
}

impl View {
    fn answer(&mut self, request: Option<Request>) -> Result<()> {
        match request {
            None | Some(Request::Pause(_) | Request::Quit) => {}
            Some(Request::Time(step)) => {
                self.index = stepped(self.index, step, self.recording.ticks().len());
                self.show()?;
            }
            Some(Request::Query(change)) => {
                let before = self.query.clone();
                change.apply(&mut self.query);
                if let Err(error) = self.show() {
                    self.query = before;
                    self.state.message(format!("{error:#}"));
                }
            }
            Some(Request::SetBaseline) => {
                self.baseline = Some(self.baseline_at(self.index)?);
                self.show()?;
            }
            Some(Request::ClearBaseline) => {
                self.baseline = None;
                self.show()?;
            }
            Some(Request::Freeze { report, format }) => {
                let message = freeze(&self.printer, &report, format);
                self.state.message(message);
            }
        }
        Ok(())
    }

    fn baseline_at(&mut self, index: usize) -> Result<Baseline> {
        let moment = self.recording.at(index).context("cannot read the recording")?;
        Ok(moment.model.baseline())
    }

    fn report(&mut self) -> Result<Report> {
        let kind = if self.baseline.is_some() {
            Kind::Diff
        } else {
            Kind::Top
        };
        self.recording
            .at(self.index)
            .context("cannot read the recording")?
            .report(&self.query, kind, self.baseline.as_ref())
            .map_err(usage)
    }

    fn show(&mut self) -> Result<()> {
        let report = self.report()?;
        self.state.update(Arc::new(report));
        let shown = &self.recording.ticks()[..=self.index];
        self.state
            .set_course(shown.iter().filter_map(|info| info.rss_bytes));
        Ok(())
    }

    fn place(&self) -> String {
        let ticks = self.recording.ticks();
        let time = ticks[self.index]
            .time
            .map_or_else(String::new, |time| format!(" at {time}"));
        format!(
            "tick {}{time}, {} of {} · [ ] one tick, {{ }} a twentieth · h help · q quit",
            ticks[self.index].tick,
            self.index + 1,
            ticks.len()
        )
    }
}

fn stepped(index: usize, step: Step, count: usize) -> usize {
    let part = count.div_ceil(PARTS);
    let (far, direction) = match step {
        Step::Tick(direction) => (1, direction),
        Step::Part(direction) => (part, direction),
    };
    match direction {
        Direction::Previous => index.saturating_sub(far),
        Direction::Next => index.saturating_add(far).min(count.saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_at_the_ends() {
        let tick = |index, direction| stepped(index, Step::Tick(direction), 100);
        let part = |index, direction| stepped(index, Step::Part(direction), 100);
        assert_eq!((tick(5, Direction::Next), tick(5, Direction::Previous)), (6, 4));
        assert_eq!((tick(99, Direction::Next), tick(0, Direction::Previous)), (99, 0));
        assert_eq!((part(5, Direction::Next), part(4, Direction::Previous)), (10, 0));
        assert_eq!(stepped(0, Step::Part(Direction::Next), 1), 0);
    }
}
