//! GPT-NeoX and Pythia (`GPTNeoXForCausalLM`): parallel residual with two layer norms, partial rotary positions, one
//! matrix for q, k and v, interleaved head by head.

use anyhow::Result;

use super::Family;
use super::common::{activation, flag, linear, no_other_head_dim, norm, plain, side_by_side, unembedding};
use super::keys::{Kind, SIZES};
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        &[
            ("max_position_embeddings", Kind::Whole(2048)),
            // Not `rope_theta` and `partial_rotary_factor`, which transformers reads in the two objects only.
            ("rope_parameters", Kind::Any),
            ("rope_scaling", Kind::Any),
            ("rotary_emb_base", Kind::Any),
            ("rotary_pct", Kind::Any),
            ("original_max_position_embeddings", Kind::Any),
            ("hidden_act", Kind::Text("gelu")),
            ("layer_norm_eps", Kind::Float(1e-5)),
            ("use_parallel_residual", Kind::Flag(true)),
            ("attention_bias", Kind::Flag(true)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::Number),
        ("hidden_dropout", Kind::Share),
        ("classifier_dropout", Kind::Number),
        ("is_decoder", Kind::Flag(false)),
    ],
    spellings: &[],
    classes: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    architecture,
    layer,
    ends,
};

const ROTARY_KEYS: RotaryKeys =
    RotaryKeys { base: ("rotary_emb_base", 10_000.0), share: Some(("rotary_pct", 0.25)), odd: true, scaling: None };

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    no_other_head_dim(c, &a)?;
    a.norm_eps = c.epsilon("layer_norm_eps")?;
    a.parallel = flag(c, "use_parallel_residual")?;
    a.rotary = Some(rotary(c, a.d_head, &ROTARY_KEYS)?);
    a.activation = activation(c, "hidden_act")?;
    let bias = flag(c, "attention_bias")?;
    a.biases = Biases { norm: true, qkv: bias, attention_out: bias, mlp_in: true, mlp_out: true, unembedding: false };
    a.dtype = c.dtype("gpt_neox.layers.0.mlp.dense_4h_to_h.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("gpt_neox.layers.{layer}.{rest}");
    let width = a.heads * a.d_head;
    let qkv = linear(c, &name("attention.query_key_value"), a.d_model, 3 * width, a.biases.qkv)?;
    let [q, k, v] = side_by_side(&qkv, a.d_head);
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?,
        q,
        k,
        v,
        o: linear(c, &name("attention.dense"), width, a.d_model, a.biases.attention_out)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.dense_h_to_4h"), a.d_model, a.d_mlp, true)?,
            down: linear(c, &name("mlp.dense_4h_to_h"), a.d_mlp, a.d_model, true)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("gpt_neox.embed_in.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "gpt_neox.final_layer_norm")?,
        unembedding: unembedding(c, a, "embed_out", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
