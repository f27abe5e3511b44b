//! Memory written down by hand: every version and kind of build, and memory that makes no sense.

use memwatch_common::python::{FRAME_ENTRY, FRAME_INNER, FRAME_SHIM, MAX_CODE_BYTES, MAX_FRAME_BYTES};
use proptest::prelude::*;

use crate::python::layout::{self, RawFrame};
use crate::python::memory::Recorded;
use crate::python::offsets::{self, Build, Offsets};
use crate::python::pymalloc::{self, ArenaList, Geometry, PoolsError};
use crate::python::text::{self, TextError};
use crate::python::thread_state::{self, CLibrary, ThreadState, Way};
use crate::python::{CodeCache, CodeError, CodeFrame, CodeReader, Version};

const CODE_TYPE: u64 = 0x5000_0000;
const CODE: u64 = 0x1_0000;
const OTHER: u64 = 0x2_0000;
const THREAD: u64 = 0x9_0000;

fn builds() -> impl Iterator<Item = Build> {
    (8..=15).flat_map(|minor| {
        [(false, false), (true, false), (false, true), (true, true)]
            .into_iter()
            .filter(move |(_, free_threaded)| minor >= 13 || !free_threaded)
            .map(move |(debug, free_threaded)| Build {
                version: Version::new(minor, 3),
                debug,
                free_threaded,
            })
    })
}

fn put_u64(memory: &mut Recorded, base: u64, offset: Option<u32>, value: u64) {
    memory.put(base + u64::from(offset.unwrap()), &value.to_le_bytes());
}

/// A `str` of ASCII.
fn put_text(memory: &mut Recorded, offsets: &Offsets, at: u64, text: &str) {
    memory.put(at, &[0; 96]);
    memory.put(at, &1_u64.to_le_bytes());
    put_u64(memory, at, offsets.text_length, text.len() as u64);
    let state = 0b11_001_u32 << offsets.text_kind_bit.unwrap();
    memory.put(at + u64::from(offsets.text_state.unwrap()), &state.to_le_bytes());
    memory.put(at + u64::from(offsets.text_ascii_data.unwrap()), text.as_bytes());
    memory.put(
        at + u64::from(offsets.text_ascii_data.unwrap()) + text.len() as u64,
        &[0; 96],
    );
}

/// A code object with one line for all of its instructions.
fn put_code(memory: &mut Recorded, offsets: &Offsets, at: u64, name: &str, line: i32) {
    let (file_at, name_at, table_at) = (at + 0x1000, at + 0x2000, at + 0x3000);
    memory.put(at, &[0; 512]);
    memory.put(at, &1_u64.to_le_bytes());
    put_u64(memory, at, offsets.object_type, CODE_TYPE);
    put_u64(memory, at, offsets.sequence_size, 50);
    put_u64(memory, at, offsets.code_file_name, file_at);
    put_u64(
        memory,
        at,
        offsets.code_qualified_name.or(offsets.code_name),
        name_at,
    );
    put_u64(memory, at, offsets.code_line_table, table_at);
    memory.put(
        at + u64::from(offsets.code_first_line.unwrap()),
        &line.to_le_bytes(),
    );
    put_text(memory, offsets, file_at, "app.py");
    put_text(memory, offsets, name_at, name);
    memory.put(table_at, &[0; 96]);
    memory.put(table_at, &1_u64.to_le_bytes());
    // Valid in 3.11 on: one unit on the next line.
    put_u64(memory, table_at, offsets.sequence_size, 3);
    memory.put(
        table_at + u64::from(offsets.bytes_data.unwrap()),
        &[0x80 | 11 << 3, 0, 0],
    );
}

fn layout_of(build: Build) -> (Offsets, memwatch_common::PythonLayout) {
    let offsets = offsets::of(build).unwrap();
    let layout = layout::fill(build, &offsets, Way::by_key(CLibrary::Glibc, 0x100)).unwrap();
    (offsets, layout)
}

