//! GPT-2 (`GPT2LMHeadModel`), also Stanford's variants: learned positions, layer norms, one matrix for q, k and v, all
//! linear layers stored [in, out].

use anyhow::Result;
use ndarray::{Array1, s};

use super::Family;
use super::common::{Sizes, activation, even_share, flag, norm, refuse, unembedding, with_sizes};
use super::keys::Kind;
use crate::architecture::{Architecture, Biases, Ends, LayerWeights, Linear};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

/// Also of GPT-J and StarCoder.
pub const SPELLINGS: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("max_position_embeddings", "n_positions"),
];

pub const FAMILY: Family = Family {
    keys: &[&[
        ("n_embd", Kind::Size),
        ("n_head", Kind::Size),
        ("n_layer", Kind::Size),
        ("n_positions", Kind::Size),
        ("vocab_size", Kind::Size),
        ("n_inner", Kind::MaybeWhole(None)),
        ("activation_function", Kind::Text("gelu_new")),
        ("layer_norm_epsilon", Kind::Float(1e-5)),
        ("scale_attn_weights", Kind::Flag(true)),
        ("scale_attn_by_inverse_layer_idx", Kind::Flag(false)),
        ("reorder_and_upcast_attn", Kind::Flag(false)),
        ("add_cross_attention", Kind::Flag(false)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Share),
        ("attn_pdrop", Kind::Share),
        ("summary_type", Kind::Text("cls_index")),
        ("summary_use_proj", Kind::Flag(true)),
        ("summary_activation", Kind::MaybeText),
        ("summary_proj_to_labels", Kind::Flag(true)),
        ("summary_first_dropout", Kind::Number),
    ],
    spellings: SPELLINGS,
    classes: &["GPT2LMHeadModel", "GPT2Model"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = without_variants(c, |heads| heads)?;
    // `reorder_and_upcast_attn` changes the order of the same multiplications, for half precision.
    if flag(c, "scale_attn_by_inverse_layer_idx")? {
        a.attention.iter_mut().enumerate().for_each(|(l, kind)| kind.scale /= (l + 1) as f32);
    }
    Ok(a)
}

/// What StarCoder has too, with as many key-value heads as there are for so many heads.
pub fn without_variants(c: &Checkpoint, kv_heads: impl Fn(usize) -> usize) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("n_embd")?, c.size("n_head")?, c.size("n_layer")?);
    let d_mlp = c.optional_size("n_inner")?.unwrap_or(4 * d_model);
    let d_head = even_share(c, "n_embd", "n_head")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: kv_heads(heads), d_model, d_head, d_mlp })?;
    refuse(c, "add_cross_attention", |v| v != false)?;
    if !flag(c, "scale_attn_weights")? {
        a.attention.iter_mut().for_each(|kind| kind.scale = 1.0);
    }
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.activation = activation(c, "activation_function")?;
    a.biases = Biases { norm: true, qkv: true, attention_out: true, mlp_in: true, mlp_out: true, unembedding: false };
    a.dtype = c.dtype(&format!("{}h.0.mlp.c_proj.weight", prefix(c)))?;
    Ok(a)
}

/// The first checkpoints were saved without the outer `transformer.`.
fn prefix(c: &Checkpoint) -> &'static str {
    if c.has("wte.weight") { "" } else { "transformer." }
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("{}h.{layer}.{rest}", prefix(c));
    let conv = |rest: &str, inputs: usize, outputs: usize| -> Result<Linear> {
        Ok(Linear {
            w: c.matrix(&name(&format!("{rest}.weight")), inputs, outputs)?,
            b: Some(c.vector(&name(&format!("{rest}.bias")), outputs)?),
        })
    };
    let d = a.d_model;
    let qkv = conv("attn.c_attn", d, 3 * d)?;
    let third = |i: usize| -> Linear {
        let b: Option<Array1<f32>> = qkv.b.as_ref().map(|b| b.slice(s![i * d..(i + 1) * d]).to_owned());
        Linear { w: qkv.w.slice(s![.., i * d..(i + 1) * d]).as_standard_layout().into_owned(), b }
    };
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("ln_1"))?,
        q: third(0),
        k: third(1),
        v: third(2),
        o: conv("attn.c_proj", d, d)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("ln_2"))?,
        write_norms: None,
        mlp: Mlp { gate: None, up: conv("mlp.c_fc", d, a.d_mlp)?, down: conv("mlp.c_proj", a.d_mlp, d)? }.into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let name = |rest: &str| format!("{}{rest}", prefix(c));
    let embedding = c.matrix(&name("wte.weight"), a.vocab, a.d_model)?;
    Ok(Ends {
        positions: Some(c.matrix(&name("wpe.weight"), a.context, a.d_model)?),
        final_norm: norm(c, a, &name("ln_f"))?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
