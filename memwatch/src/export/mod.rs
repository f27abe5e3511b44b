//! A [`crate::model::report::Report`] in, text out: no clock, no files, no terminal.

#[cfg(test)]
mod fixtures;
pub mod json;
pub mod name;
pub mod style;
pub mod text;
