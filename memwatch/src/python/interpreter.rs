//! Finding CPython in a process, and everything that the rest of memwatch needs to know of it.

use std::{collections::HashMap, fs::File, io, sync::Arc};

use memmap2::Mmap;
use memwatch_common::{PythonLayout, python::DomainRange};

use super::allocator::{Active, AllocatorFacts, PythonDomain};
use super::code::CodeReader;
use super::decode_x86::{self, ThreadLocal};
use super::domains;
use super::eval::NativeCode;
use super::file::{self, ElfBytes, FilePart};
use super::layout;
use super::memory::{Memory, Unreadable, u64_at};
use super::mimalloc;
use super::offsets::{self, Build, Offsets};
use super::pymalloc::{self, ArenaList, Geometry, PoolsError};
use super::thread_state::{self, CLibrary, Way};
use super::version::Version;
use crate::target::file_id::FileId;
use crate::target::modules::{Module, ProcessModules};

/// What a file with a CPython in it tells, whichever process runs it. Addresses as linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonFile {
    /// `_PyRuntime`
    pub runtime: u64,
    /// The micro number is not known of all stripped builds.
    pub version: Version,
    pub debug: bool,
    /// All objects are in mimalloc's pages.
    pub free_threaded: bool,
    /// The function that takes one of these into use and returns its head, where it could be found.
    pub fresh_page: Option<u64>,
    /// `PyCode_Type`
    pub code_type: Option<u64>,
    /// The variable with the thread state, where there is one (3.15 on).
    thread_state: Option<ThreadLocal>,
    pub native: NativeCode,
    pub allocator: AllocatorFacts,
    /// Code that asks libc for memory.
    domains: Vec<DomainRange>,
    /// Variables that may be those with pymalloc's arenas (before 3.12).
    arena_variables: Vec<u64>,
    parts: Vec<FilePart>,
}

impl PythonFile {
    /// `None`: no CPython is in the file. An error: one is, but of a version that is not known.
    pub fn parse(bytes: &[u8], file_name: &str) -> Option<Result<Self, PythonError>> {
        let elf = ElfBytes::parse(bytes)?;
        let runtime = elf.runtime()?;
        let Some(version) = version(&elf, file_name) else {
            return Some(Err(PythonError::NoVersion(file_name.to_owned())));
        };
        let debug = elf.symbol("_Py_NegativeRefcount").is_some();
        let build = Build {
            version,
            debug,
            free_threaded: free_threaded(&elf, version, runtime),
        };
        let Some(offsets) = offsets::of(build) else {
            return Some(Err(PythonError::unknown(version)));
        };
        let native = NativeCode::of(&elf, file_name);
        let allocator = AllocatorFacts::of(&elf, &offsets, build);
        Some(Ok(Self {
            runtime,
            version,
            debug,
            free_threaded: build.free_threaded,
            fresh_page: build.free_threaded.then(|| mimalloc::fresh_page(&elf)).flatten(),
            code_type: elf.symbol("PyCode_Type").map(|symbol| symbol.address),
            thread_state: thread_state(&elf),
            domains: domains::of(&elf, &allocator, native.whole_file()),
            native,
            allocator,
            arena_variables: arena_variables(&elf),
            parts: elf.segments(),
        }))
    }
}

/// Why a CPython cannot be looked into. It is watched natively then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PythonError {
    #[error(
        "CPython {version} is not known to this memwatch, which knows 3.{first} to 3.{last}: Python frames are not shown"
    )]
    UnknownVersion { version: Version, first: u8, last: u8 },
    #[error("{0} is a CPython that does not tell its version: Python frames are not shown")]
    NoVersion(String),
    #[error("{0} cannot be read: {1}")]
    File(String, String),
    /// Try again soon.
    #[error("the interpreter has not started yet")]
    NotStarted,
    #[error("CPython {version} is not built as expected ({what}): Python frames are not shown")]
    Unexpected { version: Version, what: &'static str },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl PythonError {
    fn unknown(version: Version) -> Self {
        let (first, last) = offsets::known_versions();
        Self::UnknownVersion { version, first, last }
    }
}

