//! Builds tables, one file after the other, and tells the kernel side where each process has its code.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs,
    io::{self},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use memwatch_common::unwind::{CodeRange, MAX_RANGES, Space};

use super::{
    Segment, Table,
    cache::Cache,
    fingerprint::Fingerprint,
    kernel_tables::KernelTables,
    publish::Progress,
    room::{Room, VDSO},
    table::{Source, bias},
};
use crate::target::{
    file_id::{FileId, FileIds},
    modules::{ProcessModules, Range},
};

/// While many files are built, what is done so far is told to the kernel side this often.
const TELL_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Worker<K> {
    pub(super) room: Room<K>,
    cache: Option<Cache>,
    files: HashMap<FileId, File>,
    ids: FileIds,
    spaces: BTreeMap<u32, Mapped>,
    pending: VecDeque<FileId>,
    /// Instances whose ranges the kernel side does not have yet.
    changed: BTreeSet<u32>,
    told: Instant,
    next_version: u32,
    /// An instance's ranges were replaced: what was there may still be read.
    replaced: bool,
    progress: Progress,
}

/// A file that some process maps or mapped.
#[derive(Debug)]
struct File {
    /// By which it was last seen.
    path: PathBuf,
    table: Known,
    users: BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    NotYet,
    /// Its number in the kernel.
    Number(u32),
    /// It has none, and will not get one.
    Never,
}

/// What one process can execute.
#[derive(Debug)]
struct Mapped {
    pid: u32,
    modules: Vec<(FileId, Vec<Range>)>,
    vdso: Option<(u64, u64)>,
    published: Option<Vec<CodeRange>>,
}

/// What came of a file that was opened.
struct Opened {
    segments: Vec<Segment>,
    fingerprint: Fingerprint,
    /// None when another file has the same.
    table: Option<Table>,
}

impl<K: KernelTables> Worker<K> {
    pub fn new(kernel: K, most_rows: u32, cache: Option<Cache>, vdso: Option<&[u8]>) -> io::Result<Self> {
        let mut room = Room::new(kernel, most_rows)?;
        // Without it stacks through it end early, which the kernel side counts.
        if let Some(source) = vdso.and_then(|bytes| Source::read(bytes).ok()) {
            room.add(None, source.segments(), &source.build())?;
        }
        Ok(Self {
            room,
            cache,
            files: HashMap::new(),
            ids: FileIds::default(),
            spaces: BTreeMap::new(),
            pending: VecDeque::new(),
            changed: BTreeSet::new(),
            told: Instant::now(),
            next_version: 1,
            replaced: false,
            progress: Progress::default(),
        })
    }

    /// What was done so far.
    pub fn progress(&mut self) -> Progress {
        self.progress.lost = self.room.lost();
        self.progress.rows = self.room.rows_used();
        self.progress.most_rows = self.room.most_rows();
        let mut progress = self.progress.clone();
        progress.failures = std::mem::take(&mut self.progress.failures);
        progress
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.changed.is_empty()
    }

    /// Files are mapped whose tables found no room: worth looking again from time to time.
    pub fn misses_some(&self) -> bool {
        self.room.misses_some()
    }

    /// A process has its code there now.
    pub fn map(&mut self, instance: u32, pid: u32, modules: &ProcessModules) {
        let found: Vec<(FileId, Vec<Range>)> = modules
            .modules
            .iter()
            .filter_map(|module| Some((module.id?, module.ranges.clone())))
            .collect();
        for module in &modules.modules {
            if let (Some(id), Some(path)) = (module.id, &module.access_path) {
                self.see(id, path);
            }
        }
        let new: BTreeSet<FileId> = found.iter().map(|(id, _)| *id).collect();
        let old = self.spaces.remove(&instance);
        for id in old
            .iter()
            .flat_map(|space| &space.modules)
            .map(|(id, _)| *id)
            .filter(|id| !new.contains(id))
            .collect::<BTreeSet<_>>()
        {
            self.leave(id, instance);
        }
        for id in new {
            self.enter(id, instance);
        }
        let space = Mapped {
            pid,
            modules: found,
            vdso: modules.vdso,
            published: old.and_then(|space| space.published),
        };
        self.spaces.insert(instance, space);
        self.changed.insert(instance);
    }

    /// A file is going to be mapped.
    pub fn prepare(&mut self, path: &Path) {
        // What cannot be looked up cannot be mapped.
        if let Ok(stat) = self.ids.look_up(path) {
            self.see(stat.id, path);
        }
    }

    fn see(&mut self, id: FileId, path: &Path) {
        let file = self.files.entry(id).or_insert_with(|| {
            self.pending.push_back(id);
            File {
                path: path.to_owned(),
                table: Known::NotYet,
                users: BTreeSet::new(),
            }
        });
        if file.path != path {
            path.clone_into(&mut file.path);
        }
        // It could not be opened by another path.
        if file.table == Known::NotYet && !self.pending.contains(&id) {
            self.pending.push_back(id);
        }
    }

