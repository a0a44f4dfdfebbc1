//! `pipeline man`: manual pages.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

/// Print the manual page, or write one per command into a folder
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for pipeline.1, pipeline-run.1, …
    dir: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  pipeline man | man -l -
  pipeline man ~/.local/share/man/man1";

pub fn run(args: Args) -> Result<()> {
    let command = super::Cli::command();
    if let Some(dir) = args.dir {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        return clap_mangen::generate_to(command, &dir)
            .with_context(|| format!("cannot write manual pages to {}", dir.display()));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    super::say_exactly(&String::from_utf8(page)?)
}
