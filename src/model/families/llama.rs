//! Llama and what shares its tensor names: RMS norms, rotary positions, grouped-query heads, gated MLP, serial residual.
//! `LlamaForCausalLM`, `MistralForCausalLM` (sliding window), `MinistralForCausalLM` (a window in some layers),
//! `Qwen2ForCausalLM` (biases of q, k and v),
//! `Qwen3ForCausalLM` (norms of q and k), `SmolLM3ForCausalLM` (some layers without positions).

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::common::{activation, even_share, flag, linear, norm, plain, unembedding};
use super::keys::{Key, Kind, QWEN_WINDOWS, ROTARY, SIZES, UNUSED_BY_MOST};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, windows};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights, Linear, Norm, NormWeights, QkNorm};
use crate::checkpoint::Checkpoint;
use crate::mlp::{Mlp, MlpWeights};

const fn family(keys: &'static [&'static [Key]], classes: &'static [&'static str]) -> Family {
    Family { keys, unused: UNUSED_BY_MOST, spellings: &[], classes, architecture, layer, ends }
}

pub const LLAMA: Family = Family {
    unused: &[
        ("initializer_range", Kind::FloatShare),
        ("attention_dropout", Kind::MaybeNumber),
        ("pretraining_tp", Kind::MaybeWhole(Some(1))),
    ],
    ..family(
        &[
            SIZES,
            ROTARY,
            &[
                ("max_position_embeddings", Kind::Whole(2048)),
                ("num_key_value_heads", Kind::MaybeWhole(None)),
                ("head_dim", Kind::MaybeWhole(None)),
                ("hidden_act", Kind::Text("silu")),
                ("rms_norm_eps", Kind::Float(1e-6)),
                ("attention_bias", Kind::Flag(false)),
                ("mlp_bias", Kind::Flag(false)),
                ("tie_word_embeddings", Kind::Flag(false)),
            ],
        ],
        &["LlamaForCausalLM", "LlamaModel"],
    )
};

pub const MISTRAL: Family = family(
    &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(131_072)),
            ("num_key_value_heads", Kind::Whole(8)),
            ("head_dim", Kind::MaybeWhole(None)),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("sliding_window", Kind::MaybeWhole(Some(4096))),
            ("layer_types", Kind::Any),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    &["MistralForCausalLM", "MistralModel", "MinistralForCausalLM", "MinistralModel"],
);

pub const QWEN2: Family = family(
    &[
        SIZES,
        ROTARY,
        QWEN_WINDOWS,
        &[
            ("max_position_embeddings", Kind::Whole(32_768)),
            ("num_key_value_heads", Kind::MaybeWhole(Some(32))),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    &["Qwen2ForCausalLM", "Qwen2Model"],
);

pub const QWEN3: Family = family(
    &[
        SIZES,
        ROTARY,
        QWEN_WINDOWS,
        &[
            ("max_position_embeddings", Kind::Whole(32_768)),
            ("num_key_value_heads", Kind::MaybeWhole(Some(32))),
            ("head_dim", Kind::Whole(128)),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("attention_bias", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    &["Qwen3ForCausalLM", "Qwen3Model"],
);

pub const SMOLLM3: Family = family(
    &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(32_768)),
            ("num_key_value_heads", Kind::MaybeWhole(Some(4))),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("use_sliding_window", Kind::Flag(false)),
            ("sliding_window", Kind::MaybeWhole(None)),
            ("no_rope_layers", Kind::Any),
            ("no_rope_layer_interval", Kind::Whole(4)),
            ("attention_bias", Kind::Flag(false)),
            ("mlp_bias", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    &["SmolLM3ForCausalLM", "SmolLM3Model"],
);

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama_like(c)?;
    match a.family.as_str() {
        // transformers asks for this even where `head_dim` is given.
        "llama" => {
            even_share(c, "hidden_size", "num_attention_heads")?;
        }
        "mistral" | "ministral" => windows::of_mistral(c, &mut a)?,
        "qwen2" => {
            a.biases.qkv = true;
            windows::of_qwen(c, &mut a)?;
        }
        "qwen3" => {
            a.qk_norm = Some(QkNorm::ByHead);
            windows::of_qwen(c, &mut a)?;
        }
        "smollm3" => {
            a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(2_000_000.0))?);
            leave_out_positions(c, &mut a)?;
            windows::of_smollm3(c, &mut a)?;
        }
        _ => {}
    }
    Ok(a)
}

/// What all of them have in common.
pub fn llama_like(c: &Checkpoint) -> Result<Architecture> {
    let mut a = gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    Ok(a)
}

/// A gated MLP and Llama's names of weights; norm and positions are the family's.
pub fn gated(c: &Checkpoint) -> Result<Architecture> {
    gated_as(c, "hidden_act")
}

/// As [`gated`], with the key that names the activation.
pub fn gated_as(c: &Checkpoint, activation_key: &str) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    let (attention_bias, mlp_bias) = (flag(c, "attention_bias")?, flag(c, "mlp_bias")?);
    a.gated = true;
    a.activation = activation(c, activation_key)?;
    a.biases = Biases {
        qkv: attention_bias,
        attention_out: attention_bias,
        mlp_in: mlp_bias,
        mlp_out: mlp_bias,
        ..Biases::default()
    };
    a.dtype = c.dtype("model.layers.0.self_attn.o_proj.weight")?;
    Ok(a)
}

/// `no_rope_layers` is named by what it marks the other way round: 1 is a layer with positions. Without it, every
/// `no_rope_layer_interval`-th layer has none.
fn leave_out_positions(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let marks = c.key("no_rope_layers");
    let wrong =
        || format!("`no_rope_layers` is {marks}; expected a list of 0 and 1, one for each of {} layers", a.layers);
    let mark = |v: &Value| v.as_u64().filter(|&n| n <= 1).map(|n| n == 1);
    let has_positions: Vec<bool> = match marks.as_array() {
        Some(list) => list.iter().map(mark).collect::<Option<_>>().with_context(wrong)?,
        None if marks.is_null() => {
            let interval = c.size("no_rope_layer_interval")?;
            (0..a.layers).map(|l| (l + 1) % interval != 0).collect()
        }
        None => bail!(wrong()),
    };
    // A longer list is that of a model with more layers.
    ensure!(has_positions.len() >= a.layers, wrong());
    a.attention.iter_mut().zip(has_positions).for_each(|(kind, has)| kind.rotary = has);
    Ok(())
}

pub fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let before_attention = norm(c, a, &name("input_layernorm"))?;
    let before_mlp = norm(c, a, &name("post_attention_layernorm"))?;
    block(c, a, layer, before_attention, before_mlp)
}

