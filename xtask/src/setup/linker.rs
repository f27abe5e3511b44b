//! bpf-linker, built against the LLVM that the compiler has.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{ELSEWHERE, LINKER_VERSION};
use crate::{
    apt::{self, Package},
    shell,
    toolchain::{self, Compiler, Linker, Surroundings},
};

/// What there is to do about the linker.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Build it against this version of LLVM.
    Build(&'static Llvm),
    /// There is no way that this program knows.
    Unknown,
}

#[derive(Debug, PartialEq, Eq)]
struct Llvm {
    major: u32,
    feature: &'static str,
    package: &'static str,
    prefix: &'static str,
}

/// Those that bpf-linker can be built against.
const LLVMS: [Llvm; 3] = [
    Llvm {
        major: 21,
        feature: "llvm-21",
        package: "llvm-21-dev",
        prefix: "/usr/lib/llvm-21",
    },
    Llvm {
        major: 22,
        feature: "llvm-22",
        package: "llvm-22-dev",
        prefix: "/usr/lib/llvm-22",
    },
    Llvm {
        major: 23,
        feature: "llvm-23",
        package: "llvm-23-dev",
        prefix: "/usr/lib/llvm-23",
    },
];

fn step(found: Option<&Linker>, compiler: Option<u32>) -> Step {
    match (found, compiler) {
        (
            Some(Linker {
                llvm: Some(linker), ..
            }),
            Some(compiler),
        ) if *linker < compiler => {}
        (Some(_), _) => return Step::Nothing,
        (None, _) => {}
    }
    let wanted = compiler.and_then(|major| LLVMS.iter().find(|llvm| llvm.major == major));
    wanted.map_or(Step::Unknown, Step::Build)
}

pub fn provide(around: &Surroundings, compiler: Compiler) -> Result<()> {
    match step(toolchain::find_linker(around).as_ref(), compiler.llvm) {
        Step::Nothing => Ok(()),
        Step::Build(llvm) if apt::is_here() => build(llvm),
        Step::Build(_) | Step::Unknown => {
            bail!("kernel side: no bpf-linker fit for this compiler\n{ELSEWHERE}")
        }
    }
}

fn build(llvm: &'static Llvm) -> Result<()> {
    // The last two are what LLVM's own library is linked with.
    let packages = [llvm.package, "gcc", "g++", "zlib1g-dev", "libzstd-dev"];
    let packages = packages.map(|name| Package { name, program: None });
    apt::install(&packages, "kernel side").context(ELSEWHERE)?;
    shell::say("kernel side: building bpf-linker, which takes some minutes");
    shell::run(&mut install_command(llvm)).context(ELSEWHERE)
}

fn install_command(llvm: &Llvm) -> Command {
    let mut command = shell::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args(["--no-default-features", "--features", llvm.feature])
        .env("LLVM_PREFIX", PathBuf::from(llvm.prefix));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linker(llvm: Option<u32>) -> Linker {
        Linker {
            program: "/x/bpf-linker".into(),
            llvm,
        }
    }

    #[test]
    fn a_linker_that_serves_is_left_alone() {
        assert_eq!(step(Some(&linker(Some(22))), Some(22)), Step::Nothing);
        assert_eq!(step(Some(&linker(Some(23))), Some(22)), Step::Nothing);
        assert_eq!(step(Some(&linker(None)), Some(22)), Step::Nothing);
        assert_eq!(step(Some(&linker(Some(21))), None), Step::Nothing);
    }

    #[test]
    fn a_missing_or_older_linker_is_built_for_the_compilers_llvm() {
        assert_eq!(step(None, Some(22)), Step::Build(&LLVMS[1]));
        assert_eq!(step(Some(&linker(Some(22))), Some(23)), Step::Build(&LLVMS[2]));
    }

    #[test]
    fn an_llvm_that_bpf_linker_does_not_know_is_not_guessed_at() {
        assert_eq!(step(None, Some(30)), Step::Unknown);
        assert_eq!(step(None, None), Step::Unknown);
    }

    #[test]
    fn the_command_names_version_and_feature() {
        let command = shell::typed(&install_command(&LLVMS[1]));
        assert!(
            command.contains("install bpf-linker --version 0.13.0 --locked"),
            "{command}"
        );
        assert!(
            command.ends_with("--no-default-features --features llvm-22"),
            "{command}"
        );
    }
}
