//! Reading the kernel side's maps and events.

pub mod batch;
pub mod collector;
pub mod decode;
pub mod sample;
pub mod stacks;
