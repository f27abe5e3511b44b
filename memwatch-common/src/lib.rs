//! The contract between memwatch's kernel side and its user side.
//!
//! Everything that crosses the border is flat, `repr(C)`, padded by hand and has its size asserted here, so that
//! a change on one side that the other does not know fails to build. Flags and kinds are integers, never enums
//! with data: an unknown number is an error in user space, not undefined behaviour.
#![no_std]

pub mod config;
pub mod cookie;
pub mod counter;
pub mod event;
pub mod hist;
pub mod limits;
pub mod live;
pub mod process;
pub mod python;
pub mod site;
pub mod size_at;
pub mod stack;
pub mod unwind;

pub use config::Config;
pub use cookie::{Cookie, Function};
pub use counter::Counter;
pub use event::{Event, EventKind};
pub use live::{LiveKey, LiveValue};
pub use process::{ProcessKey, ProcessState};
pub use python::PythonLayout;
pub use site::{Domain, SiteKey, SiteTotals};
pub use stack::Stack;

#[cfg(feature = "user")]
mod pod;
