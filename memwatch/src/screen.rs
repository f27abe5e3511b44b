//! The full-screen live view: keys and the terminal around the same watch.

use std::{fs, io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use crossterm::event::{self, Event, KeyEvent};
use tokio::sync::mpsc;

use crate::{
    cli::{
        error::ExitCode,
        resolve::{Command, Format, Resolved},
    },
    controller::{Pace, Printer, Wake, usage},
    model::{
        query::Query,
        report::{Kind, Report},
        state::Baseline,
    },
    tui::{FreezeFormat, Options, Request, Screen, State},
    watch::{
        NAMING_BUDGET, Watch,
        start::{self, Settings, Subject, Told},
    },
};

pub mod recorded;

/// What can come from the terminal.
enum Input {
    Key(KeyEvent),
    Resize,
}

/// Runs the live view until the user leaves it.
pub async fn run(settings: &Settings, resolved: &Resolved, color: bool) -> Result<ExitCode> {
    let options = Options {
        units: resolved.output.bytes,
        color,
        query: wide_query(resolved),
    };
    let mut state = State::new(target_name(settings), options);
    let mut screen = Screen::enter().context("cannot take over the terminal")?;
    screen.draw(&mut state)?;
    let watch = start::start(settings, &mut |told| {
        // What is said there of the cost stands in the header too.
        let (Told::Step(text) | Told::Warning(text)) = told;
        state.progress(text);
        // A frame that cannot be drawn is found at the first real one.
        let _ = screen.draw(&mut state);
    })?;
    let mut view = View {
        watch,
        query: wide_query(resolved),
        kind: Kind::Top,
        baseline: None,
        state,
        screen,
        printer: Printer::new(resolved, Format::Text, false),
        ended: false,
    };
    if matches!(resolved.command, Command::Diff { .. }) {
        view.tick()?;
        view.set_baseline();
    }
    let most = resolved.ticks;
    view.run(resolved.interval, resolved.duration, most).await?;
    view.watch.stop()?;
    Ok(ExitCode::Done)
}

struct View {
    watch: Watch,
    query: Query,
    kind: Kind,
    baseline: Option<Baseline>,
    state: State,
    screen: Screen,
    printer: Printer,
    ended: bool,
}

impl View {
    async fn run(&mut self, interval: Duration, duration: Option<Duration>, most: Option<u64>) -> Result<()> {
        let mut keys = keys()?;
        let mut pace = Pace::new(&self.watch, interval, duration)?;
        self.tick()?;
        loop {
            self.screen.draw(&mut self.state)?;
            tokio::select! {
                biased;
                input = keys.recv() => match input {
                    Some(Input::Key(key)) => {
                        if self.key(key)? {
                            return Ok(());
                        }
                    }
                    Some(Input::Resize) => {}
                    // The terminal is gone.
                    None => return Ok(()),
                },
                wake = pace.next() => match wake? {
                    Wake::Signal => return Ok(()),
                    Wake::Event => self.watch.react()?,
                    Wake::Tick => {
                        self.tick()?;
                        if pace.over() || most.is_some_and(|most| self.watch.tick_number() > most) {
                            return Ok(());
                        }
                    }
                },
            }
            if self.watch.all_ended() && !self.ended {
                self.ended = true;
                self.tick()?;
            }
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.watch.tick(&self.query, Some(NAMING_BUDGET))?;
        self.show()
    }

    fn show(&mut self) -> Result<()> {
        let report = self
            .watch
            .report(&self.query, self.kind, self.baseline.as_ref())
            .map_err(usage)?;
        self.state.update(Arc::new(report));
        Ok(())
    }

    fn set_baseline(&mut self) {
        self.baseline = Some(self.watch.baseline());
        self.kind = Kind::Diff;
    }

    /// True when the user wants to leave.
    fn key(&mut self, key: KeyEvent) -> Result<bool> {
        match self.state.key(key) {
            None | Some(Request::Pause(_)) => {}
            Some(Request::Quit) => return Ok(true),
            Some(Request::Query(change)) => {
                let before = self.query.clone();
                change.apply(&mut self.query);
                match self.watch.report(&self.query, self.kind, self.baseline.as_ref()) {
                    Ok(report) => self.state.update(Arc::new(report)),
                    Err(error) => {
                        self.query = before;
                        self.state.message(error.to_string());
                    }
                }
            }
            Some(Request::Time(_)) => self.state.message(
                "time can be gone through in a recording: `memwatch record`, then `memwatch top FILE`",
            ),
            Some(Request::SetBaseline) => {
                self.set_baseline();
                self.show()?;
            }
            Some(Request::ClearBaseline) => {
                self.baseline = None;
                self.kind = Kind::Top;
                self.show()?;
            }
            Some(Request::Freeze { report, format }) => {
                self.state.message(freeze(&self.printer, &report, format));
            }
        }
        Ok(false)
    }
}

/// Saves what is on the screen; tells where.
fn freeze(printer: &Printer, report: &Report, format: FreezeFormat) -> String {
    match save(printer, report, format) {
        Ok(path) => format!("saved to {}", path.display()),
        Err(error) => format!("not saved: {error:#}"),
    }
}

/// Under a name that is not taken.
fn save(printer: &Printer, report: &Report, format: FreezeFormat) -> Result<PathBuf> {
    let (format, ending) = match format {
        FreezeFormat::Json => (Format::Json, "json"),
        FreezeFormat::Text => (Format::Text, "txt"),
    };
    let printer = Printer {
        format,
        text: printer.text,
    };
    let time: String = report
        .time
        .chars()
        .take(19)
        .map(|c| if c == ':' { '-' } else { c })
        .collect();
    let path = PathBuf::from(format!("memwatch-{time}.{ending}"));
    let mut file =
        fs::File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(printer.print(report)?.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Keys, read in a thread of their own: reading the terminal blocks.
fn keys() -> Result<mpsc::UnboundedReceiver<Input>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let read = move || {
        loop {
            let input = match event::poll(Duration::from_millis(250)) {
                Ok(true) => match event::read() {
                    Ok(Event::Key(key)) => Input::Key(key),
                    Ok(Event::Resize(..)) => Input::Resize,
                    Ok(_) => continue,
                    Err(_) => return,
                },
                Ok(false) if sender.is_closed() => return,
                Ok(false) => continue,
                Err(_) => return,
            };
            if sender.send(input).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)
        .context("cannot read keys")?;
    Ok(receiver)
}

pub fn target_name(settings: &Settings) -> String {
    use crate::target::select::Target;
    match &settings.subject {
        Subject::Running(Target::Pids(pids)) => {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            format!("pid {}", pids.join(", "))
        }
        Subject::Running(Target::Comm(glob)) => format!("processes called {glob}"),
        Subject::Running(Target::Cgroup(path)) => format!("cgroup {}", path.display()),
        Subject::Running(Target::Container(id)) => format!("container {id}"),
        Subject::Running(Target::All) => "every process".to_owned(),
        Subject::Command(arguments) => {
            let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        }
    }
}

/// The screen scrolls, so it gets more rows than one page.
fn wide_query(resolved: &Resolved) -> Query {
    const ROWS: usize = 1000;
    Query {
        limit: resolved.query.limit.max(ROWS),
        ..resolved.query.clone()
    }
}
