//! Phi-1, 1.5 and 2 (`PhiForCausalLM`): parallel residual behind one layer norm, partial rotary positions, biases
//! everywhere, also at the unembedding.

use anyhow::Result;

use super::Family;
use super::common::{activation, linear, norm, plain, refuse, unembedding};
use super::keys::{Kind, ROTARY, SIZES};
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(2048)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("gelu_new")),
            ("layer_norm_eps", Kind::Float(1e-5)),
            ("qk_layernorm", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::MaybeNumber),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Share),
    ],
    spellings: &[],
    classes: &["PhiForCausalLM", "PhiModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    refuse(c, "qk_layernorm", |v| v != false)?;
    a.norm_eps = c.epsilon("layer_norm_eps")?;
    a.parallel = true;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::partial(0.5))?);
    a.activation = activation(c, "hidden_act")?;
    a.biases = Biases { norm: true, qkv: true, attention_out: true, mlp_in: true, mlp_out: true, unembedding: true };
    a.dtype = c.dtype("model.layers.0.mlp.fc2.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let (width, kv) = (a.heads * a.d_head, a.kv_heads * a.d_head);
    let shared = norm(c, a, &name("input_layernorm"))?;
    Ok(LayerWeights {
        attention_norm: shared.clone(),
        q: linear(c, &name("self_attn.q_proj"), a.d_model, width, true)?,
        k: linear(c, &name("self_attn.k_proj"), a.d_model, kv, true)?,
        v: linear(c, &name("self_attn.v_proj"), a.d_model, kv, true)?,
        o: linear(c, &name("self_attn.dense"), width, a.d_model, true)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: shared,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.fc1"), a.d_model, a.d_mlp, true)?,
            down: linear(c, &name("mlp.fc2"), a.d_mlp, a.d_model, true)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("model.embed_tokens.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "model.final_layernorm")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: Some(c.vector("lm_head.bias", a.vocab)?),
    })
}
