//! `pipeline bench`.

use std::path::PathBuf;

use crate::bench::bench;
use anyhow::Result;
use selfrepair_core::config::Config;

/// Measure the speed of trace and ablate relative to this machine's matrix products
///
/// Runs both stages on a few prompts in a temporary folder. Prints the rate of ONNX Runtime's MatMul on the model's shapes,
/// the rate of the necessary floating-point work, the ratio of the two, the time of each part, memory, and bytes per row.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration file (TOML) [default: the built-in pipeline/quick.toml with all heads]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Prompts to measure on
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  pipeline bench
  pipeline bench --prompts 32 --json > bench.json
  pipeline bench --config pipeline/paper/pythia-160m.toml --set runtime.threads=1";

pub fn run(args: Args) -> Result<()> {
    let heads = args.config.is_none().then(|| "ablation.heads=all".to_string());
    let overrides: Vec<String> = heads.into_iter().chain(args.overrides).collect();
    let mut config = Config::load(args.config.as_deref(), &overrides)?;
    config.corpus.tokens = args.prompts * config.corpus.prompt_len;
    let bench = bench(config)?;
    super::say(&if args.json { serde_json::to_string_pretty(&bench)? } else { bench.table()? })
}
