//! The program `pipeline`: its commands are in `cli/`, one file each.

#![deny(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use pipeline::hub::without_token;
use pipeline::interrupt::{EXIT, is_interruption};

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if cli::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) if is_interruption(&e) => {
            eprintln!("{}", cli::RESUME);
            ExitCode::from(EXIT)
        }
        Err(e) => {
            eprintln!("error: {}", without_token(&format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}
