//! What to probe, where, and how.

mod forward_x86;
pub mod functions;
pub mod placer;
mod placer_x86;
pub mod plan;
mod small;
pub mod symbols;

pub mod attach;
pub mod capabilities;
pub mod links;
pub mod load;
pub mod preflight;
pub mod price;
#[cfg(test)]
mod tests;
pub mod tracefs;
