//! Granite (`GraniteForCausalLM`, and `GraniteMoeForCausalLM` with mixtures of experts): as Llama, with multipliers of the
//! embedding, of attention scores, of what attention and the MLP write, and a divisor of the logits.

use anyhow::{Result, ensure};
use ndarray::{ArrayView2, s};

use super::common::{linear, multiplier, scale, scale_logits};
use super::experts::{mix, sizes};
use super::keys::{Key, Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama};
use crate::architecture::{Architecture, Ends, LayerWeights, Linear, Norm};
use crate::checkpoint::Checkpoint;
use crate::mlp::{ExpertWeighting, ExpertWeights, Mlp, MlpWeights};

/// What both read.
const KEYS: &[Key] = &[
    ("max_position_embeddings", Kind::Whole(2048)),
    ("num_key_value_heads", Kind::MaybeWhole(None)),
    ("head_dim", Kind::GivenWhole),
    ("hidden_act", Kind::Text("silu")),
    ("rms_norm_eps", Kind::Float(1e-6)),
    ("attention_bias", Kind::Flag(false)),
    ("embedding_multiplier", Kind::AnyNumber(1.0)),
    ("attention_multiplier", Kind::AnyNumber(1.0)),
    ("residual_multiplier", Kind::AnyNumber(1.0)),
    ("logits_scaling", Kind::AnyNumber(1.0)),
    ("tie_word_embeddings", Kind::Flag(false)),
];

pub const GRANITE: Family = Family {
    keys: &[SIZES, ROTARY, KEYS, &[("mlp_bias", Kind::Flag(false))]],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["GraniteForCausalLM", "GraniteModel"],
    architecture,
    layer,
    ends,
};

pub const GRANITE_MOE: Family = Family {
    keys: &[SIZES, ROTARY, KEYS, &[("num_local_experts", Kind::Whole(8)), ("num_experts_per_tok", Kind::Whole(2))]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::MaybeNumber),
        ("output_router_logits", Kind::MaybeFlag),
        ("router_aux_loss_coef", Kind::MaybeFloat),
    ],
    spellings: &[],
    classes: &["GraniteMoeForCausalLM", "GraniteMoeModel"],
    architecture: architecture_with_experts,
    layer: layer_with_experts,
    ends,
};

fn architecture_with_experts(c: &Checkpoint) -> Result<Architecture> {
    let mut a = architecture(c)?;
    let sizes = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    mix(c, &mut a, sizes, ExpertWeighting::OfChosen)?;
    Ok(a)
}

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    a.embedding_scale = multiplier(c, "embedding_multiplier")?;
    let score_scale = multiplier(c, "attention_multiplier")?;
    ensure!(score_scale > 0.0, "`attention_multiplier` is {score_scale}; expected a positive number");
    a.attention.iter_mut().for_each(|kind| kind.scale = score_scale);
    // Read here so that a wrong number is found before any weights are read.
    multiplier(c, "residual_multiplier")?;
    let divisor = multiplier(c, "logits_scaling")?;
    ensure!(divisor != 0.0, "`logits_scaling` is {divisor}; expected a number to divide the logits by");
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    scaled(c, llama::layer(c, a, layer)?)
}

/// The experts of a layer lie in two tensors: \[experts, gates then other inputs, d_model\] and
/// \[experts, d_model, neurons\].
fn layer_with_experts(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let (d, (count, neurons)) = (a.d_model, sizes(a));
    let name = |rest: &str| format!("model.layers.{layer}.block_sparse_moe.{rest}");
    let inputs = c.cube(&name("input_linear.weight"), [count, 2 * neurons, d])?;
    let outputs = c.cube(&name("output_linear.weight"), [count, d, neurons])?;
    let part = |of: ArrayView2<f32>| Linear { w: of.t().as_standard_layout().into_owned(), b: None };
    let expert = |e: usize| Mlp {
        gate: Some(part(inputs.slice(s![e, ..neurons, ..]))),
        up: part(inputs.slice(s![e, neurons.., ..])),
        down: part(outputs.slice(s![e, .., ..])),
    };
    let router = linear(c, &name("router.layer"), d, count, false)?;
    let experts = ExpertWeights { router, experts: (0..count).map(expert).collect(), shared: None };
    scaled(c, llama::layer_with(c, a, layer, MlpWeights::Experts(Box::new(experts)))?)
}

/// W_O, W_out and their biases have the multiplier of what they write.
fn scaled(c: &Checkpoint, mut w: LayerWeights) -> Result<LayerWeights> {
    let written = multiplier(c, "residual_multiplier")?;
    scale(&mut w.o, written);
    w.mlp.each_mut().into_iter().for_each(|mlp| scale(&mut mlp.down, written));
    Ok(w)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let mut ends = llama::ends(c, a)?;
    scale_logits(&mut ends, multiplier(c, "logits_scaling")?.recip());
    Ok(ends)
}
