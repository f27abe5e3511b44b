//! Where CPython's structures have the fields that are read: by minor version and kind of build from a table made
//! of the headers, from 3.13 on corrected by what the process itself tells (`_Py_DebugOffsets`).

mod table;

use super::memory::{Memory, Unreadable};
use super::version::Version;

/// Minor version, built for debugging, free-threaded, offsets.
type Row = (u8, bool, bool, [i32; table::FIELDS.len()]);

const fn row(minor: u8, debug: bool, free_threaded: bool, offsets: [i32; table::FIELDS.len()]) -> Row {
    (minor, debug, free_threaded, offsets)
}

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident,)+; $($told:ident => $corrects:ident,)+) => {
        /// In bytes from the beginning of the structure that the name's first part says; `None`: no such field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets { $($(#[$doc])* pub $field: Option<u32>,)+ }

        /// Where `_Py_DebugOffsets` has them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        struct Told { $($told: Option<u32>,)+ }

        impl Offsets {
            #[cfg(test)]
            const NAMES: &[&str] = &[$(stringify!($field),)+ $(stringify!($told),)+];

            fn from_row(row: &[i32; table::FIELDS.len()]) -> (Self, Told) {
                let [$($field,)+ $($told,)+] = row.map(|offset| u32::try_from(offset).ok());
                (Self { $($field,)+ }, Told { $($told,)+ })
            }

            /// Takes over what the process tells of itself.
            fn correct(&mut self, told: &Told, runtime: u64, memory: &impl Memory) -> Result<(), Unreadable> {
                $(
                    if let Some(at) = told.$told {
                        self.$corrects = u32::try_from(memory.pointer(runtime, at)?).ok();
                    }
                )+
                Ok(())
            }
        }
    };
}

offsets! {
    /// `autoTSSkey._key`; none where a thread-local variable took its place.
    runtime_key,
    runtime_interpreters,
    /// The allocators of the raw, mem and object domain, five pointers each.
    runtime_allocators,
    interpreter_next,
    interpreter_threads,
    interpreter_pools,
    /// 1: a pointer is there, 0: the structure itself.
    pools_indirect,
    pools_arenas,
    pools_arenas_most,
    thread_next,
    thread_interpreter,
    /// `pthread_self()`
    thread_id,
    thread_native_id,
    thread_frame,
    cframe_frame,
    frame_previous,
    frame_code,
    frame_instruction,
    frame_mark,
    frame_copy,
    code_copies,
    code_file_name,
    code_name,
    code_first_line,
    code_qualified_name,
    code_instructions,
    code_first_traceable,
    code_line_table,
    object_type,
    sequence_size,
    bytes_data,
    text_length,
    text_state,
    /// Which bit of the state is the lowest one of `kind`; `compact` and `ascii` follow.
    text_kind_bit,
    text_ascii_data,
    text_other_data,
    ;
    told_runtime_interpreters => runtime_interpreters,
    told_interpreter_next => interpreter_next,
    told_interpreter_threads => interpreter_threads,
    told_thread_next => thread_next,
    told_thread_interpreter => thread_interpreter,
    told_thread_id => thread_id,
    told_thread_native_id => thread_native_id,
    told_thread_frame => thread_frame,
    told_frame_previous => frame_previous,
    told_frame_code => frame_code,
    told_frame_instruction => frame_instruction,
    told_frame_mark => frame_mark,
    told_code_file_name => code_file_name,
    told_code_name => code_name,
    told_code_first_line => code_first_line,
    told_code_qualified_name => code_qualified_name,
    told_code_instructions => code_instructions,
    told_code_line_table => code_line_table,
    told_object_type => object_type,
    told_sequence_size => sequence_size,
    told_bytes_data => bytes_data,
    told_text_length => text_length,
    told_text_state => text_state,
    told_text_ascii_data => text_ascii_data,
}

