//! Qwen's mixtures of experts (`Qwen2MoeForCausalLM`, with an expert that every position goes through, and
//! `Qwen3MoeForCausalLM`): as Qwen 2 and 3 otherwise.

use anyhow::{Result, bail};

use super::common::{flag, linear};
use super::experts::{gated, mix, one_by_one, share};
use super::keys::{Key, Kind, ROTARY, UNUSED_WITH_EXPERTS};
use super::{Family, llama, windows};
use crate::architecture::{Architecture, LayerWeights, QkNorm};
use crate::checkpoint::Checkpoint;
use crate::mlp::{ExpertWeighting, SharedExpert};

/// What both read, but for defaults.
const KEYS: &[Key] = &[
    ("max_position_embeddings", Kind::Whole(32_768)),
    ("head_dim", Kind::GivenWhole),
    ("hidden_act", Kind::Text("silu")),
    ("rms_norm_eps", Kind::Float(1e-6)),
    ("use_sliding_window", Kind::Flag(false)),
    ("sliding_window", Kind::MaybeWhole(Some(4096))),
    ("layer_types", Kind::Any),
    ("decoder_sparse_step", Kind::Whole(1)),
    ("mlp_only_layers", Kind::MaybeList),
    ("norm_topk_prob", Kind::Flag(false)),
    ("tie_word_embeddings", Kind::Flag(false)),
];

/// The width of a dense MLP is of no use.
const SIZES_WITH_EXPERTS: &[Key] = &[
    ("hidden_size", Kind::Size),
    ("intermediate_size", Kind::Whole(1)),
    ("num_hidden_layers", Kind::Size),
    ("num_attention_heads", Kind::Size),
    ("vocab_size", Kind::Size),
];

pub const QWEN2_MOE: Family = Family {
    keys: &[
        SIZES_WITH_EXPERTS,
        ROTARY,
        KEYS,
        &[
            ("num_key_value_heads", Kind::MaybeWhole(Some(16))),
            ("max_window_layers", Kind::Whole(28)),
            ("qkv_bias", Kind::Flag(true)),
            ("moe_intermediate_size", Kind::Whole(1408)),
            ("shared_expert_intermediate_size", Kind::Whole(5632)),
            ("num_experts", Kind::Whole(60)),
            ("num_experts_per_tok", Kind::Whole(4)),
        ],
    ],
    unused: UNUSED_WITH_EXPERTS,
    spellings: &[],
    classes: &["Qwen2MoeForCausalLM", "Qwen2MoeModel"],
    architecture: qwen2_moe,
    layer,
    ends: llama::ends,
};

pub const QWEN3_MOE: Family = Family {
    keys: &[
        SIZES_WITH_EXPERTS,
        ROTARY,
        KEYS,
        &[
            ("num_key_value_heads", Kind::Whole(4)),
            ("attention_bias", Kind::Flag(false)),
            ("moe_intermediate_size", Kind::Whole(768)),
            ("num_experts", Kind::Whole(128)),
            ("num_experts_per_tok", Kind::Whole(8)),
        ],
    ],
    unused: UNUSED_WITH_EXPERTS,
    spellings: &[("num_local_experts", "num_experts")],
    classes: &["Qwen3MoeForCausalLM", "Qwen3MoeModel"],
    architecture: qwen3_moe,
    layer,
    ends: llama::ends,
};

fn qwen2_moe(c: &Checkpoint) -> Result<Architecture> {
    let mut a = qwen(c)?;
    a.biases.qkv = flag(c, "qkv_bias")?;
    windows::of_qwen2_moe(c, &mut a)?;
    share(&mut a, c.size("shared_expert_intermediate_size")?)?;
    Ok(a)
}

fn qwen3_moe(c: &Checkpoint) -> Result<Architecture> {
    let mut a = qwen(c)?;
    a.qk_norm = Some(QkNorm::ByHead);
    windows::of_qwen3_moe(c, &mut a)?;
    Ok(a)
}

fn qwen(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::llama_like(c)?;
    let step = c.size("decoder_sparse_step")?;
    let dense = c.key("mlp_only_layers").as_array().map_or(0, Vec::len);
    if step > 1 || dense > 0 {
        bail!(
            "some layers have a mixture of experts and some one MLP (`decoder_sparse_step` = {step}, `mlp_only_layers` \
             = {}); supported: mixtures in all layers",
            c.key("mlp_only_layers")
        );
    }
    mix(c, &mut a, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], weighting(c)?)?;
    Ok(a)
}

/// `norm_topk_prob` says whether the weights of the chosen experts sum to 1.
pub fn weighting(c: &Checkpoint) -> Result<ExpertWeighting> {
    Ok(if flag(c, "norm_topk_prob")? { ExpertWeighting::OfChosen } else { ExpertWeighting::OfAll })
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.mlp.{rest}");
    let parts = ["gate_proj", "up_proj", "down_proj"];
    let shared = match a.experts.as_ref().map_or(0, |experts| experts.shared_neurons) {
        0 => None,
        neurons => Some(SharedExpert {
            mlp: gated(c, a, parts.map(|part| name(&format!("shared_expert.{part}"))), neurons)?,
            gate: Some(linear(c, &name("shared_expert_gate"), a.d_model, 1, false)?),
        }),
    };
    let mlp = one_by_one(c, a, &name("gate"), &name("experts"), parts, shared)?;
    llama::layer_with(c, a, layer, mlp)
}
