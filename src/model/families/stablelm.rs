//! StableLM (`StableLmForCausalLM`): as Llama, with layer norms, partial rotary positions, optional biases of q, k and
//! v, and an optional parallel residual (which reads one norm).

use anyhow::Result;

use super::Family;
use super::common::{flag, norm, refuse, rotary};
use super::llama::{self, llama_like};
use crate::architecture::{Architecture, Biases, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family { architecture, layer, ends: llama::ends };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama_like(c)?;
    refuse(c, "qk_layernorm", |v| v != false)?;
    a.norm = Norm::Layer;
    a.norm_eps = c.epsilon("layer_norm_eps", 1e-5)?;
    a.rotary = Some(rotary(c, a.d_head, c.number("partial_rotary_factor", 0.25)?, 10_000.0)?);
    a.parallel = flag(c, "use_parallel_residual", false)?;
    a.biases = Biases { norm: true, qkv: flag(c, "use_qkv_bias", false)?, ..Biases::default() };
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    if !a.parallel {
        return llama::layer(c, a, layer);
    }
    let shared = norm(c, a, &format!("model.layers.{layer}.input_layernorm"))?;
    llama::block(c, a, layer, shared.clone(), shared)
}
