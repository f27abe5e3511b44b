//! From a checked command line to its end.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    args::Cli,
    doctor,
    error::{ExitCode, Failure, is_broken_pipe},
    output::{Destination, Output},
    read::ReadError,
    recorded, report,
    resolve::{self, Command, Format, Resolved, Screen, TargetSpec, UsageError},
};
use crate::{
    controller::{self, Printer},
    probe::{
        attach::{self, Attacher, Scope},
        capabilities::kernel_version,
        links::UprobePrograms,
        load::{Bounds, OBJECT},
        plan::Abilities,
    },
    target::{ProcRoot, modules::Module, ps, ps_text, select::Target},
    unwind::measure::TableBench,
    watch::start::{self, Settings, Subject, Told},
};

/// Runs memwatch with these arguments; gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    match run(arguments) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::Done,
        Err(error) => {
            let failure = Failure::classify(error);
            let _ = writeln!(std::io::stderr(), "{}", failure.line());
            failure.code
        }
    }
}

fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<ExitCode> {
    let cli = match Cli::read(arguments) {
        Ok(cli) => cli,
        Err(ReadError::Answer(text)) => {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(ExitCode::Done);
        }
        Err(ReadError::Usage(error)) => return Err(error.into()),
    };
    let resolved = resolve::resolve(cli)?;
    match resolved.command {
        Command::Top | Command::Diff { .. } => watch(&resolved),
        Command::Record { most_bytes } => record(&resolved, most_bytes),
        Command::TopFile { .. } | Command::DiffFile { .. } | Command::DiffFiles { .. } => {
            recorded::run(&resolved, color(&resolved))
        }
        Command::Report(_) | Command::Export(_) => report::run(&resolved),
        Command::Ps => list(&resolved),
        Command::Doctor { verify } => doctor::run(&resolved, verify),
        Command::BenchFloor => bench_floor(&resolved),
        Command::BenchTables { ref files, rounds } => bench_tables(&resolved, files, rounds),
    }
}

fn color(resolved: &Resolved) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    resolved
        .output
        .color
        .enabled(std::io::stdout().is_terminal(), no_color)
}

/// What is watched, as the rest of memwatch takes it.
pub fn settings(resolved: &Resolved) -> Result<Settings> {
    let subject = match resolved.target.clone().context("no target")? {
        TargetSpec::Pids(pids) => Subject::Running(Target::Pids(pids)),
        TargetSpec::Comm(glob) => Subject::Running(Target::Comm(glob)),
        TargetSpec::Cgroup(path) => Subject::Running(Target::Cgroup(path)),
        TargetSpec::All => Subject::Running(Target::All),
        TargetSpec::Command(arguments) => Subject::Command(arguments),
    };
    Ok(Settings {
        subject,
        bounds: bounds(resolved),
        interval: resolved.interval,
        follow: resolved.follow,
        scope: resolved.scope,
        method: resolved.method,
        python: resolved.python,
        force: resolved.force,
        cache: resolved.cache,
    })
}

pub fn bounds(resolved: &Resolved) -> Bounds {
    Bounds {
        live_blocks: resolved.limits.max_blocks,
        live_per_process: u64::from(resolved.limits.max_blocks_per_process),
        sites: resolved.limits.max_sites,
        stacks: resolved.limits.max_stacks,
        processes: resolved.limits.max_processes,
        unwind_rows: resolved.limits.max_unwind_rows,
        max_frames: resolved.limits.max_depth,
        min_bytes: resolved.query.min_size.unwrap_or(0),
        max_bytes: resolved.query.max_size.unwrap_or(u64::MAX),
    }
}

fn watch(resolved: &Resolved) -> Result<ExitCode> {
    let settings = settings(resolved)?;
    let screen = resolved.screen(std::io::stdout().is_terminal());
    // An output that cannot be written is found before anything is probed.
    let output = Output::open(&resolved.output.destination)?;
    let runtime = runtime()?;
    match screen {
        Screen::Full => runtime.block_on(crate::screen::run(&settings, resolved, color(resolved))),
        Screen::Blocks(format) => {
            let watch = start::start(&settings, &mut progress(resolved))?;
            let printer = Printer::new(resolved, format, color(resolved));
            runtime.block_on(controller::blocks(watch, resolved, &printer, output))
        }
    }
}

