//! Models in TransformerLens's own format: attn-only, gelu and SoLU models of a few layers, which tutorials use. Layer
//! norms, learned positions, and matrices with a dimension for the head. `config.json` has TransformerLens's keys and no
//! `model_type`.

use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, Axis};

use super::Family;
use super::common::{Sizes, activation, refuse, with_sizes};
use super::keys::Kind;
use crate::architecture::{Activation, Architecture, Biases, Ends, LayerWeights, Linear, NormWeights};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[&[
        ("d_model", Kind::Size),
        ("n_layers", Kind::Size),
        ("n_heads", Kind::Size),
        ("d_head", Kind::Size),
        ("d_mlp", Kind::MaybeWhole(None)),
        ("n_positions", Kind::Size),
        ("vocab_size", Kind::Size),
        ("d_vocab_out", Kind::Any),
        ("act_fn", Kind::Any),
        ("attn_only", Kind::Flag(false)),
        ("normalization", Kind::Any),
        ("normalization_type", Kind::Any),
        ("shortformer_pos", Kind::Any),
        ("final_rms", Kind::Any),
        ("architecture", Kind::Any),
    ]],
    unused: &[],
    spellings: &[("d_vocab", "vocab_size"), ("n_ctx", "n_positions")],
    classes: &[],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    for key in ["shortformer_pos", "final_rms"] {
        refuse(c, key, |v| v != false)?;
    }
    // Older layouts have the same keys, and their weights the other way round.
    refuse(c, "architecture", |v| v != "neel")?;
    refuse(c, "d_vocab_out", |v| v != c.key("vocab_size"))?;
    let norm = c.given("normalization").unwrap_or(c.key("normalization_type"));
    ensure!(
        norm == "LN",
        "`normalization` (`normalization_type`) is {norm}; expected \"LN\": only layer norms are supported in \
         TransformerLens's own format"
    );
    let is_attention_only = is_attention_only(c);
    // An MLP of one neuron that writes nothing stands for none.
    let d_mlp = if is_attention_only { 1 } else { c.size("d_mlp")? };
    let (layers, heads, d_model, d_head) =
        (c.size("n_layers")?, c.size("n_heads")?, c.size("d_model")?, c.size("d_head")?);
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads: heads, d_model, d_head, d_mlp })?;
    a.solu = !is_attention_only && *c.key("act_fn") == "solu_ln";
    a.activation = if is_attention_only || a.solu { Activation::Relu } else { activation(c, "act_fn")? };
    let mlp = !is_attention_only;
    let unembedding = c.has("unembed.b_U");
    a.biases = Biases { norm: true, qkv: true, attention_out: true, mlp_in: mlp, mlp_out: mlp, unembedding };
    a.dtype = c.dtype("blocks.0.attn.W_O")?;
    Ok(a)
}

fn is_attention_only(c: &Checkpoint) -> bool {
    *c.key("attn_only") == true
}

fn norm(c: &Checkpoint, a: &Architecture, name: &str) -> Result<NormWeights> {
    Ok(NormWeights {
        gamma: c.vector(&format!("{name}.w"), a.d_model)?,
        beta: Some(c.vector(&format!("{name}.b"), a.d_model)?),
    })
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("blocks.{layer}.{rest}");
    let (d, width) = (a.d_model, a.heads * a.d_head);
    // [head, d_model, d_head], and a bias [head, d_head].
    let into_heads = |which: &str| -> Result<Linear> {
        let w = c.cube(&name(&format!("attn.W_{which}")), [a.heads, d, a.d_head])?;
        let w = w.permuted_axes([1, 0, 2]).as_standard_layout().into_owned().into_shape_with_order((d, width))?;
        let b = c.matrix(&name(&format!("attn.b_{which}")), a.heads, a.d_head)?;
        Ok(Linear { w, b: Some(Array1::from_iter(b)) })
    };
    let o = c.cube(&name("attn.W_O"), [a.heads, a.d_head, d])?.into_shape_with_order((width, d))?;
    let linear = |w: &str, b: &str, inputs: usize, outputs: usize| -> Result<Linear> {
        Ok(Linear { w: c.matrix(&name(w), inputs, outputs)?, b: Some(c.vector(&name(b), outputs)?) })
    };
    let (mlp_norm, up, down) = match is_attention_only(c) {
        true => {
            let nothing = |inputs, outputs| Linear { w: Array2::zeros((inputs, outputs)), b: None };
            let unread = NormWeights { gamma: Array1::ones(d), beta: Some(Array1::zeros(d)) };
            (unread, nothing(d, a.d_mlp), nothing(a.d_mlp, d))
        }
        false => {
            let up = linear("mlp.W_in", "mlp.b_in", d, a.d_mlp)?;
            let mut down = linear("mlp.W_out", "mlp.b_out", a.d_mlp, d)?;
            if a.solu {
                let (gamma, beta) = (c.vector(&name("mlp.ln.w"), a.d_mlp)?, c.vector(&name("mlp.ln.b"), a.d_mlp)?);
                down.b = down.b.map(|b| b + beta.dot(&down.w));
                down.w *= &gamma.insert_axis(Axis(1));
            }
            (norm(c, a, &name("ln2"))?, up, down)
        }
    };
    Ok(LayerWeights {
        attention_norm: norm(c, a, &name("ln1"))?,
        q: into_heads("Q")?,
        k: into_heads("K")?,
        v: into_heads("V")?,
        o: Linear { w: o, b: Some(c.vector(&name("attn.b_O"), d)?) },
        qk_norm: None,
        sinks: None,
        mlp_norm,
        write_norms: None,
        mlp: Mlp { gate: None, up, down }.into(),
    })
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let bias = a.biases.unembedding;
    Ok(Ends {
        embedding: c.matrix("embed.W_E", a.vocab, a.d_model)?,
        positions: Some(c.matrix("pos_embed.W_pos", a.context, a.d_model)?),
        final_norm: norm(c, a, "ln_final")?,
        unembedding: Some(
            c.matrix("unembed.W_U", a.d_model, a.vocab)?.reversed_axes().as_standard_layout().into_owned(),
        ),
        unembedding_bias: bias.then(|| c.vector("unembed.b_U", a.vocab)).transpose()?,
    })
}
