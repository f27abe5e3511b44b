//! `cargo xtask fuzz`: the targets in `tests/fuzz`, each for a while. They are built with coverage and with
//! every check of arithmetic, by any stable compiler.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::shell;

#[derive(Args, Debug)]
pub struct Options {
    /// One of them, else each after the other
    target: Option<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn run(options: &Options) -> Result<()> {
    let folder = shell::workspace().join("tests/fuzz");
    let targets = targets(&folder, options.target.as_deref())?;
    let lock = folder.join("Cargo.lock");
    if !lock.exists() {
        // The same versions as everywhere; what only the targets need is added.
        fs::copy(shell::workspace().join("Cargo.lock"), &lock).context("cannot copy Cargo.lock")?;
    }
    let built = shell::target_folder()?.join("fuzz");
    let mut build = shell::cargo();
    build
        .current_dir(&folder)
        .args(["build", "--release", "--target-dir"])
        .arg(&built)
        .env("RUSTC_WRAPPER", folder.join("rustc.sh"))
        .env("MEMWATCH_BPF", "stub");
    shell::run(&mut build)?;
    let mut failed = Vec::new();
    for target in &targets {
        let binary = built.join("release").join(target);
        if let Err(error) = one(&folder, &built, &binary, target, options.seconds) {
            shell::say(format!("{error:#}"));
            failed.push(target.as_str());
        }
    }
    ensure!(
        failed.is_empty(),
        "{} did not survive: mend it, and keep the input from tests/fuzz/artifacts in tests/fuzz/corpus/TARGET",
        failed.join(", ")
    );
    Ok(())
}

/// By their files.
fn targets(folder: &Path, wanted: Option<&str>) -> Result<Vec<String>> {
    let files = fs::read_dir(folder.join("fuzz_targets")).context("cannot list the targets")?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    if let Some(wanted) = wanted {
        ensure!(
            names.iter().any(|name| name == wanted),
            "there is no target `{wanted}`; there are {}",
            names.join(", ")
        );
        names.retain(|name| name == wanted);
    }
    Ok(names)
}

fn one(folder: &Path, built: &Path, binary: &Path, target: &str, seconds: u32) -> Result<()> {
    // What the fuzzer adds goes there; the seeds are only read.
    let grown: PathBuf = built.join("corpus").join(target);
    let artifacts = folder.join("artifacts");
    for made in [&grown, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut fuzz = Command::new(binary);
    fuzz.arg(&grown)
        .arg(folder.join("corpus").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", artifacts.display()))
        .args([
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            "-verbosity=0",
        ]);
    shell::run(&mut fuzz)
}
