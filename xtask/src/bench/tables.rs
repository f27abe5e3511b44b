//! What unwind tables take: to build them, to have them from an earlier run, and in the kernel.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::shell;

/// Files of this machine that programs really run, as far as they are there: the largest of each name.
const NAMES: [&str; 8] = [
    "libc.so.6",
    "libstdc++.so.6",
    "libpython3.",
    "python3.",
    "gdb",
    "node",
    "libclang-cpp.so.",
    "libLLVM",
];
const FOLDERS: [&str; 4] = [
    "/usr/bin",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/bin",
    "/usr/local/lib",
];

/// A program with libraries of all sizes; tells what it has mapped.
const PYTHON: &str = "import ssl, sqlite3, ctypes, decimal; print(open('/proc/self/maps').read())";

pub fn measure(memwatch: &Path, rounds: usize) -> Result<String> {
    let named = lines(memwatch, rounds, &named_files())?;
    let maps = shell::output(Command::new("python3").args(["-c", PYTHON]))?;
    let of_python = lines(memwatch, 1, &mapped(&maps))?;
    Ok(markdown(&named, &of_python))
}

/// What memwatch tells of each file, and last of all together.
fn lines(memwatch: &Path, rounds: usize, files: &[PathBuf]) -> Result<Vec<Value>> {
    shell::say(format!("unwind tables of {} files", files.len()));
    let mut command = Command::new(memwatch);
    command
        .args(["bench-tables", "--rounds", &rounds.to_string()])
        .args(files);
    let printed = shell::output(&mut command).context("cannot measure unwind tables")?;
    let lines: Result<_, _> = printed.lines().map(serde_json::from_str).collect();
    lines.context("memwatch prints no JSON")
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or(f64::NAN)
}

fn markdown(named: &[Value], of_python: &[Value]) -> String {
    let mut text = String::from(
        "\n### Unwind tables\n\n\
         Files in the page cache; medians. *Recognised*: read so far that one knows whether the table is there already. *Put*: \
         written into the kernel's maps. *Ready*: what the first run takes for the file, all but keeping it. *From the cache*: \
         a later run's reading and checking, instead of building.\n\n\
         | file | rows | recognised | built | rows a second | put | ready | from the cache | kept |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let Some((memory, files)) = named.split_last() else {
        return text;
    };
    for file in files {
        let ms = |name| number(file, name) / 1e6;
        let rows = number(file, "rows");
        // Writing to a string cannot fail.
        _ = writeln!(
            text,
            "| {} | {:.0} k | {:.2} ms | {:.1} ms | {:.1} M | {:.2} ms | {:.1} ms | {:.2} ms | {:.0} KiB |",
            file["file"].as_str().unwrap_or("?"),
            rows / 1e3,
            ms("recognised_ns"),
            ms("built_ns"),
            rows / number(file, "built_ns") * 1e3,
            ms("put_ns"),
            ms("recognised_ns") + ms("built_ns") + ms("put_ns"),
            ms("from_cache_ns"),
            number(file, "kept_bytes") / 1024.0,
        );
    }
    text += "\n";
    for (what, memory) in [
        ("these files", Some(memory)),
        ("all files of a python3 with ssl and sqlite3", of_python.last()),
    ] {
        let Some(memory) = memory else { continue };
        _ = writeln!(
            text,
            "- Kernel memory for {what}: {:.1} bytes a row ({:.0} k rows; {:.1} MiB more in the kernel's general allocator, \
             `/proc/slabinfo`, with what others took meanwhile).",
            number(memory, "slab_bytes") / number(memory, "rows"),
            number(memory, "rows") / 1e3,
            number(memory, "slab_bytes") / f64::from(1 << 20),
        );
    }
    text
}

/// The largest program or library for each name.
fn named_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in NAMES {
        let files = FOLDERS
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
            .filter_map(|entry| fs::canonicalize(entry.path()).ok())
            .filter(|path| is_program(path));
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        if let Some(path) = files.max_by_key(size)
            && !found.contains(&path)
        {
            found.push(path);
        }
    }
    found
}

fn is_program(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && &magic == b"\x7fELF"
}

/// Files of which code is mapped.
fn mapped(maps: &str) -> Vec<PathBuf> {
    let files: BTreeSet<&str> = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        .filter_map(|line| Some(&line[line.find('/')?..]))
        .collect();
    files.into_iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_are_found_in_what_is_mapped() {
        let maps = "55-56 r-xp 00000000 08:01 1 /usr/bin/python3.11\n56-57 r--p 00000000 08:01 1 /usr/bin/python3.11\n\
                    7f-80 r-xp 00000000 00:00 0 [vdso]\n7e-7f r-xp 00000000 08:01 2 /lib/a b.so\n";
        assert_eq!(
            mapped(maps),
            ["/lib/a b.so", "/usr/bin/python3.11"].map(PathBuf::from)
        );
        assert!(is_program(&std::env::current_exe().unwrap()));
        assert!(!is_program(Path::new("/proc/self/maps")));
    }

    #[test]
    fn figures_are_in_their_units() {
        let file = json!({"file": "libc.so.6", "rows": 30_000, "recognised_ns": 500_000, "built_ns": 6_000_000,
            "put_ns": 250_000, "from_cache_ns": 100_000, "kept_bytes": 122_880});
        let memory = json!({"rows": 30_000, "slab_bytes": 240_000});
        let text = markdown(&[file, memory.clone()], &[memory]);
        let row = "| libc.so.6 | 30 k | 0.50 ms | 6.0 ms | 5.0 M | 0.25 ms | 6.8 ms | 0.10 ms | 120 KiB |";
        assert!(text.contains(row), "{text}");
        assert_eq!(
            text.matches("8.0 bytes a row (30 k rows; 0.2 MiB").count(),
            2,
            "{text}"
        );
    }
}
