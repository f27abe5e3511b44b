//! Which native frames evaluate Python frames, and which are the interpreter's own.

use std::ops::Range;

use super::decode_x86;
use super::file::ElfBytes;

/// The code of the interpreter, as linked or (after [`NativeCode::moved`]) as loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeCode {
    /// Functions whose calls are Python frames.
    pub evaluates: Vec<Range<u64>>,
    /// What to leave out of stacks by default. In a file that is nothing but an interpreter (`libpython*`, a program
    /// `python*`): all of its code. In a program that embeds one: the functions called `Py*`, `_Py*` and
    /// `_TAIL_CALL_*`.
    pub internal: Vec<Range<u64>>,
    /// The file is nothing but an interpreter.
    pure: bool,
}

impl NativeCode {
    pub fn of(elf: &ElfBytes<'_>, file_name: &str) -> Self {
        let mut code = Self {
            evaluates: evaluating(elf),
            internal: internal(elf, file_name),
            pure: is_interpreter(elf, file_name),
        };
        for ranges in [&mut code.evaluates, &mut code.internal] {
            ranges.sort_by_key(|range| (range.start, range.end));
            ranges.dedup();
        }
        code.internal = joined(&code.internal);
        code
    }

    #[must_use]
    pub fn moved(&self, bias: u64) -> Self {
        let moved = |ranges: &[Range<u64>]| {
            ranges
                .iter()
                .map(|range| range.start.wrapping_add(bias)..range.end.wrapping_add(bias))
                .collect()
        };
        Self {
            evaluates: moved(&self.evaluates),
            internal: moved(&self.internal),
            pure: self.pure,
        }
    }

    /// All code of a file that is nothing but an interpreter, else nothing.
    pub fn whole_file(&self) -> &[Range<u64>] {
        if self.pure { &self.internal } else { &[] }
    }

    /// For a return address take the byte before: a call can be the last instruction of a function.
    pub fn is_evaluating(&self, address: u64) -> bool {
        self.evaluates.iter().any(|range| range.contains(&address))
    }

    pub fn is_internal(&self, address: u64) -> bool {
        let after = self.internal.partition_point(|range| range.start <= address);
        let inside = after
            .checked_sub(1)
            .and_then(|at| self.internal.get(at))
            .is_some_and(|range| range.contains(&address));
        inside || self.is_evaluating(address)
    }
}

/// `_PyEval_EvalFrameDefault` in all its pieces: compilers put what is seldom executed elsewhere.
///
/// Builds with tail calls have a function for each instruction beside it (`_TAIL_CALL_*`), of which one at a time is on
/// the stack. They keep no registers, so it calls the first of them as any other function and stays there: it alone
/// stands for the run of Python frames.
fn evaluating(elf: &ElfBytes<'_>) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    for (name, symbol) in elf.symbols_from("_PyEval_EvalFrameDefault") {
        let clone = name.strip_prefix("_PyEval_EvalFrameDefault");
        if clone.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('.')) {
            continue;
        }
        let range = if symbol.size > 0 {
            Some(symbol.range())
        } else {
            elf.piece_of(symbol.address)
        };
        ranges.extend(range);
    }
    if ranges.len() == 1 {
        ranges.extend(cold_parts(elf, &ranges[0].clone()));
    }
    ranges
}

/// Pieces of code that a function jumps into and that are no functions: the stack is in use where they begin.
fn cold_parts(elf: &ElfBytes<'_>, function: &Range<u64>) -> Vec<Range<u64>> {
    let size = usize::try_from(function.end - function.start).unwrap_or(0);
    let Some(code) = elf.bytes_at(function.start).and_then(|bytes| bytes.get(..size)) else {
        return Vec::new();
    };
    let mut parts: Vec<Range<u64>> = decode_x86::jumps_out(function.start, code)
        .into_iter()
        .filter_map(|target| elf.part_of_function(target))
        .collect();
    parts.sort_by_key(|part| part.start);
    parts.dedup();
    parts
}

fn is_interpreter(elf: &ElfBytes<'_>, file_name: &str) -> bool {
    let is_one = |name: &str| name.starts_with("libpython") || name.starts_with("python");
    is_one(file_name) || elf.soname().is_some_and(|name| is_one(&name))
}

fn internal(elf: &ElfBytes<'_>, file_name: &str) -> Vec<Range<u64>> {
    if is_interpreter(elf, file_name) {
        return elf
            .code_sections()
            .map(|(address, bytes, _)| address..address.saturating_add(bytes.len() as u64))
            .collect();
    }
    elf.symbols_from("Py")
        .chain(elf.symbols_from("_Py"))
        .chain(elf.symbols_from("_TAIL_CALL_"))
        .map(|(_, symbol)| symbol.range())
        .filter(|range| !range.is_empty())
        .collect()
}

/// Overlapping and touching ranges as one. They are sorted.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range.clone()),
        }
    }
    joined
}
