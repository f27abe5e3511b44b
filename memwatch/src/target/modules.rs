//! The program and the libraries that a process can execute, and a path for each by which memwatch can open it.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    file_id::{FileId, FileIds, FileStat},
    maps::{Device, Mapping},
    process::ProcRoot,
};

/// A file as `maps` tells files apart. Neither unique on btrfs nor comparable with `stat` on overlays: to tell
/// files of several processes apart use [`Module::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    pub device: Device,
    pub inode: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub key: FileKey,
    /// The same for all processes that execute this very file. `None` if the file cannot be reached.
    pub id: Option<FileId>,
    /// As the process sees it.
    pub path: PathBuf,
    /// As memwatch can open it and attach to it. `None` if the file was deleted or replaced and memwatch may not
    /// use `/proc/PID/map_files`, which takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
    pub access_path: Option<PathBuf>,
    pub deleted: bool,
    /// The executable parts, by address.
    pub ranges: Vec<Range>,
}

/// Executable addresses and the file offset of the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
}

/// Executable memory that no file stands behind: code made at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnonymousCode {
    pub start: u64,
    pub end: u64,
    /// A name that the process gave it (`[anon:v8]`), or `[heap]` and the like.
    pub name: Option<String>,
}

/// All that one process can execute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessModules {
    /// In order of their lowest address.
    pub modules: Vec<Module>,
    /// The kernel's own little library in each process.
    pub vdso: Option<(u64, u64)>,
    pub anonymous: Vec<AnonymousCode>,
}

/// How a file can be reached; holds for all processes that see the same file under the same root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through the root directory of the process.
    Root,
    /// By the name in `maps`: the process was moved into a directory of our own tree (chroot).
    Plain,
    /// Through the mapping itself: deleted or replaced files, other mounts.
    MapFiles,
    Closed,
}

/// Reads the modules of many processes and looks at each file once.
///
/// Made for one pass over the host: a file that is replaced under the same name and inode meanwhile would still
/// be taken for the old one.
#[derive(Debug, Default)]
pub struct Catalog {
    proc: ProcRoot,
    ids: FileIds,
    known: HashMap<(FileKey, RootKey), Vec<Known>>,
    looked_up: usize,
}

#[derive(Debug)]
struct Known {
    path: PathBuf,
    deleted: bool,
    way: Way,
    id: Option<FileId>,
}

/// Device and inode of a process's root directory, so that two containers never share an answer.
type RootKey = Option<(u64, u64)>;

/// What is the same for all modules of a process.
struct View {
    pid: u32,
    root: PathBuf,
    root_key: RootKey,
    /// Where the root lies in our own tree, for processes in a chroot.
    moved_to: Option<PathBuf>,
}

impl Catalog {
    pub fn new(proc: ProcRoot) -> Self {
        Self {
            proc,
            ..Self::default()
        }
    }

    /// How many files had to be looked at so far.
    pub fn looked_up(&self) -> usize {
        self.looked_up
    }

    pub fn read(&mut self, pid: u32) -> io::Result<ProcessModules> {
        let maps = self.proc.maps(pid)?;
        Ok(self.modules(pid, &maps))
    }

    /// The same from mappings that were read before.
    pub fn modules(&mut self, pid: u32, maps: &[Mapping]) -> ProcessModules {
        let view = self.view(pid);
        let mut found = ProcessModules::default();
        let mut index: HashMap<(FileKey, &Path), usize> = HashMap::new();
        for mapping in maps.iter().filter(|mapping| mapping.perms.executable()) {
            let Some(path) = mapping.file().filter(|path| !is_memory(path)) else {
                found.add_nameless(mapping);
                continue;
            };
            let key = FileKey {
                device: mapping.device,
                inode: mapping.inode,
            };
            let at = *index.entry((key, path)).or_insert_with(|| {
                found.modules.push(self.module(&view, key, path, mapping));
                found.modules.len() - 1
            });
            add_range(&mut found.modules[at].ranges, mapping);
        }
        found
    }

    fn view(&self, pid: u32) -> View {
        let root = self.proc.file(pid, "root");
        let root_key = fs::metadata(&root)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        let moved_to = fs::read_link(&root)
            .ok()
            .filter(|link| link.is_absolute() && link.parent().is_some());
        View {
            pid,
            root,
            root_key,
            moved_to,
        }
    }

    fn module(&mut self, view: &View, key: FileKey, path: &Path, mapping: &Mapping) -> Module {
        let (way, id) = self.way(view, key, path, mapping);
        let access_path = match way {
            Way::Root => Some(view.through_root(path)),
            Way::Plain => Some(path.to_owned()),
            Way::MapFiles => Some(self.through_map_files(view.pid, mapping)),
            Way::Closed => None,
        };
        let path = view.as_seen(path).to_owned();
        Module {
            key,
            id,
            path,
            access_path,
            deleted: mapping.deleted,
            ranges: Vec::new(),
        }
    }

    fn way(&mut self, view: &View, key: FileKey, path: &Path, mapping: &Mapping) -> (Way, Option<FileId>) {
        let cache_key = (key, view.root_key);
        let known = self.known.get(&cache_key).into_iter().flatten();
        if let Some(known) = known
            .into_iter()
            .find(|k| k.path == path && k.deleted == mapping.deleted)
            && view.root_key.is_some()
        {
            return (known.way, known.id);
        }
        self.looked_up += 1;
        let (way, id) = self.find_way(view, path, mapping);
        // A closed way may be open for the next process: the mapping may have gone while it was looked at.
        if way != Way::Closed {
            let known = Known {
                path: path.to_owned(),
                deleted: mapping.deleted,
                way,
                id,
            };
            self.known.entry(cache_key).or_default().push(known);
        }
        (way, id)
    }

