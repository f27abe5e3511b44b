//! Which file a path leads to, so that a library that many processes map is probed once and not once for each.

use std::{
    collections::HashMap,
    ffi::CString,
    fs, io,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// Equal for two paths exactly if the kernel's probes would land in the same file.
///
/// A probe belongs to the real file. Every container has an overlay mount with a device number of its own over
/// the same image, so device and inode would tell the same libc apart for each container and one call would be
/// counted as often as there are containers. The inode, size and times of a file in an overlay are those of the
/// real file: together they stand for it. Elsewhere device and inode are right (on btrfs only they are: snapshots
/// share inode, size and times).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    Inode {
        dev: u64,
        ino: u64,
    },
    Overlay {
        ino: u32,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

/// What `stat` says of a file, as far as it is needed to recognise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub id: FileId,
}

/// Looks files up; asks once per device whether it is an overlay.
#[derive(Debug, Default)]
pub struct FileIds {
    overlays: HashMap<u64, bool>,
}

impl FileIds {
    pub fn look_up(&mut self, path: &Path) -> io::Result<FileStat> {
        let metadata = fs::metadata(path)?;
        let (dev, ino, size) = (metadata.dev(), metadata.ino(), metadata.size());
        let overlay = match self.overlays.get(&dev) {
            Some(&overlay) => overlay,
            None => *self.overlays.entry(dev).or_insert(is_overlay(path)?),
        };
        let id = identity(&metadata, overlay);
        Ok(FileStat { dev, ino, size, id })
    }
}

/// Apart from the look-up, so that tests need no mount.
fn identity(metadata: &impl MetadataExt, overlay: bool) -> FileId {
    if !overlay {
        return FileId::Inode {
            dev: metadata.dev(),
            ino: metadata.ino(),
        };
    }
    FileId::Overlay {
        // With the mount option `xino` the upper bits tell the layer's file system, numbered per mount.
        ino: metadata.ino() as u32,
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn is_overlay(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut buffer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a NUL and `buffer` has room for the whole structure.
    if unsafe { libc::statfs(path.as_ptr(), buffer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled the structure.
    let kind = unsafe { buffer.assume_init() }.f_type;
    Ok(kind == libc::OVERLAYFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::{fs::hard_link, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_file_is_the_same_by_all_its_names_and_no_other_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "same text").unwrap();
        fs::write(at("other"), "same text").unwrap();
        hard_link(at("a"), at("hard")).unwrap();
        symlink(at("a"), at("soft")).unwrap();
        let mut ids = FileIds::default();
        let mut id = |name: &str| ids.look_up(&at(name)).unwrap();
        let a = id("a");
        assert_eq!((a, a), (id("hard"), id("soft")));
        assert_ne!(a.id, id("other").id);
        assert_eq!(a.size, 9);
        assert_eq!(
            ids.look_up(&at("gone")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn in_overlays_the_device_does_not_count_and_the_change_time_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "text").unwrap();
        let before = fs::metadata(&path).unwrap();
        let id = identity(&before, true);
        assert_eq!(
            identity(&before, false),
            FileId::Inode {
                dev: before.dev(),
                ino: before.ino()
            }
        );
        // Equal but for the time of the last change, as a file is that was copied up from the layer below.
        let mut after = fs::metadata(&path).unwrap();
        assert_eq!(identity(&after, true), id);
        while (after.ctime(), after.ctime_nsec()) == (before.ctime(), before.ctime_nsec()) {
            fs::set_permissions(&path, before.permissions()).unwrap();
            after = fs::metadata(&path).unwrap();
        }
        assert_ne!(identity(&after, true), id);
    }

    #[test]
    fn each_device_is_asked_for_its_kind_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        let mut ids = FileIds::default();
        ids.look_up(dir.path()).unwrap();
        ids.look_up(&dir.path().join("a")).unwrap();
        ids.look_up(Path::new("/proc/self/maps")).unwrap();
        assert_eq!(ids.overlays.len(), 2);
        assert!(!ids.overlays[&fs::metadata("/proc/self/maps").unwrap().dev()]);
    }
}
