//! One short file per family: its configuration keys and tensor names, mapped to [`Architecture`] and [`LayerWeights`].
//!
//! To add a family, write its file, add its [`Family`] to [`find`], and give it a checkpoint in
//! `tests/reference/families.py`. A family is supported if it agrees with Hugging Face transformers there.

mod alibi;
mod apertus;
mod bloom;
mod codegen;
mod cohere;
mod common;
mod experts;
mod falcon;
mod gemma;
mod gemma2;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod keys;
mod lens;
mod llama;
mod mimo;
mod mixtral;
mod mpt;
mod nemotron;
mod olmo;
mod olmo2;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod qwen_moe;
mod rope_scaling;
mod rotary;
mod stablelm;
mod starcoder2;
mod unsupported;
mod windows;

use anyhow::{Result, bail};

use super::architecture::{Architecture, Ends, LayerWeights};
use super::checkpoint::Checkpoint;

pub use common::NO_LIMIT;
use keys::Key;
pub use keys::resolve;
pub use unsupported::Unsupported;

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

const NAMES: &str = "apertus, bloom, codegen, cohere, cohere2, falcon, gemma, gemma2, gemma3, glm4, gpt2, gpt_bigcode, gpt_neo, \
    gpt_neox (Pythia), gpt_oss, gptj, granite, granitemoe, llama, mimo, ministral, mistral, mixtral, mpt, nemotron, olmo, \
    olmo2, olmo3, olmoe, opt, phi, phi3, qwen2, qwen2_moe, qwen3, qwen3_moe, smollm3, stablelm, starcoder2, and \
    TransformerLens's own attn-only, gelu and solu models";

/// What stands for the `model_type` of models in TransformerLens's own format, which have none.
pub const LENS: &str = "transformer_lens";

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Result<&'static Family> {
    Ok(match model_type {
        "apertus" => &apertus::FAMILY,
        "bloom" => &bloom::FAMILY,
        "codegen" => &codegen::FAMILY,
        "cohere" => &cohere::FAMILY,
        "cohere2" => &cohere::COHERE2,
        "falcon" => &falcon::FAMILY,
        "gemma" => &gemma::FAMILY,
        "gemma2" => &gemma2::GEMMA2,
        "gemma3_text" => &gemma2::GEMMA3,
        "glm4" => &glm4::FAMILY,
        "gpt2" => &gpt2::FAMILY,
        "gpt_bigcode" => &gpt_bigcode::FAMILY,
        "gpt_neo" => &gpt_neo::FAMILY,
        "gpt_neox" => &gpt_neox::FAMILY,
        "gptj" => &gptj::FAMILY,
        "gpt_oss" => &gpt_oss::FAMILY,
        "granite" => &granite::GRANITE,
        "granitemoe" => &granite::GRANITE_MOE,
        LENS => &lens::FAMILY,
        "llama" => &llama::LLAMA,
        "mimo" => &mimo::FAMILY,
        "ministral" | "mistral" => &llama::MISTRAL,
        "mixtral" => &mixtral::FAMILY,
        "mpt" => &mpt::FAMILY,
        "nemotron" => &nemotron::FAMILY,
        "qwen2" => &llama::QWEN2,
        "qwen2_moe" => &qwen_moe::QWEN2_MOE,
        "qwen3" => &llama::QWEN3,
        "qwen3_moe" => &qwen_moe::QWEN3_MOE,
        "smollm3" => &llama::SMOLLM3,
        "olmo" => &olmo::FAMILY,
        "olmo2" => &olmo2::OLMO2,
        "olmo3" => &olmo2::OLMO3,
        "olmoe" => &olmoe::FAMILY,
        "opt" => &opt::FAMILY,
        "phi" => &phi::FAMILY,
        "phi3" => &phi3::FAMILY,
        "stablelm" => &stablelm::FAMILY,
        "starcoder2" => &starcoder2::FAMILY,
        other => match unsupported::reason(other) {
            Some(reason) => bail!("`model_type`: `{other}` is not supported: {reason}. Supported: {NAMES}"),
            None => bail!("`model_type`: the architecture `{other}` is not supported yet; supported: {NAMES}"),
        },
    })
}

/// Well-known models that are refused, by the reason.
pub fn unsupported() -> &'static [Unsupported] {
    unsupported::UNSUPPORTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_supported_is_refused_with_a_reason() {
        for (model_type, word) in [
            ("mamba2", "recurrent"),
            ("jamba", "recurrent"),
            ("bert", "encoder"),
            ("t5", "encoder with a decoder"),
            ("ctrl", "sinusoids"),
            ("dbrx", "mixtures of experts"),
            ("gemma4", "share keys and values"),
            ("llava", "images"),
            ("no such model", "not supported yet"),
        ] {
            let error = find(model_type).err().unwrap().to_string();
            assert!(error.contains("`model_type`") && error.contains(model_type) && error.contains(word), "{error}");
        }
    }
}
