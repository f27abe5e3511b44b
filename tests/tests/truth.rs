//! Byte for byte: what memwatch says of a program against what the program knows of itself.

use std::process::Command;

use memwatch_tests::binary::can_watch;
use memwatch_tests::compile::library;
use memwatch_tests::truth::assert_true;
use memwatch_tests::{Checks, Flavour, Memwatch, Recipe, Target, need};

/// Lets the target do so many parts of its work and compares after each.
fn follow_parts(target: &mut Target, watch: &mut Memwatch, parts: usize, checks: Checks) {
    for _ in 0..parts {
        let truths = target.go();
        let latest = truths
            .iter()
            .map(|truth| truth.time_ns)
            .max()
            .expect("a target tells at least one truth");
        assert_true(&watch.report_after(latest), &truths, checks);
    }
}

fn exact_command(command: &mut Command, options: &[&str], parts: usize, checks: Checks) {
    let mut target = Target::start_command(command);
    let mut watch = Memwatch::of(&target, options);
    follow_parts(&mut target, &mut watch, parts, checks);
    assert!(target.exit().success(), "the target ended badly");
    let ended = watch.finish();
    assert_eq!(
        ended.code,
        Some(0),
        "memwatch did not end well after its target: {ended:?}"
    );
}

fn exact(recipe: &Recipe, parts: usize) {
    need!(can_watch());
    let program = need!(recipe.build());
    // Debian's musl has no unwind information for the code that calls main.
    let checks = Checks {
        stacks: !recipe.is_musl(),
        ..Checks::default()
    };
    exact_command(&mut Command::new(program), &[], parts, checks);
}

macro_rules! in_every_flavour {
    ($($name:ident: $recipe:expr, $parts:expr;)+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn plain() {
                exact(&$recipe.flavour(Flavour::Plain), $parts);
            }

            #[test]
            fn with_frame_pointers() {
                exact(&$recipe.flavour(Flavour::FramePointers), $parts);
            }

            #[test]
            fn without_frame_pointers() {
                exact(&$recipe.flavour(Flavour::Optimised), $parts);
            }
        }
    )+};
}

in_every_flavour! {
    all_functions: Recipe::c("c_basic.c"), 3;
    signals_and_jumps: Recipe::c("c_signal.c"), 2;
    threads: Recipe::c("c_threads.c"), 2;
    cpp: Recipe::cpp("cpp_new.cpp"), 2;
    rust: Recipe::rust("rust_alloc.rs"), 4;
    mappings: Recipe::c("c_mmap.c"), 2;
    static_glibc: Recipe::c("c_basic.c").arg("-static"), 3;
    static_pie: Recipe::c("c_basic.c").arg("-static-pie"), 3;
    not_pie: Recipe::c("c_basic.c").arg("-no-pie"), 3;
    musl_static: Recipe::musl("c_basic.c").arg("-static"), 3;
    musl_dynamic: Recipe::musl("c_basic.c"), 3;
    musl_edges: Recipe::musl("c_edges.c"), 1;
}

mod edges {
    use super::*;

    #[test]
    fn plain() {
        exact(&Recipe::c("c_edges.c").flavour(Flavour::Plain), 2);
    }

    #[test]
    fn with_frame_pointers() {
        exact(&Recipe::c("c_edges.c").flavour(Flavour::FramePointers), 2);
    }

    #[test]
    fn without_frame_pointers() {
        exact(&Recipe::c("c_edges.c").flavour(Flavour::Optimised), 2);
    }
}

/// A session that is bound to one process has the kernel put return probes into all other watched ones, on every
/// function, `free` too: so there are return addresses on the stack that only the kernel's list knows.
#[test]
fn among_return_probes_of_others() {
    need!(can_watch());
    let neighbour = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let other = Memwatch::of(&neighbour, &["--probe-scope", "process"]);
    exact(&Recipe::c("c_threads.c").flavour(Flavour::Optimised), 2);
    exact(&Recipe::c("c_edges.c").flavour(Flavour::Optimised), 2);
    drop(other);
}

/// Names of an allocator's shared object, newest first.
fn first_library(names: &[&str]) -> Result<String, String> {
    let found = names.iter().find_map(|name| library(name).ok());
    found
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("{} is not installed", names[0]))
}

const JEMALLOC: &[&str] = &["libjemalloc.so.2"];
const TCMALLOC: &[&str] = &["libtcmalloc.so.4", "libtcmalloc_minimal.so.4"];
const MIMALLOC: &[&str] = &["libmimalloc.so.3", "libmimalloc.so.2"];

fn preloaded(names: &[&str]) {
    need!(can_watch());
    let library = need!(first_library(names));
    let program = need!(Recipe::c("c_basic.c").build());
    let mut command = Command::new(program);
    // Where an allocator leaves pvalloc out, libc's own block would reach the allocator's free.
    exact_command(
        command.arg("no-pvalloc").env("LD_PRELOAD", library),
        &[],
        3,
        Checks::default(),
    );
}

fn linked(names: &[&str]) {
    need!(can_watch());
    let library = need!(first_library(names));
    let program = need!(
        Recipe::c("c_basic.c")
            .arg("-Wl,--no-as-needed")
            .arg(&library)
            .build()
    );
    exact_command(Command::new(program).arg("no-pvalloc"), &[], 3, Checks::default());
}

