//! pymalloc from outside: arenas, pools, and how many blocks of each are in use, read while the process runs.
//!
//! Memory is in arenas, an arena in pools, a pool in blocks of one size (a multiple of 16, up to 512 bytes). The head of
//! each pool says how many of its blocks are in use.

use super::memory::{Memory, Unreadable, u32_at, u64_at};
use super::offsets::Offsets;
use super::version::Version;

/// Sizes of blocks.
pub const SIZE_CLASSES: usize = 32;

/// From one size to the next.
pub const ALIGNMENT: u64 = 16;

/// The head of a pool: blocks in use, list of free ones, neighbours, arena, size class, how far it was ever used.
const POOL_HEAD: usize = 48;

/// `struct arena_object`: address, first untouched pool, free pools, pools, list of free pools, neighbours.
const ARENA: usize = 48;

/// More arenas than any process has: 1 TiB.
const MOST_ARENAS: u32 = 1 << 20;

/// Why pools could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolsError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the allocator's arenas are not where they are expected")]
    Implausible,
    #[error("this build of CPython has no pymalloc that could be read")]
    Unknown,
}

/// How large arenas and pools are: constants of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub arena_bytes: u64,
    pub pool_bytes: u64,
}

impl Geometry {
    pub const fn of(version: Version) -> Self {
        if version.minor() < 10 {
            Self {
                arena_bytes: 256 << 10,
                pool_bytes: 4 << 10,
            }
        } else {
            Self {
                arena_bytes: 1 << 20,
                pool_bytes: 16 << 10,
            }
        }
    }

    /// Blocks that a pool of a size class has room for.
    pub const fn capacity(self, size_class: usize) -> u64 {
        (self.pool_bytes - POOL_HEAD as u64) / block_bytes(size_class)
    }

    /// The pool that a block is in.
    pub const fn pool_of(self, block: u64) -> u64 {
        block & !(self.pool_bytes - 1)
    }
}

/// Bytes of each block of a size class.
pub const fn block_bytes(size_class: usize) -> u64 {
    (size_class as u64 + 1) * ALIGNMENT
}

/// A pool with blocks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub address: u64,
    /// See [`super::classes`].
    pub size_class: usize,
    pub block_bytes: u64,
    pub in_use: u64,
}

impl Pool {
    pub const fn bytes_in_use(&self) -> u64 {
        self.in_use.saturating_mul(self.block_bytes)
    }
}

/// Where a process keeps its list of arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaList {
    /// The pointer to the first arena's description.
    pub arenas: u64,
    /// The number of descriptions, a `u32`.
    pub count: u64,
}

/// What was found at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    pub arenas: u64,
    pub arena_bytes: u64,
    /// Without blocks in use.
    pub free_pools: u64,
    /// Never used so far.
    pub untouched_pools: u64,
    pub pools: Vec<Pool>,
    /// Heads of pools that made no sense, as when they were being changed.
    pub odd: u64,
}

/// Pools of one size, as `sys._debugmallocstats` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeClass {
    pub pools: u64,
    pub in_use: u64,
    pub free: u64,
}

impl Pools {
    pub fn blocks_in_use(&self) -> u64 {
        self.pools.iter().map(|pool| pool.in_use).sum()
    }

    pub fn bytes_in_use(&self) -> u64 {
        self.pools.iter().map(Pool::bytes_in_use).sum()
    }

    pub fn classes(&self, geometry: Geometry) -> [SizeClass; SIZE_CLASSES] {
        let mut classes = [SizeClass::default(); SIZE_CLASSES];
        for pool in &self.pools {
            if let Some(class) = classes.get_mut(pool.size_class) {
                class.pools += 1;
                class.in_use += pool.in_use;
                class.free += geometry.capacity(pool.size_class).saturating_sub(pool.in_use);
            }
        }
        classes
    }

    fn add(&mut self, other: Self) {
        self.arenas += other.arenas;
        self.arena_bytes += other.arena_bytes;
        self.free_pools += other.free_pools;
        self.untouched_pools += other.untouched_pools;
        self.pools.extend(other.pools);
        self.odd += other.odd;
    }
}

/// All pools of a process. Interpreters may have lists of their own.
pub fn read(lists: &[ArenaList], geometry: Geometry, memory: &impl Memory) -> Result<Pools, PoolsError> {
    let mut all = Pools::default();
    for list in lists {
        all.add(read_list(list, geometry, memory)?);
    }
    Ok(all)
}

fn read_list(list: &ArenaList, geometry: Geometry, memory: &impl Memory) -> Result<Pools, PoolsError> {
    let mut found = Pools::default();
    for arena in arenas(list, geometry, memory)? {
        found.arenas += 1;
        found.arena_bytes += geometry.arena_bytes;
        found.untouched_pools += arena.untouched(geometry);
        let mut address = arena.address.next_multiple_of(geometry.pool_bytes);
        while address < arena.used_to {
            match pool(address, geometry, memory) {
                Some(pool) if pool.in_use == 0 => found.free_pools += 1,
                Some(pool) => found.pools.push(pool),
                None => found.odd += 1,
            }
            address += geometry.pool_bytes;
        }
    }
    // Some heads change while they are read; if most make no sense they are no pools.
    let good = found.pools.len() as u64 + found.free_pools;
    if found.odd > good {
        return Err(PoolsError::Implausible);
    }
    Ok(found)
}

