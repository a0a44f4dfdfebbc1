//! Measures self-repair in language models: when one attention head is ablated, later parts of the model compensate.
//!
//! The way of the data is `corpus → export → trace → ablate → analyze → report` (see `stages`); each stage reads and
//! writes files in one run folder. `ARCHITECTURE.md` draws it once.

#![deny(unsafe_code)]

pub mod analyze;
pub mod bench;
pub mod catalog;
pub mod checksums;
pub mod components;
pub mod config;
pub mod corpus;
pub mod describe;
pub mod engine;
pub mod export;
pub mod hub;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod outside;
pub mod pairing;
pub mod precision;
pub mod progress;
pub mod provision;
pub mod push;
pub mod report;
pub mod run_folder;
pub mod sharing;
pub mod sql;
pub mod stages;
pub mod status;
pub mod tables;
