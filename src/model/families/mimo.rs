//! MiMo (`MiMoForCausalLM`): as Qwen 2. Its layers that predict later tokens (`mtp_layers`) are no part of the causal
//! model and are left out.

use anyhow::{Result, ensure};

use super::common::refuse;
use super::keys::{Kind, QWEN_WINDOWS, ROTARY, SIZES, UNUSED_BY_MOST};
use super::{Family, llama, windows};
use crate::architecture::{Architecture, Ends};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        QWEN_WINDOWS,
        &[
            ("max_position_embeddings", Kind::Whole(32_768)),
            ("num_key_value_heads", Kind::MaybeWhole(Some(32))),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("silu")),
            ("rms_norm_eps", Kind::Float(1e-6)),
            ("num_nextn_predict_layers", Kind::Whole(0)),
            ("use_mrope", Kind::Any),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["MiMoForCausalLM", "MiMoModel"],
    architecture,
    layer: llama::layer,
    ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = llama::llama_like(c)?;
    refuse(c, "use_mrope", |v| v != false)?;
    a.biases.qkv = true;
    windows::of_qwen(c, &mut a)?;
    Ok(a)
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let predicting = c.key("num_nextn_predict_layers").as_u64().unwrap_or(0);
    for layer in 0..predicting {
        let count = c.leave_out(&format!("model.mtp_layers.{layer}."));
        ensure!(
            count > 0,
            "`num_nextn_predict_layers` is {predicting}, but the checkpoint has no tensors `model.mtp_layers.{layer}`"
        );
    }
    llama::ends(c, a)
}
