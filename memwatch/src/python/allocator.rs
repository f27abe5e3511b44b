//! CPython's allocators: where the table of them is, which one is at work, and where pymalloc takes a new pool.

use std::collections::BTreeSet;
use std::ops::Range;

use super::asked::{self, Allocator, PoolCallers, Raw};
use super::decode_x86;
use super::file::ElfBytes;
use super::inlined::{self, Allocating, InlinedSites};
use super::memory::{Memory, Unreadable};
use super::offsets::{Build, Offsets};

/// Bytes from one domain's allocator to the next: `ctx`, `malloc`, `calloc`, `realloc`, `free`.
const ALLOCATOR: u64 = 5 * 8;

/// `malloc` in such a group.
const MALLOC: u64 = 8;

/// The minor version since which beginning a pool is always a function of its own.
const FIRST_WITH_NEW_POOL: u8 = 10;

/// `szidx` in the head of a pool.
const POOL_SIZE_CLASS: u8 = 36;

/// `DUMMY_SIZE_IDX`
const NO_SIZE_CLASS: u32 = 0xffff;

/// References to `_PyObject_Malloc` in code, or calls by the pointer to it, from which on allocation counts as inlined.
const INLINED: usize = 30;

/// Allocators one on top of the other that are looked through.
const MOST_LAYERS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonDomain {
    Raw,
    Mem,
    Object,
}

impl PythonDomain {
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mem, Self::Object];

    const fn function(self) -> &'static str {
        match self {
            Self::Raw => "PyMem_RawMalloc",
            Self::Mem => "PyMem_Malloc",
            Self::Object => "PyObject_Malloc",
        }
    }

    const fn table(self) -> &'static str {
        match self {
            Self::Raw => "_PyMem_Raw",
            Self::Mem => "_PyMem",
            Self::Object => "_PyObject",
        }
    }
}

/// An instruction before which a register holds the address of a pool that begins to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSite {
    pub address: u64,
    /// As x86-64 numbers them: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub register: u8,
}

/// What a file tells of its allocators. Addresses as linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocatorFacts {
    /// The pointer to the allocating function of each domain (raw, mem, object), where it is not in `_PyRuntime`.
    slots: [Option<u64>; 3],
    /// The function of pymalloc that allocates (mimalloc's in free-threaded builds).
    pub pymalloc: Option<u64>,
    /// The one for cleared blocks.
    pub pymalloc_calloc: Option<u64>,
    /// The function that asks libc.
    pub raw: Option<u64>,
    /// `allocate_from_new_pool`: called once for each pool that pymalloc begins to use. The pool is the block that it
    /// returns, rounded down to the pool's size.
    pub new_pool: Option<u64>,
    /// Those who call it.
    pub pool_callers: PoolCallers,
    /// The instructions at which pymalloc takes a pool into use, which is no function before 3.10, or cannot be found.
    pub pool_sites: Vec<PoolSite>,
    /// How often the code compares with `pymalloc`, which is what is left of an inlined call.
    pub inlined: usize,
    /// Where it is inlined, if it is.
    pub sites: InlinedSites,
    /// How often the code calls pymalloc by the pointer of a domain: what is left of the exported functions where these
    /// were put into their callers, and pymalloc was not.
    pub by_pointer: usize,
}

impl AllocatorFacts {
    pub fn of(elf: &ElfBytes<'_>, offsets: &Offsets, build: Build) -> Self {
        let mut facts = Self::default();
        for domain in PythonDomain::ALL {
            facts.slots[domain as usize] = slot(elf, offsets, domain);
        }
        let [raw, _, object] = facts.slots;
        // Beyond the first of a group, builds for debugging have a layer there.
        let at_start = |malloc: Option<u64>, kind| match kind {
            Allocator::Malloc => default(elf, malloc?, build.debug),
            _ => default(elf, slot_of(kind, malloc.filter(|_| !build.debug)?), false),
        };
        let function = |name, malloc, kind| symbol(elf, name).or_else(|| at_start(malloc, kind));
        // Newer builds have both, and use one.
        let [malloc, calloc] = if build.free_threaded {
            ["_PyObject_MiMalloc", "_PyObject_MiCalloc"]
        } else {
            ["_PyObject_Malloc", "_PyObject_Calloc"]
        };
        facts.pymalloc = function(malloc, object, Allocator::Malloc);
        facts.pymalloc_calloc = function(calloc, object, Allocator::Calloc);
        facts.raw = function("_PyMem_RawMalloc", raw, Allocator::Malloc);
        facts.find_places(elf, offsets);
        let libc = Raw {
            functions: [facts.raw, function("_PyMem_RawCalloc", raw, Allocator::Calloc)],
            slots: [raw, raw.map(|malloc| slot_of(Allocator::Calloc, malloc))],
        };
        let realloc = function("_PyObject_Realloc", object, Allocator::Realloc);
        facts.find_pools(elf, build.version.minor(), libc, realloc);
        facts
    }

