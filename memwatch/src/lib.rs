//! memwatch: who allocates memory, in any running process, from outside.

pub mod cli;
pub mod collect;
pub mod controller;
pub mod export;
pub mod format;
#[doc(hidden)]
pub mod fuzz;
pub mod model;
pub mod named;
mod numbers;
mod pipe;
pub mod probe;
pub mod python;
#[cfg(test)]
mod random;
pub mod record;
pub mod screen;
pub mod store;
pub mod symbolize;
pub mod target;
pub mod tui;
pub mod unwind;
pub mod watch;