/// What was checked on the live process before the layout was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Threads whose own thread state was found in the way the kernel side takes.
    pub threads: usize,
    /// Frames that refer to a code object.
    pub frames: usize,
    /// Those that did not: they were changing, or the layout is wrong. Never more than a few.
    pub odd_frames: usize,
}

/// A CPython in a process, ready for use.
#[derive(Clone, Debug)]
pub struct Interpreter {
    pub file: Arc<PythonFile>,
    pub bias: u64,
    pub build: Build,
    pub offsets: Offsets,
    pub layout: PythonLayout,
    pub checks: Checks,
    /// The address of `PyCode_Type`.
    pub code_type: u64,
    /// As loaded.
    pub native: NativeCode,
}

impl Interpreter {
    /// Looks into the process. With [`PythonError::NotStarted`] try again soon.
    pub fn attach(
        file: &Arc<PythonFile>,
        bias: u64,
        library: CLibrary,
        memory: &impl Memory,
    ) -> Result<Self, PythonError> {
        let runtime = file.runtime.wrapping_add(bias);
        let version = file.version;
        let unexpected = |what| PythonError::Unexpected { version, what };
        let build = Build {
            version,
            debug: file.debug,
            free_threaded: version.minor() >= 13 && memory.u64(runtime.wrapping_add(FREE_THREADED))? == 1,
        };
        let offsets =
            offsets::of_process(build, runtime, memory)?.ok_or_else(|| PythonError::unknown(version))?;
        let code_type = file
            .code_type
            .ok_or_else(|| unexpected("it has no PyCode_Type"))?
            .wrapping_add(bias);
        let way = match (offsets.runtime_key, file.thread_state) {
            (Some(key), _) => Way::by_key(library, runtime.wrapping_add(key.into())),
            (None, Some(variable)) => Way::by_variable(variable, bias, library, memory)?,
            (None, None) => return Err(unexpected("its thread state cannot be found")),
        };
        let fill = |way| layout::fill(build, &offsets, way).ok_or_else(|| unexpected("a field is missing"));
        let (layout, checks) = checked(way, &offsets, runtime, code_type, memory, fill)?;
        let checks = checks.map_err(unexpected)?;
        Ok(Self {
            file: Arc::clone(file),
            bias,
            build,
            offsets,
            layout,
            checks,
            code_type,
            native: file.native.moved(bias),
        })
    }

    pub const fn code_reader(&self) -> CodeReader<'_> {
        CodeReader {
            offsets: &self.offsets,
            layout: &self.layout,
            code_type: self.code_type,
        }
    }

    /// Code that asks libc for memory, as loaded.
    pub fn domain_ranges(&self) -> Vec<DomainRange> {
        let moved = |range: &DomainRange| DomainRange {
            start: range.start.wrapping_add(self.bias),
            end: range.end.wrapping_add(self.bias),
            ..*range
        };
        self.file.domains.iter().map(moved).collect()
    }

    /// Where pymalloc's arenas are. Read anew for each snapshot: interpreters come and go.
    pub fn arena_lists(&self, memory: &impl Memory) -> Result<Vec<ArenaList>, PoolsError> {
        let variables: Vec<u64> = self
            .file
            .arena_variables
            .iter()
            .map(|variable| variable.wrapping_add(self.bias))
            .collect();
        let runtime = self.file.runtime.wrapping_add(self.bias);
        pymalloc::arena_lists(self.build.version, &self.offsets, runtime, &variables, memory)
    }

    /// All pools with blocks in use, now; in free-threaded builds the pages of mimalloc. `known` are some of these that
    /// were taken into use.
    pub fn pools(&self, known: &[u64], memory: &impl Memory) -> Result<pymalloc::Pools, PoolsError> {
        if self.build.free_threaded {
            let layout = mimalloc::Layout::of(self.build).ok_or(PoolsError::Unknown)?;
            let runtime = self.file.runtime.wrapping_add(self.bias);
            let states =
                thread_state::thread_states(&self.offsets, runtime, memory).ok_or(PoolsError::Unknown)?;
            return mimalloc::read(layout, &states, known, memory);
        }
        pymalloc::read(&self.arena_lists(memory)?, self.geometry(), memory)
    }

    pub const fn geometry(&self) -> Geometry {
        Geometry::of(self.build.version)
    }

    /// Which allocator serves a domain now.
    pub fn active_allocator(
        &self,
        domain: PythonDomain,
        memory: &impl Memory,
    ) -> Result<Option<Active>, Unreadable> {
        self.file
            .allocator
            .active(domain, self.build.free_threaded, self.bias, memory)
    }
}

