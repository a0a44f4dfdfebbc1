//! GLM-4 (`Glm4ForCausalLM`): as Llama, with norms on what attention and the MLP write besides, one matrix for the MLP's
//! two inputs, and rotary positions on neighbouring dimensions of a part of each head.

use anyhow::Result;

use super::Family;
use super::common::{gate_and_up, linear, norm};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::llama;
use super::rotary::{RotaryKeys, halves, rotary};
use crate::architecture::{Architecture, LayerWeights, Norm, WriteNorms};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(131_072)),
            ("num_key_value_heads", Kind::Whole(2)),
            ("head_dim", Kind::Whole(128)),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1.5625e-7)),
            ("attention_bias", Kind::Flag(true)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["Glm4ForCausalLM", "Glm4Model"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.write_norms = true;
    a.biases.attention_out = false;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::partial(0.5))?);
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let gamma = |which: &str| Ok::<_, anyhow::Error>(norm(c, a, &name(which))?.gamma);
    let [q, k, v, o] = llama::projections(c, a, layer)?;
    let dims = a.rotary.as_ref().map_or(0, |rotary| 2 * rotary.inverse_frequencies.len());
    let [gate, up] = gate_and_up(c, a, &name("mlp.gate_up_proj"))?;
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?,
        q: halves(&q, a.d_head, dims),
        k: halves(&k, a.d_head, dims),
        v,
        o,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?,
        write_norms: Some(WriteNorms {
            attention: gamma("post_self_attn_layernorm")?,
            mlp: gamma("post_mlp_layernorm")?,
        }),
        mlp: Mlp { gate: Some(gate), up, down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, false)? }.into(),
    })
}
