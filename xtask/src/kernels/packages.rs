//! Kernels out of the packages of several distributions, with an apt of our own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A kernel that some distribution has.
pub struct Kernel {
    pub version: &'static str,
    /// What its packages' names begin and end with; the newest is taken.
    prefix: &'static str,
    suffix: &'static str,
    /// Else memwatch must refuse it.
    pub supported: bool,
}

const fn debian(version: &'static str, prefix: &'static str, suffix: &'static str) -> Kernel {
    Kernel {
        version,
        prefix,
        suffix,
        supported: true,
    }
}

const fn ubuntu(version: &'static str, prefix: &'static str) -> Kernel {
    debian(version, prefix, "-generic")
}

pub const KERNELS: [Kernel; 9] = [
    Kernel {
        supported: false,
        ..debian("5.10", "linux-image-5.10.0-", "-cloud-amd64")
    },
    ubuntu("5.15", "linux-image-5.15.0-"),
    debian("6.1", "linux-image-6.1.0-", "-cloud-amd64"),
    ubuntu("6.5", "linux-image-6.5.0-"),
    ubuntu("6.8", "linux-image-6.8.0-"),
    debian("6.12", "linux-image-6.12.", "+deb13-cloud-amd64"),
    ubuntu("6.14", "linux-image-6.14.0-"),
    ubuntu("6.17", "linux-image-6.17.0-"),
    debian("6.18", "linux-image-6.18.", "+deb13-cloud-amd64"),
];

const DEBIAN: &str = "deb http://deb.debian.org/debian bullseye main
deb http://deb.debian.org/debian-security bullseye-security main
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-backports main
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-backports main
";
const UBUNTU: [&str; 4] = ["jammy", "jammy-updates", "noble", "noble-updates"];
/// Debian carries Ubuntu's keys, and vouches for them.
const UBUNTU_KEYS: (&str, &str) = (
    "ubuntu-keyring/bookworm-backports",
    "usr/share/keyrings/ubuntu-archive-keyring.gpg",
);

/// An apt with its own lists, which installs nothing.
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Fetches the lists.
    pub fn open(folder: &Path) -> Result<Self> {
        let packages = Self {
            root: folder.join("apt"),
        };
        for part in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            let path = packages.root.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        shell::write(&packages.root.join("status"), "")?;
        shell::write(&packages.root.join("apt.conf"), &packages.configuration())?;
        shell::write(&packages.root.join("etc/sources.list"), DEBIAN)?;
        shell::run(packages.apt("apt-get").args(["update", "--quiet"]))?;
        let keys = packages.unpack(UBUNTU_KEYS.0)?.join(UBUNTU_KEYS.1);
        let ubuntu = UBUNTU.map(|suite| {
            let keys = keys.display();
            format!("deb [signed-by={keys}] http://archive.ubuntu.com/ubuntu {suite} main\n")
        });
        let sources = format!("{DEBIAN}{}", ubuntu.concat());
        shell::write(&packages.root.join("etc/sources.list"), &sources)?;
        shell::run(packages.apt("apt-get").args(["update", "--quiet"]))?;
        Ok(packages)
    }

    fn configuration(&self) -> String {
        let root = self.root.display();
        format!(
            "Dir \"{root}\";\nDir::Etc \"etc\";\nDir::Etc::sourcelist \"sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::trustedparts \"/etc/apt/trusted.gpg.d\";\nDir::State \"state\";\n\
             Dir::State::status \"{root}/status\";\nDir::Cache \"cache\";\nAcquire::Languages \"none\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n"
        )
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf"));
        command
    }

    /// The folder into which the package is unpacked; `name/suite` for one suite's.
    pub fn unpack(&self, package: &str) -> Result<PathBuf> {
        let name = package.split('/').next().unwrap_or(package);
        let folder = self.root.join("unpacked").join(name);
        let done = folder.join("unpacked");
        if done.exists() {
            return Ok(folder);
        }
        let fetched = self.root.join("fetched").join(name);
        for path in [&folder, &fetched] {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mut fetch = self.apt("apt-get");
        shell::run(fetch.args(["download", "--quiet", package]).current_dir(&fetched))?;
        for entry in fs::read_dir(&fetched).with_context(|| format!("cannot read {}", fetched.display()))? {
            let archive = entry.context("cannot read a folder")?.path();
            shell::run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(archive)
                    .arg(&folder),
            )?;
        }
        shell::write(&done, "")?;
        fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
        Ok(folder)
    }

    /// The image of the newest kernel of a line.
    pub fn kernel(&self, kernel: &Kernel) -> Result<PathBuf> {
        let names = shell::output(self.apt("apt-cache").args(["pkgnames", kernel.prefix]))?;
        let Some(name) = newest(&names, kernel) else {
            bail!("no suite has a package {}*{}", kernel.prefix, kernel.suffix);
        };
        let folder = self.unpack(name)?;
        let image = name.replacen("linux-image", "boot/vmlinuz", 1);
        Ok(folder.join(image))
    }
}

fn newest<'a>(names: &'a str, kernel: &Kernel) -> Option<&'a str> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    names
        .lines()
        .filter(|name| name.starts_with(kernel.prefix) && name.ends_with(kernel.suffix))
        .max_by_key(|name| numbers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_found_by_its_numbers() {
        let names = "linux-image-6.5.0-9-generic\nlinux-image-6.5.0-45-generic\nlinux-image-6.5.0-1025-oem\n\
                     linux-image-6.5.0-45-generic-dbgsym\nlinux-image-unsigned-6.5.0-99-generic\n";
        let kernel = ubuntu("6.5", "linux-image-6.5.0-");
        assert_eq!(newest(names, &kernel), Some("linux-image-6.5.0-45-generic"));
        assert_eq!(newest("", &kernel), None);
    }
}
