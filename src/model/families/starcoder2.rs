//! StarCoder 2 (`Starcoder2ForCausalLM`): as Llama, with layer norms, an MLP without a gate, biases and a window.

use anyhow::Result;

use super::common::{activation, flag, linear, norm, plain};
use super::keys::{Kind, ROTARY, SIZES};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama, windows};
use crate::architecture::{Architecture, Biases, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(4096)),
            ("num_key_value_heads", Kind::Whole(2)),
            ("head_dim", Kind::MaybeWhole(None)),
            ("hidden_act", Kind::Text("gelu_pytorch_tanh")),
            ("norm_epsilon", Kind::Float(1e-5)),
            ("sliding_window", Kind::MaybeWhole(None)),
            ("use_bias", Kind::Flag(true)),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.018_042)),
        ("attention_dropout", Kind::Number),
        ("residual_dropout", Kind::Share),
        ("embedding_dropout", Kind::Share),
    ],
    spellings: &[],
    classes: &["Starcoder2ForCausalLM", "Starcoder2Model"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    let bias = flag(c, "use_bias")?;
    a.norm_eps = c.epsilon("norm_epsilon")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    a.activation = activation(c, "hidden_act")?;
    a.biases = Biases { norm: true, qkv: bias, attention_out: bias, mlp_in: bias, mlp_out: bias, unembedding: false };
    a.dtype = c.dtype("model.layers.0.mlp.c_proj.weight")?;
    windows::of_all(c, &mut a)?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let [q, k, v, o] = llama::projections(c, a, layer)?;
    let b = a.biases;
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?,
        q,
        k,
        v,
        o,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.c_fc"), a.d_model, a.d_mlp, b.mlp_in)?,
            down: linear(c, &name("mlp.c_proj"), a.d_mlp, a.d_model, b.mlp_out)?,
        }
        .into(),
    })
}
