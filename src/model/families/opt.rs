//! OPT (`OPTForCausalLM`): layer norms before each part, learned positions that start at row 2, ReLU. OPT-350M, which
//! norms after each part and projects its embedding, is refused.

use anyhow::{Result, ensure};
use ndarray::s;

use super::Family;
use super::common::{Sizes, activation, even_share, flag, linear, norm, refuse, unembedding, with_sizes};
use super::keys::Kind;
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("hidden_size", Kind::Size),
        ("num_attention_heads", Kind::Size),
        ("num_hidden_layers", Kind::Size),
        ("ffn_dim", Kind::Size),
        ("max_position_embeddings", Kind::Size),
        ("vocab_size", Kind::Size),
        ("word_embed_proj_dim", Kind::MaybeWhole(None)),
        ("activation_function", Kind::Text("relu")),
        ("do_layer_norm_before", Kind::Flag(true)),
        ("_remove_final_layer_norm", Kind::Flag(false)),
        ("layer_norm_elementwise_affine", Kind::Flag(true)),
        ("enable_bias", Kind::Flag(true)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("init_std", Kind::Float(0.02)),
        ("dropout", Kind::Share),
        ("attention_dropout", Kind::Number),
        ("layerdrop", Kind::Number),
    ],
    spellings: &[],
    classes: &["OPTForCausalLM", "OPTModel"],
    architecture,
    layer,
    ends,
};

/// Rows of the position table before position 0 (transformers: `OPTLearnedPositionalEmbedding.offset`).
const OFFSET: usize = 2;

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let (layers, d_mlp) = (c.size("num_hidden_layers")?, c.size("ffn_dim")?);
    let d_head = even_share(c, "hidden_size", "num_attention_heads")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp })?;
    ensure!(
        flag(c, "do_layer_norm_before")?,
        "`do_layer_norm_before` is false (OPT-350M): it normalizes the stream itself after each addition, so that no \
         component adds to the logit"
    );
    refuse(c, "_remove_final_layer_norm", |v| v != false)?;
    let projected = c.optional_size("word_embed_proj_dim")?.unwrap_or(d_model);
    ensure!(
        projected == d_model,
        "the configuration has `word_embed_proj_dim` = {projected} beside `hidden_size` = {d_model}, which is not \
         supported (OPT-350M)"
    );
    refuse(c, "layer_norm_elementwise_affine", |v| v != true)?;
    let bias = flag(c, "enable_bias")?;
    a.activation = activation(c, "activation_function")?;
    a.biases = Biases { norm: true, qkv: bias, attention_out: bias, mlp_in: bias, mlp_out: bias, unembedding: false };
    a.dtype = c.dtype(&format!("{}layers.0.fc2.weight", prefix(c)))?;
    Ok(a)
}

/// Older checkpoints were saved without the outer `model.`.
fn prefix(c: &Checkpoint) -> &'static str {
    if c.has("decoder.embed_tokens.weight") { "decoder." } else { "model.decoder." }
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("{}layers.{layer}.{rest}", prefix(c));
    let square = |rest: &str, biased: bool| linear(c, &name(rest), a.d_model, a.d_model, biased);
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("self_attn_layer_norm"))?,
        q: square("self_attn.q_proj", a.biases.qkv)?,
        k: square("self_attn.k_proj", a.biases.qkv)?,
        v: square("self_attn.v_proj", a.biases.qkv)?,
        o: square("self_attn.out_proj", a.biases.attention_out)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("final_layer_norm"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("fc1"), a.d_model, a.d_mlp, a.biases.mlp_in)?,
            down: linear(c, &name("fc2"), a.d_mlp, a.d_model, a.biases.mlp_out)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let name = |rest: &str| format!("{}{rest}", prefix(c));
    let positions = c.matrix(&name("embed_positions.weight"), a.context + OFFSET, a.d_model)?;
    let embedding = c.matrix(&name("embed_tokens.weight"), a.vocab, a.d_model)?;
    Ok(Ends {
        positions: Some(positions.slice(s![OFFSET.., ..]).to_owned()),
        final_norm: norm(c, a, &name("final_layer_norm"))?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