#[test]
fn every_build_has_a_layout_that_two_small_reads_can_follow() {
    for build in builds() {
        let (_, layout) = layout_of(build);
        assert!(usize::from(layout.frame_bytes) <= MAX_FRAME_BYTES, "{build:?}");
        assert!(usize::from(layout.code_bytes) <= MAX_CODE_BYTES, "{build:?}");
        for field in [layout.code_file_name, layout.code_name, layout.code_line_table] {
            assert!(field >= layout.code_start && field + 8 <= layout.code_start + layout.code_bytes);
        }
        for field in [layout.frame_code, layout.frame_previous, layout.frame_instruction] {
            assert!(field + 8 <= layout.frame_bytes, "{build:?}");
        }
    }
}

#[test]
fn frames_are_walked_in_every_version() {
    for build in builds() {
        let (offsets, layout) = layout_of(build);
        let mut memory = Recorded::default();
        let (state, hop, inner, outer) = (0x100, 0x400, 0x1000, 0x2000);
        memory.put(state, &[0; 256]);
        memory.put(inner, &[0; 128]);
        memory.put(outer, &[0; 128]);
        match offsets.cframe_frame {
            Some(_) => {
                put_u64(&mut memory, state, offsets.thread_frame, hop);
                put_u64(&mut memory, hop, offsets.cframe_frame, inner);
            }
            None => put_u64(&mut memory, state, offsets.thread_frame, inner),
        }
        put_u64(
            &mut memory,
            inner,
            offsets.frame_code,
            CODE | (!layout.code_mask & 1),
        );
        put_u64(&mut memory, inner, offsets.frame_instruction, 6);
        put_u64(&mut memory, inner, offsets.frame_previous, outer);
        if let Some(mark) = offsets.frame_mark {
            let mark_of_entry = if build.version.minor() == 11 { 1 } else { 3 };
            memory.put(outer + u64::from(mark), &[mark_of_entry]);
        }
        let frames = layout::walk(&layout, state, 10, &memory).unwrap();
        let kinds: Vec<u8> = frames.iter().map(|frame| frame.kind).collect();
        let expected = match build.version.minor() {
            ..=10 => [FRAME_ENTRY, FRAME_ENTRY],
            11 => [FRAME_INNER, FRAME_ENTRY],
            _ => [FRAME_INNER, FRAME_SHIM],
        };
        assert_eq!(kinds, expected, "{build:?}");
        assert_eq!(
            frames[0],
            RawFrame {
                code: CODE,
                instruction: 6,
                kind: frames[0].kind
            }
        );
    }
}

#[test]
fn a_code_object_is_read_and_one_that_is_gone_is_not() {
    for build in builds() {
        let (offsets, layout) = layout_of(build);
        let reader = CodeReader {
            offsets: &offsets,
            layout: &layout,
            code_type: CODE_TYPE,
        };
        let mut memory = Recorded::default();
        put_code(&mut memory, &offsets, CODE, "Cache.put", 7);
        let fingerprint = reader.fingerprint(CODE, &memory).unwrap();
        let code = reader.read(CODE, Some(fingerprint), &memory).unwrap();
        assert_eq!(
            (&*code.file, &*code.function, code.first_line),
            ("app.py", "Cache.put", 7)
        );
        let frame = CodeFrame {
            code: CODE,
            fingerprint,
            instruction: offsets.code_instructions.map_or(0, |at| CODE + u64::from(at)),
        };
        let mut cache = CodeCache::default();
        let located = cache.locate(&reader, frame, &memory).unwrap();
        if build.version.minor() >= 11 {
            assert_eq!(located.line, Some(8), "{build:?}");
        }

        // Another one at the same place.
        put_code(&mut memory, &offsets, OTHER, "other", 9);
        put_u64(&mut memory, CODE, offsets.code_file_name, OTHER + 0x1000);
        assert_eq!(
            reader.read(CODE, Some(fingerprint), &memory),
            Err(CodeError::Reused(CODE))
        );
        assert_eq!(cache.locate(&reader, frame, &memory).unwrap(), located);
        // No code object at all.
        put_u64(&mut memory, CODE, offsets.object_type, 0x77);
        assert_eq!(reader.read(CODE, None, &memory), Err(CodeError::NoCode(CODE)));
        // A free block that nothing was written to but the address of the next.
        if !build.free_threaded {
            memory.put(OTHER, &0x7f00_1234_5670_u64.to_le_bytes());
            assert_eq!(reader.read(OTHER, None, &memory), Err(CodeError::NoCode(OTHER)));
            memory.put(OTHER, &1_u64.to_le_bytes());
            memory.put(OTHER + 0x2000, &0_u64.to_le_bytes());
            assert!(matches!(
                reader.read(OTHER, None, &memory),
                Err(CodeError::Text(_))
            ));
        }
    }
}

