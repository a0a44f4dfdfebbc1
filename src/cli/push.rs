//! `pipeline push`.

use std::path::PathBuf;

use anyhow::Result;

/// Push a finished run to a data set of the Hugging Face hub
///
/// The tables go there as they are, with a card that makes each of them a configuration of the data set: then
/// `datasets.load_dataset("owner/name", "head_summary")` loads one. Beside them lie the configuration, what every column
/// means, the report and the figures. The data set is created if there is none. A second push sends only what has changed,
/// one that was interrupted only what is missing. The token is that of HF_TOKEN, or of `hf auth login`; HF_ENDPOINT names
/// another hub. Mind that the configuration and the table `model` tell where the model and the text lay.
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
}

const EXAMPLES: &str = "Examples:
  pipeline push hf:me/self-repair-smollm2
  pipeline push --out out/160m --private hf:me/self-repair-pythia-160m";

pub fn run(args: Args) -> Result<()> {
    super::say(&crate::push::push(&args.out, &args.to, args.private)?)
}
