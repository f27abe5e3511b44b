//! The other tools, made to work on this machine.

use std::{
    fs,
    os::unix,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    apt::{self, Package, package, program},
    shell,
};

const TOOLS: [Package; 3] = [
    program("bpftrace", "bpftrace"),
    program("memleak-bpfcc", "bpfcc-tools"),
    program("gcc", "gcc"),
];
const MODULES: &str = "/lib/modules";

pub fn setup() -> Result<()> {
    apt::install(&TOOLS, "bench")?;
    let release = shell::output(Command::new("uname").arg("-r"))?;
    let own = Path::new(MODULES).join(release.trim());
    // bcc compiles its programs when it starts, and wants the kernel's headers for that.
    if own.join("build").exists() || Path::new("/sys/kernel/kheaders.tar.xz").exists() {
        shell::say("bench: kernel headers are there");
        return Ok(());
    }
    let exact = format!("linux-headers-{}", release.trim());
    if apt::is_here() && apt::offers(&exact) {
        return apt::install(
            &[Package {
                name: exact.leak(),
                program: None,
            }],
            "bench",
        );
    }
    apt::install(&[package("linux-headers-amd64")], "bench")?;
    borrow_headers(Path::new(MODULES), &own)
}

/// No headers of this kernel are to be had: lets those of another stand in. memleak uses nothing of them but the layout of
/// the registers, which does not change.
fn borrow_headers(modules: &Path, own: &Path) -> Result<()> {
    let lender =
        newest_with_headers(modules).context("bench: no kernel headers came with linux-headers-amd64")?;
    unix::fs::symlink(&lender, own)
        .with_context(|| format!("bench: cannot link {} to {}", own.display(), lender.display()))?;
    shell::say(format!(
        "bench: linked {} to {}, whose headers bcc will use",
        own.display(),
        lender.display()
    ));
    Ok(())
}

fn newest_with_headers(modules: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(modules)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    folders.filter(|folder| folder.join("build").exists()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_borrowed_from_a_kernel_that_has_them() {
        let modules = std::env::temp_dir().join(format!("memwatch-modules-test-{}", std::process::id()));
        fs::create_dir_all(modules.join("6.1.0-1/build")).unwrap();
        fs::create_dir_all(modules.join("6.2.0-1/kernel")).unwrap();
        let own = modules.join("6.18.1");
        borrow_headers(&modules, &own).unwrap();
        let usable = own.join("build").exists();
        fs::remove_dir_all(&modules).unwrap();
        assert!(usable);
        assert!(borrow_headers(&modules, &own).is_err());
    }
}
