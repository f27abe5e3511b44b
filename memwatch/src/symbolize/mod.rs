//! From addresses to names.
//!
//! The mappings of a process are read while it lives and kept; an address is turned into a place in a file by
//! them, so that names outlive an exit, an exec or a `dlclose`, and all processes that map a file share its names.

mod cache;
mod demangle;
pub(crate) mod elf;
mod module;
pub mod names;
mod open;
pub(crate) mod perf_map;
pub mod python;
mod space;
pub(crate) mod symbol_table;
mod symbolizer;
#[cfg(test)]
mod testing;

pub use names::{NamedStack, StackNames, StackTable};
pub use symbolizer::{StackSource, Symbolizer};
