//! The file system's side of recordings.

use std::fs::File;
use std::path::Path;

use super::{Bounds, Recording, StoreError};

pub(super) fn open(path: &Path) -> Result<Recording, StoreError> {
    Recording::read(File::open(path)?, &Bounds::USUAL)
}