macro_rules! allocators {
    ($($name:ident: $library:expr;)+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn preloaded() {
                super::preloaded($library);
            }

            #[test]
            fn linked() {
                super::linked($library);
            }
        }
    )+};
}

allocators! {
    jemalloc: JEMALLOC;
    tcmalloc: TCMALLOC;
    mimalloc: MIMALLOC;
}

#[test]
fn threads_under_another_allocator() {
    need!(can_watch());
    let library = need!(first_library(JEMALLOC));
    let program = need!(Recipe::c("c_threads.c").build());
    exact_command(
        Command::new(program).env("LD_PRELOAD", library),
        &[],
        1,
        Checks::default(),
    );
}

/// A million live blocks, ten thousand stacks, 64 threads.
#[test]
fn a_million_blocks() {
    need!(can_watch());
    let program = need!(Recipe::c("big.c").build());
    exact_command(&mut Command::new(program), &["-i", "5s"], 3, Checks::default());
}

#[test]
fn libraries_that_come_later() {
    need!(can_watch());
    let program = need!(Recipe::c("c_dlopen.c").build());
    let plugin = need!(Recipe::c("plugin.c").shared().build());
    let library = need!(Recipe::c("bundled_lib.c").shared().build());
    let mut target = Target::start_with(&program, &[plugin, library]);
    let mut watch = Memwatch::of(&target, &[]);
    follow_parts(&mut target, &mut watch, 2, Checks::default());
    let before = watch.next_report().health.probes.attached;

    // The library brings an allocator. Its probes come a little after it; that must be told, so `complete` is open.
    let loaded = target.go().pop().expect("one truth");
    let mut report = watch.report_after(loaded.time_ns);
    for _ in 0..40 {
        if report.health.probes.attached > before {
            break;
        }
        report = watch.next_report();
    }
    let after = report.health.probes.attached;
    assert!(
        after > before,
        "the library's allocator is not watched: {:?}",
        report.health.probes
    );
    let settled = watch.next_report();
    assert_eq!(settled.health.probes.attached, after, "all probes came at once");
    follow_parts(
        &mut target,
        &mut watch,
        1,
        Checks {
            complete: false,
            ..Checks::default()
        },
    );
}

/// A strict seccomp filter: the target lives in any case; if it is watched, then exactly.
#[test]
fn under_seccomp() {
    need!(can_watch());
    let program = need!(Recipe::c("c_seccomp.c").build());
    exact_command(&mut Command::new(program), &[], 3, Checks::default());
}

/// The same numbers whatever they are grouped by.
#[test]
fn grouped_by_function() {
    need!(can_watch());
    let program = need!(Recipe::c("c_basic.c").build());
    let mut target = Target::start(&program);
    let options = [
        "--group-by",
        "function",
        "--cumulative",
        "--view",
        "alloc",
        "-n",
        "100000",
    ];
    let mut watch = Memwatch::of(&target, &options);
    let truth = target.go().pop().expect("one truth");
    let report = watch.report_after(truth.time_ns);
    for function in &truth.functions {
        let rows: Vec<_> = report
            .rows
            .iter()
            .filter(|row| row.key == function.function)
            .collect();
        let [row] = rows[..] else {
            panic!("{} rows for {}", rows.len(), function.function)
        };
        let seen = [
            row.alloc_bytes,
            row.alloc_objects,
            row.inuse_bytes,
            row.inuse_objects,
        ]
        .map(Some);
        let right = [
            function.alloc_bytes,
            function.alloc_objects,
            function.inuse_bytes,
            function.inuse_objects,
        ];
        assert_eq!(seen, right, "{}", function.function);
    }
}

/// Only blocks within the bounds are recorded.
#[test]
fn bounds_of_size() {
    need!(can_watch());
    within_bounds();
}

/// Another tool's return probe stands where a call returns to that lies outside of the bounds: what it maps is the
/// allocator's all the same.
#[test]
fn bounds_of_size_among_return_probes_of_others() {
    need!(can_watch());
    let neighbour = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let other = Memwatch::of(&neighbour, &["--probe-scope", "process"]);
    within_bounds();
    drop(other);
}

fn within_bounds() {
    let program = need!(Recipe::c("c_basic.c").build());
    let mut target = Target::start(&program);
    let mut watch = Memwatch::of(&target, &["--min-size", "10000", "--max-size", "65536"]);
    let truth = target.go().pop().expect("one truth");
    let report = watch.report_after(truth.time_ns);
    // Of c_basic's sizes only 10000 and 65536 lie within; malloc's first part uses each in turn.
    let seen = memwatch_tests::truth::rows_of_function(&report, target.pid(), "site_memalign");
    let sizes = [
        0,
        1,
        7,
        8,
        16,
        24,
        25,
        63,
        64,
        100,
        1000,
        1032,
        1033,
        4096,
        10000,
        65536,
        131_072,
        300_001_u64,
    ];
    let within = (0..400)
        .map(|i| sizes[i % sizes.len()])
        .filter(|size| (10_000..=65_536).contains(size));
    let right: Vec<u64> = within.collect();
    assert_eq!(
        (seen.alloc_bytes, seen.alloc_objects),
        (right.iter().sum(), right.len() as u64)
    );
}