    /// Where pymalloc, or what leads to it, was put into its callers.
    fn find_places(&mut self, elf: &ElfBytes<'_>, offsets: &Offsets) {
        let [_, mem, object] = self.slots;
        self.by_pointer = [mem, object]
            .into_iter()
            .flatten()
            .map(|slot| calls_through(elf, offsets, slot))
            .sum();
        let Some(function) = self.pymalloc else { return };
        self.inlined = code_references(elf, function);
        if self.inlined <= INLINED {
            return;
        }
        let allocating = |(function, kind)| Allocating {
            function,
            kind,
            slots: [mem, object].map(|malloc| Some(slot_of(kind, malloc?))),
        };
        let calloc = self.pymalloc_calloc.map(|function| (function, Allocator::Calloc));
        let functions: Vec<_> = [(function, Allocator::Malloc)]
            .into_iter()
            .chain(calloc)
            .map(allocating)
            .collect();
        self.sites = inlined::find(elf, &functions);
    }

    /// Where pools are taken into use, and how much is wanted there. `realloc` is pymalloc's.
    fn find_pools(&mut self, elf: &ElfBytes<'_>, minor: u8, libc: Raw, realloc: Option<u64>) {
        let itself = [self.pymalloc, self.pymalloc_calloc];
        self.new_pool =
            new_pool(elf, minor, self.pymalloc).filter(|function| !itself.contains(&Some(*function)));
        if let Some(function) = self.new_pool {
            self.pool_callers = asked::find(elf, function, libc);
        }
        // A compiler may have put the function into pymalloc, as clang does.
        if self.new_pool.is_none() || minor < FIRST_WITH_NEW_POOL {
            self.pool_sites = pool_sites(elf);
            // What that function does is seen when it returns.
            let own = self.new_pool.and_then(|function| elf.piece_of(function));
            self.pool_sites
                .retain(|site| !own.as_ref().is_some_and(|own| own.contains(&site.address)));
            self.add_sizes_at_sites(elf, realloc);
        }
    }

    fn add_sizes_at_sites(&mut self, elf: &ElfBytes<'_>, realloc: Option<u64>) {
        let addresses: Vec<u64> = self.pool_sites.iter().map(|site| site.address).collect();
        if addresses.is_empty() {
            return;
        }
        let functions = [
            (self.pymalloc, Allocator::Malloc),
            (self.pymalloc_calloc, Allocator::Calloc),
            (realloc, Allocator::Realloc),
        ];
        let found = functions
            .into_iter()
            .filter_map(|(function, kind)| Some(asked::within(elf, function?, kind, &addresses)));
        for (address, size) in found.flatten() {
            let known = self.pool_callers.entry(address).or_default();
            *known = known.or(size);
        }
    }

    /// Whether small allocations are made without calling the functions whose names say so. Probes on those then see
    /// next to nothing.
    pub const fn is_inlined(&self) -> bool {
        self.inlined > INLINED || self.by_pointer > INLINED
    }

    /// The allocator that serves a domain now. `bias` is that of the file.
    pub fn active(
        &self,
        domain: PythonDomain,
        free_threaded: bool,
        bias: u64,
        memory: &impl Memory,
    ) -> Result<Option<Active>, Unreadable> {
        let Some(slot) = self.slots[domain as usize] else {
            return Ok(None);
        };
        let group = bias.wrapping_add(slot).wrapping_sub(MALLOC);
        let moved = |function: Option<u64>| function.map(|function| function.wrapping_add(bias));
        let (pymalloc, raw) = (moved(self.pymalloc), moved(self.raw));
        let (mut context, mut function) = (memory.u64(group)?, memory.u64(group.wrapping_add(MALLOC))?);
        let mut active = Active {
            base: Base::Unknown,
            debug: false,
            hooked: false,
        };
        for _ in 0..MOST_LAYERS {
            if Some(function) == pymalloc {
                active.base = if free_threaded {
                    Base::Mimalloc
                } else {
                    Base::Pymalloc
                };
                return Ok(Some(active));
            }
            if Some(function) == raw {
                active.base = Base::Malloc;
                return Ok(Some(active));
            }
            // A layer keeps what it calls behind its context: the debugging one after a letter for the domain.
            let Ok(first) = memory.u64(context) else { break };
            let inner = if [b'r', b'm', b'o'].map(u64::from).contains(&first) {
                active.debug = true;
                context.wrapping_add(8)
            } else {
                active.hooked = true;
                context
            };
            let (Ok(next), Ok(called)) = (memory.u64(inner), memory.u64(inner.wrapping_add(MALLOC))) else {
                break;
            };
            (context, function) = (next, called);
        }
        Ok(Some(active))
    }
}

/// What serves a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    pub base: Base,
    /// `PYTHONMALLOC=debug` or a debug build: each block is larger than asked for.
    pub debug: bool,
    /// Something else is in between: tracemalloc, a profiler.
    pub hooked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Pymalloc,
    Mimalloc,
    /// libc's `malloc`.
    Malloc,
    Unknown,
}

fn symbol(elf: &ElfBytes<'_>, name: &str) -> Option<u64> {
    elf.symbol(name).map(|symbol| symbol.address)
}

