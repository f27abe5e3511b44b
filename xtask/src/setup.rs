//! `cargo xtask setup`: from a fresh machine to one that can build the kernel side.

mod linker;
mod packages;
mod pythons;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt::{self, Package, package, program},
    bench, shell,
    toolchain::{self, Candidate, Compiler, Surroundings, Unfit},
};

/// The oldest bpf-linker that writes BTF for maps as the loader expects it.
const LINKER_VERSION: &str = "0.13.0";

const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

const FOR_TESTS: [Package; 20] = [
    program("gcc", "gcc"),
    program("g++", "g++"),
    program("musl-gcc", "musl-tools"),
    program("python3", "python3"),
    package("python3-dev"),
    package("python3-venv"),
    program("nginx", "nginx"),
    program("redis-server", "redis-server"),
    package("postgresql"),
    program("node", "nodejs"),
    program("go", "golang-go"),
    program("dot", "graphviz"),
    program("chromium", "chromium"),
    package("python3-jsonschema"),
    package("debian-archive-keyring"),
    program("gdb", "gdb"),
    program("bpftrace", "bpftrace"),
    package("libjemalloc2"),
    package("libtcmalloc-minimal4"),
    package("libmimalloc2.0"),
];

const ELSEWHERE: &str = "On this system, run these and then this again:
    rustup toolchain install nightly --profile minimal --component rust-src
    cargo install --locked cargo-binstall
    cargo binstall bpf-linker
(any rustc with the standard library's sources beside it will do: name its folder in MEMWATCH_BPF_TOOLCHAIN)";

#[derive(Args, Debug, Default)]
pub struct Options {
    /// Also what the tests need: compilers, allocators, debuggers
    #[arg(long)]
    pub tests: bool,
    /// Also what the benchmark needs: the other tools, kernel headers for bcc
    #[arg(long)]
    pub bench: bool,
}

pub fn run(options: &Options) -> Result<()> {
    kernel_side()?;
    if options.tests {
        apt::install(&FOR_TESTS, "tests")?;
        pythons::provide()?;
        packages::provide()?;
    }
    if options.bench {
        bench::setup()?;
    }
    Ok(())
}

fn kernel_side() -> Result<()> {
    let around = Surroundings::of_this_process();
    let (_, compiler) = compiler(&around)?;
    linker::provide(&around, compiler)?;
    // The same question that memwatch's build script will ask.
    match toolchain::find(&around, shell::oldest_compiler()?) {
        Ok(toolchain) => {
            let (version, folder) = (toolchain.compiler.version, toolchain.sysroot.display());
            let linker = toolchain.linker.program.display();
            shell::say(format!(
                "kernel side: {} (rustc {version}, {folder}) with {linker}",
                toolchain.called
            ));
            Ok(())
        }
        Err(missing) => bail!("kernel side: still {missing}\n{ELSEWHERE}"),
    }
}

/// A compiler that can, installed if there is none.
fn compiler(around: &Surroundings) -> Result<(Candidate, Compiler)> {
    let oldest = shell::oldest_compiler()?;
    let unfit = match toolchain::find_compiler(around, oldest, None) {
        Ok(found) => return Ok(found),
        Err(unfit) => unfit,
    };
    for (candidate, why) in &unfit {
        shell::say(format!("kernel side: not {}: {why}", candidate.called));
    }
    if around.choice.is_some() {
        bail!(
            "kernel side: {} names no compiler that will do",
            toolchain::CHOICE
        );
    }
    if !can_install_compiler()? {
        bail!("kernel side: no compiler fit for the BPF target\n{ELSEWHERE}");
    }
    // One that is there is too old, or it would have been found.
    apt::install_newest(&COMPILER, "kernel side")?;
    toolchain::find_compiler(around, oldest, None).map_err(|unfit| {
        let distribution = unfit
            .iter()
            .find(|(candidate, _)| candidate.sysroot == Path::new("/usr"));
        let why = distribution.map_or(Unfit::NoCompiler, |(_, why)| *why);
        anyhow::anyhow!("kernel side: the distribution's compiler will not do: {why}\n{ELSEWHERE}")
    })
}

fn can_install_compiler() -> Result<bool> {
    if !apt::is_here() {
        return Ok(false);
    }
    let offered = || COMPILER.iter().all(|name| apt::offers(name));
    if !offered() {
        // A fresh machine has no lists yet.
        apt::update().context("kernel side: cannot fetch the lists of packages")?;
    }
    Ok(offered())
}
