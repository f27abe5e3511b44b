//! How memwatch ends: exit codes, and the one line that says what went wrong and what to do.

use std::error::Error;
use std::fmt;
use std::io;

use super::output::OutputError;
use super::resolve::UsageError;
use crate::model::group::QueryError;
use crate::target::select::SelectError;

/// What the exit status tells a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    Done = 0,
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A limit that the user set was passed.
    LimitPassed = 3,
    /// Not permitted, or the kernel cannot.
    NotPermitted = 4,
    /// No such target, or it ended before anything was seen.
    NoTarget = 5,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error that knows its exit code, and perhaps what the user can do about it.
#[derive(Debug)]
pub struct Failure {
    pub code: ExitCode,
    pub source: anyhow::Error,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: ExitCode, source: impl Into<anyhow::Error>) -> Self {
        Self {
            code,
            source: source.into(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives an error from anywhere its exit code: that of a `Failure` that somebody added context to, else that
    /// of the outermost cause that is known, else [`ExitCode::Failed`].
    pub fn classify(error: anyhow::Error) -> Self {
        let found = error
            .chain()
            .find_map(|cause| match cause.downcast_ref::<Self>() {
                Some(failure) => Some((failure.code, failure.hint.clone())),
                None => KNOWN
                    .iter()
                    .find_map(|code_of| code_of(cause))
                    .map(|code| (code, None)),
            });
        let (code, hint) = found.unwrap_or((ExitCode::Failed, None));
        Self {
            code,
            source: error,
            hint,
        }
    }

    /// The line for stderr, without its end. Never more than one: what the causes say in several is joined.
    pub fn line(&self) -> String {
        let what = one_line(&format!("{:#}", self.source));
        match &self.hint {
            Some(hint) => format!("memwatch: error: {what} ({})", one_line(hint)),
            None => format!("memwatch: error: {what}"),
        }
    }
}

/// The first cause that one of these knows decides. A module whose errors have an exit code of their own adds a
/// line here.
const KNOWN: &[fn(&(dyn Error + 'static)) -> Option<ExitCode>] = &[
    |cause| cause.downcast_ref::<UsageError>().map(|_| ExitCode::Usage),
    |cause| cause.downcast_ref::<QueryError>().map(|_| ExitCode::Usage),
    |cause| cause.downcast_ref::<SelectError>().map(of_selection),
    // Before io::Error: a file that may not be written is no lack of capabilities.
    |cause| cause.downcast_ref::<OutputError>().map(|_| ExitCode::Failed),
    |cause| match cause.downcast_ref::<io::Error>()?.raw_os_error()? {
        libc::EPERM | libc::EACCES => Some(ExitCode::NotPermitted),
        libc::ESRCH => Some(ExitCode::NoTarget),
        _ => None,
    },
];

const fn of_selection(error: &SelectError) -> ExitCode {
    match error {
        SelectError::NoSuchProcess { .. }
        | SelectError::Ended { .. }
        | SelectError::NoMatch { .. }
        | SelectError::NotACgroup { .. } => ExitCode::NoTarget,
        SelectError::KernelThread { .. } | SelectError::NoAccess { .. } => ExitCode::NotPermitted,
        SelectError::ThreadNotProcess { .. }
        | SelectError::OwnProcess { .. }
        | SelectError::BadPattern { .. } => ExitCode::Usage,
        SelectError::Unreadable { .. } => ExitCode::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only the head: whoever prints the chain gets the causes from `source`.
        write!(f, "{}", self.source)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self::new(ExitCode::Usage, error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::new(ExitCode::Failed, error)
    }
}

/// Gives the error of a result its exit code at the place that knows it.
pub trait ResultExt<T> {
    fn or_exit(self, code: ExitCode) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> ResultExt<T> for Result<T, E> {
    fn or_exit(self, code: ExitCode) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, error))
    }
}

/// Whoever read our output has seen enough. That is success.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|e| e.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}

/// Joins lines and makes control characters visible: the text may hold names that a watched process chose.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        for c in part.chars() {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        let codes = [
            ExitCode::Done,
            ExitCode::Failed,
            ExitCode::Usage,
            ExitCode::LimitPassed,
            ExitCode::NotPermitted,
            ExitCode::NoTarget,
        ];
        assert_eq!(codes.map(|code| code as u8), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_line_holds_all_causes_and_the_hint() {
        let cause = io::Error::from_raw_os_error(libc::EPERM);
        let error = anyhow::Error::new(cause).context("cannot load program `malloc_enter`");
        let failure = Failure::classify(error).hint("needs CAP_BPF");
        assert_eq!(failure.code, ExitCode::NotPermitted);
        assert_eq!(
            failure.line(),
            "memwatch: error: cannot load program `malloc_enter`: Operation not permitted (os error 1) (needs CAP_BPF)"
        );
    }

    #[test]
    fn the_line_is_one_line_and_cannot_drive_the_terminal() {
        let failure = Failure::new(ExitCode::Failed, anyhow!("first\n\n  second\u{1b}[31m")).hint("a\nb");
        assert_eq!(failure.line(), "memwatch: error: first second\\u{1b}[31m (a b)");
    }

    #[test]
    fn context_around_a_failure_keeps_its_code_and_hint_and_says_nothing_twice() {
        let inner: Result<(), Failure> =
            Err(anyhow!("root cause").context("pid 7 has ended")).or_exit(ExitCode::NoTarget);
        let error = inner
            .map_err(|failure| failure.hint("look with ps"))
            .context("cannot attach")
            .unwrap_err();
        let failure = Failure::classify(error);
        assert_eq!(failure.code, ExitCode::NoTarget);
        assert_eq!(
            failure.line(),
            "memwatch: error: cannot attach: pid 7 has ended: root cause (look with ps)"
        );
    }

    #[test]
    fn codes_of_known_causes() {
        let code = |error: anyhow::Error| Failure::classify(error).code;
        assert_eq!(
            code(UsageError::NoTarget { command: "top" }.into()),
            ExitCode::Usage
        );
        assert_eq!(
            code(io::Error::from_raw_os_error(libc::ESRCH).into()),
            ExitCode::NoTarget
        );
        assert_eq!(
            code(io::Error::from_raw_os_error(libc::EACCES).into()),
            ExitCode::NotPermitted
        );
        assert_eq!(
            code(io::Error::from_raw_os_error(libc::ENOSPC).into()),
            ExitCode::Failed
        );
        assert_eq!(code(anyhow!("anything")), ExitCode::Failed);
    }

    #[test]
    fn a_file_that_may_not_be_written_is_no_lack_of_capabilities() {
        let error = OutputError::Open {
            path: "/x".into(),
            cause: io::Error::from_raw_os_error(libc::EACCES),
        };
        assert_eq!(Failure::classify(error.into()).code, ExitCode::Failed);
    }

    #[test]
    fn a_closed_pipe_is_found_below_context_and_inside_json_errors() {
        struct Closed;
        impl io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let plain = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot print");
        assert!(is_broken_pipe(&plain));
        assert!(is_broken_pipe(
            &serde_json::to_writer(Closed, "x").unwrap_err().into()
        ));
        assert!(!is_broken_pipe(&anyhow::Error::new(io::Error::from(
            io::ErrorKind::WriteZero
        ))));
    }
}
