//! Tests of the whole program, one binary so that it is linked once.

mod bad_input;
mod end_to_end;
mod extended;
mod families;
mod formats;
mod gguf;
mod graphs;
mod hub;
mod parity;
mod provisioning;
mod queries;
mod support;
mod tokenizer;
