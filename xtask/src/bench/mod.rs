//! `cargo xtask bench`: what watching costs the watched, beside other tools, measured in one run; and what memwatch
//! itself costs. The method is told in `docs/overhead.md`, into which the figures are written.

mod contestant;
mod lines;
mod machine;
mod own;
mod pairs;
mod peers;
mod python;
mod stats;
mod table;
mod tables;
mod walk;

use std::{path::Path, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::Args;

pub use peers::setup;

use self::{
    contestant::Contestant,
    own::Own,
    pairs::{Pairs, Place},
    table::{Block, Row},
    walk::Walk,
};
use crate::{setup as machine_setup, shell};

#[derive(Args, Debug)]
pub struct Options {
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each measurement lasts
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Threads of the program watched; one block of the table for each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<u32>,
    /// Only these contestants (by name; `plain` is always there)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Parts that are not measured
    #[arg(long, value_enum, value_delimiter = ',')]
    skip: Vec<Part>,
    /// Measure the ways of watching Python instead; prints tables only
    #[arg(long)]
    python: bool,
    /// This memwatch, instead of a release build made now; only for --python
    #[arg(long, value_name = "FILE", requires = "python")]
    binary: Option<std::path::PathBuf>,
    /// Print the table, leave docs/overhead.md alone
    #[arg(long)]
    no_write: bool,
}

/// What is measured beside the contestants.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What memwatch itself takes
    Own,
    /// What walking the stack costs
    Walk,
    /// Calls whose stack is never where it was at the call before
    Moving,
    /// What unwind tables take
    Tables,
}

impl Options {
    fn skips(&self, part: Part) -> bool {
        self.skip.contains(&part)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn wants(&self, contestant: &Contestant) -> bool {
        self.only.is_empty() || contestant.is_plain() || self.only.iter().any(|name| *name == contestant.name)
    }
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        options.rounds > 0 && options.seconds >= 0.2,
        "at least one round, of at least 0.2 seconds"
    );
    if !shell::is_root() {
        bail!("this needs root to attach to processes: run it as root");
    }
    machine_setup::run(&machine_setup::Options {
        tests: false,
        bench: true,
    })?;
    let memwatch = shell::memwatch()?;
    if options.python {
        let memwatch = match &options.binary {
            Some(binary) => binary.clone(),
            None => shell::build_memwatch()?,
        };
        let tables = python::run(options, &memwatch)?;
        println!("{tables}{}", python::legend(&memwatch));
        return Ok(());
    }
    let mut contestants = contestant::all(&memwatch);
    contestants.retain(|contestant| options.wants(contestant));
    let parts = [Part::Own, Part::Walk, Part::Tables];
    if contestants.iter().any(Contestant::is_ours) || parts.iter().any(|part| !options.skips(*part)) {
        shell::build_memwatch()?;
    }
    let program = pairs::compile(pairs::Frames::WithPointers)?;

    let mut blocks = Vec::new();
    for &threads in &options.threads {
        blocks.push(measure_block(
            options,
            &program,
            &contestants,
            threads,
            Place::Same,
        )?);
    }
    if !options.skips(Part::Moving) {
        blocks.push(measure_block(options, &program, &contestants, 1, Place::Moving)?);
    }
    let own = if options.skips(Part::Own) {
        None
    } else {
        Some(Own::measure(&memwatch, &program))
    };
    let walk = if options.skips(Part::Walk) {
        String::new()
    } else {
        Walk::measure(&memwatch, options.rounds, options.duration())?.markdown()
    };
    let failed = blocks
        .iter()
        .flat_map(|block| &block.rows)
        .filter(|row| row.required && row.failure.is_some())
        .count();
    let own_failed = matches!(&own, Some(Err(_)));

    let mut text = table::markdown(
        &machine::describe(),
        &contestants,
        &blocks,
        own.as_ref(),
        options.rounds,
        options.seconds,
    );
    text += &walk;
    if !options.skips(Part::Tables) {
        text += &tables::measure(&memwatch, options.rounds)?;
    }
    println!("{text}");
    ensure!(
        failed == 0 && !own_failed,
        "memwatch itself could not be measured: the table says why; nothing was written"
    );
    if !options.no_write {
        let file = shell::workspace().join("docs/overhead.md");
        shell::write(&file, &table::splice(&shell::read(&file)?, &text)?)?;
        shell::say(format!("wrote {}", file.display()));
    }
    Ok(())
}

/// All contestants, one after the other, round by round: so that whatever disturbs the machine disturbs all alike.
fn measure_block(
    options: &Options,
    program: &Path,
    contestants: &[Contestant],
    threads: u32,
    place: Place,
) -> Result<Block> {
    let mut rows: Vec<Row> = contestants.iter().map(Row::new).collect();
    for round in 1..=options.rounds {
        for (contestant, row) in contestants.iter().zip(&mut rows) {
            if row.failure.is_some() {
                continue;
            }
            // Anew each time: nobody starts in what the one before left behind.
            let target = Pairs::start(program, threads, pairs::Rate::Max, place)?;
            let outcome = contestant.measure(&target, options.duration());
            match outcome {
                Ok(reading) => {
                    shell::say(format!(
                        "{threads} threads, round {round}/{}: {}: {:.0} ns/pair",
                        options.rounds, contestant.name, reading.cpu_ns_per_pair
                    ));
                    row.readings.push(reading);
                }
                Err(error) => {
                    shell::say(format!("{}: {error:#}", contestant.name));
                    row.failure = Some(format!("{error:#}"));
                }
            }
        }
    }
    Ok(Block { threads, place, rows })
}
