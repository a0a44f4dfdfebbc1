//! The `export` stage: ONNX graphs and one weights file, written from a checkpoint without Python.
//!
//! A block is two graphs, `attention_LL` and `mlp_LL`, so that an ablated run can begin anywhere: ablating a head
//! changes the stream between them. Around them: `embed`, `unembed`, `readout` (the final norm and the dot product
//! with the target's direction), `directions` (u and W_O u of every layer) and `ablate` (the stream with one head's
//! output replaced). All refer to `weights.bin` by offset, so no weight is stored twice.

mod graphs;
mod onnx;

use std::path::Path;

use anyhow::Result;

use crate::model::Model;
use crate::progress;
use graphs::{EndWeights, StoredLayer};
use onnx::WeightsFile;

/// Names of the graph files, shared with the engine.
pub fn attention_graph(layer: usize) -> String {
    format!("attention_{layer:02}")
}

pub fn mlp_graph(layer: usize) -> String {
    format!("mlp_{layer:02}")
}

pub const EMBED: &str = "embed";
pub const UNEMBED: &str = "unembed";
pub const READOUT: &str = "readout";
pub const DIRECTIONS: &str = "directions";
pub const ABLATE: &str = "ablate";

const WEIGHTS: &str = "weights.bin";

/// Writes every graph of `model` for prompts of up to `prompt_len` tokens into `directory`.
pub fn export(model: &Model, prompt_len: usize, directory: &Path) -> Result<()> {
    let a = &model.architecture;
    let bar = progress::bar("export", 2 * a.layers as u64 + 1, "layers");
    let mut weights = WeightsFile::create(&directory.join(WEIGHTS))?;

    // All W_O first and without gaps: `ablate` reads them as one tensor, `attention` and `directions` one by one.
    let mut w_o = Vec::new();
    for l in 0..a.layers {
        let matrix = model.w_o(l)?;
        w_o.push(weights.append(&format!("W_O_{l}"), matrix.shape(), matrix.as_slice().unwrap_or(&[]), l == 0)?);
        bar.inc(1);
    }
    for (l, w_o) in w_o.iter().enumerate() {
        let stored = StoredLayer::append(&mut weights, model.layer(l)?, w_o.clone())?;
        graphs::attention(a, l, &stored, prompt_len, weights.name()).save(directory)?;
        graphs::mlp(a, l, &stored, weights.name()).save(directory)?;
        bar.inc(1);
    }
    let ends = EndWeights::append(&mut weights, model.ends()?)?;
    graphs::embed(a, &ends, weights.name()).save(directory)?;
    graphs::unembed(a, &ends, weights.name()).save(directory)?;
    graphs::readout(a, weights.name()).save(directory)?;
    graphs::directions(a, &ends, &w_o, weights.name()).save(directory)?;
    graphs::ablate(a, &w_o, weights.name()).save(directory)?;
    weights.finish()?;
    bar.finish_and_clear();
    Ok(())
}
