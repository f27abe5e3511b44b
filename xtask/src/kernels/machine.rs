//! The machine that a kernel is booted on: an emulator, and all files in memory.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::packages::Packages;
use crate::shell;

/// Before the kernel's release.
pub const UP: &str = "memwatch's kernel: ";
pub const ENDED: &str = "memwatch's machine ends";

/// QEMU 7.2 let Linux 6.12 crash at random places in four of eight starts; 10.0 in none.
const GOOD_QEMU: u32 = 10;
const QEMU_SUITE: &str = "bookworm-backports";

pub struct Emulator {
    program: PathBuf,
    /// Where it finds its firmware.
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// This machine's, when it is new enough; else Debian's newer one, unpacked beside it.
    pub fn find(packages: &Packages, folder: &Path) -> Result<Self> {
        let own = PathBuf::from("qemu-system-x86_64");
        let version = shell::output(Command::new(&own).arg("--version"))?;
        if major(&version).is_some_and(|major| major >= GOOD_QEMU) {
            return Ok(Self {
                program: own,
                firmware: Vec::new(),
            });
        }
        let unpacked = |name: &str| packages.unpack(&format!("{name}/{QEMU_SUITE}"));
        let program = unpacked("qemu-system-x86")?.join("usr/bin/qemu-system-x86_64");
        let data = unpacked("qemu-system-data")?.join("usr/share/qemu");
        let bios = unpacked("seabios")?.join("usr/share/seabios");
        shell::say(format!(
            "kernels: QEMU of {QEMU_SUITE} under {}",
            folder.display()
        ));
        Ok(Self {
            program,
            firmware: vec![data, bios],
        })
    }

    /// Boots, waits for the end, and gives what was printed.
    pub fn boot(&self, image: &Path, memory: &Path, patience: u64) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg(patience.to_string()).arg(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "3G"])
            .args(["-nographic", "-no-reboot", "-net", "none"])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(memory)
            .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
            .stdin(Stdio::null());
        shell::say(shell::typed(&command));
        let output = command.output().context("cannot run the emulator")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`
fn major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("version ")?;
    number.split('.').next()?.parse().ok()
}

/// The file system in memory: busybox, memwatch, the test program, its targets as they were built here, and the libraries
/// of them all.
pub fn pack(folder: &Path, memwatch: &Path, test_program: &Path, tests: &[String]) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for part in ["bin", "dev", "memwatch", "proc", "sys", "tmp", "root"] {
        make(&root.join(part))?;
    }
    let busybox = shell::program("busybox").context("there is no busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    let mut programs = Vec::new();
    for (program, name) in [(memwatch, "memwatch"), (test_program, "truth")] {
        let to = root.join("memwatch").join(name);
        shell::run(
            Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(&to)
                .arg(program),
        )?;
        programs.push(program.to_owned());
    }
    // The tests look for sources and targets where they were when they were built.
    let workspace = shell::workspace();
    for source in files(&workspace.join("tests/targets"))? {
        copy(&source, &inside(&root, &source))?;
    }
    for target in files(&shell::target_folder()?.join("test-targets"))? {
        copy(&target, &inside(&root, &target))?;
        programs.push(target);
    }
    let setpriv = shell::program("setpriv").context("there is no setpriv")?;
    copy(&setpriv, &inside(&root, &setpriv))?;
    programs.push(setpriv);
    let loaders = programs.iter().filter_map(|program| loader(program));
    for library in libraries(&programs).into_iter().chain(loaders) {
        copy(&library, &inside(&root, &library))?;
    }
    let init = root.join("init");
    shell::write(&init, &first_program(workspace, tests))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", init.display()))?;
    archive(&root, &folder.join("memory"))
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make(to.parent().unwrap_or(Path::new("/")))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect())
}

/// All that the loader maps for these programs; those that it does not know have none.
fn libraries(programs: &[PathBuf]) -> BTreeSet<PathBuf> {
    let shown = programs
        .iter()
        .filter_map(|program| shell::output(Command::new("ldd").arg(program)).ok());
    shown
        .flat_map(|text| {
            let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
            paths.map(PathBuf::from).collect::<Vec<_>>()
        })
        .filter(|path| path.is_file())
        .collect()
}

/// What the kernel starts in a program's place to load it. musl's is a library too, which glibc's `ldd` does not find.
fn loader(program: &Path) -> Option<PathBuf> {
    let shown = shell::output(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(program),
    );
    let shown = shown.ok()?;
    let (_, rest) = shown.split_once("program interpreter: ")?;
    let (path, _) = rest.split_once(']')?;
    Some(PathBuf::from(path)).filter(|path| path.is_file())
}

/// What the kernel starts: doctor, the tests, the end, for which the console gets time to print all. Everything is in
/// memory already, so nothing is mounted over where files were packed.
fn first_program(workspace: &Path, tests: &[String]) -> String {
    let (workspace, tests) = (workspace.display(), tests.join(" "));
    format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracing /sys/kernel/tracing
printf \"\\n{UP}%s\\n\" \"$(uname -r)\"
/memwatch/memwatch doctor --verify
cd {workspace}
export MEMWATCH_BIN=/memwatch/memwatch MEMWATCH_REQUIRE_BPF=1 MEMWATCH_TEST_PATIENCE=600
/memwatch/truth --test-threads 1 {tests}
printf \"\\n{ENDED}\\n\"
sleep 2
poweroff -f
"
    )
}

fn archive(root: &Path, memory: &Path) -> Result<PathBuf> {
    let script = format!(
        "cd '{}' && find . | cpio --quiet -o -H newc | gzip -1 >'{}'",
        root.display(),
        memory.display()
    );
    shell::run(Command::new("sh").args(["-c", &script]))?;
    if memory.is_file() {
        Ok(memory.to_owned())
    } else {
        bail!("cpio made no {}", memory.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_tells_its_version() {
        assert_eq!(
            major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"),
            Some(7)
        );
        assert_eq!(major("QEMU emulator version 10.0.2"), Some(10));
        assert_eq!(major(""), None);
    }

    #[test]
    fn the_first_program_is_read_as_it_is_meant() {
        let text = first_program(Path::new("/w"), &["a".to_owned(), "b::c".to_owned()]);
        // What is quoted must end on its line: markers have apostrophes.
        for line in text.lines().filter(|line| line.starts_with("printf")) {
            let printed = shell::output(Command::new("sh").args(["-c", line])).unwrap();
            assert!(
                printed.contains(UP) || printed.contains(ENDED),
                "{line} prints {printed}"
            );
        }
        assert!(text.contains("/memwatch/truth --test-threads 1 a b::c\n"));
    }

    #[test]
    fn libraries_are_found_and_static_programs_have_none() {
        let own = std::env::current_exe().unwrap();
        let found = libraries(&[own.clone(), PathBuf::from("/no/such/program")]);
        assert!(found.iter().any(|path| path.ends_with("libc.so.6")), "{found:?}");
        assert!(loader(&own).is_some_and(|path| path.is_absolute()));
        assert_eq!(loader(Path::new("/no/such/program")), None);
    }
}