/// W_Q, W_K, W_V and W_O with their biases.
pub fn projections(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<[Linear; 4]> {
    let (d, width, kv, b) = (a.d_model, a.heads * a.d_head, a.kv_heads * a.d_head, a.biases);
    let named = |which: &str, inputs, outputs, biased| {
        linear(c, &format!("model.layers.{layer}.self_attn.{which}_proj"), inputs, outputs, biased)
    };
    Ok([
        named("q", d, width, b.qkv)?,
        named("k", d, kv, b.qkv)?,
        named("v", d, kv, b.qkv)?,
        named("o", width, d, b.attention_out)?,
    ])
}

/// A block with Llama's names for everything but its MLP.
pub fn layer_with(c: &Checkpoint, a: &Architecture, layer: usize, mlp: MlpWeights) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let before_attention = norm(c, a, &name("input_layernorm"))?;
    let before_mlp = norm(c, a, &name("post_attention_layernorm"))?;
    block_with(c, a, layer, [before_attention, before_mlp], mlp)
}

/// A block with Llama's names for everything but its norms.
pub fn block(
    c: &Checkpoint,
    a: &Architecture,
    layer: usize,
    attention_norm: NormWeights,
    mlp_norm: NormWeights,
) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.mlp.{rest}");
    let b = a.biases;
    let mlp = Mlp {
        gate: Some(linear(c, &name("gate_proj"), a.d_model, a.d_mlp, b.mlp_in)?),
        up: linear(c, &name("up_proj"), a.d_model, a.d_mlp, b.mlp_in)?,
        down: linear(c, &name("down_proj"), a.d_mlp, a.d_model, b.mlp_out)?,
    };
    block_with(c, a, layer, [attention_norm, mlp_norm], mlp.into())
}

/// A block with Llama's names for its attention.
pub fn block_with(
    c: &Checkpoint,
    a: &Architecture,
    layer: usize,
    [attention_norm, mlp_norm]: [NormWeights; 2],
    mlp: MlpWeights,
) -> Result<LayerWeights> {
    let qk_gamma = |which: &str, heads: usize| {
        let width = if a.qk_norm == Some(QkNorm::Whole) { heads * a.d_head } else { a.d_head };
        c.vector(&format!("model.layers.{layer}.self_attn.{which}.weight"), width)
    };
    let qk_norm = || -> Result<_> { Ok((qk_gamma("q_norm", a.heads)?, qk_gamma("k_norm", a.kv_heads)?)) };
    let [q, k, v, o] = projections(c, a, layer)?;
    let sinks = || c.vector(&format!("model.layers.{layer}.self_attn.sinks"), a.heads);
    Ok(LayerWeights {
        attention_norm,
        q,
        k,
        v,
        o,
        qk_norm: a.qk_norm.map(|_| qk_norm()).transpose()?,
        sinks: a.sinks.then(sinks).transpose()?,
        mlp_norm,
        write_norms: None,
        mlp,
    })
}

pub fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("model.embed_tokens.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "model.norm")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
