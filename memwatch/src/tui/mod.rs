//! The full-screen live view.
//!
//! [`State`] is plain data: reports and keys change it, the view only reads it. A key may be answered with a
//! [`Request`] for the controller, which owns the data and does all input and output. [`Screen`] holds the
//! terminal and gives it back on every way out.

mod filter;
mod format;
mod frames;
mod history;
mod input;
mod request;
mod state;
mod terminal;
mod text;
mod theme;
mod view;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod state_tests;

pub use filter::Filter;
pub use request::{Direction, FreezeFormat, QueryChange, Request, Step};
pub use state::{Options, State};
pub use terminal::Screen;
