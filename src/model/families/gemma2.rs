//! Gemma 2 and 3, text (`Gemma2ForCausalLM`, `Gemma3ForCausalLM`): as Gemma, with norms on what attention and the MLP
//! write, windows in some layers, and soft-caps; Gemma 3 with norms of queries and keys, and other rotary positions in
//! layers with a window.

use anyhow::Result;

use super::Family;
use super::common::{even_share, norm, refuse};
use super::keys::{Key, Kind, ROTARY, SIZES};
use super::llama;
use super::rotary::{RotaryKeys, rotary, rotary_of_type};
use super::windows;
use crate::architecture::{Architecture, Ends, LayerWeights, Norm, QkNorm, WriteNorms};
use crate::checkpoint::Checkpoint;

/// What both read, but for sizes and the context.
const KEYS: &[Key] = &[
    ("num_key_value_heads", Kind::Whole(4)),
    ("head_dim", Kind::Whole(256)),
    ("hidden_activation", Kind::Text("gelu_pytorch_tanh")),
    ("rms_norm_eps", Kind::Float(1e-6)),
    ("attention_bias", Kind::Flag(false)),
    ("query_pre_attn_scalar", Kind::Whole(256)),
    ("sliding_window", Kind::MaybeWhole(Some(4096))),
    ("layer_types", Kind::Any),
    ("use_bidirectional_attention", Kind::MaybeFlag),
    ("tie_word_embeddings", Kind::Flag(true)),
];

const UNUSED: &[Key] = &[("initializer_range", Kind::Float(0.02)), ("attention_dropout", Kind::MaybeNumber)];

pub const GEMMA2: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        KEYS,
        &[
            ("max_position_embeddings", Kind::Whole(8192)),
            ("attn_logit_softcapping", Kind::FloatOrNull(50.0)),
            ("final_logit_softcapping", Kind::FloatOrNull(30.0)),
        ],
    ],
    unused: UNUSED,
    spellings: &[],
    classes: &["Gemma2ForCausalLM", "Gemma2Model"],
    architecture: gemma2,
    layer,
    ends,
};

pub const GEMMA3: Family = Family {
    keys: &[
        // Published checkpoints that read images too leave sizes of their text model out.
        &[
            ("hidden_size", Kind::Whole(2304)),
            ("intermediate_size", Kind::Whole(9216)),
            ("num_hidden_layers", Kind::Whole(26)),
            ("num_attention_heads", Kind::Whole(8)),
            ("vocab_size", Kind::Whole(262_208)),
        ],
        ROTARY,
        KEYS,
        &[
            ("max_position_embeddings", Kind::Whole(131_072)),
            ("rope_local_base_freq", Kind::Any),
            ("sliding_window_pattern", Kind::Any),
            ("final_logit_softcapping", Kind::MaybeFloat),
        ],
    ],
    // transformers reads the soft-cap of scores in Gemma 2 only.
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::MaybeNumber),
        ("attn_logit_softcapping", Kind::MaybeFloat),
    ],
    spellings: &[],
    classes: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    architecture: gemma3,
    layer,
    ends,
};

fn gemma2(c: &Checkpoint) -> Result<Architecture> {
    let mut a = of_both(c)?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    a.score_softcap = softcap(c, "attn_logit_softcapping")?;
    windows::alternating(c, &mut a, 2)?;
    Ok(a)
}

fn gemma3(c: &Checkpoint) -> Result<Architecture> {
    let mut a = of_both(c)?;
    a.qk_norm = Some(QkNorm::ByHead);
    a.rotary = Some(rotary_of_type(c, a.d_head, "full_attention", ("rope_theta", 1_000_000.0))?);
    a.window_rotary = Some(rotary_of_type(c, a.d_head, "sliding_attention", ("rope_local_base_freq", 10_000.0))?);
    // A null is refused, as in transformers, and not taken for a missing key.
    let every = if c.given("sliding_window_pattern").is_some() { c.size("sliding_window_pattern")? } else { 6 };
    windows::alternating(c, &mut a, every)?;
    Ok(a)
}

fn of_both(c: &Checkpoint) -> Result<Architecture> {
    // transformers asks for this although `head_dim` is given.
    even_share(c, "hidden_size", "num_attention_heads")?;
    let mut a = llama::gated_as(c, "hidden_activation")?;
    refuse(c, "use_bidirectional_attention", |v| v != false)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.write_norms = true;
    a.embedding_scale = (a.d_model as f32).sqrt();
    a.logit_softcap = softcap(c, "final_logit_softcapping")?;
    let scale = (c.size("query_pre_attn_scalar")? as f32).sqrt().recip();
    a.attention.iter_mut().for_each(|kind| kind.scale = scale);
    Ok(a)
}

fn softcap(c: &Checkpoint, key: &str) -> Result<Option<f32>> {
    let value = c.key(key);
    refuse(c, key, |v| v.as_f64().is_none_or(|cap| cap as f32 <= 0.0 || !(cap as f32).is_finite()))?;
    Ok(value.as_f64().map(|cap| cap as f32))
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let norm = |which: &str| -> Result<_> { Ok(norm(c, a, &format!("model.layers.{layer}.{which}"))?.plus_one()) };
    let (before_attention, before_mlp) = (norm("input_layernorm")?, norm("pre_feedforward_layernorm")?);
    let mut w = llama::block(c, a, layer, before_attention, before_mlp)?;
    if let Some((q, k)) = &mut w.qk_norm {
        *q += 1.0;
        *k += 1.0;
    }
    w.write_norms = Some(WriteNorms {
        attention: norm("post_attention_layernorm")?.gamma,
        mlp: norm("post_feedforward_layernorm")?.gamma,
    });
    Ok(w)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let ends = llama::ends(c, a)?;
    Ok(Ends { final_norm: ends.final_norm.plus_one(), ..ends })
}
