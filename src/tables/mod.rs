//! Every table this program measures: its grain, its columns with units, and how it is written.

#[cfg(test)]
pub(crate) mod handmade;
mod schema;
mod writer;

pub use schema::*;
pub use writer::{Metadata, TableWriter, is_whole};
