//! StableLM (`StableLmForCausalLM`): as Llama, with layer norms, partial rotary positions, optional biases of q, k and
//! v, and an optional parallel residual (which reads one norm).

use anyhow::Result;

use super::Family;
use super::common::{flag, linear, norm, refuse, rotary};
use super::llama::{self, llama_like};
use crate::model::architecture::{Architecture, Biases, LayerWeights, Norm};
use crate::model::checkpoint::Checkpoint;

pub const FAMILY: Family = Family { architecture, layer, ends: llama::ends };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama_like(c)?;
    refuse(c, "qk_layernorm", |v| v == true)?;
    a.norm = Norm::Layer;
    a.norm_eps = c.number("layer_norm_eps", 1e-5)? as f32;
    a.rotary = Some(rotary(c, a.d_head, c.number("partial_rotary_factor", 0.25)?, 10_000.0)?);
    a.parallel = flag(c, "use_parallel_residual", false);
    a.biases = Biases { norm: true, qkv: flag(c, "use_qkv_bias", false), ..Biases::default() };
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    if !a.parallel {
        return llama::layer(c, a, layer);
    }
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let (width, kv) = (a.heads * a.d_head, a.kv_heads * a.d_head);
    let shared = norm(c, a, &name("input_layernorm"))?;
    Ok(LayerWeights {
        attention_norm: shared.clone(),
        q: linear(c, &name("self_attn.q_proj"), a.d_model, width, a.biases.qkv)?,
        k: linear(c, &name("self_attn.k_proj"), a.d_model, kv, a.biases.qkv)?,
        v: linear(c, &name("self_attn.v_proj"), a.d_model, kv, a.biases.qkv)?,
        o: linear(c, &name("self_attn.o_proj"), width, a.d_model, false)?,
        qk_norm: None,
        mlp_norm: shared,
        gate: Some(linear(c, &name("mlp.gate_proj"), a.d_model, a.d_mlp, false)?),
        up: linear(c, &name("mlp.up_proj"), a.d_model, a.d_mlp, false)?,
        down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, false)?,
    })
}
