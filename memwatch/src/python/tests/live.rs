//! Real interpreters, looked into from outside.

use memwatch_common::python::{FRAME_ENTRY, FRAME_SHIM};

use super::interpreters::{self, Running, WAIT};
use crate::python::allocator::{Base, PythonDomain};
use crate::python::layout::{self, RawFrame};
use crate::python::thread_state::{ThreadState, Way, thread_states};
use crate::python::{CodeCache, CodeError, CodeFrame, Interpreter, Location, Memory};

/// Prints what it is, then waits deep inside of calls of all kinds. A second thread waits too.
const SCRIPT: &str = r"
import sys, threading, sysconfig
class Outer:
    class Inner:
        def method(self, wait):
            return wait()
    def __call__(self, wait):
        return self.Inner().method(wait)
def generate(wait):
    yield Outer()(wait)
def through_c(wait):
    return list(map(lambda one: next(generate(wait)), [1]))
def wait():
    frame = sys._getframe()
    told = []
    while frame:
        code = frame.f_code
        told.append('%s|%s|%d' % (code.co_filename, getattr(code, 'co_qualname', code.co_name), frame.f_lineno))
        frame = frame.f_back
    debug = sysconfig.get_config_var('Py_DEBUG') or 0
    free_threaded = sysconfig.get_config_var('Py_GIL_DISABLED') or 0
    print('%d %s %s %s' % (sys.hexversion, debug, free_threaded, '&'.join(told)), flush=True); sys.stdin.readline()
event = threading.Event()
def \u00e9t\u00e9(): event.wait()
thread = threading.Thread(target=\u00e9t\u00e9, daemon=True); thread.start()
through_c(wait)
";

fn states(python: &Interpreter, memory: &impl Memory) -> Vec<ThreadState> {
    thread_states(&python.offsets, python.file.runtime + python.bias, memory).unwrap()
}

/// All frames of a thread, named.
fn named(python: &Interpreter, state: u64, memory: &impl Memory) -> Vec<(RawFrame, Location)> {
    let reader = python.code_reader();
    let mut cache = CodeCache::default();
    layout::walk(&python.layout, state, 100, memory)
        .unwrap()
        .into_iter()
        .filter(|frame| frame.kind != FRAME_SHIM)
        .map(|raw| {
            let fingerprint = reader.fingerprint(raw.code, memory).unwrap();
            let frame = CodeFrame {
                code: raw.code,
                fingerprint,
                instruction: raw.instruction,
            };
            (raw, cache.locate(&reader, frame, memory).unwrap())
        })
        .collect()
}

#[test]
fn frames_have_the_names_and_lines_that_python_itself_gives_them() {
    let script = SCRIPT.replace("\\u00e9", "é");
    for (minor, path) in interpreters::all() {
        let (running, line) = Running::start(&path, &script, &[]);
        let mut told = line.splitn(4, ' ');
        let version: u32 = told.next().unwrap().parse().unwrap();
        let flags = [told.next().unwrap(), told.next().unwrap()].map(|flag| flag == "1");
        let python = running.attach();
        let memory = running.memory();
        assert_eq!(python.build.version.0, version, "{}", path.display());
        assert_eq!(
            [python.build.debug, python.build.free_threaded],
            flags,
            "{}",
            path.display()
        );
        assert_eq!(
            (python.checks.threads, python.checks.odd_frames),
            (2, 0),
            "{}",
            path.display()
        );

        let stacks: Vec<Vec<(RawFrame, Location)>> = states(&python, &memory)
            .iter()
            .map(|state| named(&python, state.address, &memory))
            .collect();
        let main = stacks
            .iter()
            .find(|stack| stack.iter().any(|(_, at)| &*at.function == "through_c"));
        let main = main.unwrap_or_else(|| panic!("{}: {stacks:?}", path.display()));
        let mut seen: Vec<String> = main
            .iter()
            .map(|(_, at)| format!("{}|{}|{}", at.file, at.function, at.line.unwrap()))
            .collect();
        let mut expected: Vec<String> = told.next().unwrap().split('&').map(str::to_owned).collect();
        // The innermost frame went on to the next call of the same line, before 3.11 without qualified names.
        assert_eq!(
            seen.remove(0).split('|').nth(1),
            expected.remove(0).split('|').nth(1)
        );
        assert_eq!(seen, expected, "{}", path.display());
        assert!(seen.len() >= 6 && seen[1].contains("__call__"), "{seen:?}");
        if minor >= 11 {
            assert!(seen[0].contains("Outer.Inner.method"), "{seen:?}");
        }
        assert!(!main.iter().any(|(_, at)| at.incomplete));

        // A thread that waits in C without the lock has its frames all the same.
        let waiting = stacks
            .iter()
            .any(|stack| stack.iter().any(|(_, at)| &*at.function == "été"));
        assert!(waiting, "{}: {stacks:?}", path.display());
        let entries = main.iter().filter(|(raw, _)| raw.kind == FRAME_ENTRY).count();
        match minor {
            ..=10 => assert_eq!(entries, main.len()),
            // Python called C three times: for the module, the lambda, and the generator.
            11 => assert!((2..=4).contains(&entries), "{entries}"),
            _ => assert_eq!(entries, 0),
        }
    }
}

