//! The program `pipeline`: its commands are in `cli/`, one file each. Everything process-wide is here and in
//! `cli/signals.rs`: the allocator, the panic hook, signals and exit codes.

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

mod allocator;
mod bench;
mod cli;
mod describe;
mod push;
mod stages;
mod status;

use std::panic;
use std::process::ExitCode;

use clap::Parser;
use selfrepair_core::interrupt::is_interruption;
use selfrepair_core::{plain, progress, provenance, threads, untrusted};
use selfrepair_model::hub::without_token;

fn main() -> ExitCode {
    // Before any other thread runs.
    selfrepair_engine::library::send_no_usage_data();
    keep_backtraces_out_of_errors();
    keep_stacks_large_enough();
    provenance::built_from(env!("PIPELINE_COMMIT"));
    cli::signals::ignore_file_size_signal();
    silence_guarded_panics();
    progress::report_to(cli::terminal::Terminal);
    match cli::run(arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        // `pipeline sql … | head` is no failure: whoever read has enough.
        Err(_) if plain::Stdout::has_gone() => ExitCode::SUCCESS,
        Err(e) if is_interruption(&e) => {
            cli::terminal::say(cli::RESUME);
            ExitCode::from(cli::signals::EXIT)
        }
        Err(e) => {
            cli::terminal::say(&without_token(&format!("error: {e:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Libraries put a backtrace into the text of an error where `RUST_BACKTRACE` is set. It is for panics of this program;
/// `RUST_LIB_BACKTRACE` asks for both.
#[allow(unsafe_code)]
fn keep_backtraces_out_of_errors() {
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") }
    }
}

/// A thread whose stack is smaller than Rust's usual one, as `RUST_MIN_STACK` may ask for, would overflow it.
#[allow(unsafe_code)]
fn keep_stacks_large_enough() {
    const NAME: &str = "RUST_MIN_STACK";
    let given = std::env::var_os(NAME).map(|given| given.to_str().and_then(|n| n.parse::<usize>().ok()));
    if given.is_some_and(|bytes| bytes.is_none_or(|bytes| bytes < threads::STACK)) {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::remove_var(NAME) }
    }
}

/// A panic that is caught and becomes an error is not printed.
fn silence_guarded_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !untrusted::is_guarded() {
            before(info);
        }
    }));
}

/// The command line. An error repeats what was given, which a script may have from elsewhere.
fn arguments() -> cli::Cli {
    cli::Cli::try_parse().unwrap_or_else(|e| {
        let text = e.to_string();
        if matches!(plain::visible_lines(&text), std::borrow::Cow::Borrowed(_)) {
            e.exit();
        }
        cli::terminal::say(&text);
        std::process::exit(e.exit_code())
    })
}
