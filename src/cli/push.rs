//! `pipeline push`.

use std::path::PathBuf;

use crate::push::{Push, push};
use anyhow::Result;
use selfrepair_core::address;

/// Push a finished run to a data set of the Hugging Face hub
///
/// Sends the tables, the configuration, the description of every column, the report and the figures. Each table becomes a
/// configuration of the data set: `datasets.load_dataset("owner/name", "head_summary")` loads one. The data set is created
/// if it does not exist. A second push sends only what has changed; after an interruption, only what is missing.
///
/// Only regular files that the run itself wrote are sent, and they are listed first. Note that the configuration and the
/// table `model` contain the paths of the model and the text.
///
/// The token is that of HF_TOKEN, or of `hf auth login`; HF_ENDPOINT names another hub.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The data set: hf:owner/name
    to: String,
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Create the data set as a private one; an existing one keeps its visibility
    #[arg(long)]
    private: bool,
    /// List the files that would be sent; send nothing
    #[arg(long)]
    dry_run: bool,
}

const EXAMPLES: &str = "Examples:
  pipeline push hf:me/self-repair-smollm2
  pipeline push hf:me/self-repair-smollm2 --dry-run
  pipeline push --out out/160m --private hf:me/self-repair-pythia-160m";

pub fn run(args: Args) -> Result<()> {
    address::refuse(&args.out, "--out", "a run that is pushed lies in a folder")?;
    let Args { to, out, private, dry_run } = &args;
    super::say(&push(&Push { out, to, private: *private, dry_run: *dry_run })?)
}
