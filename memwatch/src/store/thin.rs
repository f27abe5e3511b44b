//! Keeps a recording below a bound: older ticks become fewer.
//!
//! Whenever the file passes the bound, it is written anew beside itself. The newest quarter of its ticks stays as it
//! is. Of each two neighbours among the others, the one with more memory in use stays, so peaks do. After some
//! rounds the spacing grows evenly into the past: the last minutes second by second, yesterday by the hour. Totals
//! lose nothing, since each tick holds what was allocated and freed since the watch began.
//!
//! The rewriting goes on in small steps between the ticks, which are written to the old file meanwhile. Once it has
//! caught up, the new file takes the old one's place.

use std::io::{self, Read};

use super::error::StoreError;
use super::frame::read_start;
use super::header::Header;
use super::reader::{Bounds, Replay};
use super::writer::{Writer, Written};

/// Bytes of the old file that one step reads: some tens of milliseconds of work.
pub const STEP_BYTES: u64 = 256 << 10;

/// Which of the ticks stay.
pub fn kept(ticks: &[Written]) -> Vec<bool> {
    let whole_from = ticks.len() - ticks.len() / 4;
    let mut kept = vec![true; ticks.len()];
    // The first tick is what everything is compared with.
    for pair in (1..whole_from).step_by(2) {
        let next = pair + 1;
        if next < whole_from {
            let more = ticks[next].inuse_bytes > ticks[pair].inuse_bytes;
            kept[if more { pair } else { next }] = false;
        }
    }
    kept
}

/// A file being written anew.
pub struct Thinning {
    source: Box<dyn Read + Send>,
    replay: Replay,
    buffer: Vec<u8>,
    kept: Vec<bool>,
    read: usize,
    writer: Writer<Vec<u8>>,
}

impl Thinning {
    /// `source` is at the beginning of the file that has these ticks, and grows with it.
    pub fn new(
        mut source: Box<dyn Read + Send>,
        ticks: &[Written],
        header: Header,
    ) -> Result<Self, StoreError> {
        read_start(&mut source)?;
        Ok(Self {
            source,
            replay: Replay::new()?,
            buffer: Vec::new(),
            kept: kept(ticks),
            read: 0,
            writer: Writer::new(Vec::new(), header)?,
        })
    }

    /// Goes on for about this many bytes of the old file. What is to be written to the new one is in the writer.
    /// True when it holds everything that the old one does.
    pub fn step(&mut self, bytes: u64) -> Result<bool, StoreError> {
        let mut left = bytes;
        while left > 0 {
            if !self
                .replay
                .step(&mut self.source, &mut self.buffer, &Bounds::USUAL)?
            {
                return Ok(true);
            }
            left = left.saturating_sub(self.buffer.len() as u64);
            if self.kept.get(self.read).copied().unwrap_or(true) {
                let replay = &mut self.replay;
                replay.settle();
                self.writer.tick(&replay.model, &mut replay.names, &replay.meta)?;
            }
            self.read += 1;
        }
        Ok(false)
    }

    /// What has been made for the new file since the last call.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }

    /// To go on with, when it has caught up with `old`.
    pub fn into_writer(mut self, old: &Writer<Vec<u8>>) -> Writer<Vec<u8>> {
        self.writer.go_on_for(old);
        self.writer
    }
}

/// A reader that got an error is not to be used again, so the cause is all that is of interest.
impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io(error) => error,
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(inuse: &[u64]) -> Vec<Written> {
        let tick = |inuse: &u64| Written {
            inuse_bytes: *inuse,
            ..Written::default()
        };
        inuse.iter().map(tick).collect()
    }

    #[test]
    fn the_first_the_newest_and_the_peaks_stay() {
        let kept = kept(&ticks(&[0, 1, 2, 9, 3, 4, 5, 5, 1, 1, 1, 1]));
        let stay: Vec<usize> = (0..kept.len()).filter(|index| kept[*index]).collect();
        // Pairs are (1, 2), (3, 4), (5, 6) and (7, 8); from 9 on all stay.
        assert_eq!(stay, [0, 2, 3, 6, 7, 9, 10, 11]);
    }

    #[test]
    fn few_ticks_stay_all() {
        assert_eq!(kept(&[]), Vec::<bool>::new());
        assert_eq!(kept(&ticks(&[1])), [true]);
        assert_eq!(kept(&ticks(&[1, 2])), [true, true]);
    }
}
