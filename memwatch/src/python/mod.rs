//! CPython, read from outside: which interpreter a process runs, where its frames are, what a code object is called,
//! how pymalloc's pools are used. Nothing here stops the process or writes to it.
//!
//! [`PythonFiles::find`] finds interpreters, [`Interpreter::attach`] makes and checks the [`PythonLayout`] that the
//! kernel side follows, [`CodeCache::locate`] names what it sends, [`merge()`] puts native and Python frames together.
//!
//! [`PythonLayout`]: memwatch_common::PythonLayout

pub mod allocator;
pub mod asked;
pub mod classes;
pub mod code;
mod copied;
mod decode_x86;
pub mod domains;
pub mod eval;
mod file;
mod filled;
pub mod inlined;
pub mod interpreter;
pub mod layout;
pub mod lines;
pub mod memory;
pub mod merge;
pub mod mimalloc;
pub mod offsets;
pub mod pool_sites;
pub mod pymalloc;
mod registers;
mod text;
pub mod thread_state;
pub mod version;

#[cfg(test)]
mod tests;

pub use code::{CodeCache, CodeError, CodeFrame, CodeObject, CodeReader, Location};
pub use interpreter::{Checks, Found, Interpreter, PythonError, PythonFile, PythonFiles, c_library};
pub use memory::{Memory, ProcessMemory, Unreadable};
pub use merge::{Merged, Whole, merge};
pub use version::Version;
