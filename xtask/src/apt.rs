//! Debian's and Ubuntu's packages.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A package, and the program for which it is wanted: one from elsewhere serves as well.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    pub name: &'static str,
    pub program: Option<&'static str>,
}

pub const fn package(name: &'static str) -> Package {
    Package { name, program: None }
}

pub const fn program(program: &'static str, name: &'static str) -> Package {
    Package {
        name,
        program: Some(program),
    }
}

pub fn is_here() -> bool {
    shell::program("apt-get").is_some() && shell::program("dpkg-query").is_some()
}

/// Those of `wanted` that are not there.
pub fn lacking(wanted: &[Package]) -> Vec<&'static str> {
    let names = wanted.iter().map(|package| package.name);
    let known = Command::new("dpkg-query")
        .args(["--show", "--showformat=${binary:Package} ${db:Status-Status}\n"])
        .args(names)
        .stderr(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let installed = installed(&known);
    let there = |package: &&Package| {
        installed.contains(package.name) || package.program.is_some_and(|name| shell::program(name).is_some())
    };
    wanted
        .iter()
        .filter(|package| !there(package))
        .map(|package| package.name)
        .collect()
}

/// Lines of `name:arch status`.
fn installed(shown: &str) -> BTreeSet<&str> {
    shown
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| *status == "installed")
        .map(|(name, _)| name.split(':').next().unwrap_or(name))
        .collect()
}

/// Installs what is lacking. `for_what` tells the user why.
pub fn install(wanted: &[Package], for_what: &str) -> Result<()> {
    let lacking = lacking(wanted);
    if lacking.is_empty() {
        shell::say(format!("{for_what}: every package is there"));
        return Ok(());
    }
    if !is_here() {
        bail!(
            "{for_what}: install what your distribution has for {}, then run this again",
            lacking.join(" ")
        );
    }
    install_newest(&lacking, for_what)
}

/// Installs the newest there is of each, also where an older one is there.
pub fn install_newest(names: &[&str], for_what: &str) -> Result<()> {
    shell::say(format!("{for_what}: installing {}", names.join(" ")));
    update()?;
    let words = [&["install", "--quiet", "--yes", "--no-install-recommends"], names].concat();
    apt_get(&words).with_context(|| format!("{for_what}: cannot install {}", names.join(" ")))
}

/// Whether apt knows a package of that name.
pub fn offers(name: &str) -> bool {
    let shown = shell::output(Command::new("apt-cache").args(["show", "--no-all-versions", name]));
    shown.is_ok_and(|text| text.starts_with("Package:"))
}

/// The lists of packages, fetched anew.
pub fn update() -> Result<()> {
    apt_get(&["update", "--quiet"])
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = shell::command_as_root("apt-get", "to install packages")?;
    // Another apt may hold the lock for a while.
    command
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    shell::run(command.stdin(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wholly_installed_counts() {
        let shown =
            "gcc installed\nlibc6:amd64 installed\nmusl-tools config-files\nbroken half-installed\n\nodd\n";
        assert_eq!(installed(shown), BTreeSet::from(["gcc", "libc6"]));
    }

    #[test]
    fn a_program_from_elsewhere_serves_as_its_package() {
        let wanted = [program("sh", "no-such-package-1"), package("no-such-package-2")];
        assert_eq!(lacking(&wanted), ["no-such-package-2"]);
    }
}
