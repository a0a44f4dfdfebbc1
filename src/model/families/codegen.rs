//! CodeGen (`CodeGenForCausalLM`): as GPT-J, with one matrix for q, v and k, in four parts.

use anyhow::{Result, ensure};

use super::Family;
use super::common::{linear, outputs};
use super::gptj;
use super::keys::Kind;
use crate::architecture::{Architecture, LayerWeights};
use crate::checkpoint::Checkpoint;

pub const FAMILY: Family = Family {
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("resid_pdrop", Kind::Share),
        ("embd_pdrop", Kind::Share),
        ("attn_pdrop", Kind::Number),
        ("n_ctx", Kind::Whole(2048)),
    ],
    classes: &["CodeGenForCausalLM", "CodeGenModel"],
    layer,
    architecture,
    ..gptj::FAMILY
};

/// The devices of the training, each of which had its share of the heads (transformers: `mp_num`).
const PARTS: usize = 4;

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let a = gptj::architecture(c)?;
    ensure!(
        a.d_model.is_multiple_of(PARTS),
        "the matrix for q, v and k has {PARTS} parts, which cannot share a width of {} (`n_embd`) evenly",
        a.d_model
    );
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let d = a.d_model;
    let qvk = linear(c, &format!("transformer.h.{layer}.attn.qkv_proj"), d, 3 * d, false)?;
    let each = d / PARTS;
    // Each part has its queries, then its values, then its keys.
    let part = |which: usize| outputs(&qvk, (0..d).map(|i| (i / each * 3 + which) * each + i % each));
    gptj::block(c, a, layer, [part(0), part(2), part(1)])
}
