//! What memwatch knows, as plain data and pure functions: no kernel, no clock, no files.

pub mod assemble;
pub mod counts;
mod estimate;
pub mod exit;
pub mod filter;
pub mod findings;
pub mod group;
pub mod growth;
pub mod health;
pub mod history;
pub mod keys;
pub mod label;
pub mod leaks;
pub mod mappings;
pub mod plumbing;
pub mod processes;
pub mod query;
pub mod report;
mod shares;
pub mod state;
pub mod suppress;
#[cfg(test)]
pub mod testing;
mod threads;
