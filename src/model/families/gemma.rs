//! Gemma, first generation (`GemmaForCausalLM`): as Llama, with an embedding scaled by √d_model, norms that multiply by
//! 1 + weight, and a tied unembedding.

use anyhow::Result;

use super::Family;
use super::common::{flag, refuse};
use super::llama::{self, llama_like};
use crate::architecture::{Activation, Architecture, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family { architecture, layer, ends };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama_like(c)?;
    refuse(c, "use_bidirectional_attention", |v| v != false)?;
    a.tied = flag(c, "tie_word_embeddings", true)?;
    // transformers: whatever `hidden_act` says ("gelu" in the first release), the tanh approximation is meant.
    a.activation = match a.activation {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    a.embedding_scale = (a.d_model as f32).sqrt();
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let mut w = llama::layer(c, a, layer)?;
    w.attention_norm.gamma += 1.0;
    w.mlp_norm.gamma += 1.0;
    Ok(w)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let mut ends = llama::ends(c, a)?;
    ends.final_norm.gamma += 1.0;
    Ok(ends)
}
