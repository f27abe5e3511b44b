//! Interpreters of a newer Debian for the tests, in `target/pythons/debian`: taken out of their packages, with all that
//! they need, into a root of their own. Nothing is installed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{apt, shell};

const SUITE: &str = "forky";

/// Optimised, and built for debugging.
const PACKAGES: [&str; 5] = [
    "python3.13",
    "python3.14",
    "python3.15",
    "python3.14-dbg",
    "python3.15-dbg",
];

/// By whose keys the suite is signed.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub fn provide() -> Result<()> {
    let folder = shell::target_folder()?.join("pythons");
    let (root, what) = (
        folder.join("debian"),
        format!("{SUITE}: {}\n", PACKAGES.join(" ")),
    );
    let mark = root.join("packages");
    if fs::read_to_string(&mark).is_ok_and(|there| there == what) {
        shell::say("tests: newer interpreters are there");
        return Ok(());
    }
    if !apt::is_here() {
        shell::say("tests: without apt-get there are no newer interpreters; their tests will not run");
        return Ok(());
    }
    shell::say(format!(
        "tests: fetching {} of Debian's {SUITE}",
        PACKAGES.join(" ")
    ));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let work = folder.join("fetched");
    let packages = fetch(&work)?;
    unpack(&packages, &root)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    shell::write(&mark, &what)
}

/// The packages and all that they depend on, by an apt that knows of no other system.
fn fetch(work: &Path) -> Result<Vec<PathBuf>> {
    let made = ["lists/partial", "archives/partial"]
        .iter()
        .try_for_each(|folder| fs::create_dir_all(work.join(folder)))
        .and_then(|()| {
            let source = format!("deb [signed-by={KEYS}] http://deb.debian.org/debian {SUITE} main\n");
            fs::write(work.join("sources.list"), source)
        })
        .and_then(|()| fs::write(work.join("status"), ""));
    made.with_context(|| format!("cannot write in {}", work.display()))?;
    let apt = || {
        let mut command = Command::new("apt-get");
        let settings = [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "none"),
            ("Dir::Etc::PreferencesParts", "none"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "status"),
            ("Dir::Cache", ""),
            ("Dir::Cache::Archives", "archives"),
        ];
        for (setting, place) in settings {
            command
                .arg("-o")
                .arg(format!("{setting}={}", work.join(place).display()));
        }
        for setting in [
            "APT::Install-Recommends=false",
            "Acquire::Languages=none",
            "APT::Sandbox::User=",
            "Acquire::Retries=3",
            "Debug::NoLocking=true",
        ] {
            command.args(["-o", setting]);
        }
        command.args(["--quiet", "--yes"]);
        command
    };
    shell::run(apt().arg("update"))?;
    shell::run(apt().args(["--download-only", "install"]).args(PACKAGES))?;
    let archives = work.join("archives");
    let found = fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))?;
    Ok(found
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

fn unpack(packages: &[PathBuf], root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("tmp")).with_context(|| format!("cannot make {}", root.display()))?;
    for package in packages {
        shell::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(root))?;
    }
    // What the package of the base system would make.
    for folder in ["bin", "sbin", "lib", "lib64"] {
        let link = root.join(folder);
        if !link.exists() {
            symlink(format!("usr/{folder}"), &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(())
}
