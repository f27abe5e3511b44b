//! Names as people see them: of frames, modules and processes. All of them come from watched processes and
//! their files, so none is trusted: nothing in a name can move the cursor or end the line.

use std::borrow::Cow;
use std::fmt::Write;

use crate::model::report::{Frame, FrameKind};

/// Templates of C++ and generics of Rust reach thousands of characters; both ends tell what it is.
const MOST_CHARS: usize = 240;

/// `function (file:line)` for Python, `function+0x12 (file:line) [module]` for native code, `0x1234 [module]`
/// where no name is known.
pub fn frame(frame: &Frame) -> String {
    let mut text = String::new();
    let place = place(frame);
    let offset = frame.offset.filter(|_| frame.kind != FrameKind::Python);
    match (&frame.function, frame.address) {
        (Some(function), _) => {
            text.push_str(&clean(function));
            if let Some(offset) = offset {
                let _ = write!(text, "+{offset:#x}");
            }
        }
        (None, Some(address)) if frame.kind != FrameKind::Python => {
            let _ = write!(text, "{address:#x}");
        }
        (None, _) => text.push('?'),
    }
    if let Some(place) = place {
        let _ = write!(text, " ({place})");
    }
    match frame.kind {
        FrameKind::Python => {}
        FrameKind::Kernel => text.push_str(" [kernel]"),
        FrameKind::Native => match &frame.module {
            Some(path) => {
                let _ = write!(text, " [{}]", module(path));
            }
            // With a function's name there was a file to find it in; without, say that nothing is known.
            None if frame.function.is_none() => text.push_str(" [unknown]"),
            None => {}
        },
    }
    if frame.inlined {
        text.push_str(" [inlined]");
    }
    text
}

fn place(frame: &Frame) -> Option<String> {
    let file = clean(frame.file.as_deref()?);
    Some(match frame.line {
        Some(line) => format!("{file}:{line}"),
        None => file.into_owned(),
    })
}

/// The file's name without its folders: `libc.so.6`, `vdso`.
pub fn module(path: &str) -> Cow<'_, str> {
    let name = path
        .rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or(path);
    clean(
        name.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(name),
    )
}

/// Makes control characters visible and shortens what is very long in the middle.
pub fn clean(name: &str) -> Cow<'_, str> {
    let chars = name.chars().count();
    if chars <= MOST_CHARS && !name.chars().any(is_unsafe) {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len().min(MOST_CHARS * 4));
    let tail = MOST_CHARS / 3;
    let head = MOST_CHARS - tail - 1;
    for (index, c) in name.chars().enumerate() {
        if chars > MOST_CHARS && index >= head && index < chars - tail {
            if index == head {
                text.push('…');
            }
        } else if is_unsafe(c) {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    Cow::Owned(text)
}

/// Control characters, line ends of Unicode, and marks that turn the direction of the text after them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn native() -> Frame {
        Frame {
            function: Some("grow".to_owned()),
            offset: Some(0x12),
            file: Some("src/cache.c".to_owned()),
            line: Some(88),
            module: Some("/usr/lib/libcache.so.1".to_owned()),
            address: Some(0x1234),
            ..Frame::default()
        }
    }

    #[test]
    fn native_frames() {
        assert_eq!(frame(&native()), "grow+0x12 (src/cache.c:88) [libcache.so.1]");
        assert_eq!(
            frame(&Frame {
                line: None,
                ..native()
            }),
            "grow+0x12 (src/cache.c) [libcache.so.1]"
        );
        assert_eq!(
            frame(&Frame {
                file: None,
                ..native()
            }),
            "grow+0x12 [libcache.so.1]"
        );
        assert_eq!(
            frame(&Frame {
                file: None,
                module: None,
                ..native()
            }),
            "grow+0x12"
        );
        assert_eq!(
            frame(&Frame {
                offset: None,
                inlined: true,
                ..native()
            }),
            "grow (src/cache.c:88) [libcache.so.1] [inlined]"
        );
    }

    #[test]
    fn frames_without_a_name() {
        let unnamed = Frame {
            function: None,
            file: None,
            ..native()
        };
        assert_eq!(frame(&unnamed), "0x1234 [libcache.so.1]");
        assert_eq!(
            frame(&Frame {
                module: None,
                ..unnamed.clone()
            }),
            "0x1234 [unknown]"
        );
        assert_eq!(
            frame(&Frame {
                address: None,
                module: None,
                ..unnamed
            }),
            "? [unknown]"
        );
    }

    #[test]
    fn python_and_kernel_frames() {
        let python = Frame {
            kind: FrameKind::Python,
            ..native()
        };
        assert_eq!(frame(&python), "grow (src/cache.c:88)");
        assert_eq!(
            frame(&Frame {
                function: None,
                ..python
            }),
            "? (src/cache.c:88)"
        );
        assert_eq!(
            frame(&Frame {
                kind: FrameKind::Kernel,
                file: None,
                ..native()
            }),
            "grow+0x12 [kernel]"
        );
    }

    #[test]
    fn modules_are_named_by_their_file() {
        for (path, name) in [
            ("/usr/lib/libc.so.6", "libc.so.6"),
            ("[vdso]", "vdso"),
            ("/memfd:jit (deleted)", "memfd:jit (deleted)"),
            ("a.out", "a.out"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(module(path), name);
        }
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(clean("a\x1b[2J\nb\u{202e}c"), "a\\u{1b}[2J\\nb\\u{202e}c");
        assert_eq!(clean("größe_キャッシュ"), "größe_キャッシュ");
    }

    #[test]
    fn a_long_name_keeps_both_ends() {
        let name = format!("std::map<{}>::insert", "x".repeat(5000));
        let short = clean(&name);
        assert_eq!(short.chars().count(), MOST_CHARS);
        assert!(short.starts_with("std::map<xx") && short.ends_with("xx>::insert") && short.contains('…'));
    }

    proptest! {
        #[test]
        fn what_comes_out_is_one_line(name in "\\PC*|[\\x00-\\x1f\\u{2028}]*|.{0,400}") {
            prop_assert!(!clean(&name).chars().any(is_unsafe));
        }
    }
}
