//! Why a file cannot be read or written.

use std::io;

use super::VERSION;
use crate::numbers::Bad;

/// The path is not in here: whoever opened it says it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("it is not a memwatch recording")]
    NotARecording,
    #[error(
        "it is of format version {found}, and this memwatch reads versions up to {VERSION}: use a newer memwatch"
    )]
    Newer { found: u32 },
    #[error("it was cut off before its first whole tick: nothing can be read from it")]
    NoTick,
    #[error("it is damaged at tick {tick}: {what}")]
    Damaged { tick: u64, what: &'static str },
    #[error("there is no tick {index} in it: it has {count}")]
    NoSuchTick { index: usize, count: usize },
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Adds where it was.
    pub(super) const fn bad(tick: u64, bad: Bad) -> Self {
        Self::Damaged { tick, what: bad.0 }
    }
}
