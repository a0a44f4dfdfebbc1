//! The program `pipeline`: its commands are in `cli/`, one file each. Everything process-wide is here and in
//! `cli/signals.rs`: the allocator, the panic hook, signals and exit codes.

mod bench;
mod cli;
mod describe;
mod push;
mod stages;
mod status;

use std::panic;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use selfrepair_core::interrupt::is_interruption;
use selfrepair_core::{outside, progress, provenance};
use selfrepair_model::hub::without_token;

/// Also of ONNX Runtime (the crate's feature `override` replaces `malloc`): activations of a megabyte and more are
/// allocated and freed thousands of times a second by several threads. With the system's allocator, which fragments, a run
/// took 45 % more memory. `no_thp` does without huge pages: clearing them took the kernel longer than page faults do.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    provenance::built_from(env!("PIPELINE_COMMIT"));
    silence_guarded_panics();
    progress::report_to(cli::progress_bars::Terminal);
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if cli::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) if is_interruption(&e) => {
            eprintln!("{}", cli::RESUME);
            ExitCode::from(cli::signals::EXIT)
        }
        Err(e) => {
            eprintln!("error: {}", without_token(&format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}

/// A panic that is caught and becomes an error is not printed.
fn silence_guarded_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !outside::is_guarded() {
            before(info);
        }
    }));
}
