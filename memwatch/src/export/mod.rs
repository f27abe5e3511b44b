//! A [`crate::model::report::Report`] in, text or a file out: no clock, no files, no terminal.

pub mod csv;
pub mod document;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod flamegraph;
pub mod folded;
pub mod format;
pub mod heaptrack;
pub mod html;
pub mod json;
pub mod leaks;
pub mod memleak;
pub mod name;
pub mod pprof;
pub mod speedscope;
pub mod style;
pub mod text;
pub mod weight;
