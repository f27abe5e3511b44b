//! The parts of a command line that several commands share, each checked in itself.

use std::time::Duration;

use globset::Glob;
use memwatch_common::{Domain, limits};

use super::{ColorChoice, Format, Limits, OutputSpec, TargetSpec, UsageError, Verbosity};
use crate::cli::args::{
    LimitArgs, OtherVersionArgs, OutputArgs, QueryArgs, SelectArgs, TargetArgs, TimeArgs,
};
use crate::cli::output::Destination;
use crate::format::{self, ByteFormat, Unit};
use crate::model::query::{self, DEFAULT_LIMIT, GroupBy, Query, SortBy, View};

pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Below this, reading the kernel's maps takes longer than the tick.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Where one of many watched processes is not to take all the room: this part of `--max-blocks` for each.
const PROCESS_SHARE: u32 = 4;

pub(super) fn known_to_this_version(other: &OtherVersionArgs) -> Result<(), UsageError> {
    let refused = |what: String, advice| Err(UsageError::NotInThisVersion { what, advice });
    if let Some(bytes) = other.sample_bytes
        && bytes != 0
    {
        return refused(
            format!("--sample-bytes {bytes}"),
            "it counts every block, leave the option out",
        );
    }
    if other.max_overhead.is_some() {
        return refused(
            "--max-overhead".to_owned(),
            "use --min-size to make memwatch do less",
        );
    }
    Ok(())
}

/// One form of target, or none.
pub(super) fn target(arguments: TargetArgs) -> Result<Option<TargetSpec>, UsageError> {
    let selected = select(arguments.select)?;
    let Some(program) = arguments.command.first() else {
        return Ok(selected.map(|(_, spec)| spec));
    };
    match selected {
        Some((first, _)) => Err(two_targets(first, "-- COMMAND")),
        None if program.is_empty() => Err(empty_value("-- COMMAND")),
        None => Ok(Some(TargetSpec::Command(arguments.command))),
    }
}

/// The form of target with the name of its option.
pub(super) fn select(arguments: SelectArgs) -> Result<Option<(&'static str, TargetSpec)>, UsageError> {
    let advice = "use --cgroup with the control group's path, or --pid";
    for (what, asked_for) in [("--container", arguments.container), ("--pod", arguments.pod)] {
        if asked_for.is_some() {
            return Err(UsageError::NotInThisVersion {
                what: what.to_owned(),
                advice,
            });
        }
    }
    if let Some(comm) = &arguments.comm {
        check_glob("--comm", comm)?;
    }
    let pids = each_once(arguments.pids);
    let mut forms = [
        (!pids.is_empty()).then_some(("--pid", TargetSpec::Pids(pids))),
        arguments.comm.map(|glob| ("--comm", TargetSpec::Comm(glob))),
        arguments
            .cgroup
            .map(|path| ("--cgroup", TargetSpec::Cgroup(path))),
        arguments.all.then_some(("--all", TargetSpec::All)),
    ]
    .into_iter()
    .flatten();
    match (forms.next(), forms.next()) {
        (Some((first, _)), Some((second, _))) => Err(two_targets(first, second)),
        (form, _) => Ok(form),
    }
}

fn two_targets(first: &'static str, second: &'static str) -> UsageError {
    UsageError::Conflict {
        first,
        second,
        advice: "choose one way to say what to watch",
    }
}

fn each_once(pids: Vec<u32>) -> Vec<u32> {
    let mut once = Vec::with_capacity(pids.len());
    for pid in pids {
        if !once.contains(&pid) {
            once.push(pid);
        }
    }
    once
}

pub(super) fn time(arguments: &TimeArgs) -> Result<(Duration, Option<Duration>, Option<u64>), UsageError> {
    let interval = arguments.interval.unwrap_or(DEFAULT_INTERVAL);
    if interval < SHORTEST_INTERVAL {
        return Err(UsageError::Value {
            option: "--interval",
            value: format::duration(interval),
            reason: format!("it must be at least {}", format::duration(SHORTEST_INTERVAL)),
        });
    }
    if arguments.duration.is_some_and(|duration| duration.is_zero()) {
        return Err(UsageError::Value {
            option: "--duration",
            value: "0s".to_owned(),
            reason: "nothing can be seen in no time; leave it out to watch until Ctrl-C".to_owned(),
        });
    }
    if arguments.once && arguments.count.is_some() {
        return Err(UsageError::Conflict {
            first: "--once",
            second: "--count",
            advice: "--once is --count 1, give one of them",
        });
    }
    let ticks = if arguments.once { Some(1) } else { arguments.count };
    Ok((interval, arguments.duration, ticks))
}

