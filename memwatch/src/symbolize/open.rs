//! The edge: opening what a process maps, by the surest way that still works.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::perf_map;
use super::space::{FileKey, Region};
use crate::target::{
    maps::{self, Mapping},
    status,
};

/// The mappings of a living process.
pub fn read_maps(pid: u32) -> io::Result<Vec<Mapping>> {
    let mappings = maps::parse(&std::fs::read(format!("/proc/{pid}/maps"))?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    // A zombie's file is there and empty.
    if mappings.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(mappings)
    }
}

/// The number by which the process knows itself.
pub fn namespace_pid(pid: u32) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    status::parse(&status).namespace_pids.last().copied()
}

/// Opens a mapped file: as it is mapped, which also finds files that were deleted or lie in another mount
/// namespace; or by its path as the process sees it; or, when the process is gone, by its path here.
pub fn mapped_file(pid: Option<u32>, region: &Region, key: &FileKey, path: &str) -> Option<File> {
    let mut ways: Vec<(String, bool)> = Vec::new();
    if let Some(pid) = pid {
        ways.push((
            format!("/proc/{pid}/map_files/{:x}-{:x}", region.start, region.end),
            true,
        ));
        ways.push((format!("/proc/{pid}/root{path}"), false));
    }
    ways.push((path.to_owned(), false));
    ways.into_iter().find_map(|(path, exact)| {
        let file = open_regular(&path).ok()?;
        (exact || is_same(&file, key)).then_some(file)
    })
}

/// Whether this is the file that was mapped. A file system made of others (overlay, btrfs) may number devices in
/// a way of its own, but not inodes.
fn is_same(file: &File, key: &FileKey) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.ino() == key.inode)
}

/// Never waits: what a stranger put at a path may be a pipe.
fn open_regular(path: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// A path that names an open file and not whatever lies at its old path now.
pub fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Where the debug information of a build id is installed, in the process's own file system or in ours.
pub fn debug_file(pid: Option<u32>, build_id: &str) -> Option<PathBuf> {
    let roots = pid
        .map(|pid| format!("/proc/{pid}/root"))
        .into_iter()
        .chain(["/".to_owned()]);
    roots
        .map(PathBuf::from)
        .find_map(|root| debug_file_below(&root, build_id))
}

fn debug_file_below(root: &Path, build_id: &str) -> Option<PathBuf> {
    // Shorter ones are not unique.
    if build_id.len() < 16 || !build_id.is_ascii() {
        return None;
    }
    let (first, rest) = build_id.split_at(2);
    let path = root
        .join("usr/lib/debug/.build-id")
        .join(first)
        .join(format!("{rest}.debug"));
    path.is_file().then_some(path)
}

/// The perf map of a living process, if it has changed from `known_bytes`.
pub fn perf_map(pid: u32, namespace_pid: u32, known_bytes: u64) -> Option<(Vec<u8>, u64)> {
    let path = format!("/proc/{pid}/root/tmp/perf-{namespace_pid}.map");
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    if metadata.len() == known_bytes {
        return None;
    }
    let mut text = Vec::new();
    file.take(perf_map::MAX_BYTES).read_to_end(&mut text).ok()?;
    Some((text, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::super::space::{AddressSpace, Content};
    use super::*;

    fn own_region() -> (Region, FileKey, String) {
        let mut space = AddressSpace::default();
        space.update(&read_maps(std::process::id()).unwrap());
        let region = space.find(own_region as *const () as u64).unwrap().clone();
        let Content::File { key, path } = region.content.clone() else {
            panic!("{region:?}")
        };
        (region, key, path.to_string())
    }

    #[test]
    fn a_mapped_file_is_found_in_each_way() {
        let (region, key, path) = own_region();
        assert!(mapped_file(Some(std::process::id()), &region, &key, &path).is_some());
        assert!(
            mapped_file(
                Some(std::process::id()),
                &Region {
                    end: region.end + 1,
                    ..region.clone()
                },
                &key,
                &path
            )
            .is_some()
        );
        assert!(mapped_file(None, &region, &key, &path).is_some());
    }

    #[test]
    fn another_file_at_the_same_path_is_not_taken() {
        let (region, key, path) = own_region();
        assert!(
            mapped_file(
                None,
                &region,
                &FileKey {
                    inode: key.inode + 1,
                    ..key
                },
                &path
            )
            .is_none()
        );
    }

    #[test]
    fn pipes_and_folders_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(status.success());
        assert!(open_regular(pipe.to_str().unwrap()).is_err());
        assert!(open_regular(folder.path().to_str().unwrap()).is_err());
    }

    #[test]
    fn debug_files_are_found_by_build_id() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/lib/debug/.build-id/ab");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cdef0123456789.debug"), b"").unwrap();
        let found = debug_file_below(root.path(), "abcdef0123456789");
        assert_eq!(found, Some(folder.join("cdef0123456789.debug")));
        assert_eq!(debug_file_below(root.path(), "abcdef0123456780"), None);
        assert_eq!(debug_file_below(root.path(), "ab"), None);
    }

    #[test]
    fn the_dead_have_no_mappings() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(read_maps(child.id()).is_err());
    }
}
