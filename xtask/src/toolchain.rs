//! Which compiler builds the kernel side. The build script of `memwatch` includes this file, so it uses only `std`.
//!
//! The BPF target ships no precompiled `core`, so a compiler is fit only if the sources of the standard library lie
//! beside it. A stable one will do (it is told to take nightly flags), which is how a distribution's packages serve.

use std::{
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names a sysroot to use before any other: a folder with `bin/rustc`, `bin/cargo` and `lib/rustlib/src`.
pub const CHOICE: &str = "MEMWATCH_BPF_TOOLCHAIN";

/// What this process was told about where things are.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub path: Option<OsString>,
    pub home: Option<PathBuf>,
    pub cargo_home: Option<PathBuf>,
    pub rustup_home: Option<PathBuf>,
    pub choice: Option<PathBuf>,
    /// The compiler that builds the rest.
    pub rustc: Option<PathBuf>,
}

impl Surroundings {
    pub fn of_this_process() -> Self {
        let folder = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            path: std::env::var_os("PATH"),
            home: folder("HOME"),
            cargo_home: folder("CARGO_HOME"),
            rustup_home: folder("RUSTUP_HOME"),
            choice: folder(CHOICE),
            rustc: folder("RUSTC").or_else(|| Some("rustc".into())),
        }
    }

    /// A program on the PATH, or where `cargo install` puts it: root's PATH often lacks that folder.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.iter().flat_map(std::env::split_paths);
        let installed = self.cargo_home.iter().map(|home| home.join("bin"));
        let usual = self.home.iter().map(|home| home.join(".cargo/bin"));
        path.chain(installed)
            .chain(usual)
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    }

    fn rustup_toolchains(&self) -> Option<PathBuf> {
        let home = self
            .rustup_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".rustup")))?;
        Some(home.join("toolchains"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// `1.95`, `1.97.0-nightly`
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(['.', '-']);
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What `rustc -vV` tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiler {
    pub version: Version,
    /// Takes nightly flags without being told to.
    pub nightly: bool,
    pub llvm: Option<u32>,
}

impl Compiler {
    pub fn parse(verbose_version: &str) -> Option<Self> {
        let field = |name: &str| {
            verbose_version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let release = field("release:")?;
        Some(Self {
            version: Version::parse(release)?,
            nightly: release.contains("-nightly") || release.contains("-dev"),
            llvm: field("LLVM version:").and_then(|text| text.split('.').next()?.parse().ok()),
        })
    }
}

/// A place where a compiler may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub sysroot: PathBuf,
    pub called: String,
}

/// Everywhere to look, best first.
pub fn candidates(around: &Surroundings) -> Vec<Candidate> {
    if let Some(sysroot) = &around.choice {
        return vec![Candidate {
            sysroot: sysroot.clone(),
            called: format!("{CHOICE}={}", sysroot.display()),
        }];
    }
    let mut all = nightlies(around);
    if let Some(sysroot) = around.rustc.as_deref().and_then(sysroot_of) {
        all.push(Candidate {
            called: format!("the compiler in use ({})", sysroot.display()),
            sysroot,
        });
    }
    all.push(Candidate {
        sysroot: "/usr".into(),
        called: "the distribution's /usr/bin/rustc".into(),
    });
    let mut seen = Vec::new();
    all.retain(|candidate| {
        let place = fs::canonicalize(&candidate.sysroot).unwrap_or_else(|_| candidate.sysroot.clone());
        let new = !seen.contains(&place);
        seen.push(place);
        new
    });
    all
}

/// rustup's nightlies: the one that is kept current first, then the dated ones, newest first.
fn nightlies(around: &Surroundings) -> Vec<Candidate> {
    let Some(Ok(entries)) = around.rustup_toolchains().map(fs::read_dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    let dated = |name: &str| name.strip_prefix("nightly-2").is_some();
    names.sort_by(|a, b| dated(a).cmp(&dated(b)).then_with(|| b.cmp(a)));
    let folder = around.rustup_toolchains().unwrap_or_default();
    names
        .into_iter()
        .map(|name| Candidate {
            sysroot: folder.join(&name),
            called: format!("rustup's {name}"),
        })
        .collect()
}

fn sysroot_of(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output
        .status
        .success()
        .then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// What was found at a candidate's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub compiler: Option<Compiler>,
    pub cargo: bool,
    pub core_sources: bool,
}

fn look_at(sysroot: &Path) -> Facts {
    let rustc = sysroot.join("bin/rustc");
    let told = rustc
        .is_file()
        .then(|| Command::new(&rustc).arg("-vV").output().ok())
        .flatten();
    Facts {
        compiler: told.and_then(|output| Compiler::parse(&String::from_utf8_lossy(&output.stdout))),
        cargo: sysroot.join("bin/cargo").is_file(),
        core_sources: sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file(),
    }
}

/// Why a compiler will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    NoCompiler,
    NoCargo,
    TooOld { version: Version, oldest: Version },
    NoSources,
    LinkerTooOld { llvm: u32, linker: u32 },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompiler => write!(f, "no working bin/rustc"),
            Self::NoCargo => write!(f, "no bin/cargo beside it"),
            Self::TooOld { version, oldest } => write!(f, "is {version}, older than {oldest}"),
            Self::NoSources => write!(f, "no sources of the standard library (rust-src)"),
            Self::LinkerTooOld { llvm, linker } => {
                write!(f, "its LLVM {llvm} is newer than bpf-linker's LLVM {linker}")
            }
        }
    }
}

