//! The arguments as typed. Each is only checked by itself here; what they mean together is [`super::resolve`]'s.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use memwatch_common::limits;

use super::units;
use crate::{
    export::format::ExportFormat,
    format::Unit,
    model::query::{self, GroupBy, SortBy, View},
    named::UnknownName,
    probe::links::Method,
    watch::start::{PythonMode, ScopeChoice},
};

const AFTER_HELP: &str = "\
Without a command memwatch does what `memwatch top` does.
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 a limit you set was passed, 4 not permitted or the kernel \
cannot, 5 no such target.";

const AFTER_LONG_HELP: &str = "\
Examples:
  memwatch --pid 1234                       who holds memory in process 1234, live
  memwatch top --comm 'python*' --group-by line
  memwatch top --pid 1234 --older-than 5m   only blocks that nobody freed for five minutes
  memwatch diff --pid 1234 --baseline 30s   what changed since second 30
  memwatch record --pid 1234 -o a.memwatch  save all that is seen, until Ctrl-C
  memwatch diff a.memwatch --from 10m       what changed in a recording since its tenth minute
  memwatch report --pid 1234 -d 2m --format html -o leaks.html
  memwatch export --pid 1234 -d 30s --to pprof -o heap.pb.gz
  memwatch --format json -d 1m -- ./server  from the first instruction, one JSON object a tick
  memwatch doctor --pid 1234                what this kernel and this target allow

Sizes: 64, 64k, 64KiB, 1M, 1.5GiB (always powers of 1024). Times: 500ms, 10s, 5m, 2h, 1m30s (a number alone is \
seconds).

Exit codes:
  0  done (also when the reader of stdout went away)
  1  it failed
  2  the command line is wrong
  3  a limit that you set was passed (--fail-on-growth)
  4  not permitted, or the kernel cannot
  5  no such target, or it ended before anything was seen";

/// Who allocates memory, in any running process, from outside.
///
/// memwatch watches the allocation functions of a running process from the kernel. The process is not restarted,
/// stopped or changed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "memwatch",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<CommandArgs>,
    #[command(flatten)]
    pub top: WatchArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CommandArgs {
    /// Who holds memory now, and who grows (the default); also of a recording
    #[command(after_help = EXIT_HELP)]
    Top(TopArgs),
    /// What changed against a baseline, live; within a recording, or between two
    #[command(after_help = EXIT_HELP)]
    Diff(DiffArgs),
    /// Watch and save all that is seen, to look at it later or elsewhere
    #[command(after_help = EXIT_HELP)]
    Record(RecordArgs),
    /// A leak report: who grows and why that is a leak or not, as text, markdown, html or json
    #[command(after_help = EXIT_HELP)]
    Report(ReportArgs),
    /// A file for another tool: pprof, flame graph, speedscope, csv and others
    #[command(after_help = EXIT_HELP)]
    Export(ExportArgs),
    /// Processes: memory, growth, runtime found, can it be watched
    #[command(after_help = EXIT_HELP)]
    Ps(PsArgs),
    /// What this kernel and a target allow, and what is missing
    #[command(after_help = EXIT_HELP)]
    Doctor(DoctorArgs),
    /// Put empty programs where memwatch would put its own, to measure what a hit costs at the least
    #[command(hide = true)]
    BenchFloor(BenchFloorArgs),
    /// Build the unwind tables of files and put them into the kernel, to measure what that takes
    #[command(hide = true)]
    BenchTables(BenchTablesArgs),
}

#[derive(Clone, Debug, Args)]
pub struct BenchTablesArgs {
    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
    /// Programs and libraries
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct BenchFloorArgs {
    /// This process
    #[arg(long, value_name = "PID", value_parser = pid)]
    pub pid: u32,
}

const EXIT_HELP: &str =
    "See `memwatch --help` for examples, the forms of sizes and times, and the exit codes.";

#[derive(Clone, Debug, Default, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    #[command(flatten)]
    pub query: QueryArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub python: PythonArgs,
    #[command(flatten)]
    pub other: OtherVersionArgs,
}

#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// A recording, instead of a target: what was known at its end, or at --to; every tick from --from on
    #[arg(value_name = "FILE", help_heading = "Recording")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub span: SpanArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// Which part of a recording.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Recording")]
