//! All code objects of the standard library, in every version: each instruction's line as Python gives it.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use super::interpreters;
use crate::python::lines::{Format, line_at, ranges};

/// Writes for each code object: first line, bytes of code, line table, and the ranges that Python finds.
const SCRIPT: &str = r"
import dis, marshal, os, struct, sys, sysconfig, importlib.util
out = sys.stdout.buffer
modern = sys.version_info >= (3, 10)
def lines(code):
    if modern:
        for start, end, line in code.co_lines(): yield start, end, -1 if line is None else line
    else:
        starts = list(dis.findlinestarts(code))
        # What Python itself does for addresses before the first step.
        if not starts or starts[0][0] > 0: starts.insert(0, (0, code.co_firstlineno))
        for (start, line), (end, _) in zip(starts, starts[1:] + [(len(code.co_code), 0)]): yield start, end, line
def write(code):
    table = code.co_linetable if modern else code.co_lnotab
    found = list(lines(code))
    out.write(struct.pack('<iIII', code.co_firstlineno, len(code.co_code), len(table), len(found)) + table)
    for start, end, line in found: out.write(struct.pack('<iii', start, end, line))
    for constant in code.co_consts:
        if hasattr(constant, 'co_code'): write(constant)
for where, folders, names in os.walk(sysconfig.get_path('stdlib')):
    folders[:] = [name for name in folders if name not in ('site-packages', 'dist-packages', '__pycache__')]
    for name in sorted(names):
        if not name.endswith('.py'): continue
        path = os.path.join(where, name)
        try:
            with open(importlib.util.cache_from_source(path), 'rb') as file: file.read(16); code = marshal.load(file)
        except Exception:
            try:
                with open(path, 'rb') as file: code = compile(file.read(), path, 'exec', dont_inherit=True)
            except (OSError, SyntaxError, ValueError): continue
        write(code)
";

struct Input(Vec<u8>, usize);

impl Input {
    fn take(&mut self, bytes: usize) -> &[u8] {
        let from = self.1;
        self.1 += bytes;
        &self.0[from..self.1]
    }

    fn number(&mut self) -> i32 {
        i32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn ended(&self) -> bool {
        self.1 == self.0.len()
    }
}

/// The line of each unit of two bytes.
fn by_unit(ranges: impl Iterator<Item = (i64, i64, Option<u32>)>, length: i64) -> Vec<Option<u32>> {
    let mut units = vec![None; (length / 2) as usize];
    for (start, end, line) in ranges {
        for unit in start / 2..end.min(length) / 2 {
            units[unit as usize] = line;
        }
    }
    units
}

#[test]
fn every_instruction_of_the_standard_library_is_in_the_line_that_python_says() {
    for (minor, path) in interpreters::all() {
        let mut child = Command::new(&path)
            .args(["-W", "ignore", "-c", SCRIPT])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut bytes = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        assert!(child.wait().unwrap().success());
        let mut input = Input(bytes, 0);
        let format = Format::of_minor(minor);
        let (mut objects, mut instructions) = (0_u64, 0_usize);
        while !input.ended() {
            let (first_line, length) = (input.number(), i64::from(input.number()));
            let (table, count) = (input.number() as usize, input.number());
            let table = input.take(table).to_vec();
            let told: Vec<_> = (0..count)
                .map(|_| {
                    (
                        input.number().into(),
                        input.number().into(),
                        u32::try_from(input.number()).ok(),
                    )
                })
                .collect();
            let told = by_unit(told.into_iter(), length);
            let found = ranges(format, &table, first_line).map(|range| (range.start, range.end, range.line));
            assert_eq!(
                by_unit(found, length),
                told,
                "{} line {first_line}",
                path.display()
            );
            if length > 0 {
                let at = length / 4 * 2;
                assert_eq!(line_at(format, &table, first_line, at), told[(at / 2) as usize]);
            }
            objects += 1;
            instructions += told.len();
        }
        assert!(
            objects > 5000 && instructions > 200_000,
            "{}: {objects}",
            path.display()
        );
        println!(
            "{}: {objects} code objects, {instructions} instructions",
            path.display()
        );
    }
}
