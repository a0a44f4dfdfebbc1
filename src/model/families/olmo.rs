//! OLMo, first generation (`OlmoForCausalLM`): as Llama, with layer norms that have no weights.

use anyhow::Result;
use ndarray::Array1;

use super::Family;
use super::common::{refuse, unembedding};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::llama;
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Architecture, Ends, LayerWeights, Norm, NormWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(2048)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("clip_qkv", Kind::MaybeFloat),
            ("attention_bias", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["OlmoForCausalLM", "OlmoModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    refuse(c, "clip_qkv", |_| true)?;
    a.norm = Norm::Layer;
    // Not in the configuration: transformers has it in the code.
    a.norm_eps = 1e-5;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
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
