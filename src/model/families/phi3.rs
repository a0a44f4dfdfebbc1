//! Phi-3 and Phi-4 (`Phi3ForCausalLM`): as Llama, with one matrix for q, k and v, one for the MLP's two inputs, and
//! partial rotary positions, of which some are scaled by LongRoPE.

use anyhow::Result;

use super::Family;
use super::common::{gate_and_up, linear, norm, outputs};
use super::keys::{Kind, ROTARY, SIZES};
use super::llama;
use super::rotary::{RotaryKeys, rotary};
use super::windows;
use crate::architecture::{Architecture, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(4096)),
            ("original_max_position_embeddings", Kind::Whole(4096)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-5)),
            ("sliding_window", Kind::MaybeWhole(None)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::Number),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Number),
    ],
    spellings: &[],
    classes: &["Phi3ForCausalLM", "Phi3Model"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys { odd: true, ..RotaryKeys::partial(1.0) })?);
    windows::of_all(c, &mut a)?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let (width, kv) = (a.heads * a.d_head, a.kv_heads * a.d_head);
    let qkv = linear(c, &name("self_attn.qkv_proj"), a.d_model, width + 2 * kv, false)?;
    let [gate, up] = gate_and_up(c, a, &name("mlp.gate_up_proj"))?;
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?,
        q: outputs(&qkv, 0..width),
        k: outputs(&qkv, width..width + kv),
        v: outputs(&qkv, width + kv..width + 2 * kv),
        o: linear(c, &name("self_attn.o_proj"), width, a.d_model, false)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?,
        write_norms: None,
        mlp: Mlp { gate: Some(gate), up, down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, false)? }.into(),
    })
}
