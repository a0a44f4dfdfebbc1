//! BLOOM (`BloomForCausalLM`): ALiBi, layer norms, also on the embedding, one matrix for q, k and v.

use anyhow::Result;
use ndarray::Array2;

use super::Family;
use super::alibi::slopes;
use super::common::{Sizes, even_share, linear, norm, refuse, side_by_side, unembedding, with_sizes};
use super::keys::Kind;
use crate::architecture::{Activation, Alibi, Architecture, Biases, Ends, LayerWeights, NormWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("hidden_size", Kind::Size),
        ("n_layer", Kind::Size),
        ("n_head", Kind::Size),
        ("vocab_size", Kind::Size),
        ("layer_norm_epsilon", Kind::Float(1e-5)),
        ("apply_residual_connection_post_layernorm", Kind::Flag(false)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("hidden_dropout", Kind::Share),
        ("attention_dropout", Kind::Share),
        // The order of the additions of a matrix product.
        ("pretraining_tp", Kind::Whole(1)),
        ("slow_but_exact", Kind::Flag(false)),
    ],
    spellings: &[("n_embed", "hidden_size"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head")],
    classes: &["BloomForCausalLM", "BloomModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("hidden_size")?, c.size("n_head")?, c.size("n_layer")?);
    let d_head = even_share(c, "hidden_size", "n_head")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp: 4 * d_model })?;
    refuse(c, "apply_residual_connection_post_layernorm", |v| v != false)?;
    a.alibi = Some(Alibi { slopes: slopes(heads), is_bfloat16: false, factor: 1.0, is_from_end: false });
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.activation = Activation::GeluTanh;
    a.biases = Biases { norm: true, qkv: true, attention_out: true, mlp_in: true, mlp_out: true, unembedding: false };
    a.embedding_norm = true;
    a.dtype = c.dtype("transformer.h.0.mlp.dense_4h_to_h.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
    let d = a.d_model;
    let [q, k, v] = side_by_side(&linear(c, &name("self_attention.query_key_value"), d, 3 * d, true)?, a.d_head);
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("input_layernorm"))?,
        q,
        k,
        v,
        o: linear(c, &name("self_attention.dense"), d, d, true)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("post_attention_layernorm"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.dense_h_to_4h"), d, a.d_mlp, true)?,
            down: linear(c, &name("mlp.dense_4h_to_h"), a.d_mlp, d, true)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let raw = c.matrix("transformer.word_embeddings.weight", a.vocab, a.d_model)?;
    let unembedding = unembedding(c, a, "lm_head", &raw)?;
    let embedding = normed(&raw, &norm(c, a, "transformer.word_embeddings_layernorm")?, a.norm_eps);
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "transformer.ln_f")?,
        unembedding: Some(unembedding.unwrap_or(raw)),
        embedding,
        unembedding_bias: None,
    })
}

/// The layer norm of each row.
fn normed(rows: &Array2<f32>, norm: &NormWeights, eps: f32) -> Array2<f32> {
    let mut out = rows.clone();
    for mut row in out.rows_mut() {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = (variance + f64::from(eps)).sqrt();
        row.mapv_inplace(|x| ((f64::from(x) - mean) / scale) as f32);
    }
    out *= &norm.gamma;
    if let Some(beta) = &norm.beta {
        out += beta;
    }
    out
}
