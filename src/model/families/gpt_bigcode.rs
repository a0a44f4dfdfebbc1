//! StarCoder and SantaCoder (`GPTBigCodeForCausalLM`): as GPT-2, with one key-value head for all heads.

use anyhow::Result;

use super::common::{flag, linear, norm, outputs, side_by_side, unembedding};
use super::keys::Kind;
use super::{Family, gpt2};
use crate::architecture::{Architecture, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

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
    spellings: gpt2::SPELLINGS,
    classes: &["GPTBigCodeForCausalLM", "GPTBigCodeModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let is_shared = flag(c, "multi_query")?;
    gpt2::without_variants(c, |heads| if is_shared { 1 } else { heads })
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
        sinks: None,
        mlp_norm: norm(c, a, &name("ln_2"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.c_fc"), d, a.d_mlp, true)?,
            down: linear(c, &name("mlp.c_proj"), a.d_mlp, d, true)?,
        }
        .into(),
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
