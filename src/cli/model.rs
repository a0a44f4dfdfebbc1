//! `pipeline model`.

use crate::describe::describe;
use anyhow::Result;
use selfrepair_core::config::ModelConfig;
use selfrepair_model::Model;

/// Show what a run of a model would be: its architecture, memory, floating-point work and time on this machine
///
/// Only the configuration of the model is read (and, of an hf: model, fetched), not its weights.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// package:smollm2, hf:owner/name, a directory, or a .gguf file
    source: String,
    /// Branch, tag or commit of an hf: source
    #[arg(long, default_value = "")]
    revision: String,
    /// Tokens of the run to estimate
    #[arg(long, default_value_t = 100_000)]
    tokens: usize,
}

const EXAMPLES: &str = "Examples:
  pipeline model package:smollm2
  pipeline model hf:EleutherAI/pythia-160m --tokens 1000000
  pipeline model ./my-llama";

pub fn run(args: Args) -> Result<()> {
    let model = Model::open_configuration(&ModelConfig { source: args.source, revision: args.revision })?;
    super::say(&describe(&model, args.tokens)?)
}
