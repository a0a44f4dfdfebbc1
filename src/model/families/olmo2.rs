//! OLMo 2 and 3 (`Olmo2ForCausalLM`, `Olmo3ForCausalLM`): as Llama, but attention and the MLP read the stream as it is,
//! and norms are on what they write; queries and keys are normed over all heads. OLMo 3 has windows in three of four
//! layers.

use anyhow::Result;
use ndarray::Array1;

use super::Family;
use super::common::norm;
use super::keys::{Key, Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::llama;
use super::rotary::{RotaryKeys, rotary, rotary_of_type};
use super::windows;
use crate::architecture::{Architecture, LayerWeights, Norm, NormWeights, QkNorm, WriteNorms};
use crate::checkpoint::Checkpoint;

const KEYS: &[Key] = &[
    ("max_position_embeddings", Kind::Whole(2048)),
    ("num_key_value_heads", Kind::MaybeWhole(None)),
    ("head_dim", Kind::GivenWhole),
    ("hidden_act", Kind::Text("silu")),
    ("rms_norm_eps", Kind::Float(1e-5)),
    ("attention_bias", Kind::Flag(false)),
    ("tie_word_embeddings", Kind::Flag(false)),
];

pub const OLMO2: Family = Family {
    keys: &[SIZES, ROTARY, KEYS],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["Olmo2ForCausalLM", "Olmo2Model"],
    architecture: olmo2,
    layer,
    ends: llama::ends,
};

pub const OLMO3: Family = Family {
    keys: &[SIZES, ROTARY, KEYS, &[("sliding_window", Kind::MaybeWhole(Some(4096))), ("layer_types", Kind::Any)]],
    classes: &["Olmo3ForCausalLM", "Olmo3Model"],
    architecture: olmo3,
    ..OLMO2
};

fn olmo2(c: &Checkpoint) -> Result<Architecture> {
    let mut a = of_both(c)?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    Ok(a)
}

fn olmo3(c: &Checkpoint) -> Result<Architecture> {
    let mut a = of_both(c)?;
    const BASE: f64 = 500_000.0;
    a.rotary = Some(rotary_of_type(c, a.d_head, "full_attention", ("rope_theta", BASE))?);
    // transformers gives a `rope_theta` outside of `rope_parameters` to layers of full attention only.
    a.window_rotary = Some(rotary_of_type(c, a.d_head, "sliding_attention", ("", BASE))?);
    windows::alternating(c, &mut a, 4)?;
    Ok(a)
}

fn of_both(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.read_norms = false;
    a.write_norms = true;
    a.qk_norm = Some(QkNorm::Whole);
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let none = || NormWeights { gamma: Array1::ones(a.d_model), beta: None };
    let mut w = llama::block(c, a, layer, none(), none())?;
    let gamma = |which: &str| Ok::<_, anyhow::Error>(norm(c, a, &format!("model.layers.{layer}.{which}"))?.gamma);
    w.write_norms =
        Some(WriteNorms { attention: gamma("post_attention_layernorm")?, mlp: gamma("post_feedforward_layernorm")? });
    Ok(w)
}
