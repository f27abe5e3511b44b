//! What the fuzz targets in `tests/fuzz` call: all that reads bytes which others wrote. Whatever they are, reading ends
//! soon, within bounded memory, and without a panic.

use memwatch_common::Function;

use crate::model::report::Frame;
use crate::model::suppress::Suppressions;
use crate::probe::placer::{self, Code, Emulation};
use crate::probe::symbols::{Machine, ModuleSymbols};
use crate::python::classes;
use crate::python::lines::{Format, line_at, ranges};
use crate::python::mimalloc::{self, made_up};
use crate::python::offsets::{self, Build};
use crate::python::thread_state::{CLibrary, ThreadState, Way};
use crate::python::{CodeReader, Memory, PythonFile, Unreadable, Version, layout};
use crate::symbolize::{elf::Layout, perf_map::PerfMap, symbol_table::SymbolTable};
use crate::target::{cgroup, maps, stat, status};

/// A whole recording.
pub fn recording(bytes: &[u8]) {
    crate::store::fuzz_entry(bytes);
}

/// What is packed in the ticks of a recording, behind checksums and compression that a fuzzer does not get past.
pub fn sections(bytes: &[u8]) {
    crate::store::fuzz_sections(bytes);
}

/// A file with unwind information.
pub fn unwind(bytes: &[u8]) {
    crate::unwind::fuzz_entry(bytes);
}

/// The same file read for its symbols, its layout, and as an interpreter.
pub fn elf(bytes: &[u8]) {
    if let Ok(symbols) = ModuleSymbols::parse(bytes) {
        for function in symbols.functions.iter().take(64) {
            let _ = symbols.code(bytes, function.address);
        }
    }
    if let Some(layout) = Layout::read(bytes) {
        let _ = layout.address_of(0x1000);
    }
    if let Some(table) = SymbolTable::read(bytes) {
        let _ = (table.find(0x1000), table.find(u64::MAX));
    }
    let _ = PythonFile::parse(bytes, "libpython3.12.so.1.0");
}

/// A perf map of a runtime that compiles at run time.
pub fn perf_map(bytes: &[u8]) {
    let map = PerfMap::parse(bytes);
    for address in [0, 0x1000, u64::MAX] {
        let found = map.find(address);
        assert!(found.is_none_or(|(_, start)| start <= address));
    }
}

/// Files of `/proc`.
pub fn proc(bytes: &[u8]) {
    let _ = maps::parse(bytes);
    let _ = stat::parse(bytes);
    let _ = status::parse(bytes);
    let _ = cgroup::parse(bytes);
}

/// A line table of CPython, of any version.
pub fn python_lines(bytes: &[u8]) {
    let Some((first, table)) = bytes.split_first_chunk() else {
        return;
    };
    let first_line = i32::from_le_bytes(*first);
    for format in [Format::Steps, Format::Ranges, Format::Locations] {
        let mut until = 0;
        for range in ranges(format, table, first_line) {
            assert!(range.start >= until && range.end > range.start);
            until = range.end;
        }
        let _ = line_at(format, table, first_line, 100);
    }
}

/// Memory of a CPython, of any version: its `_Py_DebugOffsets`, then a code object and what that points to.
pub fn python_objects(bytes: &[u8]) {
    let Some(([choice, way], memory)) = bytes.split_first_chunk() else {
        return;
    };
    let build = Build {
        version: Version::new(8 + choice % 8, 3),
        debug: choice & 0x40 != 0,
        free_threaded: choice & 0x80 != 0,
    };
    let library = if way & 1 == 0 {
        CLibrary::Glibc
    } else {
        CLibrary::Musl
    };
    let memory = Piece(memory);
    let Ok(Some(offsets)) = offsets::of_process(build, PIECE, &memory) else {
        return;
    };
    let Some(layout) = layout::fill(build, &offsets, Way::by_key(library, PIECE)) else {
        return;
    };
    let reader = CodeReader {
        offsets: &offsets,
        layout: &layout,
        code_type: memory.u64(PIECE).unwrap_or(0),
    };
    let _ = layout::walk(&layout, PIECE, 100, &memory);
    for at in [0, 8, 512, 1024] {
        let _ = reader.fingerprint(PIECE + at, &memory);
        if let Ok(object) = reader.read(PIECE + at, None, &memory) {
            let _ = object.locate(&layout, PIECE + 2);
        }
    }
}

