//! Which language runtimes, C library and allocators are in a process, as the names of its files tell.

use std::{
    collections::HashMap,
    fs::File,
    path::{Component, Path},
};

use super::{
    file_id::FileId,
    go_build::{self, GoBuild},
    modules::{Module, ProcessModules},
};
use crate::model::report::Runtime;

/// Where a runtime's version stands.
#[derive(Clone, Copy)]
enum Version {
    /// Nowhere: the number in the name is one of the binary interface.
    Unknown,
    /// Right after the name's beginning: `libpython3.11.so.1.0`.
    InName,
    /// At the end: `libmimalloc.so.2.1`.
    AfterSo,
    /// In the name of a directory above.
    Directory(&'static [&'static str]),
}

const JAVA: Version = Version::Directory(&[
    "java-",
    "jdk-",
    "jdk",
    "jre-",
    "jre",
    "openjdk-",
    "temurin-",
    "zulu",
    "graalvm-jdk-",
]);
/// `node-v18.1.0-linux-x64`, `versions/node/v20.11.0`
const NODE: Version = Version::Directory(&["node-v", "v"]);
/// `Microsoft.NETCore.App/8.0.1`
const DOTNET: Version = Version::Directory(&[""]);

/// How much of a library's name, without `lib` and from `.so` on, must be as in the table.
#[derive(Clone, Copy)]
enum Name {
    Whole,
    /// A version may follow, with a letter for the kind of build.
    Numbered,
    /// Anything may follow: processors, variants.
    Beginning,
}

/// Languages, C libraries, allocators, in the order of the answer.
const LIBRARIES: [(&str, Name, &str, Version); 21] = [
    ("libpython", Name::Numbered, "cpython", Version::InName),
    ("libpypy", Name::Numbered, "pypy", Version::InName),
    ("libjvm", Name::Whole, "java", JAVA),
    ("libnode", Name::Whole, "node", NODE),
    ("libcoreclr", Name::Whole, "dotnet", DOTNET),
    ("libmonosgen-", Name::Beginning, "mono", Version::Unknown),
    ("libruby", Name::Whole, "ruby", Version::AfterSo),
    ("libruby-", Name::Numbered, "ruby", Version::AfterSo),
    ("libperl", Name::Whole, "perl", Version::AfterSo),
    ("liblua", Name::Numbered, "lua", Version::InName),
    ("ld-musl-", Name::Beginning, "musl", Version::Unknown),
    ("libc.musl-", Name::Beginning, "musl", Version::Unknown),
    ("libc-", Name::Numbered, "glibc", Version::InName),
    ("libjemalloc", Name::Beginning, "jemalloc", Version::Unknown),
    ("libtcmalloc", Name::Beginning, "tcmalloc", Version::Unknown),
    ("libmimalloc", Name::Beginning, "mimalloc", Version::AfterSo),
    ("libsnmalloc", Name::Beginning, "snmalloc", Version::Unknown),
    ("librpmalloc", Name::Beginning, "rpmalloc", Version::Unknown),
    ("libscudo", Name::Beginning, "scudo", Version::Unknown),
    ("libclang_rt.scudo", Name::Beginning, "scudo", Version::Unknown),
    ("libtbbmalloc", Name::Beginning, "tbbmalloc", Version::Unknown),
];

/// The place in the order of the answer for `libc.so`, whose name alone does not tell whose it is.
const C_LIBRARY: usize = 12;

/// Programs that have their runtime inside. A version, if the name has one, follows it.
const PROGRAMS: [(&str, &str, Version); 10] = [
    ("python", "cpython", Version::InName),
    ("pypy", "pypy", Version::InName),
    ("nodejs", "node", NODE),
    ("node", "node", NODE),
    ("ruby", "ruby", Version::InName),
    ("perl", "perl", Version::InName),
    ("php-fpm", "php", Version::InName),
    ("php", "php", Version::InName),
    ("deno", "deno", Version::Unknown),
    ("bun", "bun", Version::Unknown),
];

/// From the program and the files that it executes. No name is given twice.
pub fn detect<'a>(
    exe: Option<&Path>,
    files: impl IntoIterator<Item = &'a Path>,
    go: Option<&GoBuild>,
) -> Vec<Runtime> {
    let mut found = Vec::new();
    if let Some(go) = go {
        add(&mut found, "go", go.version.clone());
    }
    if let Some((name, version)) = exe.and_then(program) {
        add(&mut found, name, version);
    }
    let mut libraries: Vec<_> = files.into_iter().filter_map(library).collect();
    libraries.sort_by_key(|(order, ..)| *order);
    for (_, name, version) in libraries {
        add(&mut found, name, version);
    }
    found
}

fn add(found: &mut Vec<Runtime>, name: &str, version: Option<String>) {
    match found.iter_mut().find(|runtime| runtime.name == name) {
        Some(known) => known.version = known.version.take().or(version),
        None => found.push(Runtime {
            name: name.to_owned(),
            version,
        }),
    }
}

