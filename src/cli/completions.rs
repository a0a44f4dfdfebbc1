//! `pipeline completions`: shell completion scripts.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a shell completion script for `pipeline`
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "Examples:
  pipeline completions bash > ~/.local/share/bash-completion/completions/pipeline
  pipeline completions zsh > ~/.zfunc/_pipeline
  pipeline completions fish > ~/.config/fish/completions/pipeline.fish";

pub fn run(args: Args) -> Result<()> {
    // Into memory first: clap_complete panics when a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "pipeline", &mut script);
    super::say_exactly(&String::from_utf8(script)?)
}
