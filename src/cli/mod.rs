//! The command line: what there is to say, and which file answers it.

mod bench;
mod completions;
mod doctor;
mod man;
mod model;
pub mod progress_bars;
mod prompts;
mod push;
mod report;
mod run;
pub mod signals;
mod sql;
mod status;
mod tables;

use std::io::Write;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures self-repair in language models: when one attention head is ablated, later parts of the model compensate.
///
/// `pipeline run all` measures a small pretrained model on real text and ends with tables, a summary and a report.
#[derive(Parser)]
#[command(name = "pipeline", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Sql(sql::Args),
    Tables(tables::Args),
    Status(status::Args),
    Model(model::Args),
    Prompts(prompts::Args),
    Report(report::Args),
    Push(push::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Sql(args) => sql::run(args),
        Command::Tables(args) => tables::run(args),
        Command::Status(args) => status::run(args),
        Command::Model(args) => model::run(args),
        Command::Prompts(args) => prompts::run(args),
        Command::Report(args) => report::run(args),
        Command::Push(args) => push::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// Said of a run that was told to stop.
pub const RESUME: &str = "interrupted; the same command goes on where this one stopped";

/// Prints a result. Unlike `println!`, a reader that has gone (`| head`) is an error and no panic.
fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n'))?)
}

/// `pipeline sql … | head` is no failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| match e.downcast_ref::<std::io::Error>() {
        Some(e) => e.kind() == std::io::ErrorKind::BrokenPipe,
        // arrow's CSV and JSON writers keep the words of the error only.
        None => e.to_string().contains("Broken pipe"),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:\n  pipeline "), "{}", command.get_name());
        }
    }
}
