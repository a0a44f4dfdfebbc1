//! `pipeline push`.

use std::path::PathBuf;

use crate::push::{Push, push};
use anyhow::Result;
use selfrepair_core::address;

/// Push a finished run to a data set of the Hugging Face hub
///
/// The tables go there as they are, with a card that makes each of them a configuration of the data set: then
/// `datasets.load_dataset("owner/name", "head_summary")` loads one. Beside them lie the configuration, what every column
/// means, the report and the figures. The data set is created if there is none. A second push sends only what has changed,
/// one that was interrupted only what is missing. What is sent is listed first: the files that the run itself wrote, and of
/// those regular files only; what else lies in the folder stays here. The token is that of HF_TOKEN, or of
/// `hf auth login`; HF_ENDPOINT names another hub. Mind that the configuration and the table `model` tell where the model
/// and the text lay.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to: hf:owner/name
    to: String,
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Create the data set as a private one; one that exists stays as it is
    #[arg(long)]
    private: bool,
    /// List what would be sent, and send nothing
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
