//! Suppressions as LeakSanitizer reads them: stacks that are known and accepted.

use std::sync::Arc;

use super::report::Frame;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSuppression {
    #[error("line {line} `{text}` is not `leak:PATTERN`")]
    Form { line: usize, text: String },
    #[error("line {line} has no pattern after `leak:`")]
    Empty { line: usize },
}

/// The lines of a file, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    patterns: Vec<Pattern>,
}

impl Suppressions {
    /// `leak:PATTERN` lines; empty lines and those that begin with `#` say nothing. Lines for the other sanitizers
    /// (`race:`, `vptr:`) may be in the same file and are passed over.
    pub fn parse(text: &str) -> Result<Self, BadSuppression> {
        let mut patterns = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let (line, text) = (index + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let Some((kind, pattern)) = text.split_once(':') else {
                return Err(BadSuppression::Form {
                    line,
                    text: text.to_owned(),
                });
            };
            if kind != "leak" {
                continue;
            }
            if pattern.trim_matches(['*', '^', '$']).is_empty() {
                return Err(BadSuppression::Empty { line });
            }
            patterns.push(Pattern::new(pattern));
        }
        Ok(Self { patterns })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| pattern.text.as_str())
    }

    /// The first pattern that any frame of the stack matches.
    pub fn find(&self, frames: &[Arc<Frame>]) -> Option<usize> {
        self.patterns
            .iter()
            .position(|pattern| frames.iter().any(|frame| pattern.matches_frame(frame)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    /// What has to come one after the other.
    parts: Vec<String>,
    at_start: bool,
    at_end: bool,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let inner = text.strip_prefix('^').unwrap_or(text);
        let bare = inner.strip_suffix('$').unwrap_or(inner);
        Self {
            text: text.to_owned(),
            parts: bare.split('*').map(str::to_owned).collect(),
            at_start: text.starts_with('^'),
            at_end: inner.ends_with('$'),
        }
    }

    fn matches_frame(&self, frame: &Frame) -> bool {
        [&frame.function, &frame.file, &frame.module]
            .into_iter()
            .flatten()
            .any(|name| self.matches(name))
    }

    fn matches(&self, name: &str) -> bool {
        let last = self.parts.len() - 1;
        let mut rest = name;
        for (index, part) in self.parts.iter().enumerate() {
            if index == 0 && self.at_start {
                let Some(after) = rest.strip_prefix(part.as_str()) else {
                    return false;
                };
                rest = after;
            } else if index < last || !self.at_end {
                let Some(place) = rest.find(part.as_str()) else {
                    return false;
                };
                rest = &rest[place + part.len()..];
            }
            if index == last && self.at_end {
                return if index == 0 && self.at_start {
                    rest.is_empty()
                } else {
                    rest.ends_with(part.as_str())
                };
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).matches(name)
    }

    #[test]
    fn a_pattern_is_found_anywhere_unless_it_is_anchored() {
        for (pattern, name, expected) in [
            ("grow", "cache_grow_more", true),
            ("grow", "shrink", false),
            ("^grow", "cache_grow", false),
            ("^cache", "cache_grow", true),
            ("grow$", "cache_grow", true),
            ("grow$", "cache_grow_more", false),
            ("^cache_grow$", "cache_grow", true),
            ("^cache_grow$", "cache_grow2", false),
            ("cache*more", "my_cache_grow_more_2", true),
            ("more*cache", "cache_more", false),
            ("^c*e$", "cache", true),
            ("^c*e$", "caches", false),
            ("lib*.so", "/usr/lib/libssl.so.3", true),
            ("a*a", "a", false),
            ("a*a$", "a", false),
            ("^a*a$", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn any_name_of_any_frame_counts_and_the_first_pattern_wins() {
        let suppressions =
            Suppressions::parse("# known\n\nleak:libfoo.so\nrace:x\n leak:cache.c \n").unwrap();
        assert_eq!(
            suppressions.patterns().collect::<Vec<_>>(),
            ["libfoo.so", "cache.c"]
        );
        let frame = |module: &str, file: &str| Frame {
            module: Some(module.to_owned()),
            file: Some(file.to_owned()),
            ..Frame::default()
        };
        let stack = Frame::shared([frame("/bin/app", "main.c"), frame("/lib/libfoo.so.1", "cache.c")]);
        assert_eq!(suppressions.find(&stack), Some(0));
        assert_eq!(
            suppressions.find(&Frame::shared([frame("/bin/app", "src/cache.c")])),
            Some(1)
        );
        assert_eq!(suppressions.find(&stack[..1]), None);
        assert_eq!(suppressions.find(&[]), None);
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        assert_eq!(
            Suppressions::parse("leak:a\nmalloc").unwrap_err().to_string(),
            "line 2 `malloc` is not `leak:PATTERN`"
        );
        assert_eq!(
            Suppressions::parse("leak:*").unwrap_err(),
            BadSuppression::Empty { line: 1 }
        );
    }

    proptest! {
        #[test]
        fn any_file_is_answered_and_what_is_read_can_be_asked(text in "(leak:)?[\\^a-c*$é:\n]{0,20}", name in "[a-cé]{0,8}") {
            if let Ok(suppressions) = Suppressions::parse(&text) {
                let frame = Frame { function: Some(name), ..Frame::default() };
                let _ = suppressions.find(&Frame::shared([frame]));
            }
        }
    }
}
