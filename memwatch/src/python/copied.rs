//! Memory as it was: what the kernel side copied of a code object when it was first seen.

use memwatch_common::{
    PythonLayout,
    python::{CodeCopy, CodeKey},
};

use super::memory::{Memory, Unreadable, u64_at};

/// The copies, and the process as it is now for all else.
pub(super) struct Copied<'a, M> {
    pieces: [(u64, &'a [u8]); 4],
    now: &'a M,
}

impl<'a, M: Memory> Copied<'a, M> {
    pub fn of(key: &CodeKey, copy: &'a CodeCopy, layout: &PythonLayout, now: &'a M) -> Self {
        let object = beginning(&copy.object, copy.object_bytes);
        let pointer = |offset: u16| u64_at(object, offset.into()).unwrap_or(0);
        Self {
            pieces: [
                (key.code, object),
                (
                    pointer(layout.code_file_name),
                    beginning(&copy.file, copy.file_bytes),
                ),
                (pointer(layout.code_name), beginning(&copy.name, copy.name_bytes)),
                (
                    pointer(layout.code_line_table),
                    beginning(&copy.table, copy.table_bytes),
                ),
            ],
            now,
        }
    }
}

fn beginning(bytes: &[u8], many: u32) -> &[u8] {
    bytes.get(..many as usize).unwrap_or(bytes)
}

impl<M: Memory> Memory for Copied<'_, M> {
    /// What begins in a copy and ends after it is not completed from the process: something else may lie there now. Of
    /// several copies that hold it the one that begins last is meant: those of objects before it run on into it.
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        let piece = self
            .pieces
            .iter()
            .filter(|(start, bytes)| {
                address
                    .checked_sub(*start)
                    .is_some_and(|inside| inside < bytes.len() as u64)
            })
            .max_by_key(|(start, _)| *start);
        let Some((start, bytes)) = piece else {
            return self.now.read_into(address, out);
        };
        let from = (address - start) as usize;
        let unreadable = Unreadable {
            address,
            bytes: out.len(),
        };
        let end = from.checked_add(out.len()).ok_or(unreadable)?;
        out.copy_from_slice(bytes.get(from..end).ok_or(unreadable)?);
        Ok(())
    }
}
