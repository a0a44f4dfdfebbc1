//! Types that every layer of selfrepair shares: names of components, the configuration, prompts and targets, the
//! columns of the measured tables, files, and errors. Nothing here reads a model or runs a graph.

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

pub mod additions;
pub mod address;
pub mod columns;
pub mod components;
pub mod config;
pub mod error;
pub mod files;
pub mod interrupt;
pub mod memory;
pub mod own_files;
pub mod pairing;
pub mod pieces;
pub mod plain;
pub mod precision;
pub mod progress;
pub mod prompts;
pub mod provenance;
pub mod shards;
pub mod sink;
pub mod tables;
pub mod threads;
pub mod untrusted;
