//! Code objects: what a function is called, where it stands, and its line table.

use std::{collections::HashMap, sync::Arc};

use memwatch_common::{
    PythonLayout,
    python::{self, CodeCopy, CodeKey},
};

use super::copied::Copied;
use super::lines::{self, Format};
use super::memory::{Memory, Unreadable, is_in_use, u32_at, u64_at};
use super::offsets::Offsets;
use super::text::{self, TextError};

/// Line tables of real programs stay far below; what claims to be larger is no line table.
const LONGEST_TABLE: u64 = 16 << 20;

/// Most copies of its code that an object of a free-threaded build can have: threads.
const MOST_COPIES: u64 = 4096;

/// A code object as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeObject {
    pub file: Arc<str>,
    /// Qualified where the version has it (3.11 on).
    pub function: Arc<str>,
    /// Of the `def`; 0 for modules in some versions.
    pub first_line: i32,
    format: Format,
    table: Vec<u8>,
    /// Where the instructions are, and where the copies of them are that threads of a free-threaded build run.
    instructions: Vec<u64>,
    /// Bytes of instructions.
    length: i64,
    /// Bytes of instructions before the one that a frame begins with for Python.
    begins_after: i64,
}

/// Why a code object could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Text(#[from] TextError),
    /// It was freed, and something else lies there.
    #[error("no code object is at {0:#x} any more")]
    NoCode(u64),
    /// It was freed, and another code object lies there.
    #[error("another code object is at {0:#x} now")]
    Reused(u64),
    #[error("this version of CPython keeps its code objects in an unknown way")]
    Unknown,
}

/// Where in a program a Python frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub file: Arc<str>,
    pub function: Arc<str>,
    /// `None`: the instruction stands in no line (it belongs to the interpreter's own preparations).
    pub line: Option<u32>,
    pub first_line: i32,
    /// The frame was being prepared and had not begun: Python itself does not show such frames.
    pub incomplete: bool,
}

impl CodeObject {
    /// Where the frame is whose instruction (as read from the frame by `layout.instruction_kind`) this is.
    pub fn locate(&self, layout: &PythonLayout, instruction: u64) -> Location {
        let offset = self.offset_of(layout, instruction);
        Location {
            file: Arc::clone(&self.file),
            function: Arc::clone(&self.function),
            line: offset.and_then(|offset| lines::line_at(self.format, &self.table, self.first_line, offset)),
            first_line: self.first_line,
            incomplete: offset.is_some_and(|offset| offset < self.begins_after),
        }
    }

    /// Bytes from the first instruction; negative before it.
    fn offset_of(&self, layout: &PythonLayout, instruction: u64) -> Option<i64> {
        let number = i64::from((instruction as u32).cast_signed());
        match layout.instruction_kind {
            python::INSTRUCTION_BYTES => Some(number),
            python::INSTRUCTION_UNITS => Some(number.saturating_mul(2)),
            // Before the first instruction 3.11 and 3.12 point to the one before it.
            _ => self
                .instructions
                .iter()
                .map(|&begin| instruction.wrapping_sub(begin).cast_signed())
                .find(|&offset| (-2..self.length).contains(&offset)),
        }
    }
}

/// What is needed to read code objects of one process.
#[derive(Clone, Copy, Debug)]
pub struct CodeReader<'a> {
    pub offsets: &'a Offsets,
    pub layout: &'a PythonLayout,
    /// The address of `PyCode_Type`.
    pub code_type: u64,
}

