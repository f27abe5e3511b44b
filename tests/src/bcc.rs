//! Stacks as bcc's memleak takes them, for the record.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use memwatch::{
    target::maps::{self, Mapping},
    unwind::{Source, table::bias},
};

use crate::{gdb::Place, target::die_with_parent};

/// It wants tracefs mounted, which need not stay so for others.
const WITH_TRACEFS: &str = "mount -t tracefs tracing /sys/kernel/tracing; exec /usr/bin/python3 \"$@\"";

const MEMLEAK: &str = "/usr/sbin/memleak-bpfcc";

/// What is changed of it: it forgets no block, so that each stack it took is there at the end; and it prints them all as
/// numbers, as printing the sums by stack does not work in the version of Debian 12. How it takes stacks stays as it is.
const CHANGES: [(&str, &str); 3] = [
    (
        "static inline int gen_free_enter(struct pt_regs *ctx, void *address) {\n",
        "static inline int gen_free_enter(struct pt_regs *ctx, void *address) {\n        if (1) return 0;\n",
    ),
    (
        "def print_outstanding_combined():\n",
        r#"def print_all():
        stack_traces = bpf["stack_traces"]
        for stack_id, info in bpf["combined_allocs"].items():
                try:
                        trace = list(stack_traces.walk(stack_id.value))
                except Exception:
                        trace = []
                print("STACK", info.number_of_allocs, *trace)

def print_outstanding_combined():
"#,
    ),
    (
        "                if args.combined_only:\n                        print_outstanding_combined()",
        "                if args.combined_only:\n                        print_all()",
    ),
];

/// Of the allocations that memleak saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub allocations: u64,
    /// Their stack reaches one of the places where memwatch's whole stacks begin.
    pub whole: u64,
    /// memleak had no room for their stack.
    pub lost: u64,
    pub stacks: usize,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            allocations,
            whole,
            lost,
            stacks,
        } = self;
        let share = *whole as f64 * 100.0 / (*allocations).max(1) as f64;
        write!(
            f,
            "memleak: {share:.1} % of {allocations} allocations have whole stacks, {lost} have none; {stacks} different ones"
        )
    }
}

/// Watches a process for so many seconds. `Err` says what is missing.
pub fn share(pid: u32, seconds: u32, is_root: impl Fn(&Place) -> bool) -> Result<Share, String> {
    let code = Code::of(pid)?;
    let mut script = fs::read_to_string(MEMLEAK).map_err(|error| format!("{MEMLEAK}: {error}"))?;
    for (from, to) in CHANGES {
        if !script.contains(from) {
            return Err(format!("{MEMLEAK} is of another version: it has no {from:?}"));
        }
        script = script.replace(from, to);
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().join("memleak");
    fs::write(&path, script).map_err(|error| error.to_string())?;
    // The distribution's Python is the one that bcc is installed for.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", WITH_TRACEFS, "memleak"])
        .arg(path)
        .args(["--combined-only", "-p", &pid.to_string()]);
    if let Some(allocator) = code.allocator() {
        command.arg("-O").arg(allocator);
    }
    command.args([&seconds.to_string(), "1"]).stdin(Stdio::null());
    die_with_parent(&mut command);
    let output = command
        .output()
        .map_err(|error| format!("memleak cannot be run: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let share = count(&printed, |address| {
        code.place(address).is_some_and(|place| is_root(&place))
    });
    if share.allocations == 0 {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("memleak saw nothing: {}", said.trim()));
    }
    Ok(share)
}

fn count(printed: &str, is_root: impl Fn(u64) -> bool) -> Share {
    let mut share = Share::default();
    for line in printed.lines().filter_map(|line| line.strip_prefix("STACK ")) {
        let mut numbers = line.split(' ').filter_map(|word| word.parse::<u64>().ok());
        let Some(allocations) = numbers.next() else {
            continue;
        };
        let addresses: Vec<u64> = numbers.collect();
        share.stacks += 1;
        share.allocations += allocations;
        if addresses.is_empty() {
            share.lost += allocations;
        } else if addresses.into_iter().any(&is_root) {
            share.whole += allocations;
        }
    }
    share
}

/// Where a process has its files' code.
struct Code {
    mappings: Vec<(Mapping, String, u64)>,
}

impl Code {
    fn of(pid: u32) -> Result<Self, String> {
        let text = fs::read(format!("/proc/{pid}/maps")).map_err(|error| error.to_string())?;
        let all = maps::parse(&text).map_err(|error| format!("{error:?}"))?;
        let mut segments = BTreeMap::new();
        let mut mappings = Vec::new();
        for mapping in all.into_iter().filter(|mapping| mapping.perms.executable()) {
            let Some(path) = mapping.file().cloned() else {
                continue;
            };
            let of_file = segments.entry(path.clone()).or_insert_with(|| {
                let bytes = fs::read(&path).unwrap_or_default();
                Source::read(&bytes).map_or_else(|_| Vec::new(), |source| source.segments())
            });
            if let Some(bias) = bias(of_file, mapping.start, mapping.offset) {
                mappings.push((mapping, path.to_string_lossy().into_owned(), bias));
            }
        }
        Ok(Self { mappings })
    }

    fn place(&self, address: u64) -> Option<Place> {
        let holds = |(mapping, ..): &&(Mapping, String, u64)| (mapping.start..mapping.end).contains(&address);
        let (_, path, bias) = self.mappings.iter().find(holds)?;
        Some((path.clone(), address.wrapping_sub(*bias)))
    }

    /// Where it does not allocate with libc.
    fn allocator(&self) -> Option<PathBuf> {
        let paths = self.mappings.iter().map(|(_, path, _)| path);
        paths
            .filter(|path| path.contains("/libjemalloc"))
            .map(PathBuf::from)
            .next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_counted_by_allocations() {
        let printed = "Attaching\nSTACK 5 10 11 12\nSTACK 3 10 11\nSTACK 2\n[12:00:00] Top\n";
        let share = count(printed, |address| address == 12);
        assert_eq!(
            (share.allocations, share.whole, share.lost, share.stacks),
            (10, 5, 2, 3)
        );
    }

    #[test]
    fn addresses_are_found_in_their_files() {
        let code = Code::of(std::process::id()).expect("our own");
        let here = stacks_are_counted_by_allocations as *const () as u64;
        let (path, address) = code.place(here).expect("it is code");
        assert_eq!(Some(PathBuf::from(path)), std::env::current_exe().ok());
        assert!(address < here);
        assert_eq!(code.place(8), None);
    }
}
