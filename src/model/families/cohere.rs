//! Cohere's Command R (`CohereForCausalLM`): parallel residual behind one layer norm without a bias, a gated MLP, rotary
//! positions on neighbouring dimensions, scaled logits.

use anyhow::Result;

use super::common::{multiplier, norm, refuse, scale_logits};
use super::keys::{Kind, ROTARY, SIZES};
use super::rotary::{RotaryKeys, halves, rotary};
use super::{Family, llama};
use crate::architecture::{Architecture, Ends, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(8192)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("layer_norm_eps", Kind::Float(1e-5)),
            ("attention_bias", Kind::Flag(false)),
            ("use_qk_norm", Kind::MaybeFlag),
            ("logit_scale", Kind::Float(0.0625)),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    unused: &[("initializer_range", Kind::Float(0.02)), ("attention_dropout", Kind::MaybeNumber)],
    spellings: &[],
    classes: &["CohereForCausalLM", "CohereModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    // Layer norms with a γ for each head (Command R+).
    refuse(c, "use_qk_norm", |v| v != false)?;
    a.norm = Norm::Layer;
    a.norm_eps = c.epsilon("layer_norm_eps")?;
    a.parallel = true;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(500_000.0))?);
    multiplier(c, "logit_scale")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let shared = norm(c, a, &format!("model.layers.{layer}.input_layernorm"))?;
    let mut w = llama::block(c, a, layer, shared.clone(), shared)?;
    w.q = halves(&w.q, a.d_head, a.d_head);
    w.k = halves(&w.k, a.d_head, a.d_head);
    Ok(w)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let mut ends = llama::ends(c, a)?;
    scale_logits(&mut ends, multiplier(c, "logit_scale")?);
    Ok(ends)
}
