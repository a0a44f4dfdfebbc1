//! `pipeline report`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use selfrepair_core::address;
use selfrepair_report::compare;

/// Write the report of a run again, or compare several runs in one page with figures
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run; give it several times to compare
    #[arg(long, value_name = "DIR", required = true)]
    out: Vec<PathBuf>,
    /// Folder for the comparison: new, empty, or that of an earlier comparison
    /// [default: comparison]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  pipeline report --out out
  pipeline report --out out/160m --out out/410m --to out/pythia";

pub fn run(args: Args) -> Result<()> {
    if let ([out], Some(to)) = (args.out.as_slice(), &args.to) {
        bail!(
            "--to {} is for a comparison of several runs; the report of one run lies in {} (leave --to out, or name \
             another run with --out)",
            to.display(),
            out.join("report").display()
        );
    }
    if let Some(to) = &args.to {
        address::refuse(to, "--to", "a report is written to a folder")?;
    }
    if let [out] = args.out.as_slice() {
        address::refuse(out, "--out", "a report is written to the folder of its run")?;
    }
    super::say(&compare(&args.out, args.to.as_deref().unwrap_or(Path::new("comparison")))?)
}
