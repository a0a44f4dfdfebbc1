//! Mixtral (`MixtralForCausalLM`): as Mistral, with mixtures of experts.

use anyhow::Result;

use super::experts::{mix, one_by_one};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_WITH_EXPERTS};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama, windows};
use crate::architecture::{Architecture, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::ExpertWeighting;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(131_072)),
            ("num_key_value_heads", Kind::Whole(8)),
            ("head_dim", Kind::MaybeWhole(None)),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-5)),
            ("sliding_window", Kind::MaybeWhole(None)),
            ("num_local_experts", Kind::Whole(8)),
            ("num_experts_per_tok", Kind::Whole(2)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_WITH_EXPERTS,
    spellings: &[("num_experts", "num_local_experts")],
    classes: &["MixtralForCausalLM", "MixtralModel"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::llama_like(c)?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(1_000_000.0))?);
    windows::of_all(c, &mut a)?;
    let sizes = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    mix(c, &mut a, sizes, ExpertWeighting::OfChosen)?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.block_sparse_moe.{rest}");
    let mlp = one_by_one(c, a, &name("gate"), &name("experts"), ["w1", "w3", "w2"], None)?;
    llama::layer_with(c, a, layer, mlp)
}
