//! OLMoE (`OlmoeForCausalLM`): as Llama, with norms of queries and keys over their full width and mixtures of experts.

use anyhow::{Result, ensure};

use super::common::{even_share, refuse};
use super::experts::{mix, one_by_one};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_WITH_EXPERTS};
use super::qwen_moe::weighting;
use super::{Family, llama};
use crate::architecture::{Architecture, LayerWeights, QkNorm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(4096)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-5)),
            ("attention_bias", Kind::Flag(false)),
            ("clip_qkv", Kind::MaybeFloat),
            ("num_experts", Kind::Whole(64)),
            ("num_experts_per_tok", Kind::Whole(8)),
            ("norm_topk_prob", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_WITH_EXPERTS,
    spellings: &[("num_local_experts", "num_experts")],
    classes: &["OlmoeForCausalLM", "OlmoeModel"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    refuse(c, "clip_qkv", |_| true)?;
    let mut a = llama::llama_like(c)?;
    let share = even_share(c, "hidden_size", "num_attention_heads")?;
    ensure!(a.d_head == share, "`head_dim` is {}; expected `hidden_size` / `num_attention_heads`, {share}", a.d_head);
    a.qk_norm = Some(QkNorm::Whole);
    mix(c, &mut a, ["num_experts", "num_experts_per_tok", "intermediate_size"], weighting(c)?)?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.mlp.{rest}");
    let mlp = one_by_one(c, a, &name("gate"), &name("experts"), ["gate_proj", "up_proj", "down_proj"], None)?;
    llama::layer_with(c, a, layer, mlp)
}
