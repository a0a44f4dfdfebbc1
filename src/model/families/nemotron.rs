//! Nemotron (`NemotronForCausalLM`): as Llama, with layer norms that multiply by 1 + weight, an MLP without a gate whose
//! activation is relu(x)², and partial rotary positions.

use anyhow::Result;

use super::common::{activation, flag, linear, norm, plain};
use super::keys::{Kind, ROTARY, SIZES};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(4096)),
            ("num_key_value_heads", Kind::Size),
            ("head_dim", Kind::MaybeWhole(None)),
            ("hidden_act", Kind::Text("relu2")),
            ("norm_eps", Kind::Float(1e-5)),
            ("attention_bias", Kind::Flag(false)),
            ("mlp_bias", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: &[("initializer_range", Kind::Float(0.0134)), ("attention_dropout", Kind::Number)],
    spellings: &[],
    classes: &["NemotronForCausalLM", "NemotronModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    let (attention, mlp) = (flag(c, "attention_bias")?, flag(c, "mlp_bias")?);
    a.norm_eps = c.epsilon("norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys { odd: true, ..RotaryKeys::partial(0.5) })?);
    a.activation = activation(c, "hidden_act")?;
    a.biases =
        Biases { norm: true, qkv: attention, attention_out: attention, mlp_in: mlp, mlp_out: mlp, unembedding: false };
    a.dtype = c.dtype("model.layers.0.mlp.down_proj.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let [q, k, v, o] = llama::projections(c, a, layer)?;
    let b = a.biases;
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?.plus_one(),
        q,
        k,
        v,
        o,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?.plus_one(),
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.up_proj"), a.d_model, a.d_mlp, b.mlp_in)?,
            down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, b.mlp_out)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let ends = llama::ends(c, a)?;
    Ok(Ends { final_norm: ends.final_norm.plus_one(), ..ends })
}
