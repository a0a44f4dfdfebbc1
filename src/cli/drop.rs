//! `pipeline drop`.

use std::path::PathBuf;

use anyhow::Result;
use selfrepair_core::address;

use crate::stages::{What, drop_from};

/// Remove a part of what a run has measured
///
/// Takes parts of the key of `ablations`: ablation, hold, component, name, layer, head. Rows with all of them are removed.
/// `additions` are those to the stream; `unfinished` is what was begun and not finished. Asks first.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to remove
    #[arg(value_name = "KEY=VALUE[,KEY=VALUE]|additions|unfinished")]
    what: What,
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

const EXAMPLES: &str = "Examples:
  pipeline drop ablation=zero
  pipeline drop ablation=resample,name=L26H2 --out out/mine
  pipeline drop unfinished --yes";

pub fn run(args: Args) -> Result<()> {
    address::refuse(&args.out, "--out", "a part of a run is removed from a folder")?;
    let found = args.what.found(&args.out)?;
    super::confirm(&format!("removes from {}: {found}", args.out.display()), args.yes)?;
    super::say(&drop_from(&args.out, &args.what)?)
}
