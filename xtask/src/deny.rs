//! `cargo xtask deny`: what the dependencies bring along. The rules are in `deny.toml`.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::shell;

const VERSION: &str = "^0.20";

pub fn run() -> Result<()> {
    if shell::program("cargo-deny").is_none() {
        shell::say("building cargo-deny, which takes some minutes");
        // Not optimised, which takes a third of the time; its work here is small.
        let mut install = shell::cargo();
        install.args([
            "install",
            "cargo-deny",
            "--locked",
            "--version",
            VERSION,
            "--profile",
            "dev",
        ]);
        shell::run(install.env("CARGO_PROFILE_DEV_DEBUG", "0"))?;
    }
    shell::run(
        deny(&["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]).stdin(Stdio::null()),
    )?;
    if database_is_in_reach() {
        return shell::run(&mut deny(&["check", "advisories"]));
    }
    shell::say(
        "NOT checked: known vulnerabilities, because the advisory database cannot be fetched from here",
    );
    Ok(())
}

fn deny(arguments: &[&str]) -> Command {
    let mut command = shell::cargo();
    command.arg("deny").args(arguments);
    command
}

fn database_is_in_reach() -> bool {
    let fetch = deny(&["fetch", "db"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    fetch.is_ok_and(|status| status.success())
}
