//! `cargo xtask python-layouts`: asks a C compiler where CPython keeps the fields that memwatch reads, for every
//! version whose headers are given or found, as it is built ordinarily, for debugging, and free-threaded; and where the
//! mimalloc of free-threaded builds keeps its own.
//!
//! Headers of several versions: `~/.pyenv/versions/*/include`, or the `-dev` packages of a distribution.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::shell::workspace;

#[derive(clap::Args)]
pub struct Options {
    /// Fail if the table in the repository says otherwise, and change nothing
    #[arg(long)]
    check: bool,
    /// Directories with `Python.h`; those under `~/.pyenv` and /usr/include if none is given. Versions that are in
    /// the table and whose headers are not there stay as they are
    headers: Vec<PathBuf>,
}

/// A table, and the C program that its numbers come from.
struct Table {
    path: &'static str,
    program: &'static str,
    first_minor: u32,
    /// Other builds have no such fields.
    free_threaded_only: bool,
}

const TABLES: [Table; 2] = [
    Table {
        path: "memwatch/src/python/offsets/table.rs",
        program: include_str!("python_layouts/offsets.c"),
        first_minor: 8,
        free_threaded_only: false,
    },
    Table {
        path: "memwatch/src/python/mimalloc/table.rs",
        program: include_str!("python_layouts/mimalloc.c"),
        first_minor: FIRST_FREE_THREADED,
        free_threaded_only: true,
    },
];

const FIRST_FREE_THREADED: u32 = 13;

/// Minor version, built for debugging, free-threaded.
type Build = (u32, bool, bool);
/// Field by field, in the order of the C program.
type Fields = Vec<(String, i64)>;

pub fn run(options: &Options) -> Result<()> {
    let headers = if options.headers.is_empty() {
        installed()
    } else {
        options.headers.clone()
    };
    ensure!(
        !headers.is_empty(),
        "no Python.h found: name a directory that holds one"
    );
    for table in &TABLES {
        make(table, &headers, options.check)?;
    }
    Ok(())
}

fn make(table: &Table, headers: &[PathBuf], check: bool) -> Result<()> {
    let path = workspace().join(table.path);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let mut names = Vec::new();
    let mut rows = BTreeMap::new();
    let work = std::env::temp_dir().join(format!("memwatch-python-layouts-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let asked = headers
        .iter()
        .try_for_each(|include| ask_all(table, include, &work, &mut names, &mut rows));
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    asked?;
    if rows.is_empty() {
        return Ok(());
    }
    let after = merge(&before, &names, &rows)?;
    if check {
        ensure!(
            after == before,
            "{} is not what the headers say: run cargo xtask python-layouts",
            table.path
        );
        println!("{} builds of CPython are as {} says", rows.len(), table.path);
        return Ok(());
    }
    fs::write(&path, after).with_context(|| format!("cannot write {}", path.display()))
}

/// The headers of the interpreters on this machine.
fn installed() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/usr/include")];
    if let Some(home) = std::env::home_dir() {
        let versions = fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten();
        roots.extend(versions.flatten().map(|version| version.path().join("include")));
    }
    let mut found: Vec<PathBuf> = roots
        .iter()
        .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.join("Python.h").exists() && path.join("internal").exists())
        .collect();
    found.sort();
    found
}

fn ask_all(
    table: &Table,
    include: &Path,
    work: &Path,
    names: &mut Vec<String>,
    rows: &mut BTreeMap<Build, Vec<i64>>,
) -> Result<()> {
    let minor = minor_version(include)?;
    if minor < table.first_minor {
        return Ok(());
    }
    for debug in [false, true] {
        for free_threaded in [false, true] {
            if free_threaded && minor < FIRST_FREE_THREADED || !free_threaded && table.free_threaded_only {
                continue;
            }
            let fields = ask(table.program, include, work, debug, free_threaded)?;
            let (these, values): (Vec<_>, Vec<_>) =
                fields.into_iter().filter(|(name, _)| name != "version").unzip();
            // Structures that the C program does not know.
            if these.is_empty() {
                continue;
            }
            if names.is_empty() {
                names.clone_from(&these);
            }
            // The order of a group may depend on the version; the names decide.
            let by_name: BTreeMap<_, _> = these.into_iter().zip(values).collect();
            let row = names
                .iter()
                .map(|name| by_name.get(name).copied().context("a field is missing"))
                .collect::<Result<Vec<_>>>()?;
            if let Some(other) = rows.insert((minor, debug, free_threaded), row.clone()) {
                ensure!(
                    other == row,
                    "two sets of headers of 3.{minor} disagree: {}",
                    include.display()
                );
            }
        }
    }
    Ok(())
}

