//! The `export` stage: ONNX graphs and one weights file, written from a checkpoint without Python.
//!
//! A block is two graphs, `attention_LL` and `mlp_LL`, so that an ablated run can begin anywhere: ablating a head
//! changes the stream between them. Around them: `embed`, `unembed`, `readout` (the final norm and the dot product
//! with the target's direction), `directions` (u and W_O u of every layer) and `ablate_LL` (the stream with one head's
//! output replaced). All refer to `weights.bin` by offset, so no weight is stored twice.

mod ends;
mod graphs;
mod onnx;
mod stored;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::model::Model;
use crate::progress;
use onnx::{Dim, GraphBuilder, WeightsFile};
use stored::{EndWeights, StoredLayer};

/// Names of the graph files, shared with the engine.
pub fn attention_graph(layer: usize) -> String {
    format!("attention_{layer:02}")
}

pub fn mlp_graph(layer: usize) -> String {
    format!("mlp_{layer:02}")
}

pub fn ablate_graph(layer: usize) -> String {
    format!("ablate_{layer:02}")
}

pub const EMBED: &str = "embed";
pub const UNEMBED: &str = "unembed";
pub const READOUT: &str = "readout";
pub const DIRECTIONS: &str = "directions";

const WEIGHTS: &str = "weights.bin";

/// Writes every graph of `model` for prompts of up to `prompt_len` tokens into `directory`, a layer at a time.
pub fn export(model: &Model, prompt_len: usize, directory: &Path) -> Result<()> {
    let a = &model.architecture;
    let bar = progress::bar("export", a.layers as u64 + 1, "layers");
    let mut weights = WeightsFile::create(&directory.join(WEIGHTS))?;
    let mut w_o = Vec::new();
    let mut attention_biases = Vec::new();
    for l in 0..a.layers {
        let layer = model.layer(l)?;
        let biases = layer.folded_biases(a);
        attention_biases.push(biases.o.clone());
        let stored = StoredLayer::append(&mut weights, l, layer, biases)?;
        graphs::attention(a, l, &stored, prompt_len, weights.name()).save(directory)?;
        graphs::mlp(a, l, &stored, weights.name()).save(directory)?;
        graphs::ablate(a, l, &stored, weights.name()).save(directory)?;
        w_o.push(stored.into_w_o());
        bar.inc(1);
    }
    let ends = EndWeights::append(&mut weights, model.ends()?, attention_biases)?;
    ends::embed(a, &ends, weights.name()).save(directory)?;
    ends::unembed(a, &ends, weights.name()).save(directory)?;
    ends::readout(a, weights.name()).save(directory)?;
    ends::directions(a, &ends, &w_o, weights.name()).save(directory)?;
    weights.finish()?;
    bar.finish_and_clear();
    model.check_nothing_was_left_out()
}

/// One matrix product x \[rows, inputs\] → y \[rows, outputs\] with constant weights, to measure the machine by.
pub fn matmul(inputs: usize, outputs: usize, directory: &Path) -> Result<PathBuf> {
    let name = format!("matmul_{inputs}_{outputs}");
    let mut weights = WeightsFile::create(&directory.join(format!("{name}.bin")))?;
    let values: Vec<f32> = (0..inputs * outputs).map(|i| (i % 89) as f32 / 89.0 - 0.5).collect();
    let stored = weights.append("W", &[inputs, outputs], &values)?;
    let mut g = GraphBuilder::new(&name, "A matrix product.", weights.name());
    let x = g.input("x", &[Dim::Name("rows"), Dim::Size(inputs)], "");
    let w = g.weight(&stored);
    g.node("MatMul", &[&x, &w], "y", vec![]);
    g.output("y", &[Dim::Name("rows"), Dim::Size(outputs)], "");
    g.save(directory)?;
    weights.finish()?;
    Ok(directory.join(format!("{name}.onnx")))
}
