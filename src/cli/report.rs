//! `pipeline report`.

use std::path::PathBuf;

use anyhow::Result;
use selfrepair_report::compare;

/// Write a run's report anew, or compare several runs in one page with figures
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run; give it several times to compare
    #[arg(long, value_name = "DIR", required = true)]
    out: Vec<PathBuf>,
    /// Where the comparison is written
    #[arg(long, value_name = "DIR", default_value = "comparison")]
    to: PathBuf,
}

const EXAMPLES: &str = "Examples:
  pipeline report --out out
  pipeline report --out out/160m --out out/410m --to out/pythia";

pub fn run(args: Args) -> Result<()> {
    super::say(&compare(&args.out, &args.to)?)
}