pub struct SpanArgs {
    /// From this tick (120), time after its start (10m), or time (2026-01-02T03:04:05Z) of a recording on
    #[arg(long, value_name = "WHEN", value_parser = units::parse_when)]
    pub from: Option<units::When>,
    /// Up to this tick, time after its start, or time
    #[arg(long, value_name = "WHEN", value_parser = units::parse_when)]
    pub to: Option<units::When>,
}

#[derive(Clone, Debug, Default, Args)]
pub struct RecordArgs {
    /// Size of the file from which on older ticks are thinned out [default: 16MiB]
    #[arg(long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    #[arg(help_heading = "Limits")]
    pub max_file_size: Option<u64>,
    /// Only blocks of at least this size
    #[arg(short = 'z', long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    #[arg(help_heading = "What is recorded")]
    pub min_size: Option<u64>,
    /// Only blocks of at most this size
    #[arg(short = 'Z', long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    #[arg(help_heading = "What is recorded")]
    pub max_size: Option<u64>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub python: PythonArgs,
    #[command(flatten)]
    pub other: OtherVersionArgs,
}

#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// Compare with what was in use this long after the start (at the start when not given)
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, allow_hyphen_values = true)]
    #[arg(help_heading = "Time")]
    pub baseline: Option<Duration>,
    /// Recordings, instead of a target: one from its beginning (or --from) to its end (or --to), or two at their ends
    #[arg(value_name = "[OLD] NEW", num_args = 0..=2, help_heading = "Recording")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub span: SpanArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
}

#[derive(Clone, Debug, Default, Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub span: SpanArgs,
    #[command(flatten)]
    pub saved: SavedArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The file's form: pprof, collapsed, flamegraph, speedscope, json, csv, memleak or heaptrack
    #[arg(
        long,
        value_name = "FORM",
        help_heading = "Output",
        hide_possible_values = true
    )]
    #[arg(value_parser = PossibleValuesParser::new(ExportFormat::NAMES))]
    pub to: String,
    /// What a recording had at this tick, time after its start, or time [default: its end]
    #[arg(long, value_name = "WHEN", value_parser = units::parse_when, help_heading = "Recording")]
    pub at: Option<units::When>,
    #[command(flatten)]
    pub saved: SavedArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// What `report` and `export` have in common.
#[derive(Clone, Debug, Default, Args)]
pub struct SavedArgs {
    /// A recording, instead of a target
    #[arg(value_name = "FILE", help_heading = "Recording")]
    pub file: Option<PathBuf>,
    /// Compare with what was in use this long after the start
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, allow_hyphen_values = true)]
    #[arg(help_heading = "Time")]
    pub baseline: Option<Duration>,
    /// Leave out what this file lists as known (`leak:PATTERN` lines, as for LeakSanitizer)
    #[arg(long, value_name = "FILE", help_heading = "What is shown")]
    pub suppressions: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    pub target: SelectArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Most processes shown, at least 1 (all when not given)
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one, help_heading = "What is shown")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Default, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub target: SelectArgs,
    /// Load every kernel program once, to see that this kernel's verifier takes it
    #[arg(long, hide = true)]
    pub verify: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which processes to watch; one form only.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Target (one of)")]
pub struct TargetArgs {
    #[command(flatten)]
    pub select: SelectArgs,
    /// Start this command (with its arguments, after `--`) and watch it from its first instruction
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Do not watch the children that watched processes start
    #[arg(long)]
    pub no_follow: bool,
    /// Where probes sit: in the watched processes (process), in every process of the host that uses the same files
    /// (host), which alone sees children from their first instruction, or whichever is right (auto) [default: auto]
    #[arg(long, value_name = "SCOPE", value_parser = names::<ScopeChoice>(ScopeChoice::NAMES), hide_possible_values = true)]
    pub probe_scope: Option<ScopeChoice>,
    /// How probes are put in place, instead of the best way that the kernel has
    #[arg(long, value_name = "METHOD", value_parser = names::<Method>(Method::NAMES), hide = true)]
    pub probe_method: Option<Method>,
}