#[test]
fn text_of_every_width_is_read() {
    let (offsets, _) = layout_of(builds().last().unwrap());
    let read = |state: u32, length: u64, bytes: &[u8]| {
        let mut memory = Recorded::default();
        memory.put(0x1000, &[0; 96]);
        put_u64(&mut memory, 0x1000, offsets.text_length, length);
        let state = state << offsets.text_kind_bit.unwrap();
        memory.put(
            0x1000 + u64::from(offsets.text_state.unwrap()),
            &state.to_le_bytes(),
        );
        memory.put(0x1000 + u64::from(offsets.text_other_data.unwrap()), bytes);
        text::read(&offsets, 0x1000, &memory)
    };
    assert_eq!(read(0b01_001, 3, b"\xe9t\xe9"), Ok("été".to_owned()));
    assert_eq!(read(0b01_010, 2, &[0x42, 0x04, 0x41, 0x00]), Ok("тA".to_owned()));
    assert_eq!(read(0b01_100, 1, &[0x40, 0xf6, 0x01, 0x00]), Ok("🙀".to_owned()));
    assert_eq!(read(0b01_010, 1, &[0x00, 0xd8]), Ok("\u{fffd}".to_owned()));
    assert_eq!(read(0b01_011, 1, b"a"), Err(TextError::NoText(0x1000)));
    assert_eq!(read(0b01_001, 1 << 50, b"a"), Err(TextError::NoText(0x1000)));
    assert!(matches!(
        read(0b01_001, 4000, b"a"),
        Err(TextError::Unreadable(_))
    ));
}

#[test]
fn thread_states_are_found_by_every_way() {
    const STATE: u64 = 0xabc0;
    let key = |number: u32, library| {
        let mut memory = Recorded::default();
        memory.put(0x100, &number.to_le_bytes());
        (memory, Way::by_key(library, 0x100))
    };
    let word = |value: u64| value.to_le_bytes();
    let (mut memory, way) = key(3, CLibrary::Glibc);
    memory.put(THREAD + 0x310 + 3 * 16 + 8, &word(STATE));
    assert_eq!(way.follow(THREAD, &memory), Ok(STATE));

    let (mut memory, way) = key(70, CLibrary::Glibc);
    memory.put(THREAD + 0x510 + 2 * 8, &word(0x7000));
    memory.put(0x7000 + 6 * 16 + 8, &word(STATE));
    assert_eq!(way.follow(THREAD, &memory), Ok(STATE));

    let (mut memory, way) = key(2, CLibrary::Musl);
    memory.put(THREAD, &[0; 0x200]);
    memory.put(THREAD + 0x80, &word(0x7000));
    memory.put(0x7000 + 16, &word(STATE));
    let states = [ThreadState {
        address: STATE,
        thread: THREAD,
    }];
    // Also where nothing tells that it is musl: a static program.
    for way in [way, Way::by_key(CLibrary::Glibc, 0x100)] {
        let found = thread_state::fitting(way, &states, &memory);
        assert_eq!((found.table, found.follow(THREAD, &memory)), (0x80, Ok(STATE)));
        assert_eq!(thread_state::check(&found, &states, &memory), (1, 0));
    }
    // Two places that fit are one too many.
    memory.put(THREAD + 0x88, &word(0x7000));
    assert_eq!(thread_state::fitting(way, &states, &memory), way);
    // One that fits as it is stays so.
    memory.put(THREAD + 0x310 + 2 * 16 + 8, &word(STATE));
    let (_, glibc) = key(2, CLibrary::Glibc);
    assert_eq!(thread_state::fitting(glibc, &states, &memory), glibc);
}

