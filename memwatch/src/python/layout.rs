//! The layout that the kernel side follows, made of offsets, and checked against the frames that are there.

use memwatch_common::PythonLayout;
use memwatch_common::python::{
    ENTRY_EVERY, ENTRY_FLAG, ENTRY_SHIM, FRAME_SHIM, INSTRUCTION_BYTES, INSTRUCTION_POINTER,
    INSTRUCTION_UNITS, MAX_CODE_BYTES, MAX_FRAME_BYTES, NO_FIELD,
};

use super::memory::{Memory, Unreadable};
use super::offsets::{Build, Offsets};
use super::thread_state::{ThreadState, Way};

/// Frames of a thread that are looked at for a check.
const CHECKED_FRAMES: usize = 64;

/// Newer versions keep marks in the lowest two bits of a frame's reference to its code.
const TAGS: u64 = 3;

/// `None` if a field is missing that every version has.
pub fn fill(build: Build, offsets: &Offsets, way: Way) -> Option<PythonLayout> {
    let minor = build.version.minor();
    let must = |offset: Option<u32>| u16::try_from(offset?).ok();
    let may = |offset: Option<u32>| offset.map_or(Some(NO_FIELD), |offset| u16::try_from(offset).ok());
    let (entry_rule, shim_mark) = match minor {
        ..=10 => (ENTRY_EVERY, 0),
        11 => (ENTRY_FLAG, 0),
        // FRAME_OWNED_BY_CSTACK, from 3.14 on FRAME_OWNED_BY_INTERPRETER and above.
        _ => (ENTRY_SHIM, 3),
    };
    let instruction_kind = match minor {
        ..=9 => INSTRUCTION_BYTES,
        10 => INSTRUCTION_UNITS,
        _ => INSTRUCTION_POINTER,
    };
    let code_name = offsets.code_qualified_name.or(offsets.code_name);
    let read = [
        offsets.code_file_name?,
        code_name?,
        offsets.code_line_table?,
        offsets.code_first_line?,
    ];
    let (code_start, code_end) = (*read.iter().min()? / 8 * 8, read.iter().max()?.checked_add(8)?);
    let frame = [
        offsets.frame_code?.checked_add(8)?,
        offsets.frame_previous?.checked_add(8)?,
        offsets.frame_instruction?.checked_add(8)?,
        offsets.frame_mark.unwrap_or(0).checked_add(1)?,
        offsets.frame_copy.unwrap_or(0).checked_add(4)?,
    ];
    let frame_bytes = frame.iter().max()?.checked_next_multiple_of(8)?;
    let code_bytes = code_end.checked_sub(code_start)?;
    if frame_bytes as usize > MAX_FRAME_BYTES || code_bytes as usize > MAX_CODE_BYTES {
        return None;
    }
    Some(PythonLayout {
        key_address: way.key_address,
        tls_offset: way.offset,
        code_mask: if minor >= 14 { !TAGS } else { u64::MAX },
        tls_kind: way.kind,
        tls_first: way.first,
        tls_table: way.table,
        version: build.version.0,
        tstate_frame: must(offsets.thread_frame)?,
        cframe_frame: may(offsets.cframe_frame)?,
        frame_bytes: frame_bytes as u16,
        frame_code: must(offsets.frame_code)?,
        frame_previous: must(offsets.frame_previous)?,
        frame_instruction: must(offsets.frame_instruction)?,
        frame_mark: may(offsets.frame_mark)?,
        frame_copy: may(offsets.frame_copy)?,
        code_start: code_start as u16,
        code_bytes: code_bytes as u16,
        code_file_name: must(offsets.code_file_name)?,
        code_name: must(code_name)?,
        code_line_table: must(offsets.code_line_table)?,
        code_first_line: must(offsets.code_first_line)?,
        code_instructions: may(offsets.code_instructions)?,
        object_type: must(offsets.object_type)?,
        instruction_kind,
        entry_rule,
        shim_mark,
        free_threaded: build.free_threaded.into(),
        reserved: 0,
    })
}

/// A Python frame, as the kernel side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub code: u64,
    pub instruction: u64,
    /// `FRAME_*`
    pub kind: u8,
}

/// Walks the frames of a thread from outside, innermost first, as the kernel side does from inside. The thread runs
/// on: what is read may not belong together.
pub fn walk(
    layout: &PythonLayout,
    thread_state: u64,
    most: usize,
    memory: &impl Memory,
) -> Result<Vec<RawFrame>, Unreadable> {
    let at = |base: u64, offset: u16| memory.u64(base.wrapping_add(offset.into()));
    let mut frame = at(thread_state, layout.tstate_frame)?;
    if layout.cframe_frame != NO_FIELD && frame != 0 {
        frame = at(frame, layout.cframe_frame)?;
    }
    let mut frames = Vec::new();
    while frame != 0 && frames.len() < most {
        let mark = if layout.frame_mark == NO_FIELD {
            0
        } else {
            let mut mark = [0];
            memory.read_into(frame.wrapping_add(layout.frame_mark.into()), &mut mark)?;
            mark[0]
        };
        frames.push(RawFrame {
            code: at(frame, layout.frame_code)? & layout.code_mask,
            instruction: at(frame, layout.frame_instruction)?,
            kind: layout.frame_kind(mark),
        });
        frame = at(frame, layout.frame_previous)?;
    }
    Ok(frames)
}

/// How many frames of all threads refer to a code object, and how many to something else.
pub fn check(
    layout: &PythonLayout,
    states: &[ThreadState],
    code_type: u64,
    memory: &impl Memory,
) -> (usize, usize) {
    let (mut right, mut wrong) = (0, 0);
    for state in states {
        // Threads that end meanwhile say nothing.
        let Ok(frames) = walk(layout, state.address, CHECKED_FRAMES, memory) else {
            continue;
        };
        for frame in frames.iter().filter(|frame| frame.kind != FRAME_SHIM) {
            let type_at = frame.code.wrapping_add(layout.object_type.into());
            // 3.12 gives its shims a code object too, so those of it that are no shims must have one.
            if memory.u64(type_at) == Ok(code_type) {
                right += 1;
            } else {
                wrong += 1;
            }
        }
    }
    (right, wrong)
}