    fn find_way(&mut self, view: &View, path: &Path, mapping: &Mapping) -> (Way, Option<FileId>) {
        let by_mapping = self.through_map_files(view.pid, mapping);
        let mut mapped: Option<io::Result<FileStat>> = None;
        for (way, candidate) in [
            (Way::Root, view.through_root(path)),
            (Way::Plain, path.to_owned()),
        ] {
            let Ok(file) = self.ids.look_up(&candidate) else {
                continue;
            };
            let same = is_exactly(&file, mapping) || {
                match mapped.get_or_insert_with(|| self.ids.look_up(&by_mapping)) {
                    Ok(mapped) => (mapped.dev, mapped.ino) == (file.dev, file.ino),
                    Err(_) => way == Way::Root && is_plausibly(&file, mapping),
                }
            };
            if same {
                return (way, Some(file.id));
            }
        }
        match mapped.unwrap_or_else(|| self.ids.look_up(&by_mapping)) {
            Ok(file) => (Way::MapFiles, Some(file.id)),
            Err(_) => (Way::Closed, None),
        }
    }

    fn through_map_files(&self, pid: u32, mapping: &Mapping) -> PathBuf {
        let mut path = self.proc.file(pid, "map_files");
        path.push(format!("{:x}-{:x}", mapping.start, mapping.end));
        path
    }
}

impl View {
    /// Names in `maps` begin at our own root; the process knows only what lies below its own.
    fn as_seen<'a>(&self, path: &'a Path) -> &'a Path {
        let below = self
            .moved_to
            .as_ref()
            .and_then(|root| path.strip_prefix(root).ok());
        // What is left must begin with a slash again: cut the root off as bytes.
        below.map_or(path, |below| {
            let bytes = path.as_os_str().as_bytes();
            let from = bytes.len() - below.as_os_str().len();
            Path::new(OsStr::from_bytes(&bytes[from.saturating_sub(1)..]))
        })
    }

    fn through_root(&self, path: &Path) -> PathBuf {
        let seen = self.as_seen(path);
        self.root.join(seen.strip_prefix("/").unwrap_or(seen))
    }
}

impl ProcessModules {
    fn add_nameless(&mut self, mapping: &Mapping) {
        match mapping.special() {
            Some("[vdso]") => self.vdso = Some((mapping.start, mapping.end)),
            // Neither is code of the process: an old fixed page of the kernel, and copies of probed instructions.
            Some("[vsyscall]" | "[uprobes]") => {}
            name => {
                let name = name.map(str::to_owned);
                if let Some(last) = self.anonymous.last_mut()
                    && last.end == mapping.start
                    && last.name == name
                {
                    last.end = mapping.end;
                } else {
                    self.anonymous.push(AnonymousCode {
                        start: mapping.start,
                        end: mapping.end,
                        name,
                    });
                }
            }
        }
    }
}

/// Shared anonymous memory and huge pages have a file inside the kernel that nobody can open.
fn is_memory(path: &Path) -> bool {
    matches!(path.to_str(), Some("/dev/zero" | "/anon_hugepage"))
}

fn add_range(ranges: &mut Vec<Range>, mapping: &Mapping) {
    if let Some(last) = ranges.last_mut()
        && last.end == mapping.start
        && last.offset.checked_add(last.end - last.start) == Some(mapping.offset)
    {
        last.end = mapping.end;
    } else {
        ranges.push(Range {
            start: mapping.start,
            end: mapping.end,
            offset: mapping.offset,
        });
    }
}

fn is_exactly(file: &FileStat, mapping: &Mapping) -> bool {
    file.ino == mapping.inode && Device::from_stat(file.dev) == mapping.device
}

/// On overlays and btrfs `stat` has another device number than `maps`. Where the mapping itself may not be
/// opened, the same inode under the same name and a size that fits must do.
fn is_plausibly(file: &FileStat, mapping: &Mapping) -> bool {
    !mapping.deleted && file.ino == mapping.inode && mapping.offset < file.size
}

/// A file and the processes that execute it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedModule {
    /// As found in the first of the processes in which it can be opened.
    pub module: Module,
    pub pids: Vec<u32>,
}

/// Which files to probe for a set of processes, each file once.
pub fn shared<'a>(processes: impl IntoIterator<Item = (u32, &'a ProcessModules)>) -> Vec<SharedModule> {
    let mut files: BTreeMap<(Option<FileId>, Option<FileKey>), SharedModule> = BTreeMap::new();
    for (pid, process) in processes {
        for module in &process.modules {
            let key = (module.id, module.id.is_none().then_some(module.key));
            match files.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(SharedModule {
                        module: module.clone(),
                        pids: vec![pid],
                    });
                }
                Entry::Occupied(mut entry) => {
                    let pids = &mut entry.get_mut().pids;
                    // One process can have one file under two names.
                    if pids.last() != Some(&pid) {
                        pids.push(pid);
                    }
                }
            }
        }
    }
    files.into_values().collect()
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
