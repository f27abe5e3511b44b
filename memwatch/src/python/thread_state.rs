//! How to get from a thread to its Python thread state, and whether that is right for the threads that are there.

use memwatch_common::PythonLayout;
use memwatch_common::python::{GLIBC_KEYS_IN_BLOCK, TLS_GLIBC_KEY, TLS_MODULE, TLS_MUSL_KEY, TLS_STATIC};

use super::decode_x86::ThreadLocal;
use super::memory::{Memory, Unreadable};
use super::offsets::Offsets;

/// Threads that are looked at for a check.
const MOST_THREADS: usize = 1024;

/// Interpreters (main and sub) that are looked at.
const MOST_INTERPRETERS: usize = 256;

/// Where `struct pthread` of glibc has its first block of values; a table of pointers to all blocks follows.
const GLIBC_FIRST_BLOCK: u32 = 0x310;

/// Bytes of that block.
const GLIBC_BLOCK: u32 = GLIBC_KEYS_IN_BLOCK * 16;

/// The pointer to the thread's table of modules, in glibc and musl.
const MODULES: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CLibrary {
    Glibc,
    Musl,
}

/// The part of a layout that leads to the thread state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub kind: u32,
    pub key_address: u64,
    pub offset: i64,
    pub first: u32,
    pub table: u32,
}

impl Way {
    /// By the key of `pthread_getspecific`, whose number is at `key_address`.
    pub const fn by_key(library: CLibrary, key_address: u64) -> Self {
        match library {
            CLibrary::Glibc => Self {
                kind: TLS_GLIBC_KEY,
                key_address,
                offset: 0,
                first: GLIBC_FIRST_BLOCK,
                table: GLIBC_FIRST_BLOCK + GLIBC_BLOCK,
            },
            // Found on the live process: see `find_musl_table`.
            CLibrary::Musl => Self {
                kind: TLS_MUSL_KEY,
                key_address,
                offset: 0,
                first: 0,
                table: 0,
            },
        }
    }

    /// By a thread-local variable of a file that is loaded at `bias`.
    pub fn by_variable(
        variable: ThreadLocal,
        bias: u64,
        library: CLibrary,
        memory: &impl Memory,
    ) -> Result<Self, Unreadable> {
        let fixed = |offset| Self {
            kind: TLS_STATIC,
            key_address: 0,
            offset,
            first: 0,
            table: 0,
        };
        let module = |index: u64, after: i64| {
            Ok(Self {
                kind: TLS_MODULE,
                key_address: index,
                offset: memory
                    .u64(index.wrapping_add(8))?
                    .cast_signed()
                    .wrapping_add(after),
                first: match library {
                    CLibrary::Glibc => 16,
                    CLibrary::Musl => 8,
                },
                table: MODULES,
            })
        };
        match variable {
            ThreadLocal::Fixed(offset) => Ok(fixed(offset)),
            ThreadLocal::Slot(slot) => Ok(fixed(memory.u64(bias.wrapping_add(slot))?.cast_signed())),
            ThreadLocal::Module { slot, after } => module(bias.wrapping_add(slot), after),
            ThreadLocal::Descriptor(slot) => {
                let argument = memory.u64(bias.wrapping_add(slot).wrapping_add(8))?;
                // A distance is small and negative, anything else the address of a module's number and an offset.
                if argument.cast_signed() < 0 {
                    return Ok(fixed(argument.cast_signed()));
                }
                module(argument, 0)
            }
        }
    }

    pub fn of(layout: &PythonLayout) -> Self {
        Self {
            kind: layout.tls_kind,
            key_address: layout.key_address,
            offset: layout.tls_offset,
            first: layout.tls_first,
            table: layout.tls_table,
        }
    }

