//! StableLM (`StableLmForCausalLM`): as Llama, with layer norms, partial rotary positions, optional biases of q, k and
//! v, and an optional parallel residual (which reads one norm).

use anyhow::Result;

use super::Family;
use super::common::{flag, no_other_head_dim, norm, refuse};
use super::keys::{Kind, ROTARY, SIZES};
use super::llama;
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Architecture, Biases, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(4096)),
            ("num_key_value_heads", Kind::Whole(32)),
            ("hidden_act", Kind::Text("silu")),
            ("layer_norm_eps", Kind::Float(1e-5)),
            ("use_qkv_bias", Kind::Flag(false)),
            ("qk_layernorm", Kind::Flag(false)),
            ("use_parallel_residual", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::Number),
        ("hidden_dropout", Kind::Share),
    ],
    spellings: &[],
    classes: &["StableLmForCausalLM", "StableLmModel"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    no_other_head_dim(c, &a)?;
    refuse(c, "qk_layernorm", |v| v != false)?;
    a.norm = Norm::Layer;
    a.norm_eps = c.epsilon("layer_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::partial(0.25))?);
    a.parallel = flag(c, "use_parallel_residual")?;
    a.biases = Biases { norm: true, qkv: flag(c, "use_qkv_bias")?, ..Biases::default() };
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    if !a.parallel {
        return llama::layer(c, a, layer);
    }
    let shared = norm(c, a, &format!("model.layers.{layer}.input_layernorm"))?;
    llama::block(c, a, layer, shared.clone(), shared)
}
