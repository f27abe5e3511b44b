//! `--include` and `--exclude`: globs over the files, functions and modules of a stack.

use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::label::base_name;
use super::query::Query;
use super::report::Frame;

#[derive(Debug, thiserror::Error)]
#[error("cannot use the pattern `{pattern}`: {reason}")]
pub struct BadGlob {
    pub pattern: String,
    pub reason: String,
}

/// The patterns of one option.
#[derive(Clone, Debug)]
struct Patterns {
    functions: GlobSet,
    /// For paths a pattern also matches behind any folder: `cache.py` and `app/*.py` need no leading `*/`.
    paths: GlobSet,
}

impl Patterns {
    fn new(patterns: &[String]) -> Result<Self, BadGlob> {
        let (mut functions, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let bad = |error: globset::Error| BadGlob {
                pattern: pattern.clone(),
                reason: error.kind().to_string(),
            };
            functions.add(Glob::new(pattern).map_err(bad)?);
            paths.add(Glob::new(pattern).map_err(bad)?);
            if !pattern.starts_with(['/', '*']) {
                paths.add(Glob::new(&format!("*/{pattern}")).map_err(bad)?);
            }
        }
        let all = || patterns.join(", ");
        let bad = |error: globset::Error| BadGlob {
            pattern: all(),
            reason: error.kind().to_string(),
        };
        Ok(Self {
            functions: functions.build().map_err(bad)?,
            paths: paths.build().map_err(bad)?,
        })
    }

    fn matches(&self, frame: &Frame) -> bool {
        let is_path = |path: &Option<String>| path.as_ref().is_some_and(|path| self.paths.is_match(path));
        frame.function.as_ref().is_some_and(|function| self.functions.is_match(function))
            || is_path(&frame.file)
            || is_path(&frame.module)
            // [vdso] and the like have brackets, which a glob reads as a set of letters.
            || frame.module.as_ref().is_some_and(|module| self.functions.is_match(base_name(module).trim_matches(['[', ']'])))
    }
}

/// Which stacks are wanted.
#[derive(Clone, Debug)]
pub struct Filter {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

impl Filter {
    pub fn new(query: &Query) -> Result<Self, BadGlob> {
        let some = |list: &Vec<String>| (!list.is_empty()).then(|| Patterns::new(list)).transpose();
        Ok(Self {
            include: some(&query.include)?,
            exclude: some(&query.exclude)?,
        })
    }

    /// Whether names make a difference at all.
    pub fn is_active(&self) -> bool {
        self.include.is_some() || self.exclude.is_some()
    }

    pub fn wants(&self, frames: &[Arc<Frame>]) -> bool {
        let any = |patterns: &Patterns| frames.iter().any(|frame| patterns.matches(frame));
        self.include.as_ref().is_none_or(any) && !self.exclude.as_ref().is_some_and(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> Vec<Frame> {
        let frame = |function: &str, file: Option<&str>, module: &str| Frame {
            function: Some(function.into()),
            file: file.map(Into::into),
            module: Some(module.into()),
            ..Frame::default()
        };
        vec![
            frame("malloc", None, "/usr/lib/x86_64-linux-gnu/libc.so.6"),
            frame("cache::grow", Some("/srv/app/cache.cc"), "/srv/bin/server"),
            frame("main", Some("/srv/app/main.cc"), "/srv/bin/server"),
        ]
    }

    fn wants(include: &[&str], exclude: &[&str]) -> bool {
        let own = |list: &[&str]| list.iter().map(|pattern| (*pattern).to_owned()).collect();
        let query = Query {
            include: own(include),
            exclude: own(exclude),
            ..Query::default()
        };
        Filter::new(&query).unwrap().wants(&Frame::shared(stack()))
    }

    #[test]
    fn a_pattern_matches_function_file_or_module_of_any_frame() {
        for pattern in [
            "cache::*",
            "main",
            "libc.so*",
            "app/*.cc",
            "/srv/app/*",
            "cache.cc",
            "*server",
            "mai?",
        ] {
            assert!(wants(&[pattern], &[]), "{pattern}");
            assert!(!wants(&[], &[pattern]), "{pattern}");
        }
        for pattern in ["cache", "app/*.py", "/app/*", "srv", "CACHE.CC"] {
            assert!(!wants(&[pattern], &[]), "{pattern}");
            assert!(wants(&[], &[pattern]), "{pattern}");
        }
    }

    #[test]
    fn one_include_is_enough_and_one_exclude_is_too_many() {
        assert!(wants(&["nothing", "main"], &[]));
        assert!(!wants(&["main"], &["nothing", "malloc"]));
        assert!(wants(&[], &[]));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let query = Query {
            exclude: vec!["a[".into()],
            ..Query::default()
        };
        let error = Filter::new(&query).unwrap_err().to_string();
        assert!(error.starts_with("cannot use the pattern `a[`: "), "{error}");
    }

    #[test]
    fn a_stack_without_frames_is_only_wanted_when_nothing_must_match() {
        let query = |include: &[&str]| Query {
            include: include.iter().map(|p| (*p).to_owned()).collect(),
            exclude: vec!["x".into()],
            ..Query::default()
        };
        assert!(Filter::new(&query(&[])).unwrap().wants(&[]));
        assert!(!Filter::new(&query(&["*"])).unwrap().wants(&[]));
    }
}