/// A kind of build, as far as it decides where fields are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    pub version: Version,
    pub debug: bool,
    pub free_threaded: bool,
}

/// The versions that the table has.
pub fn known_versions() -> (u8, u8) {
    let minors = || table::ROWS.iter().map(|row| row.0);
    (minors().min().unwrap_or(0), minors().max().unwrap_or(0))
}

/// The table's row for a build; `None`: its version is not known.
pub fn of(build: Build) -> Option<Offsets> {
    find(build).map(|(offsets, _)| offsets)
}

/// The same, corrected by what the process tells (3.13 on). `runtime` is the address of `_PyRuntime`.
pub fn of_process(build: Build, runtime: u64, memory: &impl Memory) -> Result<Option<Offsets>, Unreadable> {
    let Some((mut offsets, told)) = find(build) else {
        return Ok(None);
    };
    if build.version.minor() >= 13 {
        let before = offsets;
        offsets.correct(&told, runtime, memory)?;
        // The table tells the distance; the process tells only the first.
        offsets.text_other_data = before
            .text_other_data
            .zip(before.text_ascii_data)
            .and_then(|(other, ascii)| offsets.text_ascii_data?.checked_add(other.checked_sub(ascii)?));
    }
    Ok(Some(offsets))
}

fn find(build: Build) -> Option<(Offsets, Told)> {
    let wanted = (build.version.minor(), build.debug, build.free_threaded);
    if build.version.major() != 3 {
        return None;
    }
    let row = table::ROWS.iter().find(|row| (row.0, row.1, row.2) == wanted)?;
    Some(Offsets::from_row(&row.3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(minor: u8, debug: bool, free_threaded: bool) -> Build {
        Build {
            version: Version::new(minor, 0),
            debug,
            free_threaded,
        }
    }

    #[test]
    fn the_fields_stand_in_the_order_of_the_table() {
        assert_eq!(Offsets::NAMES, table::FIELDS);
    }

    #[test]
    fn every_version_from_3_8_to_3_15_is_there_and_no_other() {
        for minor in 8..=15 {
            assert!(of(build(minor, false, false)).is_some(), "3.{minor}");
            assert!(of(build(minor, true, false)).is_some(), "3.{minor} debug");
            assert_eq!(of(build(minor, false, true)).is_some(), minor >= 13, "3.{minor}t");
        }
        assert_eq!(known_versions(), (8, 15));
        assert_eq!(of(build(7, false, false)), None);
        assert_eq!(of(build(16, false, false)), None);
    }

    #[test]
    fn the_numbers_are_those_that_were_read_from_debug_information() {
        let of = |minor| of(build(minor, false, false)).unwrap();
        assert_eq!(of(8).runtime_key, Some(1396));
        assert_eq!((of(11).thread_frame, of(11).cframe_frame), (Some(56), Some(8)));
        assert_eq!(
            (of(14).frame_mark, of(14).code_instructions),
            (Some(74), Some(208))
        );
        assert_eq!(of(15).runtime_key, None);
    }

    #[test]
    fn what_the_process_tells_wins() {
        let mut memory = super::super::memory::Recorded::default();
        let mut told = vec![0_u8; 1024];
        for (at, value) in (0_u64..).zip(told.chunks_mut(8)) {
            value.copy_from_slice(&(at * 8).to_le_bytes());
        }
        memory.put(0x1000, &told);
        let offsets = of_process(build(13, false, false), 0x1000, &memory)
            .unwrap()
            .unwrap();
        assert_eq!(offsets.thread_frame, Some(184));
        assert_eq!(offsets.runtime_key, Some(2164));
        assert_eq!(
            (offsets.text_ascii_data, offsets.text_other_data),
            (Some(560), Some(576))
        );
        // Older versions tell nothing: nothing is read.
        assert!(of_process(build(12, false, false), 0, &memory).unwrap().is_some());
        assert!(of_process(build(13, false, false), 0, &memory).is_err());
    }
}