/// In `_Py_DebugOffsets`, after the cookie and the version.
const FREE_THREADED: u64 = 16;

type Checked = Result<Checks, &'static str>;

/// The layout, and whether the process is as it says. A running process changes while it is looked at, so it gets a
/// few tries.
fn checked(
    way: Way,
    offsets: &Offsets,
    runtime: u64,
    code_type: u64,
    memory: &impl Memory,
    fill: impl Fn(Way) -> Result<PythonLayout, PythonError>,
) -> Result<(PythonLayout, Checked), PythonError> {
    const TRIES: usize = 3;
    let mut result = Err(PythonError::NotStarted);
    for _ in 0..TRIES {
        let states = thread_state::thread_states(offsets, runtime, memory).unwrap_or_default();
        if states.is_empty() {
            continue;
        }
        let way = thread_state::fitting(way, &states, memory);
        let layout = fill(way)?;
        let (threads, strays) = thread_state::check(&way, &states, memory);
        let (frames, odd_frames) = layout::check(&layout, &states, code_type, memory);
        let checks = Checks {
            threads,
            frames,
            odd_frames,
        };
        if threads == 0 && strays == 0 {
            continue;
        }
        if threads == 0 || strays > threads {
            result = Ok((layout, Err("its threads have their state elsewhere")));
        } else if odd_frames > frames / 8 {
            result = Ok((layout, Err("its frames have no code objects")));
        } else {
            return Ok((layout, Ok(checks)));
        }
    }
    result
}

/// What `_PyRuntime` says of itself in the file: its first fields are there before the program runs.
fn free_threaded(elf: &ElfBytes<'_>, version: Version, runtime: u64) -> bool {
    const COOKIE: &[u8] = b"xdebugpy";
    let told = elf.bytes_at(runtime).filter(|bytes| bytes.starts_with(COOKIE));
    version.minor() >= 13 && told.and_then(|bytes| u64_at(bytes, FREE_THREADED as usize)) == Some(1)
}

/// The exact version: a constant since 3.11, before that a string that `Py_GetVersion` names.
fn version(elf: &ElfBytes<'_>, file_name: &str) -> Option<Version> {
    if let Some(symbol) = elf.symbol("Py_Version") {
        let bytes = elf.bytes_at(symbol.address)?.first_chunk::<4>()?;
        return Some(Version(u32::from_le_bytes(*bytes)));
    }
    let named = elf
        .soname()
        .as_deref()
        .and_then(minor_in_name)
        .or_else(|| minor_in_name(file_name));
    let text = elf.symbol("Py_GetVersion").and_then(|getter| {
        decode_x86::named_addresses(getter.address, elf.code(getter)?)
            .into_iter()
            .filter_map(|address| {
                let text = elf.bytes_at(address)?.split(|&byte| byte == 0).next()?;
                Version::parse(std::str::from_utf8(text.get(..text.len().min(16))?).ok()?)
            })
            .find(|version| named.is_none_or(|minor| version.minor() == minor))
    });
    text.or_else(|| named.map(|minor| Version::new(minor, Version::UNKNOWN_MICRO)))
}

