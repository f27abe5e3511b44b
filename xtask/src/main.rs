//! memwatch's chores. `cargo xtask --help` lists them.

mod apt;
mod bench;
mod deny;
mod fuzz;
mod kernels;
mod leaky;
mod python_layouts;
mod run;
mod setup;
mod shell;
mod test;
mod toolchain;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    about = "memwatch's chores: set-up, build, run, test, bench",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Make this machine able to build memwatch; what is there already is left alone
    Setup(setup::Options),
    /// Set up, build, and open the live view: on the process named by the arguments, else on a small leaking program
    Run {
        /// Handed on to memwatch
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Set up, build, and run every test, those that attach to processes included (needs root)
    Test {
        /// Handed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Load every program of the kernel side through this kernel's verifier (needs root)
    Verify,
    /// Load the kernel side and compare numbers on other kernels, in an emulator (needs root)
    Kernels(kernels::Options),
    /// Measure what watching costs, beside other tools, and write the table into docs/overhead.md (needs root)
    Bench(bench::Options),
    /// Check licences, sources and duplicates of all dependencies; known vulnerabilities where the database is in reach
    Deny,
    /// Feed changed bytes to all that reads what others wrote, looking for panics and for what takes too long
    Fuzz(fuzz::Options),
    /// Make the table of CPython's structure offsets from headers
    PythonLayouts(python_layouts::Options),
    /// Be a program that leaks: what `cargo xtask run` watches
    Leaky(leaky::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup(options) => setup::run(&options),
        Chore::Run { arguments } => return run::run(&arguments).unwrap_or_else(|error| failed(&error)),
        Chore::Test { arguments } => test::run(&arguments),
        Chore::Verify => test::verify(),
        Chore::Kernels(options) => kernels::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Deny => deny::run(),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::PythonLayouts(options) => python_layouts::run(&options),
        Chore::Leaky(options) => leaky::run(&options),
    };
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::FAILURE
}
