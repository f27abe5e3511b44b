//! Lines of another process, read in a thread so that a test can stop waiting.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

pub struct Lines {
    receiver: Receiver<String>,
}

/// Why there is no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLine {
    Ended,
    TimedOut,
}

impl Lines {
    pub fn of(source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::with_capacity(1 << 20, source).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return; // the test wants no more: the other side meets a closed pipe
                }
            }
        });
        Self { receiver }
    }

    pub fn next(&self, wait: Duration) -> Result<String, NoLine> {
        self.receiver.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Disconnected => NoLine::Ended,
            RecvTimeoutError::Timeout => NoLine::TimedOut,
        })
    }

    /// All that is still to come.
    pub fn rest(&self, wait: Duration) -> Result<Vec<String>, NoLine> {
        let until = Instant::now() + wait;
        let mut lines = Vec::new();
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(NoLine::Ended) => return Ok(lines),
                Err(NoLine::TimedOut) => return Err(NoLine::TimedOut),
            }
        }
    }
}
