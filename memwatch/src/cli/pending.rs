//! A file that is written before it has its name.
//!
//! Where the file system can, it has no name at all until then (`O_TMPFILE`): whatever ends memwatch, nothing is left.
//! Elsewhere (NFS, FUSE, some overlays) it lies beside its target as `.NAME.PID-N.partial`, which a SIGKILL leaves
//! behind.

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

pub struct Pending {
    file: File,
    target: PathBuf,
    place: Place,
    bytes: u64,
}

enum Place {
    Nameless,
    Beside(PathBuf),
    /// Under its own name.
    Shown,
}

/// Names tried before giving up; each is only taken if another memwatch with this pid (in another pid namespace)
/// writes the same file, or died while doing so.
const NAME_ATTEMPTS: u32 = 16;

impl Pending {
    pub fn create(target: PathBuf) -> io::Result<Self> {
        let (file, place) = match nameless(&target) {
            Ok(file) => (file, Place::Nameless),
            // Each file system says in its own way that it cannot. What is really wrong, the other way meets too.
            Err(_) => Self::beside(&target)?,
        };
        Ok(Self {
            file,
            target,
            place,
            bytes: 0,
        })
    }

    fn beside(target: &Path) -> io::Result<(File, Place)> {
        with_free_name(target, |name| {
            let file = OpenOptions::new().write(true).create_new(true).open(name)?;
            Ok((file, Place::Beside(name.to_owned())))
        })
    }

    /// Whoever could read the old file shall be able to read the new one. Not being allowed to is no reason to
    /// stop: the file is then ours, with the mode of any new file.
    pub fn take_over_owner_and_mode(&self, old: &File) {
        if let Ok(found) = old.metadata() {
            let _ = fchown(&self.file, Some(found.uid()), Some(found.gid()));
            let _ = self.file.set_permissions(found.permissions());
        }
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    pub const fn is_shown(&self) -> bool {
        matches!(self.place, Place::Shown)
    }

    /// All of it or nothing.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(cause) = self.file.write_all(bytes) {
            // The part that did fit. If it stays, readers find it out.
            let _ = self.file.set_len(self.bytes);
            return Err(cause);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name, in the place of what has it.
    pub fn show(&mut self) -> io::Result<()> {
        // A full disk may show only now; the name must not be given before that.
        self.file.sync_all()?;
        if let Place::Nameless = self.place {
            // A link cannot replace a file, so it is made under another name first.
            let name = with_free_name(&self.target, |name| {
                link(&self.file, name)?;
                Ok(name.to_owned())
            })?;
            self.place = Place::Beside(name);
        }
        if let Place::Beside(name) = &self.place {
            fs::rename(name, &self.target)?;
        }
        self.place = Place::Shown;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Place::Beside(name) = &self.place {
            let _ = fs::remove_file(name);
        }
    }
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn nameless(target: &Path) -> io::Result<File> {
    target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let file = OpenOptions::new()
        .write(true)
        .mode(0o666)
        .custom_flags(libc::O_TMPFILE)
        .open(folder(target))?;
    // It gets its name through here; without /proc it would never get one.
    fs::metadata(own(&file))?;
    Ok(file)
}

fn own(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn link(file: &File, name: &Path) -> io::Result<()> {
    let old = CString::new(own(file))?;
    let new = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: both are strings that end with a zero and live through the call.
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            old.as_ptr(),
            libc::AT_FDCWD,
            new.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tries names beside the target until one is free.
fn with_free_name<T>(target: &Path, attempt: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for number in 0..NAME_ATTEMPTS {
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}-{number}.partial", std::process::id()));
        match attempt(&target.with_file_name(beside)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    fn named(target: PathBuf) -> Pending {
        let (file, place) = Pending::beside(&target).unwrap();
        Pending {
            file,
            target,
            place,
            bytes: 0,
        }
    }

    /// As file systems without nameless files have it.
    #[test]
    fn a_file_beside_its_target_takes_its_place_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::write(&target, "before").unwrap();
        let mut pending = named(target.clone());
        pending.write(b"half").unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        drop(pending);
        assert_eq!(names(folder.path()), ["out"]);
        let mut pending = named(target.clone());
        pending.write(b"after").unwrap();
        pending.show().unwrap();
        assert!(pending.is_shown());
        drop(pending);
        assert_eq!(fs::read(&target).unwrap(), b"after");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn nothing_can_be_seen_of_a_nameless_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        // Whether the folder of temporary files can do it depends on the machine.
        let Ok(file) = nameless(&target) else { return };
        let mut pending = Pending {
            file,
            target: target.clone(),
            place: Place::Nameless,
            bytes: 0,
        };
        pending.write(b"one").unwrap();
        assert!(names(folder.path()).is_empty());
        pending.show().unwrap();
        pending.write(b" two").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"one two");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_bare_name_is_in_the_folder_of_the_process() {
        assert_eq!(folder(Path::new("out")), Path::new("."));
        assert_eq!(folder(Path::new("/out")), Path::new("/"));
        assert_eq!(folder(Path::new("a/out")), Path::new("a"));
    }
}