    /// Follows the way as the kernel side does. `thread` is the thread pointer.
    pub fn follow(&self, thread: u64, memory: &impl Memory) -> Result<u64, Unreadable> {
        match self.kind {
            TLS_GLIBC_KEY => {
                let key = memory.u32(self.key_address)?;
                let (block, key) = if key < GLIBC_KEYS_IN_BLOCK {
                    (thread.wrapping_add(self.first.into()), key)
                } else {
                    let at = u64::from(self.table) + u64::from(key / GLIBC_KEYS_IN_BLOCK) * 8;
                    (memory.u64(thread.wrapping_add(at))?, key % GLIBC_KEYS_IN_BLOCK)
                };
                if block == 0 {
                    return Ok(0);
                }
                memory.u64(block.wrapping_add(u64::from(key) * 16 + 8))
            }
            TLS_MUSL_KEY => {
                let key = memory.u32(self.key_address)?;
                let table = memory.pointer(thread, self.table)?;
                memory.u64(table.wrapping_add(u64::from(key) * 8))
            }
            TLS_MODULE => {
                let table = memory.pointer(thread, self.table)?;
                let module = memory.u64(self.key_address)?;
                let block = memory.u64(table.wrapping_add(module.wrapping_mul(self.first.into())))?;
                if block == u64::MAX || block == 0 {
                    return Ok(0);
                }
                memory.u64(block.wrapping_add_signed(self.offset))
            }
            _ => memory.u64(thread.wrapping_add_signed(self.offset)),
        }
    }
}

/// A thread state, and the thread it says it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    pub address: u64,
    /// `pthread_self()`, which on x86-64 is the thread pointer in glibc and in musl.
    pub thread: u64,
}

/// All thread states of all interpreters, as far as they can be read while the process runs.
pub fn thread_states(offsets: &Offsets, runtime: u64, memory: &impl Memory) -> Option<Vec<ThreadState>> {
    let mut found = Vec::new();
    let interpreters = chain(
        memory.pointer(runtime, offsets.runtime_interpreters?).ok()?,
        offsets.interpreter_next?,
        MOST_INTERPRETERS,
        memory,
    );
    let (threads, next, id) = (
        offsets.interpreter_threads?,
        offsets.thread_next?,
        offsets.thread_id?,
    );
    for interpreter in interpreters {
        let Ok(first) = memory.pointer(interpreter, threads) else {
            continue;
        };
        for address in chain(first, next, MOST_THREADS, memory) {
            if let Ok(thread) = memory.pointer(address, id) {
                found.push(ThreadState { address, thread });
            }
        }
    }
    Some(found)
}

/// The members of a linked list.
pub(super) fn chain(first: u64, next: u32, most: usize, memory: &impl Memory) -> Vec<u64> {
    let mut members = Vec::new();
    let mut at = first;
    while at != 0 && members.len() < most {
        members.push(at);
        let Ok(next) = memory.pointer(at, next) else { break };
        at = next;
    }
    members
}

/// For how many threads the way leads to one of their thread states, and for how many it leads elsewhere.
pub fn check(way: &Way, states: &[ThreadState], memory: &impl Memory) -> (usize, usize) {
    let mut threads: Vec<u64> = states.iter().map(|state| state.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    let (mut right, mut wrong) = (0, 0);
    for thread in threads {
        match way.follow(thread, memory) {
            Ok(found)
                if states.contains(&ThreadState {
                    address: found,
                    thread,
                }) =>
            {
                right += 1;
            }
            // Threads begin and end meanwhile.
            Ok(0) | Err(_) => {}
            Ok(_) => wrong += 1,
        }
    }
    (right, wrong)
}

/// The way as this process needs it. A static program has its libc in itself, and no file says whose it is.
pub fn fitting(way: Way, states: &[ThreadState], memory: &impl Memory) -> Way {
    let musl = match way.kind {
        TLS_MUSL_KEY => Some(way),
        TLS_GLIBC_KEY if check(&way, states, memory).0 == 0 => {
            Some(Way::by_key(CLibrary::Musl, way.key_address))
        }
        _ => None,
    };
    musl.and_then(|musl| find_musl_table(musl, states, memory))
        .unwrap_or(way)
}

/// musl keeps a pointer to a thread's values at a place that differs by version: the one from which all threads get
/// their own thread state.
fn find_musl_table(way: Way, states: &[ThreadState], memory: &impl Memory) -> Option<Way> {
    let mut fitting = (0..0x200).step_by(8).filter_map(|table| {
        let way = Way { table, ..way };
        let (right, wrong) = check(&way, states, memory);
        (right > 0 && wrong == 0).then_some((right, way))
    });
    let (_, way) = fitting.next()?;
    fitting.next().is_none().then_some(way)
}