/// Three arenas: one with pools, one that was given back, one untouched.
fn arenas(geometry: Geometry) -> (Recorded, ArenaList) {
    let list = ArenaList {
        arenas: 0x100,
        count: 0x108,
    };
    let mut memory = Recorded::default();
    memory.put(0x100, &0x1000_u64.to_le_bytes());
    memory.put(0x108, &3_u64.to_le_bytes());
    let (first, third) = (0x10_0000_u64, 0x30_0000_u64);
    let pools = (geometry.arena_bytes / geometry.pool_bytes) as u32;
    memory.put(0x1000, &[0; 3 * 48]);
    for (at, address, used) in [(0, first, 3), (96, third, 0)] {
        memory.put(0x1000 + at, &address.to_le_bytes());
        memory.put(0x1008 + at, &(address + used * geometry.pool_bytes).to_le_bytes());
        memory.put(0x1014 + at, &pools.to_le_bytes());
    }
    for (at, in_use, class) in [(0, 10_u32, 1_u32), (1, 0, 0xffff), (2, 7, 31)] {
        let pool = first + at * geometry.pool_bytes;
        memory.put(pool, &[0; 48]);
        memory.put(pool, &in_use.to_le_bytes());
        memory.put(pool + 36, &class.to_le_bytes());
    }
    (memory, list)
}

#[test]
fn pools_are_counted() {
    for minor in [9, 12] {
        let geometry = Geometry::of(Version::new(minor, 0));
        let (mut memory, list) = arenas(geometry);
        let found = pymalloc::read(&[list], geometry, &memory).unwrap();
        assert_eq!(
            (found.arenas, found.free_pools, found.untouched_pools, found.odd),
            (2, 1, 61 + 64, 0)
        );
        assert_eq!(
            (found.blocks_in_use(), found.bytes_in_use()),
            (17, 10 * 32 + 7 * 512)
        );
        let classes = found.classes(geometry);
        assert_eq!((classes[31].pools, classes[31].in_use), (1, 7));
        assert_eq!(classes[31].free, geometry.capacity(31) - 7);
        assert_eq!(geometry.pool_of(0x10_0000 + 100), 0x10_0000);
        // What is there but no list of arenas is said to be none.
        memory.put(0x1014, &1000_u32.to_le_bytes());
        assert_eq!(
            pymalloc::read(&[list], geometry, &memory),
            Err(PoolsError::Implausible)
        );
    }
}

proptest! {
    #[test]
    fn no_memory_makes_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 1024), minor in 8_u8..16, address in 0_u64..1100,
        small in any::<bool>(),
    ) {
        // Pointers into the memory itself lead further than arbitrary ones.
        let bytes: Vec<u8> = if small {
            bytes.chunks(8).flat_map(|word| [word[0], word[1] & 3, 0, 0, 0, 0, 0, 0]).collect()
        } else {
            bytes
        };
        let memory = Recorded { pieces: vec![(0, bytes)] };
        let build = Build { version: Version::new(minor, 0), debug: false, free_threaded: minor >= 13 && small };
        let (offsets, layout) = layout_of(build);
        let _ = layout::walk(&layout, address, 50, &memory);
        if let Ok(Some(told)) = offsets::of_process(build, address, &memory)
            && let Some(layout) = layout::fill(build, &told, Way::by_key(CLibrary::Musl, address))
        {
            let _ = layout::walk(&layout, address, 50, &memory);
            let _ = CodeReader { offsets: &told, layout: &layout, code_type: 0 }.read(address, None, &memory);
        }
        let _ = thread_state::thread_states(&offsets, address, &memory);
        let code_type = u64::from(address as u8);
        let reader = CodeReader { offsets: &offsets, layout: &layout, code_type };
        let _ = reader.read(address, None, &memory);
        let _ = text::read(&offsets, address, &memory);
        let lists = [ArenaList { arenas: address, count: address ^ 8 }];
        let _ = pymalloc::read(&lists, Geometry::of(build.version), &memory);
        let _ = pymalloc::arena_lists(build.version, &offsets, address, &[8, 16, 24], &memory);
    }

    #[test]
    fn no_file_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.extend(bytes);
        let _ = crate::python::PythonFile::parse(&elf, "python3.11");
    }
}
