//! The arguments made complete: every default filled in, every contradiction found. Looks at nothing but the
//! arguments, so the same command line means the same everywhere.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use self::parts::{DEFAULT_INTERVAL, bounds, known_to_this_version, output, query, select, target, time};
use super::args::{
    BenchFloorArgs, Cli, CommandArgs, DiffArgs, DoctorArgs, LimitArgs, PsArgs, QueryArgs, RecordArgs,
    TopArgs, WatchArgs,
};
use super::output::Destination;
use crate::format::{self, ByteFormat};
use crate::model::query::{Query, SortBy};
use crate::probe::links::Method;
use crate::watch::start::{PythonMode, ScopeChoice};

mod parts;
mod recorded;
mod saved;

pub use recorded::Span;
pub use saved::{ExportSpec, ReportFormat, ReportSpec, SourceSpec};

/// A command line that is wrong: what is wrong with it and what to do instead. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("{message}; see `memwatch --help`")]
    Syntax { message: String },
    #[error(
        "`memwatch {command}` needs to know what to watch: give one of --pid, --comm, --cgroup, --all, or -- COMMAND"
    )]
    NoTarget { command: &'static str },
    #[error("`memwatch record` needs to know where to: give --output FILE")]
    NoFile,
    #[error(
        "`memwatch {command}` needs to know on what: give a file of `memwatch record`, or a target (--pid, --comm, --cgroup, --all, or -- COMMAND)"
    )]
    NoSource { command: &'static str },
    #[error("{first} and {second} cannot be used together: {advice}")]
    Conflict {
        first: &'static str,
        second: &'static str,
        advice: &'static str,
    },
    #[error("{what} is not in this version: {advice}")]
    NotInThisVersion { what: String, advice: &'static str },
    #[error("{option} `{value}` cannot be used: {reason}")]
    Value {
        option: &'static str,
        value: String,
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Top,
    Diff {
        /// How long after the start the baseline is taken; zero: tick 0.
        baseline: Duration,
    },
    Record {
        /// The file's size from which on it is thinned.
        most_bytes: u64,
    },
    /// A recording: what was known at one time, or at each of several.
    TopFile {
        path: PathBuf,
        span: Span,
    },
    /// What changed within a recording.
    DiffFile {
        path: PathBuf,
        span: Span,
    },
    /// What is different at the ends of two recordings.
    DiffFiles {
        old: PathBuf,
        new: PathBuf,
    },
    Report(ReportSpec),
    Export(ExportSpec),
    Ps,
    Doctor {
        /// Load every kernel program.
        verify: bool,
    },
    /// Probes that do nothing, for measuring.
    BenchFloor,
    /// Unwind tables of these files, for measuring.
    BenchTables {
        files: Vec<PathBuf>,
        rounds: usize,
    },
}

impl Command {
    const fn has_screen(&self) -> bool {
        match self {
            Self::Top | Self::Diff { .. } | Self::DiffFile { .. } => true,
            // Every tick was asked for, one after the other.
            Self::TopFile { span, .. } => span.from.is_none(),
            _ => false,
        }
    }
}

/// Which processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// In the order in which they were given, each once.
    Pids(Vec<u32>),
    /// A glob that compiles.
    Comm(String),
    Cgroup(PathBuf),
    All,
    /// Never empty.
    Command(Vec<OsString>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

impl ColorChoice {
    /// `no_color`: the environment variable `NO_COLOR` is set and not empty, or the terminal is a dumb one.
    pub const fn enabled(self, to_terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Auto => to_terminal && !no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
    Debug,
}

/// What views of [`Command::Top`] and [`Command::Diff`] look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    Full,
    Blocks(Format),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// As asked for.
    pub format: Option<Format>,
    pub destination: Destination,
    pub bytes: ByteFormat,
    pub color: ColorChoice,
    pub verbosity: Verbosity,
}

/// Bounds on what is kept in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_blocks: u32,
    pub max_blocks_per_process: u32,
    pub max_sites: u32,
    pub max_stacks: u32,
    pub max_processes: u32,
    pub max_unwind_rows: u32,
    pub max_depth: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub command: Command,
    /// Always there for `top` and `diff`.
    pub target: Option<TargetSpec>,
    pub follow: bool,
    pub interval: Duration,
    pub duration: Option<Duration>,
    /// Ticks after tick 0.
    pub ticks: Option<u64>,
    pub query: Query,
    pub limits: Limits,
    pub fail_on_growth: Option<u64>,
    pub scope: ScopeChoice,
    pub method: Method,
    pub python: PythonMode,
    pub force: bool,
    /// Unwind tables are kept between runs.
    pub cache: bool,
    pub output: OutputSpec,
}

impl Resolved {
    pub fn screen(&self, stdout_is_terminal: bool) -> Screen {
        match self.output.format {
            Some(format) => Screen::Blocks(format),
            None if stdout_is_terminal
                && self.output.destination == Destination::Stdout
                && self.ticks != Some(1)
                && self.command.has_screen() =>
            {
                Screen::Full
            }
            None => Screen::Blocks(Format::Text),
        }
    }
}

pub fn resolve(cli: Cli) -> Result<Resolved, UsageError> {
    match cli.command {
        None => watch("top", Command::Top, cli.top),
        Some(CommandArgs::Top(arguments)) => top(arguments),
        Some(CommandArgs::Diff(arguments)) => diff(arguments),
        Some(CommandArgs::Record(arguments)) => record(arguments),
        Some(CommandArgs::Report(arguments)) => saved::report(arguments),
        Some(CommandArgs::Export(arguments)) => saved::export(arguments),
        Some(CommandArgs::Ps(arguments)) => ps(arguments),
        Some(CommandArgs::Doctor(arguments)) => doctor(arguments),
        Some(CommandArgs::BenchFloor(arguments)) => bench_floor(&arguments),
        Some(CommandArgs::BenchTables(arguments)) => Ok(Resolved {
            command: Command::BenchTables {
                files: arguments.files,
                rounds: arguments.rounds,
            },
            ..doctor(DoctorArgs::default())?
        }),
    }
}

fn top(arguments: TopArgs) -> Result<Resolved, UsageError> {
    if let Some(path) = arguments.file {
        return recorded::top(path, arguments.span, arguments.watch);
    }
    recorded::no_span(&arguments.span)?;
    watch("top", Command::Top, arguments.watch)
}

fn record(arguments: RecordArgs) -> Result<Resolved, UsageError> {
    let most_bytes = recorded::most_bytes(arguments.max_file_size)?;
    if arguments.output.output.is_none() {
        return Err(UsageError::NoFile);
    }
    if let Some(format) = arguments.output.format {
        return Err(UsageError::Value {
            option: "--format",
            value: format,
            reason: "a recording has its own form; `memwatch top FILE` and the like print it".to_owned(),
        });
    }
    let arguments = WatchArgs {
        target: arguments.target,
        time: arguments.time,
        query: QueryArgs {
            min_size: arguments.min_size,
            max_size: arguments.max_size,
            ..QueryArgs::default()
        },
        limits: arguments.limits,
        output: arguments.output,
        python: arguments.python,
        other: arguments.other,
    };
    watch("record", Command::Record { most_bytes }, arguments)
}

fn diff(mut arguments: DiffArgs) -> Result<Resolved, UsageError> {
    // As tracemalloc's compare_to: what changed most comes first.
    arguments.watch.query.sort.get_or_insert(SortBy::Difference);
    if !arguments.files.is_empty() {
        return recorded::diff(arguments);
    }
    recorded::no_span(&arguments.span)?;
    let baseline = arguments.baseline.unwrap_or_default();
    if let Some(duration) = arguments.watch.time.duration
        && baseline >= duration
    {
        return Err(UsageError::Value {
            option: "--baseline",
            value: format::duration(baseline),
            reason: format!(
                "the watch ends after --duration {}, before it",
                format::duration(duration)
            ),
        });
    }
    watch("diff", Command::Diff { baseline }, arguments.watch)
}

fn watch(name: &'static str, command: Command, arguments: WatchArgs) -> Result<Resolved, UsageError> {
    known_to_this_version(&arguments.other)?;
    let follow = !arguments.target.no_follow;
    let scope = arguments.target.probe_scope.unwrap_or_default();
    let method = arguments.target.probe_method.unwrap_or_default();
    let target = target(arguments.target)?.ok_or(UsageError::NoTarget { command: name })?;
    let (interval, duration, ticks) = time(&arguments.time)?;
    Ok(Resolved {
        follow,
        interval,
        duration,
        ticks,
        query: query(arguments.query)?,
        limits: bounds(&arguments.limits, &target)?,
        fail_on_growth: arguments.limits.fail_on_growth,
        scope,
        method,
        python: arguments.python.mode.unwrap_or_default(),
        force: arguments.python.force,
        cache: !arguments.limits.no_cache,
        output: output(name, arguments.output)?,
        target: Some(target),
        command,
    })
}

fn ps(arguments: PsArgs) -> Result<Resolved, UsageError> {
    let (interval, duration, ticks) = time(&arguments.time)?;
    // Growth needs two looks; more only when asked for.
    let ticks = ticks.or_else(|| duration.is_none().then_some(1));
    Ok(Resolved {
        command: Command::Ps,
        follow: false,
        interval,
        duration,
        ticks,
        query: Query {
            limit: arguments.limit.unwrap_or(usize::MAX),
            ..Query::default()
        },
        limits: bounds(&LimitArgs::default(), &TargetSpec::All)?,
        fail_on_growth: None,
        scope: ScopeChoice::default(),
        method: Method::default(),
        python: PythonMode::default(),
        force: false,
        cache: false,
        output: output("ps", arguments.output)?,
        target: select(arguments.target)?.map(|(_, spec)| spec),
    })
}

fn bench_floor(arguments: &BenchFloorArgs) -> Result<Resolved, UsageError> {
    let doctor = doctor(DoctorArgs::default())?;
    Ok(Resolved {
        command: Command::BenchFloor,
        target: Some(TargetSpec::Pids(vec![arguments.pid])),
        ..doctor
    })
}

fn doctor(arguments: DoctorArgs) -> Result<Resolved, UsageError> {
    Ok(Resolved {
        command: Command::Doctor {
            verify: arguments.verify,
        },
        follow: false,
        interval: DEFAULT_INTERVAL,
        duration: None,
        ticks: Some(1),
        query: Query::default(),
        limits: bounds(&LimitArgs::default(), &TargetSpec::All)?,
        fail_on_growth: None,
        scope: ScopeChoice::default(),
        method: Method::default(),
        python: PythonMode::default(),
        force: false,
        cache: false,
        output: output("doctor", arguments.output)?,
        target: select(arguments.target)?.map(|(_, spec)| spec),
    })
}

#[cfg(test)]
mod tests;
