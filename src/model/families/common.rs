//! Helpers that several families share.

use anyhow::{Context, Result, bail, ensure};
use ndarray::Axis;
use serde_json::Value;

use super::windows;
use crate::architecture::{
    Activation, Architecture, AttentionKind, Biases, Ends, Linear, MOST_LAYERS, Norm, NormWeights,
};
use crate::checkpoint::Checkpoint;

/// An architecture with the sizes that every family names in the same way and nothing special; families change what
/// differs. `d_mlp` has no common name.
pub fn plain(c: &Checkpoint, d_mlp: usize) -> Result<Architecture> {
    let (d_model, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let d_head = match c.optional_size("head_dim")? {
        Some(n) => n,
        None => even_share(c, "hidden_size", "num_attention_heads")?,
    };
    let layers = c.size("num_hidden_layers")?;
    let kv_heads = c.optional_size("num_key_value_heads")?.unwrap_or(heads);
    with_sizes(c, Sizes { layers, heads, kv_heads, d_model, d_head, d_mlp })
}

/// d_head of a model that splits its width among its heads.
pub fn even_share(c: &Checkpoint, width_key: &str, heads_key: &str) -> Result<usize> {
    let (width, heads) = (c.size(width_key)?, c.size(heads_key)?);
    ensure!(
        width.is_multiple_of(heads),
        "a width of {width} (`{}`) cannot be split among {heads} heads (`{}`) evenly",
        c.spelling(width_key),
        c.spelling(heads_key)
    );
    Ok(width / heads)
}

/// The widest stream or head. Published models have up to 18,432.
const MOST_WIDTH: usize = 1 << 17;

/// Heads of a layer, neurons of an MLP or an expert, and experts. Published models have up to 57,344 neurons.
pub const MOST_NUMBERED: usize = u16::MAX as usize;

/// Heads of all layers. Published models have up to 16,128.
const MOST_HEADS: usize = 1 << 20;

/// The context of a family without one. No prompt is longer.
pub const NO_LIMIT: usize = 1 << 24;

/// Numbers of one matrix, and of all together (published models: 2 · 10¹²).
const MOST_IN_MATRIX: u128 = 1 << 36;
const MOST_PARAMETERS: u128 = 10_000_000_000_000;

pub struct Sizes {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    pub d_mlp: usize,
}

/// As [`plain`], for families with names of their own for their sizes.
pub fn with_sizes(c: &Checkpoint, s: Sizes) -> Result<Architecture> {
    let Sizes { layers, heads, kv_heads, d_model, d_head, d_mlp } = s;
    // Before anything is made for each of them: no model has so many, and a file that says so is damaged.
    ensure!(layers <= MOST_LAYERS, "the configuration speaks of {layers} layers; expected at most {MOST_LAYERS}");
    for (what, width) in [("the stream", d_model), ("a head", d_head)] {
        ensure!(
            width <= MOST_WIDTH,
            "the configuration says that {what} is {width} wide; expected at most {MOST_WIDTH}"
        );
    }
    for (what, count) in [("heads", heads), ("neurons in an MLP", d_mlp)] {
        ensure!(count <= MOST_NUMBERED, "the configuration speaks of {count} {what}; expected at most {MOST_NUMBERED}");
    }
    ensure!(
        layers * heads <= MOST_HEADS,
        "the configuration speaks of {layers} layers of {heads} heads; expected at most {MOST_HEADS} heads in all"
    );
    ensure!(
        heads % kv_heads == 0,
        "{heads} heads (`num_attention_heads`) cannot share {kv_heads} key-value heads (`num_key_value_heads`) evenly"
    );
    windows::layer_types(c, layers)?;
    let attention = AttentionKind { scale: (d_head as f32).sqrt().recip(), window: None, rotary: true };
    let a = Architecture {
        family: c.model_type()?.to_string(),
        layers,
        heads,
        kv_heads,
        d_model,
        d_head,
        d_mlp,
        experts: None,
        vocab: c.size("vocab_size")?,
        context: context(c)?,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        read_norms: true,
        write_norms: false,
        parallel: false,
        rotary: None,
        alibi: None,
        window_rotary: None,
        qk_norm: None,
        score_softcap: None,
        sinks: false,
        logit_softcap: None,
        attention: vec![attention; layers],
        gated: false,
        activation: Activation::Gelu,
        solu: false,
        biases: Biases::default(),
        embedding_scale: 1.0,
        embedding_norm: false,
        tied: flag(c, "tie_word_embeddings")?,
        dtype: String::new(),
    };
    check_parameters(&a)?;
    Ok(a)
}

/// The longest prompt, where the family has a limit.
fn context(c: &Checkpoint) -> Result<usize> {
    for key in ["max_position_embeddings", "n_positions", "max_seq_len"] {
        if let Some(positions) = c.optional_size(key)? {
            return Ok(positions);
        }
    }
    Ok(NO_LIMIT)
}

/// Sizes that are each plausible can still make a model that no machine holds.
pub fn check_parameters(a: &Architecture) -> Result<()> {
    let wide = |x: usize| x as u128;
    let embedding = wide(a.vocab) * wide(a.d_model);
    let attention = wide(a.d_model) * wide(a.d_head) * wide(a.heads);
    let mlp = wide(a.d_model) * wide(a.d_mlp);
    for (what, numbers) in [("the embedding", embedding), ("a layer's attention", attention), ("a layer's MLP", mlp)] {
        ensure!(
            numbers <= MOST_IN_MATRIX,
            "the configuration says that a matrix of {what} has {numbers} numbers; expected at most {MOST_IN_MATRIX}"
        );
    }
    let all = embedding + wide(a.layers) * (4 * attention + 3 * mlp);
    ensure!(all <= MOST_PARAMETERS, "the configuration speaks of {all} parameters; expected at most {MOST_PARAMETERS}");
    Ok(())
}

pub fn activation(c: &Checkpoint, key: &str) -> Result<Activation> {
    Ok(match c.key(key).as_str() {
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
        Some("relu") => Activation::Relu,
        Some("relu2") => Activation::ReluSquared,
        _ => bail!("`{key}` is {}; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2", c.key(key)),
    })
}

/// A variation of a family that would change the numbers is an error, never ignored.
pub fn refuse(c: &Checkpoint, key: &str, differs: impl Fn(&Value) -> bool) -> Result<()> {
    let value = c.key(key);
    if !value.is_null() && differs(value) {
        bail!("the configuration has `{key}` = {value}, which is not supported yet for `{}`", c.model_type()?);
    }
    Ok(())
}

/// A flag of the configuration. One that the family does not have is false.
pub fn flag(c: &Checkpoint, key: &str) -> Result<bool> {
    match c.given(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => bail!("`{key}` is {other}; expected true or false"),
    }
}

/// For families whose heads share the width evenly, but whose rotary positions take a `head_dim` in the configuration.
pub fn no_other_head_dim(c: &Checkpoint, a: &Architecture) -> Result<()> {
    let value = &c.config()["head_dim"];
    ensure!(
        value.is_null() || value.as_u64() == Some(a.d_head as u64),
        "`head_dim` is {value}, but `hidden_size` / `num_attention_heads` is {}; only the latter is supported for `{}`",
        a.d_head,
        a.family
    );
    Ok(())
}

/// `NAME.weight` [out, in] and, if `biased`, `NAME.bias`.
pub fn linear(c: &Checkpoint, name: &str, inputs: usize, outputs: usize, biased: bool) -> Result<Linear> {
    Ok(Linear { w: c.linear(&format!("{name}.weight"), inputs, outputs)?, b: bias(c, name, outputs, biased)? })
}

/// These outputs of a projection, in this order: a part of a fused one.
pub fn outputs(of: &Linear, columns: impl IntoIterator<Item = usize>) -> Linear {
    let columns: Vec<usize> = columns.into_iter().collect();
    Linear { w: of.w.select(Axis(1), &columns), b: of.b.as_ref().map(|b| b.select(Axis(0), &columns)) }
}

/// The gate and the other input of an MLP from a fused projection, one after the other.
pub fn gate_and_up(c: &Checkpoint, a: &Architecture, name: &str) -> Result<[Linear; 2]> {
    let fused = linear(c, name, a.d_model, 2 * a.d_mlp, a.biases.mlp_in)?;
    Ok([outputs(&fused, 0..a.d_mlp), outputs(&fused, a.d_mlp..2 * a.d_mlp)])
}

/// q, k and v of a fused projection in which every head has its query, key and value side by side.
pub fn side_by_side(qkv: &Linear, d_head: usize) -> [Linear; 3] {
    let part = |which: usize| {
        let column = move |i: usize| (i / d_head * 3 + which) * d_head + i % d_head;
        outputs(qkv, (0..qkv.w.ncols() / 3).map(column))
    };
    [part(0), part(1), part(2)]
}

/// A number that multiplies something, with a decimal point or without.
pub fn multiplier(c: &Checkpoint, key: &str) -> Result<f32> {
    let number = c.key(key).as_f64().map(|x| x as f32).filter(|x| x.is_finite());
    number.with_context(|| format!("`{key}` is {}; expected a number that a 32-bit float can hold", c.key(key)))
}

/// Multiplies what a projection writes.
pub fn scale(linear: &mut Linear, factor: f32) {
    linear.w *= factor;
    linear.b.iter_mut().for_each(|b| *b *= factor);
}

/// Multiplies the logits, by the final norm's γ and β.
pub fn scale_logits(ends: &mut Ends, factor: f32) {
    ends.final_norm.gamma *= factor;
    ends.final_norm.beta.iter_mut().for_each(|beta| *beta *= factor);
}

fn bias(c: &Checkpoint, name: &str, len: usize, biased: bool) -> Result<Option<ndarray::Array1<f32>>> {
    biased.then(|| c.vector(&format!("{name}.bias"), len)).transpose()
}

/// `NAME.weight` and, if the family's norms have one, `NAME.bias`.
pub fn norm(c: &Checkpoint, a: &Architecture, name: &str) -> Result<NormWeights> {
    Ok(NormWeights {
        gamma: c.vector(&format!("{name}.weight"), a.d_model)?,
        beta: bias(c, name, a.d_model, a.biases.norm)?,
    })
}

/// The unembedding `NAME.weight`, or `None` where it is tied to the embedding.
pub fn unembedding(
    c: &Checkpoint,
    a: &Architecture,
    name: &str,
    embedding: &ndarray::Array2<f32>,
) -> Result<Option<ndarray::Array2<f32>>> {
    let weight = format!("{name}.weight");
    if !a.tied {
        return c.matrix(&weight, a.vocab, a.d_model).map(Some);
    }
    // Some checkpoints write the tied matrix out; one that differs is not what the configuration says.
    if c.has(&weight) {
        let written = c.matrix(&weight, a.vocab, a.d_model)?;
        ensure!(
            written == embedding,
            "{}: `{weight}` differs from the embedding although the configuration ties them (`tie_word_embeddings`)",
            c.path().display()
        );
    }
    Ok(None)
}
