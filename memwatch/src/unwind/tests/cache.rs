//! Tables that are kept between runs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::{
    image::{Layout, image},
    real::mapped_files,
    synthetic::small_section,
};
use crate::unwind::{Cache, Fingerprint, Source, Table, cache::MOST_BYTES, stats::TableStats};

/// A small file's fingerprint and table, as the cache gives it back.
fn small(which: u32) -> (Fingerprint, Table) {
    let bytes = image(
        &[0x90; 0x4000],
        0,
        &small_section(which),
        Layout::Section(".eh_frame"),
    );
    of(&bytes)
}

fn of(bytes: &[u8]) -> (Fingerprint, Table) {
    let source = Source::read(bytes).expect("a file");
    let table = Table {
        segments: Vec::new(),
        stats: TableStats::default(),
        ..source.build()
    };
    (source.fingerprint(), table)
}

fn cache(folder: &Path) -> Cache {
    Cache::open_at(folder, MOST_BYTES).expect("a cache")
}

fn kept(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path()).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// A folder as memwatch makes it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("it is ours");
    folder
}

#[test]
fn tables_of_real_files_come_back_as_they_were() {
    let folder = folder();
    let mut cache = cache(folder.path());
    let libc = mapped_files()
        .into_iter()
        .find(|path| path.contains("libc"))
        .expect("libc is mapped");
    let (fingerprint, table) = of(&fs::read(libc).expect("a file"));
    assert!(!fingerprint.build_id.is_empty() && table.rows.len() > 1000);
    assert_eq!(cache.load(&fingerprint), None);
    cache.store(&fingerprint, &table);
    assert_eq!(cache.load(&fingerprint), Some(table));
    // Another run finds it, too.
    let again = self::cache(&folder.path().join(".")).load(&fingerprint);
    assert!(again.is_some());
    let names = kept(&folder);
    assert_eq!(names, [folder.path().join(format!("{fingerprint}.rows"))]);
}

#[test]
fn files_with_the_same_build_id_are_told_apart_by_their_content() {
    let (a, b) = (small(1).0, small(2).0);
    assert_eq!(a.build_id, b.build_id);
    assert_ne!(a.digest, b.digest);
    assert_ne!(a.to_string(), b.to_string());
    assert_eq!(a, small(1).0);
}

#[test]
fn a_file_that_is_not_whole_is_the_same_as_none() {
    let folder = folder();
    let mut cache = cache(folder.path());
    let (fingerprint, table) = small(1);
    cache.store(&fingerprint, &table);
    let path = kept(&folder).pop().expect("one file");
    let whole = fs::read(&path).expect("it is readable");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).expect("it is ours");
        assert_eq!(cache.load(&fingerprint), None, "byte {at} is another");
        fs::write(&path, &whole[..at]).expect("it is ours");
        assert_eq!(cache.load(&fingerprint), None, "cut at byte {at}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).expect("it is ours");
    assert_eq!(cache.load(&fingerprint), None, "a byte too many");
    // Another file's table under this one's name.
    let (other, its_table) = small(2);
    cache.store(&other, &its_table);
    fs::copy(folder.path().join(format!("{other}.rows")), &path).expect("it is ours");
    assert_eq!(cache.load(&fingerprint), None);
    // It is built anew, and kept again.
    cache.store(&fingerprint, &table);
    assert_eq!(cache.load(&fingerprint), Some(table));
}

#[test]
fn nobody_else_can_put_a_table_there() {
    let folder = folder();
    let mut cache = cache(folder.path());
    let (fingerprint, table) = small(1);
    cache.store(&fingerprint, &table);
    let path = kept(&folder).pop().expect("one file");
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
    mode(&path, 0o620);
    assert_eq!(
        cache.load(&fingerprint),
        None,
        "others of the group can write to it"
    );
    mode(&path, 0o602);
    assert_eq!(cache.load(&fingerprint), None, "all can write to it");
    mode(&path, 0o644);
    assert!(cache.load(&fingerprint).is_some());

    let elsewhere = tempfile::tempdir().expect("a folder");
    let moved = elsewhere.path().join("moved");
    fs::rename(&path, &moved)
        .or_else(|_| fs::copy(&path, &moved).map(drop))
        .expect("it moves");
    let _ = fs::remove_file(&path);
    symlink(&moved, &path).expect("a link");
    assert_eq!(cache.load(&fingerprint), None, "it is a link");

    let open = |path: &Path| Cache::open_at(path, MOST_BYTES).is_ok();
    let link = elsewhere.path().join("link");
    symlink(folder.path(), &link).expect("a link");
    assert!(!open(&link), "the folder is a link");
    mode(folder.path(), 0o770);
    assert!(!open(folder.path()), "the group can write to the folder");
    mode(folder.path(), 0o755);
    assert!(open(folder.path()));
    // SAFETY: takes no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        fs::remove_file(&path).expect("the link");
        cache.store(&fingerprint, &table);
        assert!(cache.load(&fingerprint).is_some());
        chown(&path, Some(1), None).expect("root can");
        assert_eq!(cache.load(&fingerprint), None, "another user's file");
        chown(folder.path(), Some(1), None).expect("root can");
        assert!(!open(folder.path()), "another user's folder");
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let folder = folder();
    let files: Vec<(Fingerprint, Table)> = (0..40).map(small).collect();
    let mut first = cache(folder.path());
    first.store(&files[0].0, &files[0].1);
    let size = fs::metadata(&kept(&folder)[0]).expect("a file").len();
    let most = size * 8 + size / 2;
    let mut cache = Cache::open_at(folder.path(), most).expect("a cache");
    for (at, (fingerprint, table)) in files.iter().enumerate() {
        cache.store(fingerprint, table);
        let path = folder.path().join(format!("{fingerprint}.rows"));
        let file = fs::File::options().write(true).open(&path).expect("it was kept");
        let age = Duration::from_secs(1000 - at as u64);
        file.set_modified(SystemTime::now() - age).expect("it is ours");
        // The very first is used again and again.
        assert!(cache.load(&files[0].0).is_some(), "after {at}");
        let bytes: u64 = kept(&folder)
            .iter()
            .map(|path| fs::metadata(path).expect("a file").len())
            .sum();
        assert!(bytes <= most, "{bytes} of {most} bytes after {at}");
    }
    assert!(cache.load(&files[39].0).is_some());
    assert!(cache.load(&files[1].0).is_none());
}

#[test]
fn a_place_that_cannot_be_written_to_is_no_failure() {
    assert!(Cache::open_at(Path::new("/proc/self/no such place"), MOST_BYTES).is_err());
    let folder = folder();
    let inner = folder.path().join("inner");
    let mut cache = cache(&inner);
    fs::remove_dir(&inner).expect("it is empty");
    let (fingerprint, table) = small(1);
    cache.store(&fingerprint, &table);
    assert_eq!(cache.load(&fingerprint), None);
    // What was begun elsewhere and never finished goes, once it is old.
    let mut cache = self::cache(&inner);
    for (name, age) in [("a.1.new", 7200), ("b.1.new", 60)] {
        let file = fs::File::create(inner.join(name)).expect("a file");
        file.set_modified(SystemTime::now() - Duration::from_secs(age))
            .expect("ours");
    }
    cache.store(&fingerprint, &table);
    assert!(!inner.join("a.1.new").exists() && inner.join("b.1.new").exists());
}