/// `memwatch record`
fn record(resolved: &Resolved, most_bytes: u64) -> Result<ExitCode> {
    let settings = settings(resolved)?;
    if resolved.output.destination == Destination::Stdout && std::io::stdout().is_terminal() {
        let error = UsageError::Value {
            option: "--output",
            value: "-".to_owned(),
            reason: "a recording is no text for a terminal; name a file, or pipe it on".to_owned(),
        };
        return Err(error.into());
    }
    let output = Output::open(&resolved.output.destination)?;
    let runtime = runtime()?;
    let watch = start::start(&settings, &mut progress(resolved))?;
    let target = crate::screen::target_name(&settings);
    runtime.block_on(crate::record::run(watch, resolved, output, most_bytes, target))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// Tells each step of attaching, when the user wants to know.
fn progress(resolved: &Resolved) -> impl FnMut(Told<'_>) + use<> {
    let verbosity = resolved.output.verbosity;
    move |told| told.say(verbosity)
}

/// Empty programs at the places of memwatch's own, until interrupted: the kernel's share of the price of a hit.
fn bench_floor(resolved: &Resolved) -> Result<ExitCode> {
    let Some(TargetSpec::Pids(pids)) = &resolved.target else {
        anyhow::bail!("no process was named");
    };
    let mut kernel = start::load_only(&bounds(resolved), resolved.method)?;
    kernel.programs = UprobePrograms::load_empty(OBJECT, &kernel.ebpf)?;
    let (major, minor) = kernel_version();
    let abilities = Abilities::of_kernel(major, minor, true);
    let mut attacher = Attacher::new(ProcRoot::default(), abilities, Scope::Process);
    for pid in pids {
        attacher.process(&kernel, *pid)?;
    }
    writeln!(
        std::io::stdout(),
        "ready: {} probes",
        attacher.report(&kernel).attached
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(ExitCode::Done)
}

/// What unwind tables take: a line of JSON for each file.
fn bench_tables(resolved: &Resolved, files: &[PathBuf], rounds: usize) -> Result<ExitCode> {
    let kernel = start::load_only(&bounds(resolved), resolved.method)?;
    let mut bench = TableBench::new(&kernel, resolved.limits.max_unwind_rows)?;
    for path in files {
        writeln!(std::io::stdout(), "{}", bench.measure(path, rounds)?)?;
    }
    writeln!(std::io::stdout(), "{}", bench.memory())?;
    Ok(ExitCode::Done)
}

/// `memwatch ps`
fn list(resolved: &Resolved) -> Result<ExitCode> {
    let mut output = Output::open(&resolved.output.destination)?;
    let proc = ProcRoot::default();
    let (major, minor) = kernel_version();
    let abilities = Abilities::of_kernel(major, minor, true);
    let mut gatherer = ps::Gatherer::new(proc.clone(), |module: &Module| {
        attach::is_allocator(module, &abilities)
    });
    let mut before = ps::RssReading::take(&proc, Instant::now()).context("cannot read /proc")?;
    let deadline = resolved.duration.map(|duration| Instant::now() + duration);
    let mut ticks = 0;
    loop {
        std::thread::sleep(resolved.interval.max(Duration::from_millis(100)));
        let now = Instant::now();
        let ps = gatherer
            .gather(Some(&before), now, jiff::Timestamp::now())
            .context("cannot read /proc")?;
        before = ps::RssReading::take(&proc, now).context("cannot read /proc")?;
        let block = match resolved.output.format {
            Some(Format::Json) => format!("{}\n", serde_json::to_string(&ps)?),
            _ => ps_text::ps_text(&ps, None),
        };
        if output.write(&block)? == super::output::Flow::Stop {
            return Ok(ExitCode::Done);
        }
        ticks += 1;
        if resolved.ticks.is_some_and(|most| ticks >= most)
            || deadline.is_some_and(|deadline| now >= deadline)
        {
            output.finish()?;
            return Ok(ExitCode::Done);
        }
    }
}
