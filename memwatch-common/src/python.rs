//! CPython: where the frames of a Python program are, as far as its version and build decide it.
//!
//! User space finds out (`memwatch/src/python`), the kernel side only follows: no version is known there.

use crate::limits::{MAX_PYTHON_FRAMES, MAX_PYTHON_RANGES};

/// The thread state is the value that the thread has for a key of glibc's `pthread_getspecific`.
pub const TLS_GLIBC_KEY: u32 = 1;
/// The same for musl.
pub const TLS_MUSL_KEY: u32 = 2;
/// The thread state is in a thread-local variable at a fixed distance from the thread pointer.
pub const TLS_STATIC: u32 = 3;
/// The thread state is in a thread-local variable of a library, found through the thread's table of modules.
pub const TLS_MODULE: u32 = 4;

/// `i32`, counts bytes; −1 before the first instruction.
pub const INSTRUCTION_BYTES: u8 = 1;
/// `i32`, counts units of two bytes; −1 before the first instruction.
pub const INSTRUCTION_UNITS: u8 = 2;
/// An address inside the code (or inside a thread's own copy of it, in free-threaded builds).
pub const INSTRUCTION_POINTER: u8 = 3;

/// Each Python frame is one call of the C function that evaluates frames (up to 3.10).
pub const ENTRY_EVERY: u8 = 1;
/// The frame whose mark is 1 is the outermost of one such call (3.11).
pub const ENTRY_FLAG: u8 = 2;
/// A frame whose mark is this number or greater is none of the program's: it stands between the frames of one such
/// call and those of the next (3.12 on).
pub const ENTRY_SHIM: u8 = 3;

/// An ordinary frame: the next one outwards belongs to the same C call.
pub const FRAME_INNER: u8 = 0;
/// The outermost frame of one C call that evaluates frames.
pub const FRAME_ENTRY: u8 = 1;
/// No frame of the program: the calls of one C call end here.
pub const FRAME_SHIM: u8 = 2;

/// There is no such field.
pub const NO_FIELD: u16 = u16::MAX;

/// Most bytes of a frame that are read in one go: `frame_bytes` is never more.
pub const MAX_FRAME_BYTES: usize = 128;
/// Most bytes of a code object that are read in one go: `code_bytes` is never more.
pub const MAX_CODE_BYTES: usize = 128;

/// Keys in a block of glibc's table of thread-specific values.
pub const GLIBC_KEYS_IN_BLOCK: u32 = 32;

/// How to get from a thread to its Python frames, and what to read of each. All offsets are in bytes.
///
/// From the thread pointer (`fsbase`) to the thread state, by `tls_kind`:
///
/// - [`TLS_GLIBC_KEY`]: `key` is the `u32` at `key_address`. Below 32 the value is at
///   `thread pointer + tls_first + key * 16 + 8`; else `block` is the pointer at
///   `thread pointer + tls_table + key / 32 * 8` and the value is at `block + key % 32 * 16 + 8`.
/// - [`TLS_MUSL_KEY`]: `table` is the pointer at `thread pointer + tls_table`, the value is at `table + key * 8`.
/// - [`TLS_STATIC`]: the value is at `thread pointer + tls_offset`.
/// - [`TLS_MODULE`]: `table` is the pointer at `thread pointer + tls_table`, `module` the `u64` at `key_address`,
///   `block` the pointer at `table + module * tls_first`, and the value is at `block + tls_offset`. A `block` of
///   −1 means that the thread has no such variable yet.
///
/// A thread state of 0: the thread runs no Python. From the thread state the innermost frame is the pointer at
/// `tstate_frame`, or, if `cframe_frame` is a field, at that place of what the pointer at `tstate_frame` points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PythonLayout {
    /// Where in the process the key (or module) number is.
    pub key_address: u64,
    pub tls_offset: i64,
    /// The bits of `frame_code` that are the address: newer versions keep marks in the low ones.
    pub code_mask: u64,
    /// `TLS_*`
    pub tls_kind: u32,
    pub tls_first: u32,
    pub tls_table: u32,
    /// Major version, minor version, micro version, release level and serial, as in `PY_VERSION_HEX`.
    pub version: u32,

    pub tstate_frame: u16,
    pub cframe_frame: u16,

    /// One read of `frame_bytes` at the frame's address holds all that follows.
    pub frame_bytes: u16,
    pub frame_code: u16,
    pub frame_previous: u16,
    pub frame_instruction: u16,
    /// One byte.
    pub frame_mark: u16,
    /// `u32`: which copy of the code the thread runs, in free-threaded builds.
    pub frame_copy: u16,

    /// One read of `code_bytes` at `code_start` into the code object holds the four that follow. Their offsets
    /// are from the object's beginning.
    pub code_start: u16,
    pub code_bytes: u16,
    pub code_file_name: u16,
    /// The qualified name, before 3.11 the name.
    pub code_name: u16,
    pub code_line_table: u16,
    /// `i32`
    pub code_first_line: u16,
    /// Where the instructions begin; no field before 3.11.
    pub code_instructions: u16,
    /// The pointer to an object's type.
    pub object_type: u16,

    /// `INSTRUCTION_*`
    pub instruction_kind: u8,
    /// `ENTRY_*`
    pub entry_rule: u8,
    /// For [`ENTRY_SHIM`].
    pub shim_mark: u8,
    /// 1: built without a global lock.
    pub free_threaded: u8,
    pub reserved: u32,
}