/// The head of a segment of mimalloc, and what comes after it, in a free-threaded CPython.
pub fn python_pages(bytes: &[u8]) {
    const STATE: u64 = 0x10_0000;
    const THREAD: u64 = 0x7f00_0000_1000;
    const SEGMENT: u64 = 1 << 30;
    let build = Build {
        version: Version::new(13, 5),
        debug: false,
        free_threaded: true,
    };
    let Some(layout) = mimalloc::Layout::of(build) else {
        return;
    };
    // Both the heaps and the list of what ended threads left lead there.
    let first = made_up::page_head(&layout, SEGMENT, 1);
    let state = made_up::thread_state(&layout, STATE, THREAD, SEGMENT, first);
    let memory = Segments {
        state: (STATE, &state),
        segments: (SEGMENT, bytes),
    };
    let states = [ThreadState {
        address: STATE,
        thread: THREAD,
    }];
    if let Ok(found) = mimalloc::read(layout, &states, &[first, 0, u64::MAX], &memory) {
        for pool in &found.pools {
            assert!(pool.in_use <= u16::MAX.into() && pool.block_bytes > 0);
            assert!(pool.size_class < classes::CLASSES);
        }
        assert!(found.pools.is_sorted_by(|one, other| one.address < other.address));
    }
}

/// Two segments that begin with the same bytes and have nothing behind them.
struct Segments<'a> {
    state: (u64, &'a [u8]),
    segments: (u64, &'a [u8]),
}

impl Memory for Segments<'_> {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        const SEGMENT: u64 = 32 << 20;
        let bytes = out.len();
        let none = Unreadable { address, bytes };
        let ((state, state_bytes), (first, segment)) = (self.state, self.segments);
        if (first..first + 2 * SEGMENT).contains(&address) {
            let inside = ((address - first) % SEGMENT) as usize;
            let rest = segment.get(inside..).unwrap_or_default();
            for (at, byte) in out.iter_mut().enumerate() {
                *byte = rest.get(at).copied().unwrap_or(0);
            }
            return Ok(());
        }
        let inside = address
            .checked_sub(state)
            .and_then(|inside| usize::try_from(inside).ok());
        let found = inside.and_then(|inside| state_bytes.get(inside..)?.get(..bytes));
        out.copy_from_slice(found.ok_or(none)?);
        Ok(())
    }
}

/// The address at which a made-up process has all the memory that it has.
const PIECE: u64 = 0x1_0000;

struct Piece<'a>(&'a [u8]);

impl Memory for Piece<'_> {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = out.len();
        let from = address
            .checked_sub(PIECE)
            .and_then(|from| usize::try_from(from).ok());
        let found = from.and_then(|from| self.0.get(from..)?.get(..bytes));
        out.copy_from_slice(found.ok_or(Unreadable { address, bytes })?);
        Ok(())
    }
}

/// The machine code of a function that is to get a probe.
pub fn placer(bytes: &[u8]) {
    let Some(([choice, limit], code)) = bytes.split_first_chunk() else {
        return;
    };
    let limit = (*limit > 0).then_some(u64::from(*limit));
    let code = Code {
        bytes: code,
        entry: 0x1000,
        size: (choice & 1 != 0).then_some(code.len() as u64),
        limit,
    };
    for function in [Function::Malloc, Function::Reallocarray, Function::Free] {
        let emulation = Emulation {
            long_nops: choice & 2 != 0,
        };
        if let Ok(place) = placer::place(Machine::X86_64, &code, function, emulation) {
            let offset = u64::from(place.offset_from_entry);
            assert!(offset < code.bytes.len() as u64 && limit.is_none_or(|limit| offset < limit));
        }
    }
}

/// A file of suppressions, asked for a name that is in it.
pub fn suppressions(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(suppressions) = Suppressions::parse(&text) else {
        return;
    };
    let frame = Frame {
        function: Some(text.chars().rev().take(200).collect()),
        ..Frame::default()
    };
    let _ = suppressions.find(&Frame::shared([frame]));
}

pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 11] = [
    ("recording", recording),
    ("sections", sections),
    ("unwind", unwind),
    ("elf", elf),
    ("perf_map", perf_map),
    ("proc", proc),
    ("python_lines", python_lines),
    ("python_objects", python_objects),
    ("python_pages", python_pages),
    ("placer", placer),
    ("suppressions", suppressions),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The seeds, and what the fuzzers found.
    #[test]
    fn the_corpus_is_survived() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs = fs::read_dir(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut count = 0;
            for input in inputs {
                target(&fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no inputs");
        }
    }
}
