//! The command line: as typed ([`args`], [`read`]), then checked and complete ([`resolve`]); and what goes back to the
//! user: data ([`output`]), one line when it went wrong, and an exit code ([`error`]).

pub mod args;
pub mod doctor;
pub mod error;
pub mod output;
mod pending;
pub mod read;
pub mod recorded;
pub mod report;
pub mod resolve;
pub mod run;
pub mod units;