impl PythonLayout {
    /// What a frame with this mark is: `FRAME_*`.
    #[inline]
    pub const fn frame_kind(&self, mark: u8) -> u8 {
        match self.entry_rule {
            ENTRY_FLAG if mark == 1 => FRAME_ENTRY,
            ENTRY_SHIM if mark >= self.shim_mark => FRAME_SHIM,
            ENTRY_FLAG | ENTRY_SHIM => FRAME_INNER,
            _ => FRAME_ENTRY,
        }
    }
}

/// What tells a code object from a later one at the same address. Never 0.
#[inline]
pub const fn fingerprint(file_name: u64, name: u64, line_table: u64, first_line: i32) -> u32 {
    // Objects lie on multiples of 16: the low bits say nothing. Multipliers of xxHash.
    let mut hash = (file_name >> 4).wrapping_mul(0x9e37_79b1_85eb_ca87);
    hash = (hash.rotate_left(31) ^ (name >> 4)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    hash = (hash.rotate_left(31) ^ (line_table >> 4)).wrapping_mul(0x9e37_79b1_85eb_ca87);
    hash = (hash.rotate_left(31) ^ first_line as u32 as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    ((hash >> 32) as u32) | 1
}

/// A frame of a Python program, as it was found. What `code` and `instruction` mean is up to the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PythonFrame {
    pub code: u64,
    pub instruction: u64,
    /// See [`fingerprint`].
    pub fingerprint: u32,
    /// `FRAME_*`
    pub kind: u32,
}

/// The Python frames of a thread, innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PythonStack {
    pub count: u32,
    /// `STACK_*` of [`crate::stack`].
    pub flags: u32,
    pub frames: [PythonFrame; MAX_PYTHON_FRAMES],
}

/// A code object as it was when it was first seen in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CodeKey {
    pub code: u64,
    pub instance: u32,
    /// See [`fingerprint`].
    pub fingerprint: u32,
}

const _: () = assert!(size_of::<CodeKey>() == 16);

pub const CODE_BYTES: usize = 256;
pub const CODE_FILE_BYTES: usize = 320;
pub const CODE_NAME_BYTES: usize = 256;
pub const CODE_TABLE_BYTES: usize = 2048;

/// The beginnings of a code object and of what it refers to. Code that a program runs once, as a module's, is gone before
/// user space could read it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CodeCopy {
    /// How many bytes there are of each.
    pub object_bytes: u32,
    pub file_bytes: u32,
    pub name_bytes: u32,
    pub table_bytes: u32,
    pub object: [u8; CODE_BYTES],
    pub file: [u8; CODE_FILE_BYTES],
    pub name: [u8; CODE_NAME_BYTES],
    pub table: [u8; CODE_TABLE_BYTES],
}

const _: () = assert!(size_of::<CodeCopy>() == 2896);

/// Bytes of a pool of small objects (3.10 on; before that a quarter).
pub const POOL_BYTES: u64 = 16 << 10;

