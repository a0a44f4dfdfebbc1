//! Granite (`GraniteForCausalLM`): as Llama, with multipliers of the embedding, of attention scores, of what attention and
//! the MLP write, and a divisor of the logits.

use anyhow::{Result, ensure};

use super::common::{multiplier, scale, scale_logits};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama};
use crate::architecture::{Architecture, Ends, LayerWeights, Norm};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(2048)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("attention_bias", Kind::Flag(false)),
            ("mlp_bias", Kind::Flag(false)),
            ("embedding_multiplier", Kind::AnyNumber(1.0)),
            ("attention_multiplier", Kind::AnyNumber(1.0)),
            ("residual_multiplier", Kind::AnyNumber(1.0)),
            ("logits_scaling", Kind::AnyNumber(1.0)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["GraniteForCausalLM", "GraniteModel"],
    architecture,
    layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::gated(c)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys::whole(10_000.0))?);
    a.embedding_scale = multiplier(c, "embedding_multiplier")?;
    let score_scale = multiplier(c, "attention_multiplier")?;
    ensure!(score_scale > 0.0, "`attention_multiplier` is {score_scale}; expected a positive number");
    a.attention.iter_mut().for_each(|kind| kind.scale = score_scale);
    // Read here so that a wrong number is found before any weights are read.
    multiplier(c, "residual_multiplier")?;
    let divisor = multiplier(c, "logits_scaling")?;
    ensure!(divisor != 0.0, "`logits_scaling` is {divisor}; expected a number to divide the logits by");
    Ok(a)
}

/// W_O, W_out and their biases have the multiplier of what they write.
fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let mut w = llama::layer(c, a, layer)?;
    let written = multiplier(c, "residual_multiplier")?;
    scale(&mut w.o, written);
    scale(&mut w.down, written);
    Ok(w)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let mut ends = llama::ends(c, a)?;
    scale_logits(&mut ends, multiplier(c, "logits_scaling")?.recip());
    Ok(ends)
}
