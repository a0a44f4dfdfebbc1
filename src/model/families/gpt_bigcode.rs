//! StarCoder and SantaCoder (`GPTBigCodeForCausalLM`): as GPT-2, with one key-value head for all heads.

use anyhow::Result;

use super::Family;
use super::common::{
    Sizes, activation, even_share, flag, linear, norm, outputs, refuse, side_by_side, unembedding, with_sizes,
};
use super::keys::Kind;
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("n_embd", Kind::Size),
        ("n_head", Kind::Size),
        ("n_layer", Kind::Size),
        ("n_positions", Kind::Size),
        ("vocab_size", Kind::Size),
        ("n_inner", Kind::MaybeWhole(None)),
        ("activation_function", Kind::Text("gelu_pytorch_tanh")),
        ("layer_norm_epsilon", Kind::Float(1e-5)),
        ("multi_query", Kind::Flag(true)),
        ("scale_attn_weights", Kind::Flag(true)),
        ("add_cross_attention", Kind::Flag(false)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Share),
        ("attn_pdrop", Kind::Number),
        // The precision of the softmax, which is that of everything else here.
        ("attention_softmax_in_fp32", Kind::Flag(true)),
        ("scale_attention_softmax_in_fp32", Kind::Flag(true)),
    ],
    spellings: &[
        ("hidden_size", "n_embd"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("max_position_embeddings", "n_positions"),
    ],
    classes: &["GPTBigCodeForCausalLM", "GPTBigCodeModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("n_embd")?, c.size("n_head")?, c.size("n_layer")?);
    let d_mlp = c.optional_size("n_inner")?.unwrap_or(4 * d_model);
    let d_head = even_share(c, "n_embd", "n_head")?;
    let kv_heads = if flag(c, "multi_query")? { 1 } else { heads };
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads, d_model, d_head, d_mlp })?;
    refuse(c, "add_cross_attention", |v| v != false)?;
    if !flag(c, "scale_attn_weights")? {
        a.attention.iter_mut().for_each(|kind| kind.scale = 1.0);
    }
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.activation = activation(c, "activation_function")?;
    a.biases = Biases { norm: true, qkv: true, attention_out: true, mlp_in: true, mlp_out: true, unembedding: false };
    a.dtype = c.dtype("transformer.h.0.mlp.c_proj.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
    let (d, kv) = (a.d_model, a.kv_heads * a.d_head);
    let qkv = linear(c, &name("attn.c_attn"), d, d + 2 * kv, true)?;
    let [q, k, v] = match flag(c, "multi_query")? {
        true => [0..d, d..d + kv, d + kv..d + 2 * kv].map(|columns| outputs(&qkv, columns)),
        false => side_by_side(&qkv, a.d_head),
    };
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("ln_1"))?,
        q,
        k,
        v,
        o: linear(c, &name("attn.c_proj"), d, d, true)?,
        qk_norm: None,
        mlp_norm: norm(c, a, &name("ln_2"))?,
        write_norms: None,
        gate: None,
        up: linear(c, &name("mlp.c_fc"), d, a.d_mlp, true)?,
        down: linear(c, &name("mlp.c_proj"), a.d_mlp, d, true)?,
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("transformer.wte.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: Some(c.matrix("transformer.wpe.weight", a.context, a.d_model)?),
        final_norm: norm(c, a, "transformer.ln_f")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
