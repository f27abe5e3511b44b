//! Builds the kernel side, `memwatch-ebpf`, with a compiler that can, and leaves it at `OUT_DIR/memwatch-ebpf`.
//!
//! `MEMWATCH_BPF=stub` leaves an empty file there instead and sets `MEMWATCH_BPF_STUB` for `option_env!` and
//! `cfg(memwatch_bpf_stub)`: enough to check, lint and test all that needs no kernel side.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use toolchain::{Surroundings, Toolchain, Version};

const OBJECT: &str = "memwatch-ebpf";
const TARGET: &str = "bpfel-unknown-none";
const MODE: &str = "MEMWATCH_BPF";

fn main() {
    println!("cargo::rerun-if-env-changed={MODE}");
    println!("cargo::rerun-if-env-changed={}", toolchain::CHOICE);
    println!("cargo::rustc-check-cfg=cfg(memwatch_bpf_stub)");
    if let Err(message) = run() {
        // This ends the build, in one line; a failing exit code would add a dump of all that was printed here.
        println!("cargo::error={message}");
    }
}

fn run() -> Result<(), String> {
    let variable =
        |name: &str| env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"));
    let object = PathBuf::from(variable("OUT_DIR")?).join(OBJECT);
    match env::var(MODE).as_deref() {
        Ok("stub") => stub(&object),
        Ok("build" | "") | Err(_) => {
            let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
            let workspace = package.parent().ok_or("memwatch is not in its workspace")?;
            let oldest = Version::parse(&variable("CARGO_PKG_RUST_VERSION")?)
                .ok_or("the workspace's rust-version is not a version")?;
            let arch = variable("CARGO_CFG_TARGET_ARCH")?;
            let toolchain = toolchain::find(&Surroundings::of_this_process(), oldest).map_err(|missing| {
                format!(
                    "cannot build the kernel side: {missing}. `cargo xtask setup` installs what is missing; \
                     {MODE}=stub builds without a kernel side"
                )
            })?;
            build(&toolchain, workspace, &arch, &object)
        }
        Ok(other) => Err(format!(
            "{MODE}={other} is not known: leave it unset, or set it to stub"
        )),
    }
}

fn stub(object: &Path) -> Result<(), String> {
    println!("cargo::rustc-env=MEMWATCH_BPF_STUB=1");
    println!("cargo::rustc-cfg=memwatch_bpf_stub");
    fs::write(object, []).map_err(|error| format!("cannot write {}: {error}", object.display()))
}

fn build(toolchain: &Toolchain, workspace: &Path, arch: &str, object: &Path) -> Result<(), String> {
    rerun_on_change(toolchain, workspace);
    let folder = folder_for_all_profiles(object);
    let mut command = cargo(toolchain);
    command
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            OBJECT,
            "--target",
            TARGET,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&folder)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(&toolchain.linker.program, arch),
        );
    let output = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    // The only way for a build script to show anything.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    if !output.status.success() {
        return Err(format!(
            "the kernel side did not build with {} ({}); what it said stands above as warnings",
            toolchain.called, output.status
        ));
    }
    let built = folder.join(TARGET).join("release").join(OBJECT);
    copy(&built, object).map_err(|error| format!("cannot copy {}: {error}", built.display()))
}

/// Not cargo's own folder, whose lock is held by the cargo that runs us. Above the profiles' folders
/// (`target/debug/build/memwatch-…/out`), so that they share it: building `core` takes longer than all the rest.
fn folder_for_all_profiles(object: &Path) -> PathBuf {
    object.ancestors().nth(5).unwrap_or(object).join("memwatch-bpf")
}

/// `cargo` that uses this compiler and nothing of the one that runs us.
fn cargo(toolchain: &Toolchain) -> Command {
    let mut command = Command::new(toolchain.sysroot.join("bin/cargo"));
    command.env("RUSTC", toolchain.sysroot.join("bin/rustc"));
    // Set by the cargo, clippy or rustup around us, and meant for another compiler or another target.
    for name in [
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "RUSTDOC",
        "CARGO",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    if !toolchain.compiler.nightly {
        // Building `core` takes flags that a stable compiler refuses otherwise.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

/// What the compiler must be told, as `CARGO_ENCODED_RUSTFLAGS` wants it: which registers the probed programs have, and
/// to keep the types, which the kernel wants to know.
fn rustflags(linker: &Path, arch: &str) -> OsString {
    let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\""));
    for flag in ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clinker="] {
        flags.push("\x1f");
        flags.push(flag);
    }
    flags.push(linker);
    flags
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::write(to, fs::read(from)?)
}

fn rerun_on_change(toolchain: &Toolchain, workspace: &Path) {
    let ours = [
        "memwatch-ebpf/src",
        "memwatch-ebpf/Cargo.toml",
        "memwatch-common/src",
        "memwatch-common/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ];
    let theirs = [
        toolchain.linker.program.clone(),
        toolchain.sysroot.join("bin/rustc"),
    ];
    for path in ours.map(|path| workspace.join(path)).into_iter().chain(theirs) {
        // A path that does not exist would make every build start anew.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}
