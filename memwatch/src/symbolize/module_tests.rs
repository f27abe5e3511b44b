use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::testing::{Folder, run, symbol};
use super::*;

/// Line 3 is in the function that is inlined, line 7 in the one it is inlined into.
const C: &str = "\
extern volatile int sink;
volatile int sink;
static inline __attribute__((always_inline)) void innermost(int x) { sink = x * 3; sink = sink + x; }

__attribute__((noinline)) static int hidden(int x) { sink = x; return sink + 1; }
__attribute__((visibility(\"default\"), noinline)) int exported(int x) {
  innermost(x);
  return hidden(x) + sink;
}
int main(int argc, char **argv) { return exported(argc); }
";

fn module(path: &Path) -> Module {
    let name = Arc::from(path.to_str().unwrap());
    Module::new(name, Some(File::open(path).unwrap()), None)
}

fn compile(folder: &Folder, flags: &[&str]) -> PathBuf {
    let mut all = vec!["-O1", "-shared", "-fPIC", "-Wl,--build-id=sha1"];
    all.extend_from_slice(flags);
    folder.compile("cc", &all, "probe.c", C, "libprobe.so")
}

fn functions(frames: &[Frame]) -> Vec<&str> {
    frames
        .iter()
        .map(|frame| frame.function.as_deref().unwrap_or("-"))
        .collect()
}

#[test]
fn debug_information_gives_file_and_line() {
    let folder = Folder::new();
    let library = compile(&folder, &["-g"]);
    let (start, _) = symbol(&library, "hidden");
    let frames = module(&library).frames(start, 0);
    assert_eq!(functions(&frames), ["hidden"]);
    let frame = &frames[0];
    assert_eq!(
        (frame.line, frame.offset, frame.address, frame.inlined),
        (Some(5), Some(0), Some(start), false)
    );
    assert_eq!(frame.file.as_deref(), folder.path("probe.c").to_str());
    assert_eq!(frame.module.as_deref(), library.to_str());
    assert_eq!(frame.build_id.as_ref().map(String::len), Some(40));
}

#[test]
fn inlined_functions_stand_before_what_they_were_inlined_into() {
    let folder = Folder::new();
    let library = compile(&folder, &["-g"]);
    let (start, size) = symbol(&library, "exported");
    let mut module = module(&library);
    let all: Vec<Vec<Frame>> = (start..start + size)
        .map(|address| module.frames(address, 0))
        .collect();
    let inlined = all.iter().find(|frames| frames.len() == 2).unwrap();
    assert_eq!(functions(inlined), ["innermost", "exported"]);
    assert_eq!((inlined[0].inlined, inlined[1].inlined), (true, false));
    assert_eq!((inlined[0].line, inlined[1].line), (Some(3), Some(7)));
    assert_eq!((inlined[0].offset, inlined[1].offset.is_some()), (None, true));
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let folder = Folder::new();
    let library = compile(&folder, &["-g"]);
    let (start, size) = symbol(&library, "hidden");
    let frames = module(&library).frames(start + size, 1);
    assert_eq!(functions(&frames), ["hidden"]);
    assert_eq!(
        (frames[0].offset, frames[0].address),
        (Some(size), Some(start + size))
    );
}

#[test]
fn without_debug_information_there_are_still_symbols() {
    let folder = Folder::new();
    let library = compile(&folder, &[]);
    let (start, _) = symbol(&library, "hidden");
    let frames = module(&library).frames(start + 2, 0);
    assert_eq!(functions(&frames), ["hidden"]);
    assert_eq!(
        (frames[0].offset, &frames[0].file, frames[0].line),
        (Some(2), &None, None)
    );
}

#[test]
fn in_a_stripped_file_what_is_not_exported_is_a_place_in_its_module() {
    let folder = Folder::new();
    let library = compile(&folder, &[]);
    let ((hidden, _), (exported, _)) = (symbol(&library, "hidden"), symbol(&library, "exported"));
    run(Command::new("strip").arg(&library));
    let mut module = module(&library);
    assert_eq!(functions(&module.frames(exported, 0)), ["exported"]);
    let frames = module.frames(hidden, 0);
    assert_eq!(functions(&frames), ["-"]);
    assert_eq!(
        (frames[0].address, frames[0].module.as_deref()),
        (Some(hidden), library.to_str())
    );
}

/// Moves the debug information to a file of its own and leaves a link.
fn split(library: &Path) -> PathBuf {
    let debug = library.with_extension("debug");
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(library)
        .arg(&debug));
    run(Command::new("strip").arg(library));
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    run(Command::new("objcopy").arg(link).arg(library));
    debug
}

#[test]
fn a_debug_link_is_followed() {
    let folder = Folder::new();
    let library = compile(&folder, &["-g"]);
    let (hidden, _) = symbol(&library, "hidden");
    split(&library);
    let frames = module(&library).frames(hidden, 0);
    assert_eq!((functions(&frames), frames[0].line), (vec!["hidden"], Some(5)));
}

#[test]
fn a_debug_link_to_another_version_leaves_the_files_own_symbols() {
    let folder = Folder::new();
    let library = compile(&folder, &["-g"]);
    let ((hidden, _), (exported, _)) = (symbol(&library, "hidden"), symbol(&library, "exported"));
    let debug = split(&library);
    let other = folder.compile("cc", &["-g", "-shared"], "other.c", "int other;", "other.so");
    std::fs::copy(other, debug).unwrap();
    let mut module = module(&library);
    assert_eq!(functions(&module.frames(exported + 1, 0)), ["exported"]);
    assert_eq!(functions(&module.frames(hidden, 0)), ["-"]);
}

#[test]
fn cpp_names_are_readable() {
    let folder = Folder::new();
    let text = "\
namespace store { struct Cache { long grow(int n); }; }
long store::Cache::grow(int n) { return n + 1; }
template <typename T> __attribute__((noinline)) T twice(T v) { return v * 2; }
long use(int n) { return twice<long>(n); }
";
    for flags in [
        &["-g", "-shared", "-fPIC", "-O1"][..],
        &["-shared", "-fPIC", "-O1"],
    ] {
        let library = folder.compile("g++", flags, "cache.cc", text, "libcache.so");
        let mut module = module(&library);
        let mut name = |part: &str| {
            module.frames(symbol(&library, part).0, 0)[0]
                .function
                .clone()
                .unwrap()
        };
        assert_eq!(name("grow"), "store::Cache::grow");
        assert_eq!(name("twice"), "twice<long>");
    }
}

#[test]
fn what_is_no_elf_file_has_offsets_only() {
    let folder = Folder::new();
    let path = folder.path("memory");
    std::fs::write(&path, b"not an ELF file").unwrap();
    let mut module = module(&path);
    assert!(!module.is_elf() && module.has_open_file());
    assert_eq!(module.address_of(0x123), 0x123);
    assert_eq!(functions(&module.frames(0x123, 1)), ["-"]);
    assert!(!module.has_open_file());
}
