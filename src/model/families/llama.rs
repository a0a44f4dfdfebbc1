//! Llama and what shares its tensor names: RMS norms, rotary positions, grouped-query heads, gated MLP, serial residual.
//! `LlamaForCausalLM`, `MistralForCausalLM` (sliding window), `Qwen2ForCausalLM` (biases of q, k and v),
//! `Qwen3ForCausalLM` (norms of q and k), `SmolLM3ForCausalLM` (some layers without positions).

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Family;
use super::common::{activation, flag, linear, norm, plain, refuse, rotary, unembedding};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights, Norm, NormWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family { architecture, layer, ends };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama_like(c)?;
    match a.family.as_str() {
        "mistral" => {
            let window = c.optional_size("sliding_window")?;
            a.attention.iter_mut().for_each(|k| k.window = window);
        }
        "qwen2" => {
            a.biases = Biases { qkv: true, ..Biases::default() };
            windows_by_layer(c, &mut a)?;
        }
        "qwen3" => {
            a.qk_norm = true;
            windows_by_layer(c, &mut a)?;
        }
        "smollm3" => {
            windows_by_layer(c, &mut a)?;
            a.tied = flag(c, "tie_word_embeddings", true)?;
            leave_out_positions(c, &mut a)?;
        }
        _ => {}
    }
    Ok(a)
}

/// What all of them have in common.
pub fn llama_like(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    refuse(c, "quantization_config", |_| true)?;
    let attention_bias = flag(c, "attention_bias", false)?;
    let mlp_bias = flag(c, "mlp_bias", false)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps", 1e-6)?;
    a.rotary = Some(rotary(c, a.d_head, 1.0, 10_000.0)?);
    a.gated = true;
    a.activation = activation(c, "hidden_act")?;
    a.biases = Biases {
        qkv: attention_bias,
        attention_out: attention_bias,
        mlp_in: mlp_bias,
        mlp_out: mlp_bias,
        ..Biases::default()
    };
    a.dtype = c.dtype("model.layers.0.mlp.down_proj.weight")?;
    Ok(a)
}

/// `no_rope_layers` is named by what it marks the other way round: 1 is a layer with positions. Without it, every
/// `no_rope_layer_interval`-th layer has none.
fn leave_out_positions(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let marks = &c.config()["no_rope_layers"];
    let interval = c.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let wrong =
        || format!("`no_rope_layers` is {marks}; expected a list of 0 and 1, one for each of {} layers", a.layers);
    let mark = |v: &Value| v.as_u64().filter(|&n| n <= 1).map(|n| n == 1);
    let has_positions: Vec<bool> = match marks.as_array() {
        Some(list) => list.iter().map(mark).collect::<Option<_>>().with_context(wrong)?,
        None if marks.is_null() => (0..a.layers).map(|l| (l + 1) % interval != 0).collect(),
        None => bail!(wrong()),
    };
    ensure!(has_positions.len() == a.layers, wrong());
    a.attention.iter_mut().zip(has_positions).for_each(|(kind, has)| kind.rotary = has);
    Ok(())
}

/// Qwen's windows hold for the layers that `layer_types` names (before it: from `max_window_layers` on), if
/// `use_sliding_window`.
fn windows_by_layer(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    if !flag(c, "use_sliding_window", false)? {
        return Ok(());
    }
    let first = c.optional_size("max_window_layers")?.unwrap_or(a.layers);
    let window = c.optional_size("sliding_window")?;
    let types = &c.config()["layer_types"];
    let wrong = || {
        let layers = a.layers;
        format!("`layer_types` is {types}; expected sliding_attention or full_attention for each of {layers} layers")
    };
    let slides: Vec<bool> = match types.as_array() {
        Some(list) => list.iter().map(slides).collect::<Option<_>>().with_context(wrong)?,
        None if types.is_null() => (0..a.layers).map(|l| l >= first).collect(),
        None => bail!(wrong()),
    };
    ensure!(slides.len() == a.layers, wrong());
    for (kind, slides) in a.attention.iter_mut().zip(slides) {
        kind.window = if slides { window } else { None };
    }
    Ok(())
}

/// Whether a layer of that name in `layer_types` looks at a window.
fn slides(name: &Value) -> Option<bool> {
    match name.as_str()? {
        "sliding_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    }
}

pub fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let before_attention = norm(c, a, &name("input_layernorm"))?;
    let before_mlp = norm(c, a, &name("post_attention_layernorm"))?;
    block(c, a, layer, before_attention, before_mlp)
}

/// A block with Llama's names for everything but its norms.
pub fn block(
    c: &Checkpoint,
    a: &Architecture,
    layer: usize,
    attention_norm: NormWeights,
    mlp_norm: NormWeights,
) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let (width, kv) = (a.heads * a.d_head, a.kv_heads * a.d_head);
    let b = a.biases;
    let head_norm = |which: &str| c.vector(&name(&format!("self_attn.{which}.weight")), a.d_head);
    Ok(LayerWeights {
        attention_norm,
        q: linear(c, &name("self_attn.q_proj"), a.d_model, width, b.qkv)?,
        k: linear(c, &name("self_attn.k_proj"), a.d_model, kv, b.qkv)?,
        v: linear(c, &name("self_attn.v_proj"), a.d_model, kv, b.qkv)?,
        o: linear(c, &name("self_attn.o_proj"), width, a.d_model, b.attention_out)?,
        qk_norm: if a.qk_norm { Some((head_norm("q_norm")?, head_norm("k_norm")?)) } else { None },
        mlp_norm,
        gate: Some(linear(c, &name("mlp.gate_proj"), a.d_model, a.d_mlp, b.mlp_in)?),
        up: linear(c, &name("mlp.up_proj"), a.d_model, a.d_mlp, b.mlp_in)?,
        down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, b.mlp_out)?,
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