/// Which of the running processes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Target (one of)")]
pub struct SelectArgs {
    /// These processes
    #[arg(short, long = "pid", value_name = "PID[,PID…]", value_delimiter = ',', action = ArgAction::Append)]
    #[arg(value_parser = pid, allow_negative_numbers = true)]
    pub pids: Vec<u32>,
    /// All processes whose name matches, as in 'python*'
    #[arg(long, value_name = "GLOB")]
    pub comm: Option<String>,
    /// All processes of a control group: a path below /sys/fs/cgroup, or as /proc/PID/cgroup tells it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Every process of this host
    #[arg(long)]
    pub all: bool,
    /// All processes of a container
    #[arg(long, value_name = "ID|NAME", hide = true)]
    pub container: Option<String>,
    /// All processes of a pod
    #[arg(long, value_name = "[NAMESPACE/]NAME", hide = true)]
    pub pod: Option<String>,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Time")]
pub struct TimeArgs {
    /// Time from one tick to the next, at least 10ms [default: 1s]
    #[arg(short, long, value_name = "DURATION", value_parser = units::parse_duration, allow_hyphen_values = true)]
    pub interval: Option<Duration>,
    /// Leave after this time
    #[arg(short, long, value_name = "DURATION", value_parser = units::parse_duration, allow_hyphen_values = true)]
    pub duration: Option<Duration>,
    /// Leave after N ticks
    #[arg(long, value_name = "N", value_parser = count)]
    pub count: Option<u64>,
    /// Leave after one tick
    #[arg(long)]
    pub once: bool,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What is shown")]
pub struct QueryArgs {
    /// Most rows shown, at least 1 [default: 10]
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    /// What makes two blocks one row [default: traceback]
    #[arg(long, value_name = "KEY", value_parser = names::<GroupBy>(GroupBy::NAMES))]
    pub group_by: Option<GroupBy>,
    /// Count a block for every frame of its stack, not only the innermost (by line, file, function or module)
    #[arg(long)]
    pub cumulative: bool,
    /// Which rows come first [default: inuse-bytes, or alloc-bytes with --view alloc]
    #[arg(long, value_name = "KEY", value_parser = names::<SortBy>(SortBy::NAMES))]
    pub sort: Option<SortBy>,
    /// Blocks in use now, or all that were ever allocated [default: inuse]
    #[arg(long, value_name = "VIEW", value_parser = names::<View>(View::NAMES))]
    pub view: Option<View>,
    /// Only stacks with a frame whose file, function or module matches; repeatable
    #[arg(long, value_name = "GLOB", action = ArgAction::Append)]
    pub include: Vec<String>,
    /// No stacks with a frame whose file, function or module matches; repeatable
    #[arg(long, value_name = "GLOB", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Only blocks of these domains: native, python, mmap
    #[arg(
        long = "domain",
        value_name = "DOMAIN[,DOMAIN…]",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    #[arg(value_parser = PossibleValuesParser::new(query::DOMAIN_NAMES))]
    pub domains: Vec<String>,
    /// Only blocks of at least this size
    #[arg(short = 'z', long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    pub min_size: Option<u64>,
    /// Only blocks of at most this size
    #[arg(short = 'Z', long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    pub max_size: Option<u64>,
    /// Only blocks that have been in use for at least this time
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, allow_hyphen_values = true)]
    pub older_than: Option<Duration>,
    /// Most frames shown of one stack (all when not given)
    #[arg(long, value_name = "N", value_parser = frames)]
    pub frames: Option<usize>,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// End with exit code 3 when memory in use has grown by more than this
    #[arg(long, value_name = "BYTES", value_parser = units::parse_size, allow_hyphen_values = true)]
    pub fail_on_growth: Option<u64>,
    /// Most frames walked of one stack, 1 to 127 [default: 127]
    #[arg(long, value_name = "N", value_parser = depth)]
    pub max_depth: Option<u32>,
    /// Most blocks in use that are kept, over all processes [default: 2097152]
    #[arg(long, value_name = "N", value_parser = blocks)]
    pub max_blocks: Option<u32>,
    /// Most of them for one process [default: all when one process or a command is watched, else a quarter]
    #[arg(long, value_name = "N", value_parser = blocks)]
    pub max_blocks_per_process: Option<u32>,
    /// Most call sites (process, stack and domain) [default: 65536]
    #[arg(long, value_name = "N", value_parser = entries)]
    pub max_sites: Option<u32>,
    /// Most different stacks [default: 65536]
    #[arg(long, value_name = "N", value_parser = entries)]
    pub max_stacks: Option<u32>,
    /// Most processes watched at one time [default: 8192]
    #[arg(long, value_name = "N", value_parser = entries)]
    pub max_processes: Option<u32>,
    /// Most rows of unwind tables kept in the kernel, at 8 bytes each; the least useful tables go first [default: 16777216]
    #[arg(long, value_name = "N", value_parser = rows)]
    pub max_unwind_rows: Option<u32>,
    /// Build all unwind tables anew, and keep none for the next run (in $XDG_CACHE_HOME/memwatch, else
    /// /var/cache/memwatch or ~/.cache/memwatch)
    #[arg(long)]
    pub no_cache: bool,
}

