//! Short names of frames and groups.

use super::report::{Frame, Row};

/// What a stack without frames is called.
pub const UNKNOWN_STACK: &str = "[unknown stack]";

/// What was in use before it was watched.
pub const BEFORE: &str = "[in use before it was watched]";

/// What stands in the place of the frames of a row that has none: why it has none.
pub fn no_frames(row: &Row) -> &'static str {
    if row.key == BEFORE { BEFORE } else { UNKNOWN_STACK }
}

/// The last part of a path; the whole where there is no such part.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

/// The function, or else `module+0x12` where it stands, or else its address.
pub fn frame(frame: &Frame) -> String {
    if let Some(function) = &frame.function {
        return function.clone();
    }
    let module = frame.module.as_deref().map_or("", base_name);
    match frame.address {
        Some(address) if module.is_empty() => format!("{address:#x}"),
        Some(address) => format!("{module}+{address:#x}"),
        None if module.is_empty() => "[unknown]".to_owned(),
        None => module.to_owned(),
    }
}

/// `file:line`, or as much of a place as is known.
pub fn line(of: &Frame) -> String {
    match (&of.file, of.line) {
        (Some(file), Some(line)) => format!("{file}:{line}"),
        (Some(file), None) => file.clone(),
        (None, _) => match (&of.function, &of.module) {
            (Some(function), Some(module)) => format!("{function} [{}]", base_name(module)),
            _ => frame(of),
        },
    }
}

/// The source file, or else the module in brackets.
pub fn file(of: &Frame) -> String {
    match (&of.file, &of.module) {
        (Some(file), _) => file.clone(),
        (None, Some(module)) => format!("[{}]", base_name(module)),
        (None, None) => "[unknown]".to_owned(),
    }
}

pub fn module(of: &Frame) -> String {
    of.module
        .clone()
        .or_else(|| of.file.clone())
        .unwrap_or_else(|| "[unknown]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Frame {
        Frame {
            function: Some("grow".into()),
            file: Some("/src/cache.c".into()),
            line: Some(88),
            module: Some("/usr/lib/libcache.so.1".into()),
            address: Some(0x1234),
            ..Frame::default()
        }
    }

    #[test]
    fn each_label_falls_back_to_the_next_best() {
        let full = known();
        let no_line = Frame {
            line: None,
            ..known()
        };
        let no_file = Frame {
            file: None,
            ..no_line.clone()
        };
        let no_function = Frame {
            function: None,
            ..no_file.clone()
        };
        let no_module = Frame {
            module: None,
            ..no_function.clone()
        };
        let nothing = Frame::default();
        let frames = [&full, &no_line, &no_file, &no_function, &no_module, &nothing];
        assert_eq!(
            frames.map(frame),
            [
                "grow",
                "grow",
                "grow",
                "libcache.so.1+0x1234",
                "0x1234",
                "[unknown]"
            ]
        );
        assert_eq!(
            frames.map(line),
            [
                "/src/cache.c:88",
                "/src/cache.c",
                "grow [libcache.so.1]",
                "libcache.so.1+0x1234",
                "0x1234",
                "[unknown]"
            ]
        );
        assert_eq!(
            frames.map(file),
            [
                "/src/cache.c",
                "/src/cache.c",
                "[libcache.so.1]",
                "[libcache.so.1]",
                "[unknown]",
                "[unknown]"
            ]
        );
        assert_eq!(module(&full), "/usr/lib/libcache.so.1");
    }

    #[test]
    fn base_names_of_odd_paths() {
        assert_eq!(
            ["/a/b", "b", "/", "", "[vdso]"].map(base_name),
            ["b", "b", "/", "", "[vdso]"]
        );
    }
}