/// The pool at `address`; `None` if nothing there can be one. With `in_use` 0 the size class is an old one.
pub fn pool(address: u64, geometry: Geometry, memory: &impl Memory) -> Option<Pool> {
    let mut head = [0; POOL_HEAD];
    memory.read_into(address, &mut head).ok()?;
    let in_use = u64::from(u32_at(&head, 0)?);
    let size_class = u32_at(&head, 36)? as usize;
    // A pool that never was in use has 0xffff as its class.
    let possible = in_use == 0 || (size_class < SIZE_CLASSES && in_use <= geometry.capacity(size_class));
    possible.then_some(Pool {
        address,
        size_class,
        block_bytes: block_bytes(size_class),
        in_use,
    })
}

struct Arena {
    address: u64,
    /// Pools from here on were never used.
    used_to: u64,
}

impl Arena {
    fn untouched(&self, geometry: Geometry) -> u64 {
        let end = self.address + geometry.arena_bytes;
        end.saturating_sub(self.used_to) / geometry.pool_bytes
    }

    /// `None` for what describes no arena.
    fn read(address: u64, bytes: &[u8], geometry: Geometry) -> Option<Self> {
        let used_to = u64_at(bytes, 8)?;
        let (free, total) = (u32_at(bytes, 16)?, u32_at(bytes, 20)?);
        let end = address.checked_add(geometry.arena_bytes)?;
        let pools = geometry.arena_bytes / geometry.pool_bytes;
        let sound = (address..=end).contains(&used_to)
            && free <= total
            && u64::from(total) <= pools
            && total + 1 >= pools as u32;
        sound.then_some(Self { address, used_to })
    }
}

fn arenas(list: &ArenaList, geometry: Geometry, memory: &impl Memory) -> Result<Vec<Arena>, PoolsError> {
    let (first, count) = (memory.u64(list.arenas)?, memory.u32(list.count)?);
    if first == 0 || count == 0 {
        return Ok(Vec::new());
    }
    if count > MOST_ARENAS {
        return Err(PoolsError::Implausible);
    }
    let bytes = memory.read(first, count as usize * ARENA)?;
    let mut found = Vec::new();
    for description in bytes.chunks_exact(ARENA) {
        // Descriptions without an address are to be used again.
        if let Some(address) = u64_at(description, 0).filter(|&address| address != 0) {
            found.push(Arena::read(address, description, geometry).ok_or(PoolsError::Implausible)?);
        }
    }
    Ok(found)
}

/// Where the lists of arenas are: since 3.12 in each interpreter's state, before in two variables. `variables` are those
/// two (`arenas`, `maxarenas`), or all that the code reads that knows them; what makes sense is taken.
pub fn arena_lists(
    version: Version,
    offsets: &Offsets,
    runtime: u64,
    variables: &[u64],
    memory: &impl Memory,
) -> Result<Vec<ArenaList>, PoolsError> {
    let geometry = Geometry::of(version);
    let lists = match offsets.interpreter_pools {
        Some(_) => in_interpreters(offsets, runtime, memory).ok_or(PoolsError::Unknown)?,
        None => in_variables(geometry, variables, memory),
    };
    let mut sound: Vec<ArenaList> = Vec::new();
    for list in lists {
        let good = arenas(&list, geometry, memory).is_ok_and(|arenas| !arenas.is_empty());
        if good && !sound.contains(&list) {
            sound.push(list);
        }
    }
    if sound.is_empty() {
        return Err(PoolsError::Implausible);
    }
    Ok(sound)
}

fn in_interpreters(offsets: &Offsets, runtime: u64, memory: &impl Memory) -> Option<Vec<ArenaList>> {
    const MOST: usize = 256;
    let (pools, arenas, count) = (
        offsets.interpreter_pools?,
        offsets.pools_arenas?,
        offsets.pools_arenas_most?,
    );
    let first = memory.pointer(runtime, offsets.runtime_interpreters?).ok()?;
    let mut lists = Vec::new();
    for interpreter in super::thread_state::chain(first, offsets.interpreter_next?, MOST, memory) {
        let inside = interpreter.wrapping_add(pools.into());
        // Later releases of 3.12 may have a pointer where the first had the structure: what makes sense is taken.
        let states = [
            memory.u64(inside).ok(),
            (offsets.pools_indirect == Some(0)).then_some(inside),
        ];
        lists.extend(states.into_iter().flatten().map(|state| ArenaList {
            arenas: state.wrapping_add(arenas.into()),
            count: state.wrapping_add(count.into()),
        }));
    }
    Some(lists)
}

/// Whether a variable may be the pointer to the first description, by that alone: most are not, and there are many.
fn leads_to_arena(variable: u64, geometry: Geometry, memory: &impl Memory) -> bool {
    let description = memory
        .u64(variable)
        .and_then(|first| memory.read(first, ARENA))
        .unwrap_or_default();
    match u64_at(&description, 0) {
        Some(0) => true,
        Some(address) => Arena::read(address, &description, geometry).is_some(),
        None => false,
    }
}

fn in_variables(geometry: Geometry, variables: &[u64], memory: &impl Memory) -> Vec<ArenaList> {
    let mut lists = Vec::new();
    let is_count = |variable: &u64| {
        let count = memory.u32(*variable);
        count.is_ok_and(|count| (1..=MOST_ARENAS).contains(&count))
    };
    let counts: Vec<u64> = variables.iter().copied().filter(is_count).collect();
    let lead_to_arenas = variables
        .iter()
        .filter(|variable| leads_to_arena(**variable, geometry, memory));
    for &first in lead_to_arenas {
        for &count in &counts {
            let list = ArenaList { arenas: first, count };
            if first != count && arenas(&list, geometry, memory).is_ok_and(|arenas| !arenas.is_empty()) {
                lists.push(list);
            }
        }
    }
    // Smaller numbers than the right one fit too: the list with the largest is the whole.
    lists.sort_by_key(|list| std::cmp::Reverse(memory.u32(list.count).unwrap_or(0)));
    lists.truncate(1);
    lists
}