    fn enter(&mut self, id: FileId, instance: u32) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        if file.users.insert(instance)
            && let Known::Number(number) = file.table
            && let Some(object) = self.room.object_mut(number)
        {
            object.users += 1;
        }
    }

    fn leave(&mut self, id: FileId, instance: u32) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        if !file.users.remove(&instance) {
            return;
        }
        let Known::Number(number) = file.table else {
            return;
        };
        if let Some(object) = self.room.object_mut(number) {
            object.users -= 1;
        }
        match self.room.forget(number) {
            Ok(forgotten) => {
                if forgotten {
                    self.drop_forgotten();
                }
            }
            Err(error) => self
                .progress
                .fail(format!("cannot take out unwind pages: {error}")),
        }
    }

    /// Files whose tables made room for others' while nobody mapped them are not known any more.
    fn drop_forgotten(&mut self) {
        let room = &self.room;
        self.files
            .retain(|_, file| !matches!(file.table, Known::Number(number) if room.object(number).is_none()));
    }

    /// These processes are gone.
    pub fn unmap(&mut self, instances: &[u32]) {
        for instance in instances {
            self.changed.remove(instance);
            let Some(space) = self.spaces.remove(instance) else {
                continue;
            };
            for (id, _) in space.modules {
                self.leave(id, *instance);
            }
        }
        // One that cannot be taken out stays until memwatch ends.
        let _ = self.room.kernel.remove_spaces(instances);
        self.replaced = true;
    }

    /// One step of what is to be done.
    pub fn work(&mut self) {
        if let Some(id) = self.pending.pop_front() {
            self.build(id);
        }
        if !self.changed.is_empty() && (self.pending.is_empty() || self.told.elapsed() >= TELL_EVERY) {
            self.tell();
            self.told = Instant::now();
        }
    }

    fn build(&mut self, id: FileId) {
        let Some(file) = self.files.get(&id).filter(|file| file.table == Known::NotYet) else {
            return;
        };
        let path = file.path.clone();
        let table = match self.open(id, &path, false) {
            Ok(opened) => match self.add(opened) {
                Ok(number) => Known::Number(number),
                Err(error) => {
                    self.progress
                        .fail(format!("no unwind table for {}: {error:#}", path.display()));
                    Known::Never
                }
            },
            // Its process may have ended, and another may have it too.
            Err(error) if error.downcast_ref::<io::Error>().is_some() => Known::NotYet,
            // Not a program. Its stacks end there, which the kernel side counts.
            Err(_) => Known::Never,
        };
        self.drop_forgotten();
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        file.table = table;
        self.changed.extend(&file.users);
        if let Known::Number(number) = table
            && let Some(object) = self.room.object_mut(number)
        {
            object.users += file.users.len() as u32;
        }
    }

    /// Reads a file and its table: out of the cache if it is there, else built. With `again`, also when the kernel had it
    /// before.
    fn open(&mut self, id: FileId, path: &Path, again: bool) -> Result<Opened> {
        let file = fs::File::open(path)?;
        let opened = self
            .ids
            .look_up(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))?;
        ensure!(
            opened.id == id,
            io::Error::other(format!("{} is another file by now", path.display()))
        );
        // SAFETY: the mapping is private; a file that is cut meanwhile would raise SIGBUS, as it would in the
        // target, whose code it is.
        let bytes = unsafe { memmap2::Mmap::map(&file) }?;
        let began = Instant::now();
        let source = Source::read(&bytes)?;
        let fingerprint = source.fingerprint();
        let segments = source.segments();
        if !again && self.room.find(&fingerprint).is_some() {
            self.progress.shared += 1;
            return Ok(Opened {
                segments,
                fingerprint,
                table: None,
            });
        }
        let cached = self.cache.as_ref().and_then(|cache| cache.load(&fingerprint));
        let table = if let Some(table) = cached {
            self.progress.from_cache += 1;
            table
        } else {
            self.progress.built += 1;
            let table = source.build();
            if let Some(cache) = &mut self.cache {
                cache.store(&fingerprint, &table);
            }
            table
        };
        self.progress.spent += began.elapsed();
        Ok(Opened {
            segments,
            fingerprint,
            table: Some(table),
        })
    }

    fn add(&mut self, opened: Opened) -> io::Result<u32> {
        match (&opened.table, self.room.find(&opened.fingerprint)) {
            (None, Some(number)) => Ok(number),
            (table, _) => {
                let nothing = Table::default();
                let table = table.as_ref().unwrap_or(&nothing);
                self.room.add(Some(&opened.fingerprint), opened.segments, table)
            }
        }
    }

    /// Looks which tables are used and which are missed, and brings back the one that is missed most, if others can go for
    /// it. What was looked up under the old versions found nothing where it was missing.
    pub fn look_at_use(&mut self) {
        let looked = self.room.look_at_use().context("cannot read the unwind pages");
        let outcome = looked.and_then(|()| match self.room.wanted() {
            Some(number) => self.bring_back(number),
            None => Ok(()),
        });
        // The kernel side counts an address once a version: who is used from now on is counted anew.
        let instances: Vec<u32> = self.spaces.keys().copied().collect();
        let outcome = outcome.and_then(|()| {
            let mut instances = instances.into_iter();
            instances.try_for_each(|instance| self.new_version(instance))
        });
        if let Err(error) = outcome {
            self.progress.fail(format!("{error:#}"));
        }
    }

    fn bring_back(&mut self, number: u32) -> Result<()> {
        let of_number = |(_, file): &(&FileId, &File)| file.table == Known::Number(number);
        let files: Vec<(FileId, PathBuf)> = self
            .files
            .iter()
            .filter(of_number)
            .map(|(id, file)| (*id, file.path.clone()))
            .collect();
        // One that cannot be opened any more stays without.
        let Some(table) = files
            .iter()
            .find_map(|(id, path)| self.open(*id, path, true).ok()?.table)
        else {
            return Ok(());
        };
        let put = self
            .room
            .put(number, &table)
            .with_context(|| format!("no unwind table for {}", files[0].1.display()))?;
        self.drop_forgotten();
        self.progress.brought_back += u64::from(put);
        Ok(())
    }

    fn new_version(&mut self, instance: u32) -> Result<()> {
        self.room
            .kernel
            .set_version(instance, self.next_version)
            .context("cannot tell the kernel side that code has changed")?;
        self.next_version += 1;
        Ok(())
    }

    /// Tells the kernel side where processes have their code, as far as tables of it are known.
    fn tell(&mut self) {
        for instance in std::mem::take(&mut self.changed) {
            if let Err(error) = self.tell_of(instance) {
                let pid = self.spaces.get(&instance).map_or(0, |space| space.pid);
                self.progress
                    .fail(format!("stacks of process {pid} may end early: {error:#}"));
            }
        }
    }

    fn tell_of(&mut self, instance: u32) -> Result<()> {
        let Some(mapped) = self.spaces.get(&instance) else {
            return Ok(());
        };
        let mut ranges = self.ranges(mapped);
        let too_many = ranges.len().saturating_sub(MAX_RANGES);
        ranges.truncate(MAX_RANGES);
        if mapped.published.as_ref() == Some(&ranges) {
            return Ok(());
        }
        #[expect(
            clippy::large_stack_arrays,
            reason = "24 KiB, once a change of a process's mappings"
        )]
        let mut space = Box::new(Space {
            count: ranges.len() as u32,
            reserved: 0,
            ranges: [CodeRange::default(); MAX_RANGES],
        });
        space.ranges[..ranges.len()].copy_from_slice(&ranges);
        if std::mem::take(&mut self.replaced) {
            self.room.kernel.wait_for_walks();
        }
        self.replaced = mapped.published.is_some();
        self.room
            .kernel
            .set_space(instance, &space)
            .context("cannot tell the kernel side where code is")?;
        // After the ranges: what was looked up in between is looked up again.
        self.new_version(instance)?;
        if let Some(mapped) = self.spaces.get_mut(&instance) {
            mapped.published = Some(ranges);
        }
        ensure!(
            too_many == 0,
            "it executes {too_many} pieces of files more than the {MAX_RANGES} that are kept"
        );
        Ok(())
    }

    fn ranges(&self, mapped: &Mapped) -> Vec<CodeRange> {
        let mut ranges = Vec::new();
        for (id, of_file) in &mapped.modules {
            if let Some(Known::Number(number)) = self.files.get(id).map(|file| file.table)
                && let Some(object) = self.room.object(number)
            {
                let code = of_file.iter();
                ranges.extend(code.filter_map(|range| code_range(number, &object.segments, range)));
            }
        }
        if let (Some((start, end)), Some(object)) = (mapped.vdso, self.room.object(VDSO)) {
            let offset = 0;
            ranges.extend(code_range(VDSO, &object.segments, &Range { start, end, offset }));
        }
        ranges.sort_by_key(|range| range.start);
        ranges
    }
}

fn code_range(object: u32, segments: &[Segment], range: &Range) -> Option<CodeRange> {
    let bias = bias(segments, range.start, range.offset)?;
    let bytes = u32::try_from(range.end - range.start).ok()?;
    Some(CodeRange {
        start: range.start,
        bias,
        bytes,
        object,
    })
}
