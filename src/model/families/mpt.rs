//! MPT (`MptForCausalLM`): ALiBi, layer norms without biases, one matrix for q, k and v.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::Family;
use super::alibi::slopes_of_mpt;
use super::common::{Sizes, even_share, linear, norm, outputs, unembedding, with_sizes};
use super::keys::Kind;
use crate::architecture::{Activation, Alibi, Architecture, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("d_model", Kind::Size),
        ("n_heads", Kind::Size),
        ("n_layers", Kind::Size),
        ("vocab_size", Kind::Size),
        ("max_seq_len", Kind::Whole(2048)),
        // An object of which transformers reads two keys only: no position but ALiBi is there to choose.
        ("attn_config", Kind::MaybeObject),
        ("layer_norm_epsilon", Kind::Float(1e-5)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_pdrop", Kind::Number),
        ("emb_pdrop", Kind::Number),
        ("logit_scale", Kind::FloatOrText),
        ("expansion_ratio", Kind::Whole(4)),
        ("learned_pos_emb", Kind::Flag(true)),
        ("init_device", Kind::Text("cpu")),
        ("no_bias", Kind::Flag(true)),
        ("embedding_fraction", Kind::Float(1.0)),
        ("norm_type", Kind::Text("low_precision_layernorm")),
    ],
    spellings: &[("hidden_size", "d_model"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")],
    classes: &["MptForCausalLM", "MPTForCausalLM", "MptModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("d_model")?, c.size("n_heads")?, c.size("n_layers")?);
    let d_head = even_share(c, "d_model", "n_heads")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp: 4 * d_model })?;
    let of_attention = c.key("attn_config");
    let clip = &of_attention["clip_qkv"];
    ensure!(
        clip.is_null() || clip.as_f64() == Some(0.0),
        "`attn_config` has `clip_qkv` = {clip}, which is not supported yet"
    );
    // transformers ignores these, but a model that was trained with others is another model.
    for (key, usual) in [("alibi", Value::from(true)), ("alibi_bias_max", 8.into()), ("prefix_lm", false.into())] {
        let value = &of_attention[key];
        ensure!(
            value.is_null() || *value == usual,
            "`attn_config` has `{key}` = {value}, which is not supported; expected {usual}"
        );
    }
    match &of_attention["softmax_scale"] {
        Value::Null => {}
        value => match value.as_f64().filter(|x| *x as f32 > 0.0 && (*x as f32).is_finite()) {
            Some(scale) => a.attention.iter_mut().for_each(|kind| kind.scale = scale as f32),
            None => bail!("`attn_config` has `softmax_scale` = {value}; expected a positive number or null"),
        },
    }
    a.alibi = Some(Alibi { slopes: slopes_of_mpt(heads), is_bfloat16: false, factor: 1.0, is_from_end: true });
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.activation = Activation::Gelu;
    a.dtype = c.dtype("transformer.blocks.0.ffn.down_proj.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.blocks.{layer}.{rest}");
    let d = a.d_model;
    let qkv = linear(c, &name("attn.Wqkv"), d, 3 * d, false)?;
    let [q, k, v] = [0..d, d..2 * d, 2 * d..3 * d].map(|columns| outputs(&qkv, columns));
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("norm_1"))?,
        q,
        k,
        v,
        o: linear(c, &name("attn.out_proj"), d, d, false)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("norm_2"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("ffn.up_proj"), d, a.d_mlp, false)?,
            down: linear(c, &name("ffn.down_proj"), a.d_mlp, d, false)?,
        }
        .into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("transformer.wte.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "transformer.norm_f")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
