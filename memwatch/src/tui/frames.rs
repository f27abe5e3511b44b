//! Which frames of a stack tell the most, and how to call them in little room.

use std::sync::Arc;

use crate::{
    model::{
        label::base_name,
        plumbing,
        report::{Frame, FrameKind},
    },
    tui::text::clean,
};

/// The standard libraries, by how the name begins: more than passes allocations on, but never the user's own.
const STANDARD: &[&str] = &["alloc::", "core::", "std::", "hashbrown::", "__gnu_cxx::"];

/// The frames worth a place in one line, innermost first: without allocation functions and standard
/// containers and, as soon as the stack has Python frames, without the insides of the interpreter. When
/// nothing is left, all.
pub fn interesting(frames: &[Arc<Frame>]) -> Vec<&Frame> {
    let has_python = frames.iter().any(|frame| frame.kind == FrameKind::Python);
    let mut telling: Vec<&Frame> = frames
        .iter()
        .map(Arc::as_ref)
        .filter(|frame| is_telling(frame, has_python))
        .collect();
    if has_python {
        // Of an extension without symbols one frame says all that there is to say.
        telling.dedup_by(|a, b| a.function.is_none() && b.function.is_none() && a.module == b.module);
    }
    if telling.is_empty() {
        frames.iter().map(Arc::as_ref).collect()
    } else {
        telling
    }
}

fn is_telling(frame: &Frame, has_python: bool) -> bool {
    if frame.kind == FrameKind::Python {
        return frame.function.is_some();
    }
    let Some(function) = frame.function.as_deref() else {
        // Of a program without symbols the place in its file is all there is.
        return frame.module.is_some() && !(has_python && is_interpreter(frame, ""));
    };
    let unwrapped = function.strip_prefix('<').unwrap_or(function);
    if plumbing::is_plumbing(frame) || STANDARD.iter().any(|prefix| unwrapped.starts_with(prefix)) {
        return false;
    }
    !(has_python && is_interpreter(frame, function))
}

fn is_interpreter(frame: &Frame, function: &str) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    let name = function.trim_start_matches('_');
    module.starts_with("libpython") || module.starts_with("python") || name.starts_with("Py")
}

/// `load (cache.py:88)` for Python, `std::vector<…>::push_back` for the rest.
pub fn short(frame: &Frame) -> String {
    let Some(function) = frame.function.as_deref() else {
        return extension(frame).unwrap_or_else(|| unnamed(frame));
    };
    if frame.kind != FrameKind::Python {
        return clean(&short_function(function)).into_owned();
    }
    match place(frame, true) {
        Some(place) => format!("{} ({place})", clean(function)),
        None => clean(function).into_owned(),
    }
}

/// An extension module of Python, by the name under which it is imported: `_json` for
/// `_json.cpython-311-x86_64-linux-gnu.so`.
fn extension(frame: &Frame) -> Option<String> {
    let (name, _) = base_name(frame.module.as_deref()?).split_once(".cpython-")?;
    Some(clean(name).into_owned())
}

/// A frame without a function: `libfoo.so+0x1f2e`.
fn unnamed(frame: &Frame) -> String {
    let module = frame
        .module
        .as_deref()
        .map_or("?".into(), |module| clean(base_name(module)));
    match frame.address {
        Some(address) => format!("{module}+{address:#x}"),
        None => module.into_owned(),
    }
}

/// The function as the detail pane shows it: whole, with the offset in native code.
pub fn long(frame: &Frame) -> String {
    match (frame.function.as_deref(), frame.offset) {
        (None, _) => unnamed(frame),
        (Some(function), Some(offset)) if frame.kind != FrameKind::Python && offset > 0 => {
            format!("{}+{offset:#x}", clean(function))
        }
        (Some(function), _) => clean(function).into_owned(),
    }
}

/// `file:line`, with the whole path or only its last part.
pub fn place(frame: &Frame, last_part: bool) -> Option<String> {
    let file = frame.file.as_deref()?;
    let file = clean(if last_part { base_name(file) } else { file });
    Some(match frame.line {
        Some(line) => format!("{file}:{line}"),
        None => file.into_owned(),
    })
}

/// A demangled name without its argument list and with `<…>` for template arguments. Whatever does not look
/// like a well-formed name stays as it is.
pub fn short_function(name: &str) -> String {
    collapse_generics(without_arguments(name)).unwrap_or_else(|| name.to_owned())
}

fn without_arguments(name: &str) -> &str {
    let whole = name;
    let name = name.strip_suffix(" const").unwrap_or(name);
    if !name.ends_with(')') {
        return whole;
    }
    let mut depth = 0_usize;
    for (at, c) in name.char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' if depth == 1 => {
                return match &name[..at] {
                    "" => whole,
                    head if head.ends_with("operator") => name,
                    head => head,
                };
            }
            '(' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    whole
}

/// `a<b<c>>::d` -> `a<…>::d`; `<a<b> as c>::d` keeps its first level, where Rust puts the type. None when
/// brackets do not match.
fn collapse_generics(name: &str) -> Option<String> {
    let outer = usize::from(name.starts_with('<'));
    let mut depth = 0_usize;
    let mut short = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        let before = &name[..at];
        match c {
            '<' | '>' if is_operator(before, c) && depth <= outer => short.push(c),
            '<' | '>' if is_operator(before, c) => {}
            '<' => {
                depth += 1;
                match depth {
                    _ if depth <= outer => short.push(c),
                    _ if depth == outer + 1 => short.push_str("<…"),
                    _ => {}
                }
            }
            '>' => {
                depth = depth.checked_sub(1)?;
                if depth <= outer {
                    short.push(c);
                }
            }
            _ if depth <= outer => short.push(c),
            _ => {}
        }
    }
    (depth == 0).then_some(short)
}

