//! Draws the live view with made-up data in this terminal: `cargo run -p memwatch --example screen`. For work
//! on the view, and needs no privileges.

use std::sync::Arc;
use std::time::Duration;

use crossterm::event::{self, Event};
use memwatch::format::ByteFormat;
use memwatch::model::query::{GroupBy, Query};
use memwatch::model::report::{Kind, Report};
use memwatch::tui::{Options, Request, Screen, State};

/// Where the sample finds the report's types.
mod model {
    pub use memwatch::model::report;
}
#[path = "../src/tui/sample.rs"]
mod sample;

const TICK: Duration = Duration::from_secs(1);

fn main() -> std::io::Result<()> {
    let color = std::env::var_os("NO_COLOR").is_none();
    let mut query = Query::default();
    let mut state = State::new(
        "pid 1234",
        Options {
            units: ByteFormat::default(),
            color,
            query: query.clone(),
        },
    );
    let mut screen = Screen::enter()?;
    let (mut tick, mut diff) = (0, false);
    for step in [
        "found checkout-api, pid 1234",
        "41 probes planned for libc.so.6 and libpython3.11.so.1.0",
        "attaching…",
    ] {
        state.progress(step);
        screen.draw(&mut state)?;
        std::thread::sleep(TICK / 3);
    }
    loop {
        state.update(Arc::new(answer(tick, &query, diff)));
        screen.draw(&mut state)?;
        if !event::poll(TICK)? {
            tick += 1;
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        match state.key(key) {
            Some(Request::Quit) => return Ok(()),
            Some(Request::Query(change)) => change.apply(&mut query),
            Some(Request::SetBaseline) => diff = true,
            Some(Request::ClearBaseline) => diff = false,
            Some(Request::Freeze { .. }) => state.message("this example saves nothing"),
            Some(Request::Pause(_) | Request::Time(_)) | None => {}
        }
    }
}

/// As much of what the controller does as is needed to see the keys at work.
fn answer(tick: u64, query: &Query, diff: bool) -> Report {
    let mut report = sample::report(tick);
    report.kind = if diff { Kind::Diff } else { Kind::Top };
    // In no order that the view knows, so that it puts the rows in order itself.
    "none".clone_into(&mut report.options.sort);
    for row in &mut report.rows {
        let Some(frame) = row.frames.iter().rev().nth(6).or(row.frames.last()) else {
            continue;
        };
        let name = match query.group_by {
            GroupBy::Line => frame
                .file
                .clone()
                .zip(frame.line)
                .map(|(file, line)| format!("{file}:{line}")),
            GroupBy::File => frame.file.clone(),
            GroupBy::Function => frame.function.clone(),
            GroupBy::Module => frame.module.clone(),
            GroupBy::Domain => row.domain.clone(),
            _ => None,
        };
        row.key = name.unwrap_or_else(|| row.key.clone());
    }
    report
}
