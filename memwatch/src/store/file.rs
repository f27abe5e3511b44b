//! The file system's side of recordings: opening one, and one that grows.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use super::header::Header;
use super::thin::{STEP_BYTES, Thinning};
use super::writer::Writer;
use super::{Bounds, Recording, StoreError};
use crate::cli::output::{Destination, Flow, Output, OutputError};
use crate::model::assemble::Meta;
use crate::model::state::Model;
use crate::symbolize::names::StackNames;

pub(super) fn open(path: &Path) -> Result<Recording, StoreError> {
    Recording::read(File::open(path)?, &Bounds::USUAL)
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot make a tick of the recording")]
    Make(#[from] io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// A recording that is being written. The file gets its name with the first tick, and grows from then on; whatever
/// happens, what is in it is good up to the last whole tick.
pub struct Recorder {
    writer: Writer<Vec<u8>>,
    output: Output,
    header: Header,
    is_shown: bool,
    /// The file is not to become larger than this, by and large.
    most_bytes: u64,
    /// When it is thinned next.
    thin_at_bytes: u64,
    thinning: Option<(Thinning, Output)>,
    why_not_thinned: Option<String>,
}

impl Recorder {
    pub fn new(output: Output, header: Header, most_bytes: u64) -> Result<Self, RecordError> {
        Ok(Self {
            writer: Writer::new(Vec::new(), header.clone())?,
            output,
            header,
            is_shown: false,
            most_bytes,
            thin_at_bytes: most_bytes,
            thinning: None,
            why_not_thinned: None,
        })
    }

    pub fn tick(
        &mut self,
        model: &Model,
        names: &mut dyn StackNames,
        meta: &Meta,
    ) -> Result<Flow, RecordError> {
        self.writer.tick(model, names, meta)?;
        let flow = self.append()?;
        if !self.is_shown {
            self.output.show()?;
            self.is_shown = true;
        }
        if let Err(error) = self.thin() {
            // The file stays as it was and grows on; it is tried again when it is twice as large.
            self.thinning = None;
            self.thin_at_bytes = self.writer.bytes().saturating_mul(2);
            self.why_not_thinned = Some(error.to_string());
        }
        Ok(flow)
    }

    /// As [`Writer::last_tick_follows`].
    pub fn last_tick_follows(&mut self) {
        self.writer.last_tick_follows();
    }

    fn append(&mut self) -> Result<Flow, OutputError> {
        let bytes = std::mem::take(self.writer.get_mut());
        self.output.write_bytes(&bytes)
    }

    /// One step of writing the file anew, when it is too large.
    fn thin(&mut self) -> Result<(), RecordError> {
        if self.thinning.is_none() {
            let Some(path) = self.output.path() else {
                return Ok(());
            };
            if self.writer.bytes() < self.thin_at_bytes {
                return Ok(());
            }
            let source = BufReader::new(File::open(path)?);
            let output = Output::open(&Destination::File(path.to_owned()))?;
            let thinning = Thinning::new(Box::new(source), self.writer.written(), self.header.clone())
                .map_err(io::Error::from)?;
            self.thinning = Some((thinning, output));
        }
        let Some((thinning, output)) = &mut self.thinning else {
            return Ok(());
        };
        let caught_up = thinning.step(STEP_BYTES).map_err(io::Error::from)?;
        // It is no pipe that could be closed.
        let _ = output.write_bytes(&thinning.take_bytes())?;
        if caught_up {
            output.show()?;
            if let Some((thinning, output)) = self.thinning.take() {
                self.writer = thinning.into_writer(&self.writer);
                self.output = output;
                // What is all names becomes hardly smaller; it must not be written anew with each tick.
                self.thin_at_bytes = self
                    .most_bytes
                    .max(self.writer.bytes().saturating_add(self.most_bytes / 4));
            }
        }
        Ok(())
    }

    /// Ticks in the file.
    pub fn ticks(&self) -> usize {
        self.writer.written().len()
    }

    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }

    /// In use at the last tick.
    pub fn inuse_bytes(&self) -> u64 {
        self.writer
            .written()
            .last()
            .map_or(0, |written| written.inuse_bytes)
    }

    pub fn why_not_thinned(&self) -> Option<&str> {
        self.why_not_thinned.as_deref()
    }

    /// Marks the recording as one that ended as it should.
    pub fn finish(mut self) -> Result<(), RecordError> {
        self.writer.finish()?;
        // A reader that is gone does not miss the end.
        let _ = self.append()?;
        Ok(self.output.finish()?)
    }
}

#[cfg(test)]
#[path = "tests/file.rs"]
mod tests;