/// Larger maps are refused by the kernel on any machine, after a long time.
const MOST_BLOCKS: u32 = 1 << 30;
const MOST_ENTRIES: u32 = 1 << 24;

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Form of the output: text or json (of top and diff: one block a tick, instead of the full screen), of a report also markdown or html
    // Which forms there are depends on the command.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Write to this file, which appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Unit of sizes in text: auto, b, kib, mib or gib [default: auto]
    #[arg(long, value_name = "UNIT", value_parser = names::<Unit>(Unit::NAMES), hide_possible_values = true)]
    pub unit: Option<Unit>,
    /// Write sizes in powers of 1000 (kB, MB)
    #[arg(long)]
    pub si: bool,
    /// Colour text: auto, always or never [default: auto]
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    #[arg(value_parser = PossibleValuesParser::new(["auto", "always", "never"]))]
    pub color: Option<String>,
    /// Say more on stderr; twice for everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Debug, Default, Args)]
pub struct PythonArgs {
    /// How Python's objects are watched: those of up to 512 bytes estimated from the pools that they are in (pools), each
    /// one (exact, which slows busy programs down), or as in any other program, without Python's lines (off) [default: pools]
    #[arg(
        long = "python",
        value_name = "MODE",
        value_parser = names::<PythonMode>(PythonMode::NAMES),
        hide_possible_values = true,
        help_heading = "What is shown"
    )]
    pub mode: Option<PythonMode>,
    /// With `--python exact`: also where it would take more than half a core of the target's time
    #[arg(long, help_heading = "What is shown")]
    pub force: bool,
}

/// Options of the contract that this version knows by name, to give a better answer than "unexpected argument".
#[derive(Clone, Debug, Default, Args)]
pub struct OtherVersionArgs {
    /// Mean bytes between sampled blocks: only 0, every block
    #[arg(long, value_name = "BYTES", hide = true, value_parser = units::parse_size, allow_hyphen_values = true)]
    pub sample_bytes: Option<u64>,
    /// Most overhead on the target
    #[arg(long, value_name = "PERCENT", hide = true)]
    pub max_overhead: Option<String>,
}

fn names<T>(known: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = UnknownName> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(known).try_map(|name| name.parse::<T>())
}

fn whole<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("a whole number from {least} to {most} is needed")),
    }
}

fn pid(text: &str) -> Result<u32, String> {
    // The kernel's type is signed; a larger number would turn into "everybody" in some system calls.
    whole(text, 1, i32::MAX as u32)
}

fn count(text: &str) -> Result<u64, String> {
    whole(text, 1, u64::from(u32::MAX))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    whole(text, 1, u32::MAX as usize)
}

fn frames(text: &str) -> Result<usize, String> {
    whole(text, 0, limits::MAX_FRAMES)
}

fn depth(text: &str) -> Result<u32, String> {
    whole(text, 1, limits::MAX_FRAMES as u32)
}

fn blocks(text: &str) -> Result<u32, String> {
    whole(text, 1, MOST_BLOCKS)
}

fn entries(text: &str) -> Result<u32, String> {
    whole(text, 1, MOST_ENTRIES)
}

/// Block numbers and rows are counted in 32 bits.
const MOST_ROWS: u32 = 1 << 30;

fn rows(text: &str) -> Result<u32, String> {
    whole(text, 1, MOST_ROWS)
}

#[cfg(test)]
mod tests;