fn minor_version(include: &Path) -> Result<u32> {
    let path = include.join("patchlevel.h");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("#define PY_MINOR_VERSION")?.trim().parse().ok())
        .with_context(|| format!("{} names no version", path.display()))
}

fn ask(program_text: &str, include: &Path, work: &Path, debug: bool, free_threaded: bool) -> Result<Fields> {
    let (source, program) = (work.join("offsets.c"), work.join("offsets"));
    fs::write(&source, program_text).context("cannot write the C program")?;
    let mut compiler = Command::new("cc");
    compiler.arg("-w").arg("-o").arg(&program).arg(&source);
    compiler
        .arg("-I")
        .arg(include)
        .arg("-I")
        .arg(include.join("internal"));
    // Debian keeps pyconfig.h in a directory per processor, beside the one that names the version.
    if let Some(parent) = include.parent() {
        compiler
            .arg("-I")
            .arg(parent)
            .arg("-I")
            .arg(parent.join("x86_64-linux-gnu"));
    }
    compiler.args(debug.then_some("-DPy_DEBUG=1"));
    compiler.args(free_threaded.then_some("-DPy_GIL_DISABLED=1"));
    let output = compiler.output().context("cannot run cc")?;
    if !output.status.success() {
        bail!(
            "{} does not compile:\n{}",
            include.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let output = Command::new(&program)
        .output()
        .context("cannot run what cc made")?;
    let text = String::from_utf8(output.stdout).context("the C program's output is no text")?;
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').context("a line without value")?;
            Ok((
                name.to_owned(),
                value.parse().context("a value that is no number")?,
            ))
        })
        .collect()
}

/// The new table: rows of builds that were not asked stay.
fn merge(before: &str, names: &[String], rows: &BTreeMap<Build, Vec<i64>>) -> Result<String> {
    let mut lines: BTreeMap<Build, String> = BTreeMap::new();
    for line in before
        .lines()
        .filter(|line| line.trim_start().starts_with("row("))
    {
        lines.insert(
            build_of(line).context("a row of the table cannot be read")?,
            line.to_owned(),
        );
    }
    for (&(minor, debug, free_threaded), values) in rows {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        lines.insert(
            (minor, debug, free_threaded),
            format!(
                "    row({minor}, {debug}, {free_threaded}, [{}]),",
                values.join(", ")
            ),
        );
    }
    let mut out = String::from(
        "//! Made by `cargo xtask python-layouts` from CPython's headers. Not to be changed by hand.\n\n\
         use super::{Row, row};\n\n\
         /// The fields, in the order of each row's numbers; -1: there is none.\n",
    );
    writeln!(
        out,
        "#[rustfmt::skip]\npub(super) const FIELDS: [&str; {}] = [",
        names.len()
    )?;
    for name in names {
        writeln!(out, "    \"{name}\",")?;
    }
    writeln!(
        out,
        "];\n\n/// Minor version, built for debugging, free-threaded, offsets."
    )?;
    writeln!(
        out,
        "#[rustfmt::skip]\npub(super) const ROWS: [Row; {}] = [",
        lines.len()
    )?;
    for line in lines.values() {
        writeln!(out, "{line}")?;
    }
    out.push_str("];\n");
    Ok(out)
}

fn build_of(line: &str) -> Option<Build> {
    let mut parts = line.trim_start().strip_prefix("row(")?.split(", ");
    Some((
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}