pub(super) fn query(arguments: QueryArgs) -> Result<Query, UsageError> {
    let view = arguments.view.unwrap_or(View::Inuse);
    let group_by = arguments.group_by.unwrap_or(GroupBy::Traceback);
    let by_view = match view {
        View::Inuse => SortBy::InuseBytes,
        View::Alloc => SortBy::AllocBytes,
    };
    if group_by == GroupBy::Thread && arguments.older_than.is_some() {
        return Err(UsageError::Conflict {
            first: "--older-than",
            second: "--group-by thread",
            advice: "how old the blocks of a thread are is not kept, use --group-by process or function",
        });
    }
    if view == View::Alloc && arguments.older_than.is_some() {
        return Err(UsageError::Conflict {
            first: "--older-than",
            second: "--view alloc",
            advice: "only blocks in use have an age, use --view inuse",
        });
    }
    let by_frame = [GroupBy::Line, GroupBy::File, GroupBy::Function, GroupBy::Module];
    if arguments.cumulative && !by_frame.contains(&group_by) {
        return Err(UsageError::Value {
            option: "--cumulative",
            value: format!("--group-by {group_by}"),
            reason: "it counts a block for each frame, use it with --group-by line, file, function or module"
                .to_owned(),
        });
    }
    if let (Some(min), Some(max)) = (arguments.min_size, arguments.max_size)
        && min > max
    {
        return Err(UsageError::Value {
            option: "--min-size",
            value: min.to_string(),
            reason: format!("it is more than --max-size {max}, so no block could match"),
        });
    }
    for glob in &arguments.include {
        check_glob("--include", glob)?;
    }
    for glob in &arguments.exclude {
        check_glob("--exclude", glob)?;
    }
    Ok(Query {
        group_by,
        sort: arguments.sort.unwrap_or(by_view),
        view,
        cumulative: arguments.cumulative,
        include: arguments.include,
        exclude: arguments.exclude,
        domains: domains(&arguments.domains)?,
        min_size: arguments.min_size,
        max_size: arguments.max_size,
        older_than: arguments.older_than.filter(|age| !age.is_zero()),
        limit: arguments.limit.unwrap_or(DEFAULT_LIMIT),
        frames: arguments.frames,
    })
}

fn domains(names: &[String]) -> Result<Vec<Domain>, UsageError> {
    let mut domains = Vec::new();
    for name in names {
        let named = query::parse_domains(name).map_err(|error| UsageError::Syntax {
            message: format!("--domain: {error}"),
        })?;
        domains.extend_from_slice(named);
    }
    domains.sort_unstable();
    domains.dedup();
    Ok(domains)
}

pub(super) fn bounds(arguments: &LimitArgs, target: &TargetSpec) -> Result<Limits, UsageError> {
    let max_blocks = arguments.max_blocks.unwrap_or(limits::DEFAULT_LIVE_BLOCKS);
    let share = match target {
        TargetSpec::Pids(pids) if pids.len() == 1 => max_blocks,
        TargetSpec::Command(_) => max_blocks,
        _ => max_blocks.div_ceil(PROCESS_SHARE),
    };
    let max_blocks_per_process = arguments.max_blocks_per_process.unwrap_or(share);
    if max_blocks_per_process > max_blocks {
        return Err(UsageError::Value {
            option: "--max-blocks-per-process",
            value: max_blocks_per_process.to_string(),
            reason: format!("all processes together have {max_blocks}, raise --max-blocks"),
        });
    }
    if let TargetSpec::Pids(pids) = target
        && let Some(max) = arguments.max_processes
        && (max as usize) < pids.len()
    {
        return Err(UsageError::Value {
            option: "--max-processes",
            value: max.to_string(),
            reason: format!("--pid names {} processes", pids.len()),
        });
    }
    Ok(Limits {
        max_blocks,
        max_blocks_per_process,
        max_sites: arguments.max_sites.unwrap_or(limits::DEFAULT_SITES),
        max_stacks: arguments.max_stacks.unwrap_or(limits::DEFAULT_STACKS),
        max_processes: arguments.max_processes.unwrap_or(limits::DEFAULT_PROCESSES),
        max_unwind_rows: arguments.max_unwind_rows.unwrap_or(limits::DEFAULT_UNWIND_ROWS),
        max_depth: arguments.max_depth.unwrap_or(limits::MAX_FRAMES as u32),
    })
}

pub(super) fn output(command: &'static str, arguments: OutputArgs) -> Result<OutputSpec, UsageError> {
    let format = match arguments.format.as_deref() {
        None => None,
        Some("text") => Some(Format::Text),
        Some("json") => Some(Format::Json),
        Some(other) => {
            return Err(UsageError::Value {
                option: "--format",
                value: other.to_owned(),
                reason: format!("`memwatch {command}` prints text or json"),
            });
        }
    };
    let unit = arguments.unit.unwrap_or_default();
    if arguments.si && matches!(unit, Unit::Kib | Unit::Mib | Unit::Gib) {
        return Err(UsageError::Conflict {
            first: "--si",
            second: "--unit kib|mib|gib",
            advice: "those are powers of 1024, leave one of them out",
        });
    }
    if arguments.quiet && arguments.verbose > 0 {
        return Err(UsageError::Conflict {
            first: "--quiet",
            second: "--verbose",
            advice: "give one of them",
        });
    }
    let destination = match arguments.output {
        None => Destination::Stdout,
        // What every other tool means by it.
        Some(path) if path.as_os_str() == "-" => Destination::Stdout,
        Some(path) => Destination::File(path),
    };
    Ok(OutputSpec {
        format,
        destination,
        bytes: ByteFormat {
            unit,
            si: arguments.si,
        },
        color: match arguments.color.as_deref() {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => ColorChoice::Auto,
        },
        verbosity: match (arguments.quiet, arguments.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Verbose,
            (false, _) => Verbosity::Debug,
        },
    })
}

fn empty_value(option: &'static str) -> UsageError {
    UsageError::Value {
        option,
        value: String::new(),
        reason: "it is empty".to_owned(),
    }
}

fn check_glob(option: &'static str, glob: &str) -> Result<(), UsageError> {
    if glob.is_empty() {
        return Err(empty_value(option));
    }
    match Glob::new(glob) {
        Ok(_) => Ok(()),
        Err(error) => Err(UsageError::Value {
            option,
            value: glob.to_owned(),
            reason: error.kind().to_string(),
        }),
    }
}
