//! Which code of CPython asks libc for memory, and for whom.

use std::ops::Range;

use memwatch_common::{Domain, limits::MAX_PYTHON_RANGES, python::DomainRange};

use super::allocator::AllocatorFacts;
use super::file::ElfBytes;

/// The allocating functions of each domain, the internal ones of pymalloc among the objects': `PyMem_Malloc` ends with
/// a jump there, and leaves no frame of its own, in most builds.
const FUNCTIONS: [(Domain, &[&str]); 3] = [
    (
        Domain::PythonRaw,
        &[
            "PyMem_RawMalloc",
            "PyMem_RawCalloc",
            "PyMem_RawRealloc",
            "_PyMem_RawMalloc",
            "_PyMem_RawCalloc",
            "_PyMem_RawRealloc",
            "_PyMem_RawStrdup",
            "_PyMem_RawWcsdup",
        ],
    ),
    (
        Domain::PythonMem,
        &["PyMem_Malloc", "PyMem_Calloc", "PyMem_Realloc", "_PyMem_Strdup"],
    ),
    (
        Domain::PythonObject,
        &[
            "PyObject_Malloc",
            "PyObject_Calloc",
            "PyObject_Realloc",
            "_PyObject_Malloc",
            "_PyObject_Calloc",
            "_PyObject_Realloc",
        ],
    ),
];

/// The code that asks for each domain, as linked. `interpreter`: all code of a file that is nothing but an
/// interpreter. Where the compiler put an allocating function into its caller, that is all there is to tell the
/// interpreter's own blocks by; nearly all of them are objects.
pub fn of(elf: &ElfBytes<'_>, facts: &AllocatorFacts, interpreter: &[Range<u64>]) -> Vec<DomainRange> {
    let range = |range: Range<u64>, domain: Domain, inlined| DomainRange {
        start: range.start,
        end: range.end,
        domain: domain as u32,
        inlined,
    };
    let mut ranges = Vec::new();
    for (domain, names) in FUNCTIONS {
        let symbols = names.iter().filter_map(|name| elf.symbol(name));
        let functions = symbols.filter_map(|symbol| {
            if symbol.size > 0 {
                Some(symbol.range())
            } else {
                elf.piece_of(symbol.address)
            }
        });
        ranges.extend(functions.map(|function| range(function, domain, 0)));
    }
    // Stripped builds have no names for these.
    let hidden = [
        (facts.raw, Domain::PythonRaw),
        (facts.pymalloc, Domain::PythonObject),
    ];
    for (address, domain) in hidden {
        let piece = address.and_then(|address| elf.piece_of(address));
        ranges.extend(piece.map(|piece| range(piece, domain, 0)));
    }
    ranges.sort_by_key(|range| (range.start, range.end));
    ranges.dedup_by_key(|range| range.start);
    let inlined = interpreter
        .iter()
        .map(|code| range(code.clone(), Domain::PythonObject, 1));
    ranges.extend(inlined);
    ranges.truncate(MAX_PYTHON_RANGES);
    ranges
}
