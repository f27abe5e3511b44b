//! Unwinding without frame pointers: from the unwind information that compilers put into every file to small sorted
//! tables that a program in the kernel can search.
//!
//! [`build`] reads one file (or the vdso) and makes a [`Table`] that stands alone. [`Interner`] gives the rules of
//! all tables shared numbers, so that a row takes four bytes. [`interpret`] walks a stack with such tables in user
//! space: with the same step as the kernel side, for tests and for checks of single stacks.

mod cache;
mod cache_format;
mod collect;
mod elf;
mod entries;
mod fingerprint;
pub mod interpret;
mod kernel_tables;
pub mod measure;
mod pages;
pub mod publish;
mod room;
pub mod rules;
pub mod stats;
pub mod table;
mod useful;
mod worker;
mod x86_64;

#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use elf::Segment;
pub use fingerprint::Fingerprint;
pub use rules::Interner;
pub use stats::{Dropped, TableStats};
pub use table::{BuildError, Source, Table, build};

/// For fuzzers: whatever the bytes are, building must end soon, and the result must hold together.
pub fn fuzz_entry(bytes: &[u8]) {
    if let Ok(table) = build(bytes) {
        assert_eq!(table.check(), Ok(()));
    }
}
