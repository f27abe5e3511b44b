use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use memwatch_common::limits::MAX_FRAMES;
use memwatch_common::stack::STACK_TRUNCATED;

use super::super::testing::Folder;
use super::*;

#[inline(never)]
fn marker() -> u32 {
    std::hint::black_box(7)
}
const MARKER_LINE: u32 = line!() - 3;

fn stack(pcs: &[u64], flags: u32) -> Stack {
    let mut frames = [0; MAX_FRAMES];
    frames[..pcs.len()].copy_from_slice(pcs);
    Stack {
        count: pcs.len() as u32,
        flags,
        python: 0,
        frames,
    }
}

/// Stack number n + 1 is the n-th of the list.
fn symbolizer(stacks: Vec<Stack>) -> Symbolizer<impl StackSource> {
    Symbolizer::new(move |hash: u64| stacks.get(usize::try_from(hash).ok()?.checked_sub(1)?).copied())
}

fn own() -> u64 {
    marker as *const () as u64
}

#[test]
fn functions_of_this_very_program_have_names_and_lines() {
    let mut names = symbolizer(vec![
        stack(&[own(), own() + 1], STACK_COMPLETE),
        stack(&[own()], STACK_TRUNCATED),
    ]);
    names.add_process(1, std::process::id(), None);
    let named = names.stack(1, 1);
    assert!(!named.raw && !named.truncated);
    assert_eq!(named.frames.len(), 2);
    for (frame, offset) in named.frames.iter().zip([0, 1]) {
        assert!(
            frame
                .function
                .as_deref()
                .unwrap()
                .ends_with("symbolizer::tests::marker"),
            "{frame:?}"
        );
        assert!(
            frame.file.as_deref().unwrap().ends_with("symbolizer_tests.rs"),
            "{frame:?}"
        );
        assert!(
            (MARKER_LINE..MARKER_LINE + 3).contains(&frame.line.unwrap()),
            "{frame:?}"
        );
        assert_eq!(frame.offset, Some(offset));
        assert_eq!(frame.module.as_deref(), std::env::current_exe().unwrap().to_str());
    }
    assert_eq!(
        named.frames[0].address.map(|address| address + 1),
        named.frames[1].address
    );
    assert!(names.stack(1, 2).truncated);
    assert!(Arc::ptr_eq(&named, &names.stack(1, 1)));
}

#[test]
fn a_stack_that_is_not_known_is_empty_and_truncated() {
    let mut names = symbolizer(vec![]);
    names.add_process(1, std::process::id(), None);
    for hash in [STACK_UNKNOWN, 1, 99] {
        let named = names.stack(1, hash);
        assert!(named.truncated && named.frames.is_empty() && !named.raw);
    }
}

#[test]
fn out_of_time_a_name_comes_later() {
    let mut names = symbolizer(vec![stack(&[own()], STACK_COMPLETE)]);
    names.add_process(1, std::process::id(), None);
    names.begin_tick(Some(Duration::ZERO));
    let raw = names.stack(1, 1);
    assert!(raw.raw);
    assert_eq!((raw.frames.len(), &raw.frames[0].function), (1, &None));
    assert!(raw.frames[0].module.is_some());
    names.begin_tick(None);
    let named = names.stack(1, 1);
    assert!(!named.raw && named.frames[0].function.is_some());
    assert_eq!(named.frames[0].address, raw.frames[0].address);
    names.begin_tick(Some(Duration::ZERO));
    assert_eq!(names.stack(1, 1), named);
}

/// A program that says where one of its functions is and then waits for its end.
struct Target {
    child: Child,
    function: u64,
}

