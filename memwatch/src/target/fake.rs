//! A made-up `/proc` in a temporary directory.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{ProcRoot, maps::Device};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    User,
    Kernel,
    Zombie,
}

pub struct FakeProc {
    dir: TempDir,
}

impl FakeProc {
    pub fn new() -> Self {
        let fake = Self {
            dir: TempDir::new().unwrap(),
        };
        fs::create_dir(fake.dir.path().join("proc")).unwrap();
        fake.file("stat", "cpu 0\nbtime 1700000000\n");
        fake
    }

    pub fn root(&self) -> ProcRoot {
        ProcRoot::new(self.dir.path().join("proc"))
    }

    /// A file below `/proc`.
    pub fn file(&self, path: &str, text: impl AsRef<[u8]>) -> &Self {
        write(&self.dir.path().join("proc").join(path), text.as_ref());
        self
    }

    pub fn link(&self, path: &str, to: impl AsRef<Path>) -> &Self {
        let path = self.dir.path().join("proc").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(to, path).unwrap();
        self
    }

    /// A file outside `/proc`, below the directory `place` (a container's root, for example).
    pub fn outside(&self, place: &str, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.outside_dir(place).join(path.trim_start_matches('/'));
        write(&path, bytes);
        path
    }

    pub fn outside_dir(&self, place: &str) -> PathBuf {
        let path = self.dir.path().join(place);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn process(&self, pid: u32, comm: &str, kind: Kind) -> &Self {
        let (state, flags) = match kind {
            Kind::User => ('S', 0x0040_0000),
            Kind::Kernel => ('I', 0x0020_8040),
            Kind::Zombie => ('Z', 0x0040_0000),
        };
        self.file(
            &format!("{pid}/stat"),
            format!("{pid} ({comm}) {state} 1 1 1 0 -1 {flags} 0 0 0 0 7 5 0 0 20 0 1 0 400 0 250 0\n"),
        );
        let memory = if kind == Kind::User {
            "VmHWM:\t2000 kB\nVmRSS:\t1000 kB\n"
        } else {
            ""
        };
        let status = format!("Name:\t{comm}\nTgid:\t{pid}\nTracerPid:\t0\nUid:\t7\t7\t7\t7\n{memory}");
        self.file(&format!("{pid}/status"), status);
        self.file(&format!("{pid}/cmdline"), "")
            .file(&format!("{pid}/maps"), "")
    }

    pub fn parent(&self, pid: u32, parent: u32) -> &Self {
        let name = format!("{pid}/stat");
        let text = fs::read_to_string(self.dir.path().join("proc").join(&name)).unwrap();
        self.file(&name, text.replacen(") S 1 ", &format!(") S {parent} "), 1))
    }

    /// The program file, and a command line with its name alone.
    pub fn exe(&self, pid: u32, exe: &str) -> &Self {
        self.link(&format!("{pid}/exe"), exe);
        self.file(
            &format!("{pid}/cmdline"),
            format!("{}\0", exe.trim_end_matches(" (deleted)")),
        )
    }
}

/// A line of `maps` for an existing file, with its true device and inode.
pub fn maps_line(range: &str, perms: &str, offset: u64, file: &Path, shown: &str) -> String {
    let metadata = fs::metadata(file).unwrap();
    let device = Device::from_stat(metadata.dev());
    let (major, minor, inode) = (device.major, device.minor, metadata.ino());
    format!("{range} {perms} {offset:08x} {major:02x}:{minor:02x} {inode}    {shown}\n")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