/// `libpython3.9.so.1.0`, `python3.9`
fn minor_in_name(name: &str) -> Option<u8> {
    let (_, rest) = name.split_once("python3.")?;
    let end = rest
        .find(|next: char| !next.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn thread_state(elf: &ElfBytes<'_>) -> Option<ThreadLocal> {
    let getter = elf.symbol("PyGILState_GetThisThreadState")?;
    decode_x86::returned_thread_local(getter.address, elf.code(getter)?)
}

fn arena_variables(elf: &ElfBytes<'_>) -> Vec<u64> {
    if let (Some(arenas), Some(count)) = (elf.symbol("arenas"), elf.symbol("maxarenas")) {
        return vec![arenas.address, count.address];
    }
    let mut variables: Vec<u64> = ["_PyObject_DebugMallocStats", "_Py_GetAllocatedBlocks"]
        .iter()
        .filter_map(|name| elf.symbol(name))
        .flat_map(|symbol| {
            // Compilers split functions: what is jumped to belongs to them.
            let code = elf.code(symbol).unwrap_or_default();
            let mut parts = vec![(symbol.address, code)];
            for target in decode_x86::branches(symbol.address, code) {
                let size = elf
                    .piece_of(target)
                    .map_or(0, |piece| (piece.end - target) as usize);
                parts.extend(
                    elf.bytes_at(target)
                        .and_then(|bytes| Some((target, bytes.get(..size)?))),
                );
            }
            parts
        })
        .flat_map(|(address, code)| decode_x86::data_addresses(address, code))
        .collect();
    variables.sort_unstable();
    variables.dedup();
    variables
}

/// Reads each file once, and remembers those without a CPython too.
#[derive(Debug, Default)]
pub struct PythonFiles {
    known: HashMap<FileId, Option<Result<Arc<PythonFile>, PythonError>>>,
}

/// A CPython that is mapped into a process.
#[derive(Clone, Debug)]
pub struct Found {
    pub file: Result<Arc<PythonFile>, PythonError>,
    pub bias: u64,
    /// The number of the module among those of the process.
    pub module: usize,
}

impl PythonFiles {
    /// The interpreters among the files that a process executes. Most have none, nearly all others one.
    pub fn find(&mut self, modules: &ProcessModules) -> Vec<Found> {
        let mut found = Vec::new();
        for (at, module) in modules.modules.iter().enumerate() {
            let Some(file) = self.look(module) else { continue };
            let bias = match (&file, module.ranges.first()) {
                (Ok(file), Some(range)) => file::bias(&file.parts, range.start, range.offset),
                _ => Some(0),
            };
            found.extend(bias.map(|bias| Found {
                file,
                bias,
                module: at,
            }));
        }
        found
    }

    fn look(&mut self, module: &Module) -> Option<Result<Arc<PythonFile>, PythonError>> {
        let path = module.access_path.as_ref()?;
        let name = module.path.file_name().unwrap_or_default().to_string_lossy();
        let read = || match map(path) {
            Ok(bytes) => Some(PythonFile::parse(&bytes, &name)?.map(Arc::new)),
            // What cannot be read is an error only if its name says that a Python is in it.
            Err(error) => name
                .contains("python")
                .then(|| Err(PythonError::File(name.to_string(), error.to_string()))),
        };
        match module.id {
            Some(id) => self.known.entry(id).or_insert_with(read).clone(),
            None => read(),
        }
    }
}

fn map(path: &std::path::Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: as for any reader of a mapped file: a program's file is not written to while the program runs (ETXTBSY),
    // and libraries are replaced under a new inode.
    unsafe { Mmap::map(&file) }
}

/// Whose `pthread_getspecific` the process uses, by the names of its files.
pub fn c_library(modules: &ProcessModules) -> CLibrary {
    let musl = modules.modules.iter().any(|module| {
        let name = module.path.file_name().unwrap_or_default().to_string_lossy();
        // The loader is often a link to `libc.so`, and maps name the file itself.
        name.starts_with("ld-musl-") || name.starts_with("libc.musl-") || name == "libc.so"
    });
    if musl { CLibrary::Musl } else { CLibrary::Glibc }
}
