//! The command line: one file per command.

mod bench;
mod completions;
mod doctor;
mod drop;
mod man;
mod model;
mod prompts;
mod push;
mod report;
mod run;
pub mod signals;
mod sql;
mod status;
mod tables;
pub mod terminal;

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use selfrepair_core::plain::{Stdout, visible_lines};
use selfrepair_core::provenance::MEASUREMENT_VERSION;
use selfrepair_core::threads;

/// Measures self-repair in language models: when one attention head is ablated, later parts of the model compensate.
///
/// `pipeline run all` measures a small pretrained model on real text and ends with tables, a summary and a report.
#[derive(Parser)]
#[command(name = "pipeline", version = version(), propagate_version = true)]
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
    Drop(drop::Args),
    Push(push::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The version of the program, the measurement version, and the commit.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let (program, commit) = (env!("CARGO_PKG_VERSION"), env!("PIPELINE_COMMIT"));
        format!("{program} (measurement {MEASUREMENT_VERSION}, commit {commit})")
    });
    &VERSION
}

/// Threads that a command starts beside its compute threads: for signals, files and progress bars.
const MORE_THREADS: usize = 8;

pub fn run(cli: Cli) -> Result<()> {
    threads::check_environment()?;
    if !matches!(cli.command, Command::Completions(_) | Command::Man(_) | Command::Prompts(_)) {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        threads::check_available(cores + MORE_THREADS, threads::STACK)?;
    }
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Sql(args) => sql::run(args),
        Command::Tables(args) => tables::run(args),
        Command::Status(args) => status::run(args),
        Command::Model(args) => model::run(args),
        Command::Prompts(args) => prompts::run(args),
        Command::Report(args) => report::run(args),
        Command::Drop(args) => drop::run(args),
        Command::Push(args) => push::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// The message of an interrupted run.
pub const RESUME: &str = "interrupted; the same command resumes the run";

/// Asks whether results may be removed.
///
/// # Errors
/// If the answer is not yes, or there is nobody to ask.
fn confirm(what: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        "{what}; there is no terminal to ask, so add --yes if that is meant"
    );
    eprint!("{}\nGo on? [y/N] ", visible_lines(what));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    ensure!(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()), "nothing was changed");
    Ok(())
}

/// Prints a result for a person. Control characters in names and settings are escaped.
fn say(text: &str) -> Result<()> {
    say_exactly(&visible_lines(text))
}

/// Prints output for another program. It must contain no untrusted text.
fn say_exactly(text: &str) -> Result<()> {
    writeln!(Stdout, "{}", text.trim_end_matches('\n')).context("cannot write to standard output")
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
