//! `pipeline status`.

use std::path::PathBuf;

use crate::status::status;
use anyhow::Result;
use selfrepair_core::address;

use super::run::Settings;

/// Show what a run has done: its stages, whether they are current, their files, rows, sizes and times
///
/// With --config, --set or --device, the run is compared with that configuration: stages that would have to run again are
/// shown with the reason.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Read every file and compare it with its checksum
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "Examples:
  pipeline status
  pipeline status --out out/mine --config my.toml
  pipeline status --verify
  pipeline status --set corpus.tokens=8192";

pub fn run(args: Args) -> Result<()> {
    address::refuse(&args.out, "--out", "a run whose state is shown lies in a folder")?;
    let config = if args.settings.are_given() { Some(args.settings.load()?) } else { None };
    super::say(&status(&args.out, config, args.verify)?)
}
