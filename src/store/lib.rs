//! The run folder: the files of each stage, the Parquet layout of all tables, checksums, and locks.
//!
//! Stages only read and write files. A file is written under a temporary name and renamed when it is complete.

// What is read here comes from outside: it is an error where it is wrong, and no panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::get_unwrap
    )
)]

pub mod checksums;
pub mod locks;
mod overlap;
mod piece_files;
pub mod pieces;
pub mod prompt_tables;
mod published;
pub mod records;
pub mod run_folder;
mod stage_files;
pub mod store;
mod table_writer;
#[doc(hidden)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "only tests call it, with tables of their own")]
pub mod test_tables;

pub use piece_files::PieceFiles;
pub use stage_files::StageFiles;
pub use table_writer::{EMPTY_FILE, Metadata, TableWriter, is_of_table, is_whole, measurement_version, schema_version};