/// The pointer that stands so far behind that to `malloc` in its group.
const fn slot_of(kind: Allocator, malloc: u64) -> u64 {
    malloc
        + match kind {
            Allocator::Malloc => 0,
            Allocator::Calloc => 8,
            Allocator::Realloc => 16,
        }
}

/// In `_PyRuntime` since 3.12; before that in variables of their own, which the exported functions begin by reading.
fn slot(elf: &ElfBytes<'_>, offsets: &Offsets, domain: PythonDomain) -> Option<u64> {
    if let Some(allocators) = offsets.runtime_allocators {
        let group = u64::from(allocators) + ALLOCATOR * domain as u64;
        return Some(elf.runtime()?.wrapping_add(group + MALLOC));
    }
    if let Some(table) = elf.symbol(domain.table()) {
        return Some(table.address.wrapping_add(MALLOC));
    }
    let function = elf.symbol(domain.function())?;
    let read = decode_x86::data_addresses(function.address, elf.code(function)?);
    // `ctx` and `malloc` are read both.
    read.iter()
        .copied()
        .find(|&address| read.contains(&address.wrapping_sub(MALLOC)) && elf.pointer_at(address).is_some())
}

/// The function in a slot when the program starts; in debug builds the one behind the debugging layer.
fn default(elf: &ElfBytes<'_>, slot: u64, debug: bool) -> Option<u64> {
    if !debug {
        return elf.pointer_at(slot);
    }
    let context = elf.pointer_at(slot.checked_sub(MALLOC)?)?;
    elf.pointer_at(context.wrapping_add(16))
}

/// How often code names an address, other than to call it.
fn code_references(elf: &ElfBytes<'_>, target: u64) -> usize {
    elf.code_sections()
        .map(|(address, bytes, _)| decode_x86::references(address, bytes, target).len())
        .sum()
}

/// How often code calls the function that a slot holds.
fn calls_through(elf: &ElfBytes<'_>, offsets: &Offsets, slot: u64) -> usize {
    // A shared library reaches its runtime by a register. In a program that has CPython in it calls at such a distance
    // can be anybody's: of virtual functions, say.
    let distance = offsets
        .runtime_allocators
        .filter(|_| elf.soname().is_some())
        .and_then(|_| u32::try_from(slot.wrapping_sub(elf.runtime()?)).ok());
    elf.code_sections()
        .map(|(address, bytes, _)| decode_x86::calls_through(address, bytes, slot, distance))
        .sum()
}

/// By its symbol, else by what only it does: it marks each pool that it begins as of no size class yet. Before 3.10 what
/// does this may be called for each block: there only the symbol will do.
fn new_pool(elf: &ElfBytes<'_>, minor: u8, pymalloc: Option<u64>) -> Option<u64> {
    if let Some((_, symbol)) = elf
        .symbols_from("allocate_from_new_pool")
        .find(|(name, _)| !name.contains(".cold"))
    {
        return Some(symbol.address);
    }
    if minor < FIRST_WITH_NEW_POOL {
        return None;
    }
    let mut functions: BTreeSet<u64> = marking_pools(elf).into_iter().map(|piece| piece.start).collect();
    let callers = [
        elf.symbol("PyObject_Malloc").map(|symbol| symbol.address),
        pymalloc,
    ];
    let called: BTreeSet<u64> = callers
        .into_iter()
        .flatten()
        .filter_map(|start| {
            let piece = elf.piece_of(start)?;
            let size = usize::try_from(piece.end - piece.start).ok()?;
            let code = elf.bytes_at(piece.start)?.get(..size)?;
            Some(decode_x86::branches(piece.start, code))
        })
        .flatten()
        .collect();
    // A part that was put elsewhere is jumped to with the stack in use: no return may be waited for there.
    functions.retain(|function| called.contains(function) && elf.part_of_function(*function).is_none());
    let only = functions.pop_first()?;
    functions.is_empty().then_some(only)
}

/// The code that marks pools as of no size class yet.
fn marking_pools(elf: &ElfBytes<'_>) -> Vec<Range<u64>> {
    let mut pieces: Vec<Range<u64>> = elf
        .code_sections()
        .flat_map(|(address, bytes, _)| decode_x86::stores(address, bytes, POOL_SIZE_CLASS, NO_SIZE_CLASS))
        .filter_map(|address| elf.piece_of(address))
        .collect();
    pieces.sort_by_key(|piece| piece.start);
    pieces.dedup();
    pieces
}

/// There a pool's count of blocks in use is set to 1, which is the first field of its head.
fn pool_sites(elf: &ElfBytes<'_>) -> Vec<PoolSite> {
    marking_pools(elf)
        .into_iter()
        .filter_map(|piece| {
            let size = usize::try_from(piece.end - piece.start).ok()?;
            Some((piece.start, elf.bytes_at(piece.start)?.get(..size)?))
        })
        .flat_map(|(address, code)| decode_x86::stores_of_one(address, code))
        .map(|(address, register)| PoolSite { address, register })
        .collect()
}
