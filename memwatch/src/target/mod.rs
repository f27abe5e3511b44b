//! Finding processes and what they have mapped. The parsers take bytes; [`ProcRoot`] and a few thin functions
//! on it are the only parts that touch `/proc`, and tests point them at a made-up one.

pub mod cgroup;
pub mod container;
pub mod describe;
pub mod file_id;
pub mod go_build;
pub mod maps;
pub mod modules;
pub mod process;
pub mod ps;
pub mod ps_text;
pub mod rss;
pub mod runtime;
pub mod select;
pub mod stat;
pub mod status;
pub mod vdso;

#[cfg(test)]
mod fake;

pub use process::ProcRoot;