/// The compiler, or why it will not do. `linker` is the version of LLVM inside bpf-linker, where known: it reads what
/// the compiler writes, so it must not be older.
pub fn judge(facts: Facts, oldest: Version, linker: Option<u32>) -> Result<Compiler, Unfit> {
    let compiler = facts.compiler.ok_or(Unfit::NoCompiler)?;
    if !facts.cargo {
        return Err(Unfit::NoCargo);
    }
    if compiler.version < oldest {
        return Err(Unfit::TooOld {
            version: compiler.version,
            oldest,
        });
    }
    if !facts.core_sources {
        return Err(Unfit::NoSources);
    }
    match (compiler.llvm, linker) {
        (Some(llvm), Some(linker)) if llvm > linker => Err(Unfit::LinkerTooOld { llvm, linker }),
        _ => Ok(compiler),
    }
}

/// The version of LLVM that a bpf-linker loads, from its list of shared libraries; `None` when it brings its own.
pub fn linked_llvm(program: &[u8]) -> Option<u32> {
    ["libLLVM.so.", "libLLVM-"].iter().find_map(|name| {
        let starts = program
            .windows(name.len())
            .enumerate()
            .filter(|(_, bytes)| *bytes == name.as_bytes());
        starts
            .map(|(at, _)| leading_number(&program[at + name.len()..]))
            .find(Option::is_some)?
    })
}

fn leading_number(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&bytes[..digits]).ok()?.parse().ok()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    pub program: PathBuf,
    pub llvm: Option<u32>,
}

pub fn find_linker(around: &Surroundings) -> Option<Linker> {
    let program = around.program("bpf-linker")?;
    let llvm = fs::read(&program).ok().and_then(|bytes| linked_llvm(&bytes));
    Some(Linker { program, llvm })
}

/// The first fit compiler; else each one looked at, and why it will not do.
pub fn find_compiler(
    around: &Surroundings,
    oldest: Version,
    linker: Option<u32>,
) -> Result<(Candidate, Compiler), Vec<(Candidate, Unfit)>> {
    let mut unfit = Vec::new();
    for candidate in candidates(around) {
        match judge(look_at(&candidate.sysroot), oldest, linker) {
            Ok(compiler) => return Ok((candidate, compiler)),
            Err(why) => unfit.push((candidate, why)),
        }
    }
    Err(unfit)
}

/// All that it takes to build the kernel side.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub called: String,
    pub sysroot: PathBuf,
    pub compiler: Compiler,
    pub linker: Linker,
}

/// What is not there.
#[derive(Clone, Debug, Default)]
pub struct Missing {
    pub linker: bool,
    /// Empty when a compiler would do.
    pub compilers: Vec<(Candidate, Unfit)>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let linker = self
            .linker
            .then(|| "no bpf-linker on the PATH or in ~/.cargo/bin".to_owned());
        let each = self
            .compilers
            .iter()
            .map(|(candidate, why)| format!("{}: {why}", candidate.called));
        let compilers = (!self.compilers.is_empty()).then(|| {
            format!(
                "no compiler fit for the BPF target ({})",
                each.collect::<Vec<_>>().join("; ")
            )
        });
        let parts: Vec<String> = linker.into_iter().chain(compilers).collect();
        write!(f, "{}", parts.join(", and "))
    }
}

/// Looks at the machine and picks. `oldest` is the oldest compiler that the workspace accepts.
pub fn find(around: &Surroundings, oldest: Version) -> Result<Toolchain, Missing> {
    let linker = find_linker(around);
    let compiler = find_compiler(around, oldest, linker.as_ref().and_then(|linker| linker.llvm));
    match (linker, compiler) {
        (Some(linker), Ok((Candidate { sysroot, called }, compiler))) => Ok(Toolchain {
            called,
            sysroot,
            compiler,
            linker,
        }),
        (linker, compiler) => Err(Missing {
            linker: linker.is_none(),
            compilers: compiler.err().unwrap_or_default(),
        }),
    }
}

// Said in full because a build script includes this file under another name.
#[cfg(test)]
#[path = "toolchain/tests.rs"]
mod tests;
