//! Cohere's Command R (`CohereForCausalLM`): parallel residual behind one layer norm without a bias, a gated MLP, rotary
//! positions on neighbouring dimensions, scaled logits. Command R7B (`Cohere2ForCausalLM`) has windows in three of four
//! layers, and positions in these only.

use anyhow::Result;

use super::common::{multiplier, norm, refuse, scale_logits};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::rotary::{RotaryKeys, halves, rotary};
use super::{Family, llama, windows};
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

pub const COHERE2: Family = Family {
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
            ("sliding_window", Kind::MaybeWhole(Some(4096))),
            ("sliding_window_pattern", Kind::Any),
            ("layer_types", Kind::Any),
            ("logit_scale", Kind::Float(0.0625)),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    classes: &["Cohere2ForCausalLM", "Cohere2Model"],
    architecture: cohere2,
    ..FAMILY
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    // Layer norms with a γ for each head (Command R+).
    refuse(c, "use_qk_norm", |v| v != false)?;
    of_both(c, 500_000.0)
}

fn cohere2(c: &Checkpoint) -> Result<Architecture> {
    let mut a = of_both(c, 10_000.0)?;
    let every = if c.given("sliding_window_pattern").is_some() { c.size("sliding_window_pattern")? } else { 4 };
    windows::alternating(c, &mut a, every)?;
    a.attention.iter_mut().for_each(|kind| kind.rotary = kind.window.is_some());
    Ok(a)
}

fn of_both(c: &Checkpoint, base: f64) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Layer;
    a.norm_eps = c.epsilon("layer_norm_eps")?;
    a.parallel = true;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(base))?);
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