fn program(exe: &Path) -> Option<(&'static str, Option<String>)> {
    let name = exe.file_name()?.to_str()?;
    if name == "beam.smp" {
        return Some(("erlang", None));
    }
    PROGRAMS.iter().find_map(|(begin, runtime, version)| {
        let rest = name.strip_prefix(begin)?;
        is_numbered(rest).then(|| (*runtime, find_version(*version, rest, "", exe)))
    })
}

/// Nothing, or a version: `python3.11`, `python3-dbg` and `perl5.36.0` are meant, `python-build` and `nodemon` are
/// not.
fn is_numbered(rest: &str) -> bool {
    let number = leading_version(rest);
    let kind = &rest[number.len()..];
    kind.is_empty() || (!number.is_empty() && matches!(kind, "d" | "m" | "t" | "td" | "-dbg" | "-c"))
}

fn library(path: &Path) -> Option<(usize, &'static str, Option<String>)> {
    let name = path.file_name()?.to_str()?;
    let (base, suffix) = name
        .split_once(".so")
        .filter(|(_, s)| s.is_empty() || s.starts_with('.'))?;
    match (base, suffix) {
        ("libc", ".6") => return Some((C_LIBRARY, "glibc", None)),
        // The loader of musl is often a link to it, and maps name the file itself.
        ("libc", "") => return Some((C_LIBRARY, "musl", None)),
        _ => {}
    }
    let known = LIBRARIES
        .iter()
        .enumerate()
        .find_map(|(order, (begin, how, runtime, version))| {
            let rest = base.strip_prefix(begin)?;
            let matches = match how {
                Name::Whole => rest.is_empty(),
                Name::Numbered => is_numbered(rest),
                Name::Beginning => true,
            };
            matches.then(|| (order, *runtime, find_version(*version, rest, suffix, path)))
        });
    known.or_else(|| extension(base))
}

/// `_ssl.cpython-311-x86_64-linux-gnu.so`: an extension knows for which Python it was made.
fn extension(base: &str) -> Option<(usize, &'static str, Option<String>)> {
    let (_, tag) = base.split_once(".cpython-")?;
    let digits = tag.split(|next: char| !next.is_ascii_digit()).next()?;
    let (major, minor) = digits
        .split_at_checked(1)
        .filter(|(_, minor)| !minor.is_empty())?;
    Some((0, "cpython", Some(format!("{major}.{minor}"))))
}

fn find_version(version: Version, rest: &str, suffix: &str, path: &Path) -> Option<String> {
    match version {
        Version::Unknown => None,
        // A lone `3` (`libpython3.so`, `python3`) says too little.
        Version::InName => Some(leading_version(rest))
            .filter(|number| number.contains('.'))
            .map(str::to_owned),
        Version::AfterSo => {
            let number = leading_version(suffix.strip_prefix('.')?);
            (!number.is_empty()).then(|| number.to_owned())
        }
        Version::Directory(begins) => directory_version(path, begins),
    }
}

fn directory_version(path: &Path, begins: &[&str]) -> Option<String> {
    // The nearest directories only: further up lies what users named.
    let above = path.components().rev().skip(1).take(6);
    above
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .find_map(|name| {
            begins.iter().find_map(|begin| {
                let rest = name.strip_prefix(begin)?;
                let number = leading_version(rest);
                let ends = !rest[number.len()..].starts_with(|next: char| next.is_ascii_alphabetic());
                // Where the directory's name does not say whose version it is, only a whole one will do.
                let whole = number.split('.').count() == 3 || begin.len() > 1;
                (!number.is_empty() && ends && whole).then(|| number.to_owned())
            })
        })
}

/// Digits with single dots between them (and `_`, for Java 8).
fn leading_version(text: &str) -> &str {
    let end = text
        .find(|next: char| !next.is_ascii_digit() && !matches!(next, '.' | '_'))
        .unwrap_or(text.len());
    let number = text[..end].trim_end_matches(['.', '_']);
    if number.starts_with(|first: char| first.is_ascii_digit()) {
        number
    } else {
        ""
    }
}

/// The same for real processes: looks into each program file once.
#[derive(Debug, Default)]
pub struct Runtimes {
    go: HashMap<FileId, Option<GoBuild>>,
}

impl Runtimes {
    pub fn of(&mut self, exe: Option<&Path>, modules: &ProcessModules) -> Vec<Runtime> {
        let program = modules
            .modules
            .iter()
            .find(|module| Some(module.path.as_path()) == exe);
        let go = program.and_then(|module| self.go_build(module));
        detect(
            exe,
            modules.modules.iter().map(|module| module.path.as_path()),
            go.as_ref(),
        )
    }

    fn go_build(&mut self, module: &Module) -> Option<GoBuild> {
        let (id, path) = (module.id?, module.access_path.as_ref()?);
        let look = || go_build::read(&mut File::open(path).ok()?).ok().flatten();
        self.go.entry(id).or_insert_with(look).clone()
    }
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