#[test]
fn the_way_to_the_thread_state_is_what_the_kernel_side_gets() {
    for (_, path) in interpreters::all() {
        let (running, _) = Running::start(&path, WAIT, &[]);
        let python = running.attach();
        let memory = running.memory();
        let states = states(&python, &memory);
        let [only] = states[..] else { panic!("{states:?}") };
        let way = Way::of(&python.layout);
        assert_eq!(
            way.follow(only.thread, &memory),
            Ok(only.address),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_code_object_that_is_gone_gets_no_wrong_name() {
    let script = r"
import sys, gc
def make(name, lines):
    scope = {}
    exec('\n' * lines + 'def %s(): return %d' % (name, lines), scope)
    return scope[name].__code__
def give(code): print(id(code), flush=True); sys.stdin.readline()
one = make('first', 10)
give(one)
where = id(one)
del one; gc.collect()
# Most often another one is at the same place soon.
kept = []
for i in range(2000):
    code = make('other%d' % i, i)
    kept.append(code)
    if id(code) == where: break
give(code)
kept = code = None; gc.collect(); keep = [bytes(200) for _ in range(5000)]
print('freed', flush=True); sys.stdin.readline()
";
    for (_, path) in interpreters::all() {
        let (mut running, line) = Running::start(&path, script, &[]);
        let python = running.attach();
        let memory = running.memory();
        let reader = python.code_reader();
        let address: u64 = line.parse().unwrap();
        let before = reader.fingerprint(address, &memory).unwrap();
        assert_eq!(
            &*reader.read(address, Some(before), &memory).unwrap().function,
            "first"
        );
        let other: u64 = running.ask("").parse().unwrap();
        let after = reader.fingerprint(other, &memory).unwrap();
        assert_ne!(before, after);
        if other == address {
            let found = reader.read(address, Some(before), &memory);
            assert_eq!(found, Err(CodeError::Reused(address)), "{}", path.display());
        }
        let mut cache = CodeCache::default();
        let frame = CodeFrame {
            code: other,
            fingerprint: after,
            instruction: 0,
        };
        assert!(
            cache
                .locate(&reader, frame, &memory)
                .unwrap()
                .function
                .starts_with("other")
        );
        assert_eq!(running.ask(""), "freed");
        // What was read stays known, what is read anew is not taken for it.
        assert!(
            cache
                .locate(&reader, frame, &memory)
                .unwrap()
                .function
                .starts_with("other")
        );
        assert!(
            reader.read(other, Some(after), &memory).is_err(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_allocator_at_work_is_known() {
    let trace =
        "import tracemalloc; tracemalloc.start(); print('up', flush=True); import sys; sys.stdin.readline()";
    for (_, path) in interpreters::all() {
        for (setting, script, base, debug, hooked) in [
            ("pymalloc", WAIT, Base::Pymalloc, false, false),
            ("pymalloc_debug", WAIT, Base::Pymalloc, true, false),
            ("malloc", WAIT, Base::Malloc, false, false),
            ("malloc_debug", WAIT, Base::Malloc, true, false),
            ("pymalloc", trace, Base::Pymalloc, false, true),
        ] {
            let (running, _) = Running::start(&path, script, &[("PYTHONMALLOC", setting)]);
            let python = running.attach();
            let memory = running.memory();
            for domain in [PythonDomain::Mem, PythonDomain::Object] {
                let active = python.active_allocator(domain, &memory).unwrap();
                let active = active.unwrap_or_else(|| panic!("{}", path.display()));
                assert_eq!(
                    (active.base, active.debug, active.hooked),
                    (base, debug, hooked),
                    "{} {setting} {domain:?}",
                    path.display()
                );
            }
            let raw = python
                .active_allocator(PythonDomain::Raw, &memory)
                .unwrap()
                .unwrap();
            assert_eq!(raw.base, Base::Malloc, "{}", path.display());
        }
    }
}
