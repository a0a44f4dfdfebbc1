//! GPT-J (`GPTJForCausalLM`): parallel residual behind one layer norm, rotary positions on neighbouring dimensions, a bias
//! at the unembedding.

use anyhow::{Result, ensure};

use super::common::{Sizes, activation, even_share, linear, norm, unembedding, with_sizes};
use super::keys::{Key, Kind};
use super::rotary::{halves, unscaled};
use super::{Family, gpt2};
use crate::architecture::{Architecture, Biases, Ends, LayerWeights, Linear};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const KEYS: &[Key] = &[
    ("n_embd", Kind::Size),
    ("n_head", Kind::Size),
    ("n_layer", Kind::Size),
    ("n_positions", Kind::Whole(2048)),
    ("vocab_size", Kind::Size),
    ("rotary_dim", Kind::Whole(64)),
    ("n_inner", Kind::MaybeWhole(None)),
    ("activation_function", Kind::Text("gelu_new")),
    ("layer_norm_epsilon", Kind::Float(1e-5)),
    ("tie_word_embeddings", Kind::Flag(false)),
];

pub const FAMILY: Family = Family {
    keys: &[KEYS],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Share),
        ("attn_pdrop", Kind::Number),
    ],
    spellings: gpt2::SPELLINGS,
    classes: &["GPTJForCausalLM", "GPTJModel"],
    architecture,
    layer,
    ends,
};

pub fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("n_embd")?, c.size("n_head")?, c.size("n_layer")?);
    let d_mlp = c.optional_size("n_inner")?.unwrap_or(4 * d_model);
    let d_head = even_share(c, "n_embd", "n_head")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp })?;
    let dims = c.size("rotary_dim")?;
    ensure!(
        dims.is_multiple_of(2) && dims <= d_head,
        "`rotary_dim` is {dims}; expected an even number up to the {d_head} dimensions of a head (`n_embd` / `n_head`, \
         or `hidden_size` / `num_attention_heads`)"
    );
    // The base is not in the configuration: transformers has it in the code.
    a.rotary = Some(unscaled(10_000.0, dims));
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.parallel = true;
    a.activation = activation(c, "activation_function")?;
    a.biases = Biases { norm: true, mlp_in: true, mlp_out: true, unembedding: true, ..Biases::default() };
    a.dtype = c.dtype("transformer.h.0.mlp.fc_out.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let part = |which: &str| {
        linear(c, &format!("transformer.h.{layer}.attn.{which}_proj"), a.d_model, a.heads * a.d_head, false)
    };
    block(c, a, layer, [part("q")?, part("k")?, part("v")?])
}

/// A block whose queries and keys are turned as pairs of neighbours.
pub fn block(c: &Checkpoint, a: &Architecture, layer: usize, [q, k, v]: [Linear; 3]) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
    let dims = a.rotary.as_ref().map_or(0, |rotary| 2 * rotary.inverse_frequencies.len());
    let shared = norm(c, a, &name("ln_1"))?;
    Ok(LayerWeights {
        attention_norm: shared.clone(),
        q: halves(&q, a.d_head, dims),
        k: halves(&k, a.d_head, dims),
        v,
        o: linear(c, &name("attn.out_proj"), a.heads * a.d_head, a.d_model, false)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: shared,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.fc_in"), a.d_model, a.d_mlp, true)?,
            down: linear(c, &name("mlp.fc_out"), a.d_mlp, a.d_model, true)?,
        }
        .into(),
    })
}

pub fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("transformer.wte.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "transformer.ln_f")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: Some(c.vector("lm_head.bias", a.vocab)?),
    })
}
