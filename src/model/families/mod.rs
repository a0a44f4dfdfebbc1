//! One short file per family: its configuration keys and tensor names, mapped to [`Architecture`] and [`LayerWeights`].
//!
//! To add a family, write its file, add its [`Family`] to [`find`], and give it a checkpoint in
//! `tests/reference/families.py`. A family is supported if it agrees with Hugging Face transformers there.

mod common;
mod gemma;
mod gemma2;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod keys;
mod llama;
mod olmo;
mod olmo2;
mod opt;
mod phi;
mod rotary;
mod stablelm;
mod windows;

use anyhow::{Result, bail};

use super::architecture::{Architecture, Ends, LayerWeights};
use super::checkpoint::Checkpoint;

use keys::Key;
pub use keys::resolve;

/// How to read one family's checkpoints.
pub struct Family {
    /// What it reads of the configuration, in groups.
    pub keys: &'static [&'static [Key]],
    /// Keys on which no number depends, and whose types transformers checks all the same.
    pub unused: &'static [Key],
    /// Second spellings of keys (`attribute_map` in transformers), and the keys they stand for.
    pub spellings: &'static [(&'static str, &'static str)],
    /// What `architectures` may name.
    pub classes: &'static [&'static str],
    pub architecture: fn(&Checkpoint) -> Result<Architecture>,
    pub layer: fn(&Checkpoint, &Architecture, usize) -> Result<LayerWeights>,
    pub ends: fn(&Checkpoint, &Architecture) -> Result<Ends>,
}

const NAMES: &str = "gemma, gemma2, gemma3, gpt2, gpt_neo, gpt_neox (Pythia), llama, mistral, olmo, olmo2, olmo3, opt, phi, qwen2, qwen3, smollm3, stablelm";

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Result<&'static Family> {
    Ok(match model_type {
        "gemma" => &gemma::FAMILY,
        "gemma2" => &gemma2::GEMMA2,
        "gemma3_text" => &gemma2::GEMMA3,
        "gpt2" => &gpt2::FAMILY,
        "gpt_neo" => &gpt_neo::FAMILY,
        "gpt_neox" => &gpt_neox::FAMILY,
        "llama" => &llama::LLAMA,
        "mistral" => &llama::MISTRAL,
        "qwen2" => &llama::QWEN2,
        "qwen3" => &llama::QWEN3,
        "smollm3" => &llama::SMOLLM3,
        "olmo" => &olmo::FAMILY,
        "olmo2" => &olmo2::OLMO2,
        "olmo3" => &olmo2::OLMO3,
        "opt" => &opt::FAMILY,
        "phi" => &phi::FAMILY,
        "stablelm" => &stablelm::FAMILY,
        other => bail!("`model_type`: the architecture `{other}` is not supported yet; supported: {NAMES}"),
    })
}