impl CodeReader<'_> {
    /// Reads the code object at `address`. With a fingerprint from the time at which its frame was seen it is certain
    /// that it is still the same.
    pub fn read(
        &self,
        address: u64,
        expected: Option<u32>,
        memory: &impl Memory,
    ) -> Result<CodeObject, CodeError> {
        let offsets = self.offsets;
        let head = self.head(address, memory)?;
        let found = self.fingerprint_of(&head).ok_or(CodeError::Unknown)?;
        if expected.is_some_and(|expected| expected != found) {
            return Err(CodeError::Reused(address));
        }
        let at = |offset: Option<u32>| offset.ok_or(CodeError::Unknown);
        let pointer = |offset| Ok::<_, CodeError>(u64_at(&head, at(offset)? as usize).unwrap_or(0));
        let name = pointer(offsets.code_qualified_name.or(offsets.code_name))?;
        let code = CodeObject {
            file: self.text(pointer(offsets.code_file_name)?, memory)?.into(),
            function: self.text(name, memory)?.into(),
            first_line: first_line(&head, at(offsets.code_first_line)?),
            format: Format::of_minor((self.layout.version >> 16) as u8),
            table: self.table(address, pointer(offsets.code_line_table)?, memory)?,
            instructions: self.instructions(address, memory)?,
            length: self.length(address, memory)?,
            begins_after: match offsets.code_first_traceable {
                Some(offset) => i64::from(memory.u32(address.wrapping_add(offset.into()))?) * 2,
                None => 0,
            },
        };
        // If it is still the same now, all of the above was of one object.
        if self.fingerprint(address, memory)? != found {
            return Err(CodeError::Reused(address));
        }
        Ok(code)
    }

    /// What the kernel side computes of a code object.
    pub fn fingerprint(&self, address: u64, memory: &impl Memory) -> Result<u32, CodeError> {
        let head = self.head(address, memory)?;
        self.fingerprint_of(&head).ok_or(CodeError::Unknown)
    }

    /// Whether the object at `address` is a code object, and its first bytes.
    fn head(&self, address: u64, memory: &impl Memory) -> Result<Vec<u8>, CodeError> {
        let layout = self.layout;
        let bytes = usize::from(layout.code_start) + usize::from(layout.code_bytes);
        let head = memory.read(address, bytes)?;
        let in_use = layout.free_threaded == 1 || u64_at(&head, 0).is_some_and(is_in_use);
        if !in_use || u64_at(&head, layout.object_type.into()) != Some(self.code_type) {
            return Err(CodeError::NoCode(address));
        }
        Ok(head)
    }

    fn fingerprint_of(&self, head: &[u8]) -> Option<u32> {
        let layout = self.layout;
        let pointer = |offset: u16| u64_at(head, offset.into());
        let line = u32_at(head, layout.code_first_line.into())?;
        Some(python::fingerprint(
            pointer(layout.code_file_name)?,
            pointer(layout.code_name)?,
            pointer(layout.code_line_table)?,
            line.cast_signed(),
        ))
    }

    fn text(&self, address: u64, memory: &impl Memory) -> Result<String, CodeError> {
        if self.layout.free_threaded == 0 && !is_in_use(memory.u64(address)?) {
            return Err(TextError::NoText(address).into());
        }
        Ok(text::read(self.offsets, address, memory)?)
    }

    fn table(&self, code: u64, address: u64, memory: &impl Memory) -> Result<Vec<u8>, CodeError> {
        let size = memory.pointer(address, self.offsets.sequence_size.ok_or(CodeError::Unknown)?)?;
        let in_use = self.layout.free_threaded == 1 || is_in_use(memory.u64(address)?);
        if !in_use || size > LONGEST_TABLE {
            return Err(CodeError::NoCode(code));
        }
        let data = self.offsets.bytes_data.ok_or(CodeError::Unknown)?;
        Ok(memory.read(address.wrapping_add(data.into()), size as usize)?)
    }

    /// From 3.11 on the object has its instructions inside, and their number of units in its head.
    fn length(&self, address: u64, memory: &impl Memory) -> Result<i64, CodeError> {
        match (self.offsets.code_instructions, self.offsets.sequence_size) {
            (Some(_), Some(offset)) => Ok(memory.pointer(address, offset)?.cast_signed().saturating_mul(2)),
            _ => Ok(0),
        }
    }

    fn instructions(&self, address: u64, memory: &impl Memory) -> Result<Vec<u64>, CodeError> {
        let Some(offset) = self.offsets.code_instructions else {
            return Ok(Vec::new());
        };
        let mut instructions = vec![address.wrapping_add(offset.into())];
        if let Some(copies) = self.offsets.code_copies {
            let array = memory.pointer(address, copies)?;
            let count = if array == 0 {
                0
            } else {
                memory.u64(array)?.min(MOST_COPIES)
            };
            for at in 0..count {
                let copy = memory.u64(array.wrapping_add(8 + at * 8))?;
                if copy != 0 && !instructions.contains(&copy) {
                    instructions.push(copy);
                }
            }
        }
        Ok(instructions)
    }
}

fn first_line(head: &[u8], offset: u32) -> i32 {
    u32_at(head, offset as usize).unwrap_or(0).cast_signed()
}

/// Code objects that were read, for one process. The key is the address and the fingerprint that the kernel side read
/// there, so a later object at the same address has an entry of its own.
#[derive(Debug, Default)]
pub struct CodeCache {
    known: HashMap<(u64, u32), Result<Arc<CodeObject>, CodeError>>,
}

/// Beyond this many the cache begins anew: programs that make code objects without end would fill it.
const MOST_KNOWN: usize = 1 << 17;

impl CodeCache {
    /// Where the frame is that ran the code object at `address`, which had this fingerprint at that time.
    pub fn locate(
        &mut self,
        reader: &CodeReader<'_>,
        frame: CodeFrame,
        memory: &impl Memory,
    ) -> Result<Location, CodeError> {
        let code = self.get(reader, frame.code, frame.fingerprint, memory)?;
        let known = code.offset_of(reader.layout, frame.instruction).is_some();
        if known || reader.layout.free_threaded == 0 {
            return Ok(code.locate(reader.layout, frame.instruction));
        }
        // The thread may have got its copy of the code after the object was read.
        self.known.remove(&(frame.code, frame.fingerprint));
        let again = self
            .get(reader, frame.code, frame.fingerprint, memory)
            .unwrap_or(code);
        Ok(again.locate(reader.layout, frame.instruction))
    }

    /// What could not be read is not tried again: the object is gone.
    pub fn get(
        &mut self,
        reader: &CodeReader<'_>,
        address: u64,
        fingerprint: u32,
        memory: &impl Memory,
    ) -> Result<Arc<CodeObject>, CodeError> {
        if let Some(known) = self.known.get(&(address, fingerprint)) {
            return known.clone();
        }
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        let read = reader.read(address, Some(fingerprint), memory).map(Arc::new);
        self.known.insert((address, fingerprint), read.clone());
        read
    }

    /// Takes in a code object as the kernel side copied it. What is not whole there is left to be read later.
    pub fn learn(&mut self, reader: &CodeReader<'_>, key: &CodeKey, copy: &CodeCopy, memory: &impl Memory) {
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        let copied = Copied::of(key, copy, reader.layout, memory);
        if let Ok(code) = reader.read(key.code, Some(key.fingerprint), &copied) {
            self.known.insert((key.code, key.fingerprint), Ok(Arc::new(code)));
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// A Python frame as the kernel side saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeFrame {
    pub code: u64,
    pub fingerprint: u32,
    /// What the frame has at `layout.frame_instruction`: 8 bytes, or 4 where it is a number.
    pub instruction: u64,
}
