//! GPT-Neo and TinyStories (`GPTNeoForCausalLM`): learned positions, layer norms, layers with global or local
//! attention, unscaled attention scores.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Family;
use super::common::{Sizes, activation, even_share, linear, norm, unembedding, with_sizes};
use super::keys::Kind;
use crate::architecture::{Architecture, Biases, Ends, LayerWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("hidden_size", Kind::Size),
        ("num_heads", Kind::Size),
        ("num_layers", Kind::Size),
        ("max_position_embeddings", Kind::Size),
        ("vocab_size", Kind::Size),
        ("intermediate_size", Kind::MaybeWhole(None)),
        ("attention_types", Kind::MaybeList),
        ("attention_layers", Kind::Any),
        ("window_size", Kind::Whole(256)),
        ("activation_function", Kind::Text("gelu_new")),
        ("layer_norm_epsilon", Kind::Float(1e-5)),
        ("tie_word_embeddings", Kind::Flag(true)),
    ]],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_dropout", Kind::Share),
        ("embed_dropout", Kind::Share),
        ("attention_dropout", Kind::Share),
        ("classifier_dropout", Kind::Number),
    ],
    spellings: &[("num_attention_heads", "num_heads"), ("num_hidden_layers", "num_layers")],
    classes: &["GPTNeoForCausalLM", "GPTNeoModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) = (c.size("hidden_size")?, c.size("num_heads")?, c.size("num_layers")?);
    let d_mlp = c.optional_size("intermediate_size")?.unwrap_or(4 * d_model);
    let d_head = even_share(c, "hidden_size", "num_heads")?;
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp })?;
    let window = c.size("window_size")?;
    for (kind, name) in a.attention.iter_mut().zip(kinds_by_layer(c, layers)?) {
        kind.scale = 1.0;
        kind.window = match name.as_str() {
            "global" => None,
            "local" => Some(window),
            other => bail!(
                "`attention_layers` (or `attention_types`) has a layer of attention `{other}`; expected global or local"
            ),
        };
    }
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    a.activation = activation(c, "activation_function")?;
    a.biases = Biases { norm: true, qkv: false, attention_out: true, mlp_in: true, mlp_out: true, unembedding: false };
    a.dtype = c.dtype("transformer.h.0.mlp.c_proj.weight")?;
    Ok(a)
}

/// `attention_layers`, or else `attention_types` = [[["global", "local"], 6]]: the pattern, and how often it is
/// repeated.
fn kinds_by_layer(c: &Checkpoint, layers: usize) -> Result<Vec<String>> {
    if let Some(names) = c.given("attention_layers") {
        let wrong = || {
            format!(
                "`attention_layers` is {names}; expected global or local for each of {layers} layers (`num_layers`, \
                 `num_hidden_layers`)"
            )
        };
        let list = names.as_array().filter(|list| list.len() == layers).with_context(wrong)?;
        return list.iter().map(|name| name.as_str().map(str::to_string).with_context(wrong)).collect();
    }
    let by_default = json!([[["global", "local"], 12]]);
    let types = Some(c.key("attention_types")).filter(|types| !types.is_null()).unwrap_or(&by_default);
    let wrong = || format!("`attention_types` is {types}; expected a pattern and a count for {layers} layers");
    let mut out: Vec<String> = Vec::new();
    for entry in types.as_array().with_context(wrong)? {
        let pattern = entry[0].as_array().with_context(wrong)?;
        let times = entry[1].as_u64().filter(|&n| n <= layers as u64).with_context(wrong)?;
        for _ in 0..times {
            let names = pattern.iter().map(|v| v.as_str().map(str::to_string));
            out.extend(names.take(layers + 1).collect::<Option<Vec<_>>>().with_context(wrong)?);
            if out.len() > layers {
                bail!(wrong());
            }
        }
    }
    if out.len() != layers {
        bail!(wrong());
    }
    Ok(out)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
    let square = |rest: &str, biased: bool| linear(c, &name(rest), a.d_model, a.d_model, biased);
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("ln_1"))?,
        q: square("attn.attention.q_proj", false)?,
        k: square("attn.attention.k_proj", false)?,
        v: square("attn.attention.v_proj", false)?,
        o: square("attn.attention.out_proj", true)?,
        qk_norm: None,
        sinks: None,
        mlp_norm: norm(c, a, &name("ln_2"))?,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.c_fc"), a.d_model, a.d_mlp, true)?,
            down: linear(c, &name("mlp.c_proj"), a.d_mlp, a.d_model, true)?,
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