impl Target {
    fn start(folder: &Folder) -> Self {
        let text = "\
#include <stdio.h>
int function_of_target(int x) { return x + 1; }
int main(void) { printf(\"%p\\n\", (void *)function_of_target); fflush(stdout); return getchar(); }
";
        let program = folder.compile("cc", &["-g"], "target.c", text, "target");
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let function = u64::from_str_radix(line.trim().trim_start_matches("0x"), 16).unwrap();
        Self { child, function }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.end();
    }
}

fn first_function(names: &mut impl StackNames, instance: u32) -> Option<String> {
    names.stack(instance, 1).frames[0].function.clone()
}

#[test]
fn names_outlive_the_process_and_its_file() {
    let folder = Folder::new();
    let mut target = Target::start(&folder);
    let mut names = symbolizer(vec![stack(&[target.function], STACK_COMPLETE)]);
    names.add_process(1, target.pid(), None);
    std::fs::remove_file(folder.path("target")).unwrap();
    target.end();
    names.end_process(1);
    assert_eq!(
        first_function(&mut names, 1).as_deref(),
        Some("function_of_target")
    );
    assert_eq!(names.stack(1, 1).frames[0].line, Some(2));
}

#[test]
fn a_deleted_file_of_a_living_process_is_found() {
    let folder = Folder::new();
    let target = Target::start(&folder);
    std::fs::remove_file(folder.path("target")).unwrap();
    let mut names = symbolizer(vec![stack(&[target.function], STACK_COMPLETE)]);
    names.add_process(1, target.pid(), None);
    let frames = names.stack(1, 1).frames.clone();
    assert_eq!(frames[0].function.as_deref(), Some("function_of_target"));
    assert_eq!(frames[0].module.as_deref(), folder.path("target").to_str());
}

#[test]
fn a_child_that_is_gone_goes_by_its_parents_mappings() {
    let folder = Folder::new();
    let mut target = Target::start(&folder);
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let mut names = symbolizer(vec![stack(&[target.function], STACK_COMPLETE)]);
    names.add_process(1, target.pid(), None);
    names.add_process(2, child.id(), Some(1));
    assert_eq!(
        first_function(&mut names, 2).as_deref(),
        Some("function_of_target")
    );
    target.end();
    names.forget(&[1]);
    assert_eq!(
        first_function(&mut names, 2).as_deref(),
        Some("function_of_target")
    );
    names.forget(&[2]);
    assert!(names.modules.is_empty() && names.processes.is_empty());
    assert_eq!((names.open_files, first_function(&mut names, 2)), (0, None));
}

#[test]
fn two_processes_share_the_names_of_a_file() {
    let folder = Folder::new();
    let (first, second) = (Target::start(&folder), Target::start(&Folder::new()));
    let mut names = symbolizer(vec![stack(&[first.function], STACK_COMPLETE)]);
    names.add_process(1, first.pid(), None);
    names.add_process(2, first.pid(), None);
    let files = names.modules.len();
    names.add_process(3, second.pid(), None);
    assert_eq!(names.modules.len(), files + 1);
    assert!(names.stack(1, 1).frames == names.stack(2, 1).frames);
    assert_ne!(first_function(&mut names, 1), first_function(&mut names, 3));
}

/// A file in the place where runtimes put theirs, gone with the test.
struct PerfMapFile(std::path::PathBuf);

impl PerfMapFile {
    fn write(text: &str) -> Self {
        let path = std::path::PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for PerfMapFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn code_without_a_file_is_named_by_the_perf_map_as_it_grows() {
    let mut names = symbolizer(vec![stack(&[0x110, 0x220], STACK_COMPLETE)]);
    names.add_process(1, std::process::id(), None);
    let functions = |names: &mut Symbolizer<_>| {
        names.begin_tick(None);
        names
            .stack(1, 1)
            .frames
            .iter()
            .map(|frame| frame.function.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(functions(&mut names), [None, None]);
    let own = |name: &str| Some(name.to_owned());
    let file = PerfMapFile::write("100 20 compiled_first\n");
    // Only what has no name yet makes the file be read again.
    names.stacks = Generations::new(8);
    assert_eq!(functions(&mut names), [own("compiled_first"), None]);
    std::fs::write(&file.0, "100 20 compiled_first\n200 20 compiled_second\n").unwrap();
    assert_eq!(
        functions(&mut names),
        [own("compiled_first"), own("compiled_second")]
    );
    let frames = names.stack(1, 1).frames.clone();
    assert_eq!((frames[0].offset, frames[1].offset), (Some(0x10), Some(0x20)));
}

#[test]
fn the_vdso_has_names() {
    let mappings = open::read_maps(std::process::id()).unwrap();
    let start = mappings.iter().find(|mapping| mapping.is_vdso()).unwrap().start;
    let table = SymbolTable::read(&vdso::image().unwrap()[..]).unwrap();
    let offset = (0..0x4000).find(|offset| table.find(*offset).is_some()).unwrap();
    let mut names = symbolizer(vec![stack(&[start + offset], STACK_COMPLETE)]);
    names.add_process(1, std::process::id(), None);
    let frame = names.stack(1, 1).frames[0].clone();
    assert_eq!(
        (frame.module.as_deref(), frame.function.clone()),
        (Some("[vdso]"), table.find(offset).map(|(name, _)| name))
    );
}

#[test]
fn new_code_is_found_when_an_address_is_not_known() {
    let mut names = symbolizer(vec![stack(&[own()], STACK_COMPLETE)]);
    names.add_process(1, std::process::id(), None);
    let process = names.processes.get_mut(&1).unwrap();
    process.space = AddressSpace::default();
    let named = names.stack(1, 1);
    assert_eq!(named.frames[0].function, None);
    names.begin_tick(None);
    assert!(names.stack(1, 1).frames[0].function.is_some());
}

#[test]
fn a_process_that_was_never_added_has_addresses_only() {
    let mut names = symbolizer(vec![stack(&[own()], STACK_COMPLETE)]);
    let named = names.stack(5, 1);
    assert_eq!((named.frames.len(), named.frames[0].address), (1, Some(own())));
    assert_eq!(named.frames[0].module, None);
}

#[test]
fn a_source_can_be_a_table() {
    struct Table(HashMap<u64, Stack>);
    impl StackSource for Table {
        fn frames(&mut self, stack_hash: u64) -> Option<Stack> {
            self.0.get(&stack_hash).copied()
        }
    }
    let mut names = Symbolizer::new(Table(HashMap::new()));
    names.source().0.insert(1, stack(&[own()], STACK_COMPLETE));
    names.add_process(1, std::process::id(), None);
    assert!(first_function(&mut names, 1).is_some());
}
