//! `pipeline model`.

use crate::describe::describe;
use anyhow::Result;
use selfrepair_core::config::ModelConfig;
use selfrepair_model::Model;

/// Show a model's architecture, and the memory, floating-point work and time that a run needs on this machine
///
/// Only the model's configuration is read (and downloaded for an hf: model), not its weights.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model: package:smollm2, hf:owner/name, a directory, or a .gguf file
    source: String,
    /// Branch, tag or commit of an hf: source
    #[arg(long, default_value = "")]
    revision: String,
    /// Number of tokens to estimate for
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
