//! Gemma, first generation (`GemmaForCausalLM`): as Llama, with an embedding scaled by √d_model, norms that multiply by
//! 1 + weight, and a tied unembedding.

use anyhow::Result;

use super::Family;
use super::common::refuse;
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::llama;
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Activation, Architecture, Ends, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(8192)),
            ("num_key_value_heads", Kind::Whole(16)),
            ("head_dim", Kind::Whole(256)),
            ("hidden_act", Kind::Text("gelu_pytorch_tanh")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("attention_bias", Kind::Flag(false)),
            ("use_bidirectional_attention", Kind::MaybeFlag),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["GemmaForCausalLM", "GemmaModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    refuse(c, "use_bidirectional_attention", |v| v != false)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    // transformers: whatever `hidden_act` says ("gelu" in the first release), the tanh approximation is meant.
    a.activation = match a.activation {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    a.embedding_scale = (a.d_model as f32).sqrt();
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let w = llama::layer(c, a, layer)?;
    Ok(LayerWeights { attention_norm: w.attention_norm.plus_one(), mlp_norm: w.mlp_norm.plus_one(), ..w })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let ends = llama::ends(c, a)?;
    Ok(Ends { final_norm: ends.final_norm.plus_one(), ..ends })
}
