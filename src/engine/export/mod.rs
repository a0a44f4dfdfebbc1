//! The `export` stage: writes ONNX graphs and one weights file from a checkpoint, without Python.
//!
//! A block is two graphs, `attention_LL` and `mlp_LL`, so that an ablated run can start anywhere: ablating a head
//! changes the stream between them. The other graphs of every run are `embed`, `unembed`, `readout` (the final norm and
//! the dot product with the target's direction), `directions` (u), `head_directions_LL` (W_O u) and `ablate_LL` (the stream
//! with one head's output replaced). Graphs that only some runs need are blocks with held components, blocks with
//! another order of attention, directions of neurons, the output of each head, and `divergence` (compares two
//! distributions). `readers` has the projections that read an ablated head first. All graphs refer to `weights.bin` by
//! offset, so no weight is stored twice.

mod element;
mod embed_unembed;
mod experts;
mod graphs;
mod masks;
pub(crate) mod onnx;
mod readers;
mod stored;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use graphs::Variant;
pub use onnx::ExternalWeight;
use onnx::{Dim, GraphBuilder, ModelProto, Role, WeightsFile};
use prost::Message;
use selfrepair_core::interrupt;
use selfrepair_core::own_files::read_record;
use selfrepair_core::progress;
use selfrepair_model::{Model, Norm};

use crate::hooks::HookPoint;
pub use readers::readers;
use stored::{EndWeights, HeadWeights, StoredLayer};

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

/// As [`attention_graph`], with heads held at given values.
pub fn attention_held_graph(layer: usize) -> String {
    format!("attention_held_{layer:02}")
}

/// As [`attention_graph`], with who attends to whom as an input.
pub fn attention_masked_graph(layer: usize) -> String {
    format!("attention_masked_{layer:02}")
}

/// As [`mlp_graph`], with the output held at a given value.
pub fn mlp_held_graph(layer: usize) -> String {
    format!("mlp_held_{layer:02}")
}

/// As [`attention_graph`], the first to read a replaced head.
pub fn attention_after_head_graph(layer: usize) -> String {
    format!("attention_after_head_{layer:02}")
}

/// As [`mlp_graph`], the first to read a replaced head.
pub fn mlp_after_head_graph(layer: usize) -> String {
    format!("mlp_after_head_{layer:02}")
}

/// What the first readers of a replaced head read of the clean stream.
pub fn clean_reads_graph(layer: usize) -> String {
    format!("clean_reads_{layer:02}")
}

/// What they read of each head.
pub fn combined_graph(layer: usize) -> String {
    format!("combined_{layer:02}")
}

pub fn head_directions_graph(layer: usize) -> String {
    format!("head_directions_{layer:02}")
}

pub fn neuron_directions_graph(layer: usize) -> String {
    format!("neuron_directions_{layer:02}")
}

pub fn head_outputs_graph(layer: usize) -> String {
    format!("head_outputs_{layer:02}")
}

pub const DIVERGENCE: &str = "divergence";
pub const EMBED: &str = "embed";
pub const UNEMBED: &str = "unembed";
pub const READOUT: &str = "readout";
pub const DIRECTIONS: &str = "directions";

const WEIGHTS: &str = "weights.bin";

/// Whether a folder's graphs have the form that this program writes.
pub fn is_of_this_version(directory: &Path) -> bool {
    let bytes = read_record(&directory.join(format!("{EMBED}.onnx"))).ok();
    let model = bytes.and_then(|bytes| ModelProto::decode(bytes.as_slice()).ok());
    model.is_some_and(|model| model.model_version == onnx::VERSION)
}

