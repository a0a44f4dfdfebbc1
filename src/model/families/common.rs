//! What several families say in the same words.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::architecture::{Activation, Architecture, AttentionKind, Biases, Linear, MOST_LAYERS, Norm, NormWeights, Rotary};
use crate::checkpoint::Checkpoint;

/// An architecture with the sizes that every family names in the same way and nothing special; families change what
/// differs. `d_mlp` has no common name.
pub fn plain(c: &Checkpoint, d_mlp: usize) -> Result<Architecture> {
    let (d_model, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let d_head = match c.optional_size("head_dim")? {
        Some(n) => n,
        None => even_share(d_model, heads)?,
    };
    let layers = c.size("num_hidden_layers")?;
    let kv_heads = c.optional_size("num_key_value_heads")?.unwrap_or(heads);
    with_sizes(c, Sizes { layers, heads, kv_heads, d_model, d_head, d_mlp })
}

/// d_head of a model that splits its width among its heads.
pub fn even_share(d_model: usize, heads: usize) -> Result<usize> {
    ensure!(d_model.is_multiple_of(heads), "a width of {d_model} cannot be split among {heads} heads evenly");
    Ok(d_model / heads)
}

const MOST_WIDTH: usize = 1 << 24;

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
    for (what, width) in [("the stream", d_model), ("a head", d_head), ("an MLP", d_mlp)] {
        ensure!(
            width <= MOST_WIDTH,
            "the configuration says that {what} is {width} wide; expected at most {MOST_WIDTH}"
        );
    }
    ensure!(heads % kv_heads == 0, "{heads} heads cannot share {kv_heads} key-value heads evenly");
    let attention = AttentionKind { scale: (d_head as f32).sqrt().recip(), window: None, rotary: true };
    Ok(Architecture {
        family: c.model_type()?.to_string(),
        layers,
        heads,
        kv_heads,
        d_model,
        d_head,
        d_mlp,
        vocab: c.size("vocab_size")?,
        context: match c.optional_size("max_position_embeddings")? {
            Some(n) => n,
            None => c.size("n_positions")?,
        },
        norm: Norm::Layer,
        norm_eps: 1e-5,
        parallel: false,
        rotary: None,
        qk_norm: false,
        attention: vec![attention; layers],
        gated: false,
        activation: Activation::Gelu,
        biases: Biases::default(),
        embedding_scale: 1.0,
        tied: flag(c, "tie_word_embeddings", false)?,
        dtype: String::new(),
    })
}

/// Rotary positions on `share` of each head, with the base and scaling that the configuration names. transformers 5
/// writes them into `rope_parameters`, earlier releases beside the other keys.
pub fn rotary(c: &Checkpoint, d_head: usize, share: f64, default_base: f64) -> Result<Rotary> {
    let parameters = &c.config()["rope_parameters"];
    let scaling = if parameters.is_object() { parameters } else { &c.config()["rope_scaling"] };
    let share = parameters["partial_rotary_factor"].as_f64().unwrap_or(share);
    let base = match parameters["rope_theta"].as_f64() {
        Some(base) => base,
        None => c.number("rope_theta", default_base)?,
    };
    let dims = (d_head as f64 * share) as usize;
    ensure!(
        dims > 0 && dims.is_multiple_of(2) && dims <= d_head,
        "rotary positions cannot turn {dims} of {d_head} dimensions"
    );
    let plain = (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64));
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let number = |key: &str| {
        scaling[key].as_f64().with_context(|| format!("rope scaling `{kind}` without the number `{key}`: {scaling}"))
    };
    let inverse_frequencies = match kind {
        "default" => plain.collect(),
        "linear" => {
            let factor = number("factor")?;
            plain.map(|f| f / factor).collect()
        }
        "llama3" => {
            let scale = Llama3Scaling {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            };
            plain.map(|f| scale.apply(f)).collect()
        }
        // As GGUF files have it: a divisor for each frequency.
        "by_frequency" => {
            let factors: Vec<f64> =
                scaling["factors"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            ensure!(factors.len() == dims / 2, "{} rotary factors for {} frequencies", factors.len(), dims / 2);
            plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
        }
        other => bail!("the rope scaling `{other}` is not supported yet; supported: default, linear, llama3"),
    };
    Ok(Rotary { inverse_frequencies })
}

/// Llama 3.1's stretching of slow frequencies (transformers: `_compute_llama3_parameters`).
struct Llama3Scaling {
    factor: f64,
    low: f64,
    high: f64,
    original_context: f64,
}

impl Llama3Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        let turns = self.original_context * frequency / (2.0 * std::f64::consts::PI);
        if turns < self.low {
            frequency / self.factor
        } else if turns > self.high {
            frequency
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

pub fn activation(c: &Checkpoint, key: &str) -> Result<Activation> {
    Ok(match c.config()[key].as_str() {
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
        Some("relu") => Activation::Relu,
        _ => bail!("`{key}` is {}; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu", c.config()[key]),
    })
}

/// A variation of a family that would change the numbers is an error, never ignored.
pub fn refuse(c: &Checkpoint, key: &str, differs: impl Fn(&Value) -> bool) -> Result<()> {
    let value = &c.config()[key];
    if !value.is_null() && differs(value) {
        bail!("the configuration has `{key}` = {value}, which is not supported yet for `{}`", c.model_type()?);
    }
    Ok(())
}

/// A flag of the configuration, or its default.
pub fn flag(c: &Checkpoint, key: &str, default: bool) -> Result<bool> {
    match &c.config()[key] {
        Value::Null => Ok(default),
        Value::Bool(flag) => Ok(*flag),
        other => bail!("`{key}` is {other}; expected true or false"),
    }
}

/// `NAME.weight` [out, in] and, if `biased`, `NAME.bias`.
pub fn linear(c: &Checkpoint, name: &str, inputs: usize, outputs: usize, biased: bool) -> Result<Linear> {
    Ok(Linear { w: c.linear(&format!("{name}.weight"), inputs, outputs)?, b: bias(c, name, outputs, biased)? })
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
            "`{weight}` differs from the embedding although the configuration ties them (`tie_word_embeddings`)"
        );
    }
    Ok(None)
}
