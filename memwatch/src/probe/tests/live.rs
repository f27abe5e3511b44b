//! The plan of what is installed on this machine, against what `objdump` sees there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::probe::placer::Cost;
use crate::probe::plan::{Abilities, ModulePlan, Point, plan_file};

const LIBRARIES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib64/libstdc++.so.6",
];

fn installed() -> impl Iterator<Item = (&'static str, ModulePlan)> {
    LIBRARIES
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| {
            let bytes = std::fs::read(path).unwrap();
            (
                path,
                plan_file(&bytes, path, &Abilities::of_kernel(6, 12, true)).unwrap(),
            )
        })
}

/// Offset from the function's start -> instruction.
fn disassemble(path: &str, point: &Point) -> Option<BTreeMap<u64, String>> {
    let output = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn"])
        .arg(format!("--start-address={:#x}", point.address))
        .arg(format!("--stop-address={:#x}", point.address + 256))
        .arg(path)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| {
        let (address, instruction) = line.trim_start().split_once(':')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        Some((address.checked_sub(point.address)?, instruction.trim().to_owned()))
    });
    Some(lines.collect())
}

#[test]
fn places_in_installed_libraries_are_instructions_of_the_right_kind() {
    for (path, plan) in installed() {
        for point in &plan.points {
            let Some(code) = disassemble(path, point) else {
                eprintln!("objdump is not installed: not compared");
                return;
            };
            let offset = u64::from(point.placement.offset_from_entry);
            let instruction = code
                .get(&offset)
                .unwrap_or_else(|| panic!("{path} {point:?}: {code:?}"));
            let mnemonic = instruction.split(' ').next().unwrap_or_default();
            let emulated = mnemonic.starts_with('j') || ["push", "nop", "call", "bnd"].contains(&mnemonic);
            assert_eq!(
                emulated,
                point.placement.cost == Cost::Emulated,
                "{path} {point:?}: {instruction}"
            );
            // None that is cheap was passed over.
            for (_, before) in code.range(..offset) {
                assert!(
                    !before.starts_with('j') && !before.starts_with("push"),
                    "{path} {point:?}: {before}"
                );
            }
        }
    }
}

#[test]
fn installed_allocators_are_planned_whole_and_the_c_plus_plus_library_not_at_all() {
    for (path, plan) in installed() {
        if path.contains("libstdc++") {
            assert!(plan.points.is_empty(), "{:?}", plan.points);
            assert!(plan.skipped.iter().any(|skipped| skipped.symbol == "_Znwm"));
            continue;
        }
        assert_eq!(plan.glibc, path.ends_with("libc.so.6"), "{path}");
        assert!(plan.notes.is_empty(), "{path}: {:?}", plan.notes);
        for name in ["malloc", "calloc", "realloc", "free"] {
            let found = plan
                .points
                .iter()
                .find(|point| point.symbol == name || point.aliases.contains(&name));
            assert!(found.is_some_and(|point| point.required), "{path}: {name}");
        }
    }
}
