//! Tests of the whole program, one binary so that it is linked once.

mod answers;
mod bad_input;
mod base_models;
mod config_keys;
mod end_to_end;
mod examples;
mod extended;
mod families;
mod formats;
mod gguf;
mod golden;
mod graphs;
mod hostile_sql;
mod hub;
mod notebook;
mod own_queries;
mod pages;
mod parity;
mod precision;
mod provisioning;
mod push;
mod queries;
mod questions;
mod reliability;
mod s3;
mod schema;
mod sql;
mod sql_output;
mod sql_prompt;
mod status;
mod support;
mod surroundings;
mod tables;
mod tokenizer;
#[cfg(target_os = "linux")]
mod trace;
