//! Builds the target programs. What was built is kept under `target/` by a hash of all that went into it.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binary::{target_directory, workspace};

/// How native code is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Not optimised, with frame pointers.
    Plain,
    /// A little optimised, with frame pointers.
    FramePointers,
    /// As distributions build: optimised, without frame pointers, unwound by its tables.
    Optimised,
}

impl Flavour {
    pub const ALL: [Self; 3] = [Self::Plain, Self::FramePointers, Self::Optimised];

    fn c_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O0", "-fno-omit-frame-pointer"],
            Self::FramePointers => &["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"],
            Self::Optimised => &["-O2", "-fomit-frame-pointer"],
        }
    }

    fn rust_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-Cforce-frame-pointers=yes"],
            Self::FramePointers => &["-Copt-level=1", "-Cforce-frame-pointers=yes"],
            Self::Optimised => &["-Copt-level=3"],
        }
    }
}

/// What to build, and how.
#[derive(Clone, Debug)]
pub struct Recipe {
    compiler: OsString,
    source: String,
    flavour: Flavour,
    arguments: Vec<String>,
    musl: bool,
}

impl Recipe {
    fn new(compiler_variable: &str, compiler: &str, source: &str) -> Self {
        Self {
            compiler: env::var_os(compiler_variable).unwrap_or_else(|| compiler.into()),
            source: source.to_owned(),
            flavour: Flavour::FramePointers,
            arguments: Vec::new(),
            musl: false,
        }
    }

    pub fn c(source: &str) -> Self {
        Self::new("CC", "cc", source)
    }

    pub fn cpp(source: &str) -> Self {
        Self::new("CXX", "c++", source).arg("-std=c++17")
    }

    /// C with musl in the place of glibc. musl has no `pvalloc`.
    pub fn musl(source: &str) -> Self {
        let recipe = Self::new("MUSL_CC", "musl-gcc", source).arg("-DNO_VALLOC");
        Self { musl: true, ..recipe }
    }

    pub const fn is_musl(&self) -> bool {
        self.musl
    }

    pub fn rust(source: &str) -> Self {
        Self::new("RUSTC", "rustc", source)
    }

    pub fn go(source: &str) -> Self {
        Self::new("GO", "go", source)
    }

    #[must_use]
    pub fn flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = flavour;
        self
    }

    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    #[must_use]
    pub fn shared(self) -> Self {
        self.arg("-shared").arg("-fPIC")
    }

    /// The path of the program. `Err` says what is missing; a program that does not compile is a failure.
    pub fn build(&self) -> Result<PathBuf, String> {
        let directory = target_directory().join("test-targets");
        fs::create_dir_all(&directory).expect("the target directory can be written");
        let stem = self.source.replace('.', "_");
        let built = directory.join(format!("{stem}-{:016x}", self.fingerprint()));
        if built.is_file() {
            return Ok(built);
        }
        // Built aside and then renamed, as another test may build the same.
        let aside = tempfile::Builder::new()
            .prefix(&stem)
            .tempdir_in(&directory)
            .expect("a directory can be made");
        let result = aside.path().join("program");
        let mut command = self.command(&result);
        match command.output() {
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{command:?} failed:\n{errors}");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("{} is not installed", self.compiler.display()));
            }
            Err(error) => panic!("{command:?} cannot be run: {error}"),
        }
        fs::rename(&result, &built).expect("both are in one directory");
        Ok(built)
    }

    fn command(&self, result: &Path) -> Command {
        let mut command = Command::new(&self.compiler);
        let source = sources().join(&self.source);
        match source.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => {
                command
                    .args(["--edition=2024", "-g"])
                    .args(self.flavour.rust_flags());
                command.args(&self.arguments).arg("-o").arg(result).arg(source);
            }
            Some("go") => {
                command.env("CGO_ENABLED", "0").args(["build", "-o"]).arg(result);
                command.args(&self.arguments).arg(source);
            }
            _ => {
                command
                    .args(["-g", "-w"])
                    .args(self.flavour.c_flags())
                    .arg("-o")
                    .arg(result)
                    .arg(source);
                command.args(&self.arguments).args(["-ldl", "-lpthread"]);
            }
        }
        command
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.compiler, &self.source, self.flavour, &self.arguments).hash(&mut hasher);
        for path in headers() {
            fs::read(path).expect("a header can be read").hash(&mut hasher);
        }
        fs::read(sources().join(&self.source))
            .expect("the source is there")
            .hash(&mut hasher);
        hasher.finish()
    }
}

fn sources() -> PathBuf {
    workspace().join("tests/targets")
}

fn headers() -> Vec<PathBuf> {
    let entries = fs::read_dir(sources()).expect("the directory of targets is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut headers: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "h"))
        .collect();
    headers.sort();
    headers
}

/// A library of the system, by its exact file name.
pub fn library(name: &str) -> Result<PathBuf, String> {
    let directories = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    ];
    directories
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| format!("{name} is not installed"))
}
