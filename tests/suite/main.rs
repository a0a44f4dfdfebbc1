//! Tests of the whole program, one binary so that it is linked once.

mod bad_input;
mod end_to_end;
mod extended;
mod families;
mod formats;
mod gguf;
mod graphs;
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
mod sql;
mod sql_prompt;
mod status;
mod support;
mod tables;
mod tokenizer;