/// A pool that pymalloc took into use: the latest time at this address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OpenedPool {
    /// The stack that asked for its first block.
    pub stack: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub born_ns: u64,
    /// How many bytes the first block was asked for with, as far as that is known: anything else may be here.
    pub asked: u64,
}

const _: () = assert!(size_of::<OpenedPool>() == 24);

/// A call of the function that takes a pool into use, or a place that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PoolCaller {
    /// [`PythonProcess::file`]
    pub file: u32,
    /// The address that it returns to, or of the place, from where the file begins to be mapped.
    pub back: u32,
}

const _: () = assert!(size_of::<PoolCaller>() == 8);

/// Largest block that pymalloc hands out.
pub const SMALL_BYTES: u64 = 512;

/// Code that asks for memory on behalf of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DomainRange {
    pub start: u64,
    pub end: u64,
    /// A [`crate::Domain`].
    pub domain: u32,
    /// 1: all code of the interpreter, where a caller of libc has an allocating function of CPython inlined.
    pub inlined: u32,
}

/// A process that runs CPython.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PythonProcess {
    pub layout: PythonLayout,
    /// What is added to an address in the interpreter's file to get that in the process.
    pub bias: u64,
    /// The file's number, the same for files whose code is the same.
    pub file: u32,
    pub count: u32,
    pub ranges: [DomainRange; MAX_PYTHON_RANGES],
}

const _: () = assert!(size_of::<PythonLayout>() == 80);
const _: () = assert!(size_of::<PythonFrame>() == 24);
const _: () = assert!(size_of::<PythonStack>() == 8 + 24 * MAX_PYTHON_FRAMES);
const _: () = assert!(size_of::<DomainRange>() == 24);
const _: () = assert!(size_of::<PythonProcess>() == 96 + 24 * MAX_PYTHON_RANGES);

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: PythonLayout = PythonLayout {
        key_address: 0,
        tls_offset: 0,
        code_mask: 0,
        tls_kind: 0,
        tls_first: 0,
        tls_table: 0,
        version: 0,
        tstate_frame: 0,
        cframe_frame: 0,
        frame_bytes: 0,
        frame_code: 0,
        frame_previous: 0,
        frame_instruction: 0,
        frame_mark: 0,
        frame_copy: 0,
        code_start: 0,
        code_bytes: 0,
        code_file_name: 0,
        code_name: 0,
        code_line_table: 0,
        code_first_line: 0,
        code_instructions: 0,
        object_type: 0,
        instruction_kind: 0,
        entry_rule: 0,
        shim_mark: 0,
        free_threaded: 0,
        reserved: 0,
    };

    #[test]
    fn each_rule_says_where_a_call_of_the_interpreter_begins() {
        let kinds = |entry_rule, shim_mark| {
            let layout = PythonLayout {
                entry_rule,
                shim_mark,
                ..NONE
            };
            [0, 1, 2, 3, 4].map(|mark| layout.frame_kind(mark))
        };
        assert_eq!(kinds(ENTRY_EVERY, 0), [FRAME_ENTRY; 5]);
        assert_eq!(kinds(ENTRY_FLAG, 0), [0, FRAME_ENTRY, 0, 0, 0]);
        assert_eq!(kinds(ENTRY_SHIM, 3), [0, 0, 0, FRAME_SHIM, FRAME_SHIM]);
    }

    #[test]
    fn a_fingerprint_changes_with_each_of_its_parts_and_is_never_0() {
        let one = fingerprint(0x7f00_1000, 0x7f00_2000, 0x7f00_3000, 7);
        assert_ne!(one, fingerprint(0x7f00_1010, 0x7f00_2000, 0x7f00_3000, 7));
        assert_ne!(one, fingerprint(0x7f00_1000, 0x7f00_2010, 0x7f00_3000, 7));
        assert_ne!(one, fingerprint(0x7f00_1000, 0x7f00_2000, 0x7f00_3010, 7));
        assert_ne!(one, fingerprint(0x7f00_1000, 0x7f00_2000, 0x7f00_3000, 8));
        assert_ne!(fingerprint(0, 0, 0, 0), 0);
    }
}