/// Whether the bracket after `before` belongs to an operator's name or an arrow.
fn is_operator(before: &str, bracket: char) -> bool {
    let name = before.trim_end_matches(['<', '>', '-', '=']);
    name.ends_with("operator") || (bracket == '>' && before.ends_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native(function: &str) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            offset: Some(0x12),
            module: Some("/usr/lib/libapp.so".to_owned()),
            address: Some(0x1f2e),
            ..Frame::default()
        }
    }

    fn python(function: &str, file: &str, line: u32) -> Frame {
        Frame {
            kind: FrameKind::Python,
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            line: Some(line),
            ..Frame::default()
        }
    }

    fn names(frames: &[Frame]) -> Vec<String> {
        interesting(&Frame::shared(frames.iter().cloned()))
            .into_iter()
            .map(short)
            .collect()
    }

    #[test]
    fn allocation_functions_and_the_interpreter_give_way_to_the_program() {
        let mixed = [
            native("malloc"),
            native("_PyObject_Malloc"),
            native("PyDict_SetItem"),
            python("load", "/srv/app/cache.py", 88),
            native("_PyEval_EvalFrameDefault"),
            python("main", "/srv/app/main.py", 3),
        ];
        assert_eq!(names(&mixed), ["load (cache.py:88)", "main (main.py:3)"]);
        let rust = [
            native("__rust_alloc"),
            native("alloc::raw_vec::finish_grow"),
            native("app::parse"),
        ];
        assert_eq!(names(&rust), ["app::parse"]);
    }

    #[test]
    fn containers_of_the_standard_libraries_give_way_to_their_users() {
        let cxx = [
            native("std::vector<int>::push_back(int&&)"),
            native("Basket::add(int)"),
        ];
        assert_eq!(names(&cxx), ["Basket::add"]);
        let rust = [
            native("<alloc::vec::Vec<T> as core::iter::Extend<T>>::extend"),
            native("app::read"),
        ];
        assert_eq!(names(&rust), ["app::read"]);
    }

    #[test]
    fn a_program_without_symbols_shows_places_in_its_file() {
        let unknown = Frame {
            function: None,
            ..native("")
        };
        assert_eq!(
            names(&[native("malloc"), unknown, native("main")]),
            ["libapp.so+0x1f2e", "main"]
        );
    }

    #[test]
    fn an_extension_of_python_without_symbols_is_one_frame() {
        let inside = |address| Frame {
            function: None,
            module: Some("/usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so".to_owned()),
            address: Some(address),
            ..native("")
        };
        let stack = [
            native("malloc"),
            inside(0x6230),
            inside(0x5caf),
            python("raw_decode", "/usr/lib/python3.11/json/decoder.py", 353),
        ];
        assert_eq!(names(&stack), ["_json", "raw_decode (decoder.py:353)"]);
    }

    #[test]
    fn a_stack_of_nothing_but_allocation_functions_still_shows_them() {
        assert_eq!(names(&[native("malloc"), native("calloc")]), ["malloc", "calloc"]);
        assert_eq!(names(&[Frame::default()]), ["?"]);
    }

    #[test]
    fn template_arguments_and_argument_lists_are_left_out() {
        let cases = [
            (
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
                "std::vector<…>::push_back",
            ),
            ("Foo::bar() const", "Foo::bar"),
            ("Foo::operator()(int) const", "Foo::operator()"),
            ("Foo::operator()", "Foo::operator()"),
            ("(anonymous namespace)::run(int)", "(anonymous namespace)::run"),
            ("ns::operator<<(std::ostream&, X<int>)", "ns::operator<<"),
            ("A<int>::operator->()", "A<…>::operator->"),
            (
                "<alloc::vec::Vec<T> as core::iter::Extend<T>>::extend",
                "<alloc::vec::Vec<…> as core::iter::Extend<…>>::extend",
            ),
            (
                "core::ops::FnOnce<fn(u8) -> Vec<u8>>::call",
                "core::ops::FnOnce<…>::call",
            ),
            ("odd>name", "odd>name"),
            ("(whole)", "(whole)"),
            ("plain", "plain"),
        ];
        for (name, expected) in cases {
            assert_eq!(short_function(name), expected);
        }
    }

    #[test]
    fn details_show_the_whole_name_and_place() {
        assert_eq!(long(&native("f(int)")), "f(int)+0x12");
        assert_eq!(long(&python("load", "/srv/app/cache.py", 88)), "load");
        assert_eq!(
            place(&python("load", "/srv/app/cache.py", 88), false).as_deref(),
            Some("/srv/app/cache.py:88")
        );
        assert_eq!(place(&native("f"), true), None);
    }

    #[test]
    fn names_from_hostile_programs_are_made_harmless() {
        assert_eq!(short(&native("evil\x1b[2J")), "evil�[2J");
        assert_eq!(short(&python("e\x07", "/x/\u{202e}y.py", 1)), "e� (�y.py:1)");
    }
}
