//! Every bound of the kernel side, with the reason for the number. All can be set from the command line unless
//! they are part of a layout.

/// Frames kept of one stack. 127 is what `perf` and bcc keep; the value of `STACKS` is then 1 KiB.
pub const MAX_FRAMES: usize = 127;

/// Frames that one call of the walk goes through where the verifier can follow that.
pub const MAX_FRAMES_AT_ONCE: u32 = 16;

/// Blocks that can be alive at one time over all watched processes. The kernel lays out 16 bytes per entry when
/// the map is made (32 MiB), the rest as blocks come. Rounded up to a power of two.
pub const DEFAULT_LIVE_BLOCKS: u32 = 1 << 21;

/// Call sites (process, stack, domain). 64 Ki distinct stacks are more than any service we measured reaches in
/// a day; a site takes 576 bytes once it is used.
pub const DEFAULT_SITES: u32 = 1 << 16;

/// Distinct stacks, at 1 KiB each once used.
pub const DEFAULT_STACKS: u32 = 1 << 16;

/// Processes watched at one time: the whole of a large node.
pub const DEFAULT_PROCESSES: u32 = 1 << 13;

/// Calls of one thread that can be in flight at one time: three nested CPython domains, a nested libc call, and
/// the same again in a signal handler that interrupted them.
pub const MAX_IN_FLIGHT: usize = 8;

/// Blocks that inner calls made while an outer one is in flight and that the outer one may turn out to be.
pub const MAX_INNER: usize = 4;

/// Bytes of user stack copied in one go: one copy of 2 KiB costs about as much as two single words and holds
/// ten ordinary frames.
pub const STACK_CHUNK: usize = 2048;

/// Unwind rows: 16 million, made as files are seen, in blocks of [`crate::unwind::BLOCK_ROWS`] of which each takes 8 KiB
/// of the kernel's memory.
pub const DEFAULT_UNWIND_ROWS: u32 = 1 << 24;

/// 64 KiB pages of code with unwind rows: 16 GiB of code.
pub const ROW_PAGES: u32 = 1 << 18;

/// Addresses whose unwind rule is remembered (2 to this power); a busy service has some thousands. 128 KiB.
pub const CACHED_RULES_BITS: u32 = 14;

/// Stacks that are known to be kept (2 to this power); a busy service has some thousands. 128 KiB.
pub const KNOWN_STACKS_BITS: u32 = 14;

/// Python frames kept of one stack, as many as native ones; 3 KiB.
pub const MAX_PYTHON_FRAMES: usize = 127;

/// Ranges of an interpreter's code that say for which domain it allocates.
pub const MAX_PYTHON_RANGES: usize = 32;

/// Code objects of Python whose content waits to be read by user space; 3 KiB each. Made as they come.
pub const PYTHON_CODES: u32 = 4096;

/// Code objects that were told already. The ones not seen for longest make room.
pub const PYTHON_CODES_TOLD: u32 = 1 << 14;

/// Pools of small Python objects (16 KiB each) whose stack is known: 16 GiB of them. Made as they come, at about 100
/// bytes each.
pub const PYTHON_POOLS: u32 = 1 << 20;

/// Calls that take a pool into use: up to 300 in a CPython whose allocator is inlined, 3 in others; so 100 builds and
/// more. Made as they come.
pub const POOL_CALLERS: u32 = 1 << 15;

/// Bytes of the ring buffer for lifecycle and mappings: 47,000 events. An asyncio server maps, shrinks and unmaps a
/// buffer for each message, 64,000 calls a second on one processor; a tick may keep the reader away for half a second.
pub const RING_BYTES: u32 = 1 << 22;

/// The reader is woken when so much waits for it: three quarters are left for what comes until it is there.
pub const RING_WAKE_BYTES: u32 = RING_BYTES / 4;

/// Bytes of the ring buffer for sites that changed, 24 each: 43,000 in one tick; beyond, all sites are read.
pub const CHANGES_BYTES: u32 = 1 << 20;

/// Power-of-two buckets of a size histogram: bucket `n` holds sizes in `[2^(n-1), 2^n)`, the last all larger.
pub const SIZE_BUCKETS: usize = 32;

/// Power-of-two buckets of a lifetime histogram: bucket `n` holds lives below `2^n` microseconds.
pub const LIFETIME_BUCKETS: usize = 32;
