//! pymalloc's pools as read from outside, compared with what the interpreter says itself.

use std::collections::BTreeMap;

use super::interpreters::{self, Running, WAIT};
use crate::python::pymalloc::block_bytes;

/// Tells what it has on stderr (caught in a file), then does nothing that could allocate.
const SCRIPT: &str = r"
import os, signal, sys, tempfile
kept = [object() for _ in range(50000)] + [(n, str(n)) for n in range(30000)]
kept += [bytes(n % 480) for n in range(40000)]
del kept[::3]
file = tempfile.TemporaryFile()
saved = os.dup(2); os.dup2(file.fileno(), 2)
pause = signal.pause
sys._debugmallocstats()
os.dup2(saved, 2)
file.seek(0)
text = file.read().decode()
rows = []
for line in text.splitlines():
    parts = line.split()
    if len(parts) == 5 and all(part.isdigit() for part in parts): rows.append(','.join(parts[1:]))
print(';'.join(rows), sys.getallocatedblocks(), flush=True)
pause()
";

#[test]
fn blocks_in_use_are_those_that_the_interpreter_counts() {
    for (_, path) in interpreters::all() {
        let (running, line) = Running::start(&path, SCRIPT, &[]);
        let python = running.attach();
        let memory = running.memory();
        let pools = python.pools(&[], &memory).unwrap();
        let geometry = python.geometry();
        let classes = pools.classes(geometry);
        let (rows, blocks) = line.split_once(' ').unwrap();
        let rows: BTreeMap<u64, [u64; 3]> = rows
            .split(';')
            .map(|row| {
                let mut numbers = row.split(',').map(|number| number.parse().unwrap());
                (
                    numbers.next().unwrap(),
                    std::array::from_fn(|_| numbers.next().unwrap()),
                )
            })
            .collect();
        assert!(rows.len() > 20, "{}: {line}", path.display());
        for (at, class) in classes.iter().enumerate() {
            let [pools, in_use, free] = rows.get(&block_bytes(at)).copied().unwrap_or_default();
            // Reading and printing the numbers took some blocks.
            let near = |one: u64, other: u64, by: u64| one.abs_diff(other) <= by;
            let context = format!(
                "{} size {}: {class:?}, told {:?}",
                path.display(),
                block_bytes(at),
                rows.get(&block_bytes(at))
            );
            assert!(near(class.in_use, in_use, 60 + in_use / 200), "{context}");
            assert!(near(class.pools, pools, 1 + pools / 50), "{context}");
            assert!(near(class.free, free, geometry.capacity(at) + 60), "{context}");
        }
        let blocks: u64 = blocks.parse().unwrap();
        // Blocks over 512 bytes are counted there too; they are few.
        assert!(
            pools.blocks_in_use() <= blocks + 200,
            "{} > {blocks}",
            pools.blocks_in_use()
        );
        assert!(
            pools.blocks_in_use() + 5000 > blocks,
            "{} < {blocks}",
            pools.blocks_in_use()
        );
        assert_eq!(pools.odd, 0);
        assert!(pools.bytes_in_use() < pools.arena_bytes);
    }
}

#[test]
fn the_function_that_begins_a_pool_is_found() {
    for (_, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let python = running.attach();
        let facts = &python.file.allocator;
        assert!(
            facts.pymalloc.is_some() && facts.raw.is_some(),
            "{}",
            path.display()
        );
        assert!(
            facts.new_pool.is_some() || !facts.pool_sites.is_empty(),
            "{}",
            path.display()
        );
        assert!(!python.native.evaluates.is_empty(), "{}", path.display());
    }
}

#[test]
fn who_takes_a_pool_has_the_size() {
    for (_, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let facts = &running.attach().file.allocator;
        let callers = facts.pool_callers.len();
        let known = facts.pool_callers.values().flatten().count();
        println!("{}: {known} of {callers} callers", path.display());
        assert!(callers > 0, "{}", path.display());
        // Where it is no function it is in the middle of another, which may not know the size any more.
        assert!(
            facts.new_pool.is_none() || known * 20 >= callers * 19,
            "{}: {known} of {callers}",
            path.display()
        );
    }
}

#[test]
fn inlined_allocation_is_found_where_it_is() {
    for (_, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let python = running.attach();
        let facts = &python.file.allocator;
        let (sites, missed) = (facts.sites.sites.len(), facts.sites.unresolved);
        let sized = facts
            .sites
            .sites
            .iter()
            .filter(|site| site.size.is_some())
            .count();
        println!(
            "{}: {} references, {sites} sites, {sized} sized, {missed} missed",
            path.display(),
            facts.inlined
        );
        if facts.is_inlined() {
            // Few builds name the function for anything else.
            assert!(
                sites + missed + 10 >= facts.inlined && missed * 20 <= sites,
                "{}",
                path.display()
            );
            let told = facts
                .sites
                .sites
                .iter()
                .filter(|site| site.domain.is_some())
                .count();
            assert!(told * 10 >= sites * 9, "{}: {told} of {sites}", path.display());
            assert!(sized * 20 >= sites * 19, "{}: {sized} of {sites}", path.display());
        } else {
            assert_eq!(sites, 0, "{}", path.display());
        }
    }
}