/// Writes every graph of `model` for prompts of up to `prompt_len` tokens into `directory`, a layer at a time.
pub fn export(model: &Model, prompt_len: usize, directory: &Path) -> Result<()> {
    let a = &model.architecture;
    ensure!(
        !a.write_norms || (a.norm == Norm::Rms && !a.parallel),
        "{}: norms on what parts write are supported as RMS norms of serial blocks only",
        a.family
    );
    let bar = progress::bar("export", a.layers as u64 + 1, "layers");
    let mut weights = WeightsFile::create(&directory.join(WEIGHTS))?;
    let mut heads: Vec<HeadWeights> = Vec::new();
    let mut attention_biases = Vec::new();
    for l in 0..a.layers {
        interrupt::check()?;
        let layer = model.layer(l)?;
        let biases = layer.folded_biases(a);
        let gamma = layer.write_norms.as_ref().map(|norms| &norms.attention);
        attention_biases.push(biases.o.as_ref().map(|b| gamma.map_or_else(|| b.clone(), |gamma| b * gamma)));
        let stored = StoredLayer::append(&mut weights, a, l, layer, biases)?;
        for variant in [Variant::Plain, Variant::Held, Variant::Masked] {
            graphs::attention(a, l, &stored, prompt_len, weights.name(), variant).save(directory)?;
        }
        for variant in [Variant::Plain, Variant::Held] {
            graphs::mlp(a, l, &stored, weights.name(), variant).save(directory)?;
        }
        graphs::head_directions(a, l, &stored, weights.name()).save(directory)?;
        graphs::neuron_directions(a, l, &stored, weights.name()).save(directory)?;
        graphs::head_outputs(a, l, &stored, weights.name()).save(directory)?;
        match &stored.write_norms {
            None => graphs::ablate(a, l, &stored, weights.name()).save(directory)?,
            Some((gamma, _)) => graphs::ablate_before_norm(a, l, &stored, gamma, weights.name()).save(directory)?,
        }
        let own = stored.head_weights();
        let before = if a.parallel { l.checked_sub(1).map(|before| &heads[before]) } else { Some(&own) };
        if let Some(writes) = before.filter(|_| a.reads_by_difference()) {
            if a.parallel {
                graphs::attention(a, l, &stored, prompt_len, weights.name(), Variant::AfterHead).save(directory)?;
            }
            graphs::mlp(a, l, &stored, weights.name(), Variant::AfterHead).save(directory)?;
            readers::clean_reads(a, l, &stored, weights.name()).save(directory)?;
            readers::combined(a, l, &stored, writes, weights.name()).save(directory)?;
        }
        heads.push(own);
        bar.inc(1);
    }
    let ends = EndWeights::append(&mut weights, model.ends()?, attention_biases)?;
    embed_unembed::embed(a, &ends, weights.name()).save(directory)?;
    embed_unembed::unembed(a, &ends, weights.name()).save(directory)?;
    embed_unembed::divergence(a, &ends, weights.name()).save(directory)?;
    embed_unembed::readout(a, weights.name()).save(directory)?;
    embed_unembed::directions(a, &ends, weights.name()).save(directory)?;
    weights.finish()?;
    bar.finish();
    model.check_nothing_was_left_out()
}

/// The smallest graph there is: y = x.
pub fn identity() -> Vec<u8> {
    let mut g = GraphBuilder::new("identity", Role::Exact, "y = x", "");
    let x = g.input(HookPoint::X, &[], "");
    g.node("Identity", &[&x], "y", vec![]);
    g.output(HookPoint::Y, &[], "");
    g.bytes()
}

/// One matrix product x \[rows, inputs\] → y \[rows, outputs\] with constant weights, to measure the machine by.
pub fn matmul(inputs: usize, outputs: usize, directory: &Path) -> Result<PathBuf> {
    let name = format!("matmul_{inputs}_{outputs}");
    let mut weights = WeightsFile::create(&directory.join(format!("{name}.bin")))?;
    let values: Vec<f32> = (0..inputs * outputs).map(|i| (i % 89) as f32 / 89.0 - 0.5).collect();
    let stored = weights.append("W", &[inputs, outputs], &values)?;
    let mut g = GraphBuilder::new(&name, Role::Projections, "A matrix product.", weights.name());
    let x = g.input(HookPoint::X, &[Dim::Name("rows"), Dim::Size(inputs)], "");
    let w = g.weight(&stored);
    g.node("MatMul", &[&x, &w], "y", vec![]);
    g.output(HookPoint::Y, &[Dim::Name("rows"), Dim::Size(outputs)], "");
    g.save(directory)?;
    weights.finish()?;
    Ok(directory.join(format!("{name}.onnx")))
}
