//! `pipeline doctor`.

use anyhow::Result;

/// Show what this machine has: Python, ONNX Runtime and its providers, cached packages
///
/// Nothing is downloaded.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pipeline doctor")]
pub struct Args {}

pub fn run(_: Args) -> Result<()> {
    super::say(&pipeline::provision::doctor()?)
}
