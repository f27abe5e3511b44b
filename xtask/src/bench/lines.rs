//! What a running program prints, line by line, with a limit on how long to wait.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub struct Lines(Receiver<String>);

impl Lines {
    /// A thread reads to the end, so that the program never blocks on us; it ends when the program does.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more: read on all the same.
                sender.send(String::from_utf8_lossy(&line).into_owned()).ok();
            }
        });
        Self(receiver)
    }

    /// The first line that holds `pattern`.
    pub fn wait_for(&self, pattern: &str, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            match self.0.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(pattern) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("did not print '{pattern}' within {} s", patience.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("ended before it printed '{pattern}'"),
            }
        }
    }

    /// The next line, if one comes in time.
    pub fn next(&self, patience: Duration) -> Option<String> {
        self.0.recv_timeout(patience).ok()
    }

    /// All that came since the last look.
    pub fn drain(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }

    /// All that is yet to come, once the program has ended. A child of it may hold the pipe open: then silence ends it.
    pub fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next(Duration::from_secs(2))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn waiting_passes_over_other_lines_and_keeps_the_rest() {
        let lines = Lines::of("starting\nready now\none\ntwo".as_bytes());
        assert_eq!(lines.wait_for("ready", LONG).unwrap(), "ready now");
        assert_eq!(lines.rest(), ["one", "two"]);
    }

    #[test]
    fn an_end_is_told_from_a_long_wait() {
        let gone = Lines::of("starting\n".as_bytes())
            .wait_for("ready", LONG)
            .unwrap_err()
            .to_string();
        assert!(gone.contains("ended before"), "{gone}");
        let (reader, _writer) = std::io::pipe().unwrap();
        let silent = Lines::of(reader)
            .wait_for("ready", Duration::ZERO)
            .unwrap_err()
            .to_string();
        assert!(silent.contains("did not print"), "{silent}");
    }
}
