//! The terminal while the screen is up, and its way back.

use std::io::{self, BufWriter, Stdout, Write};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::Show;
use crossterm::execute;
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use super::state::State;
use super::view;

/// One frame of a large screen, so that it leaves in few writes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Whether the terminal is changed and must be given back. Of the process, as the terminal is, because a
/// panic hook has no other way to know.
static CHANGED: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The alternate screen in raw mode. Dropping it gives the terminal back, as does a panic in any thread,
/// before its message.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    /// Call only when stdout is a terminal.
    pub fn enter() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        CHANGED.store(true, Ordering::SeqCst);
        match Self::set_up() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    fn set_up() -> io::Result<Terminal<CrosstermBackend<BufWriter<Stdout>>>> {
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout());
        let mut terminal = Terminal::new(CrosstermBackend::new(out))?;
        terminal.clear()?;
        Ok(terminal)
    }

    /// Draws what changed. Also takes up a new size of the terminal.
    pub fn draw(&mut self, state: &mut State) -> io::Result<()> {
        if !CHANGED.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "a thread panicked and the terminal was given back",
            ));
        }
        execute!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let drawn = self.terminal.draw(|frame| view::draw(frame, state)).map(|_| ());
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        drawn
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, once. Every step is tried whatever became of the one before; there is nobody left
/// to tell of a failure.
fn restore() {
    if !CHANGED.swap(false, Ordering::SeqCst) {
        return;
    }
    let _ = execute!(io::stdout(), EndSynchronizedUpdate, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
    let _ = io::stdout().flush();
}
