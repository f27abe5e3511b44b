//! Tables kept between runs: a folder with one file for each.
//!
//! Whoever could put a file here could make stacks up, so the folder and the files must belong to memwatch's user, and
//! nobody else may write to them. A file that is not whole, or of another version, is the same as none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{Table, cache_format, fingerprint::Fingerprint};

/// Some 30 million rows: all programs and libraries of a large development machine.
pub const MOST_BYTES: u64 = 128 << 20;

/// After the bound was hit, this part of it stays.
const KEPT: (u64, u64) = (7, 8);

const ENDING: &str = ".rows";
const UNFINISHED: &str = ".new";

/// What lies unfinished for this long will not be finished.
const FORGOTTEN: Duration = Duration::from_hours(1);

pub struct Cache {
    folder: File,
    path: PathBuf,
    most_bytes: u64,
    /// What is kept, about; not known before something is added.
    bytes: Option<u64>,
    /// A file that could not be written: nothing more is, this time.
    full: bool,
}

/// Where tables are kept: the first of these that can be used.
fn places() -> Vec<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let mut places = Vec::new();
    places.extend(variable("XDG_CACHE_HOME").map(|path| path.join("memwatch")));
    if own_user() == 0 {
        places.push(PathBuf::from("/var/cache/memwatch"));
    } else {
        places.extend(variable("HOME").map(|path| path.join(".cache/memwatch")));
    }
    places
}

fn own_user() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

impl Cache {
    /// None where there is no place that can be trusted and written to: then every run builds its tables anew.
    pub fn open() -> Option<Self> {
        places()
            .iter()
            .find_map(|path| Self::open_at(path, MOST_BYTES).ok())
    }

    pub(super) fn open_at(path: &Path, most_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        if !is_ours(&folder.metadata()?) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self {
            folder,
            path: path.to_owned(),
            most_bytes,
            bytes: None,
            full: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In the folder that was looked at, whatever stands at its path by now.
    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()))
    }

    /// The table of a file, without its segments and its statistics.
    pub fn load(&self, fingerprint: &Fingerprint) -> Option<Table> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.at(&format!("{fingerprint}{ENDING}")))
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours(&metadata) || metadata.len() > self.most_bytes {
            return None;
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes).ok()?;
        let table = cache_format::read(&bytes, fingerprint)?;
        // Those that are used stay longest. If that cannot be noted, it goes earlier.
        let _ = file.set_modified(SystemTime::now());
        Some(table)
    }

    /// Keeps a table, if there is room and if that works.
    pub fn store(&mut self, fingerprint: &Fingerprint, table: &Table) {
        let bytes = cache_format::write(table, fingerprint);
        let size = bytes.len() as u64;
        if self.full || size > self.most_bytes / 4 {
            return;
        }
        if self.bytes.is_none_or(|kept| kept + size > self.most_bytes) {
            self.make_room(size);
        }
        let name = fingerprint.to_string();
        let unfinished = self.at(&format!("{name}.{}{UNFINISHED}", std::process::id()));
        if write(&unfinished, &bytes, &self.at(&format!("{name}{ENDING}"))).is_err() {
            // A full disk, or one that nobody may write to.
            self.full = true;
            let _ = fs::remove_file(&unfinished);
        }
        self.bytes = self.bytes.map(|kept| kept + size);
    }

    /// Takes out what was not used for longest until `size` more have room.
    fn make_room(&mut self, size: u64) {
        let Ok(entries) = fs::read_dir(self.at("")) else {
            self.full = true;
            return;
        };
        let mut kept = Vec::new();
        let now = SystemTime::now();
        for entry in entries.flatten() {
            let (name, Ok(metadata)) = (entry.file_name(), entry.metadata()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = now.duration_since(modified).unwrap_or_default();
            if name.ends_with(ENDING) {
                kept.push((modified, metadata.len(), name));
            } else if name.ends_with(UNFINISHED) && age > FORGOTTEN {
                let _ = fs::remove_file(self.at(&name));
            }
        }
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        if bytes + size > self.most_bytes {
            kept.sort();
            let enough = (self.most_bytes / KEPT.1 * KEPT.0).saturating_sub(size);
            for (_, freed, name) in kept {
                if bytes <= enough {
                    break;
                }
                if fs::remove_file(self.at(&name)).is_ok() {
                    bytes -= freed;
                }
            }
        }
        self.bytes = Some(bytes);
        self.full = bytes + size > self.most_bytes;
    }
}

/// Whether nobody else can have written it.
fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == own_user() && metadata.mode() & 0o022 == 0
}

/// All of it or nothing, for whoever reads it meanwhile.
fn write(unfinished: &Path, bytes: &[u8], finished: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(unfinished)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(unfinished, finished)
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
