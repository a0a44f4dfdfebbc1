//! OLMo, first generation (`OlmoForCausalLM`): as Llama, with layer norms that have no weights.

use anyhow::Result;
use ndarray::Array1;

use super::Family;
use super::common::{flag, plain, refuse, rotary, unembedding};
use super::llama;
use crate::architecture::{Activation, Architecture, Ends, LayerWeights, Norm, NormWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family { architecture, layer, ends };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    refuse(c, "clip_qkv", |_| true)?;
    refuse(c, "hidden_act", |v| v != "silu")?;
    let bias = flag(c, "attention_bias", false)?;
    a.biases.qkv = bias;
    a.biases.attention_out = bias;
    a.norm = Norm::Layer;
    // Not in the configuration: transformers has it in the code.
    a.norm_eps = 1e-5;
    a.rotary = Some(rotary(c, a.d_head, 1.0, 10_000.0)?);
    a.gated = true;
    a.activation = Activation::Silu;
    a.dtype = c.dtype("model.layers.0.mlp.down_proj.weight")?;
    Ok(a)
}

fn ones(a: &Architecture) -> NormWeights {
    NormWeights { gamma: Array1::ones(a.d_model), beta: None }
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    llama::block(c, a, layer, ones(a), ones(a))
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("model.embed_tokens.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: ones(a),
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
