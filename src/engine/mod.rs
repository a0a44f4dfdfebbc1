//! Running the exported graphs: the clean pass, and ablated runs that start in the middle.
//!
//! Shapes as in `export::graphs`: B runs, S positions, D = d_model, H heads. Effects are dot products with the unscaled
//! direction `u`; they become direct effects when divided by the clean scale of the final norm.

mod after_head;
mod clean;
mod crew;
mod iterate;
pub mod rate;
pub mod runtime;
mod suffix;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ort::value::DynValue;

pub use after_head::HeadChange;
use after_head::{Combined, FirstReaders};
pub use clean::{CleanBatch, CleanEffects, Directions, Keep, Kept, TargetRow};
pub use crew::Crew;
pub use iterate::{Addition, Response};
pub use suffix::{Ablated, HoldMasks, Place, Suffix};

use crate::config::RuntimeConfig;
use crate::export;
use crate::model::Architecture;
use runtime::{Graph, Input, Runtime};
use weights::SharedWeights;

/// The graphs of one model, loaded and ready.
pub struct Engine {
    pub architecture: Architecture,
    embed: Graph,
    attention: Vec<Graph>,
    mlp: Vec<Graph>,
    readout: Graph,
    directions: Graph,
    /// The rest is loaded as [`Needs`] says, a graph a layer or none.
    unembed: Option<Graph>,
    divergence: Option<Graph>,
    ablate: Vec<Graph>,
    attention_held: Vec<Graph>,
    mlp_held: Vec<Graph>,
    attention_masked: Vec<Graph>,
    head_outputs: Vec<Graph>,
    neuron_directions: Vec<Option<Graph>>,
    /// Of the layers that read a replaced head first.
    first_readers: BTreeMap<usize, FirstReaders>,
}

/// What an engine is loaded for, besides clean passes and running suffixes.
#[derive(Clone, Default)]
pub struct Needs {
    /// Whole distributions of the clean pass.
    pub unembed: bool,
    /// Replacing heads' z.
    pub ablate: bool,
    /// Holding later components.
    pub hold: bool,
    /// Comparing whole distributions of ablated runs.
    pub divergence: bool,
    /// Adding to what heads read, and their outputs.
    pub iterate: bool,
    /// Layers whose neurons are measured one by one.
    pub neurons: Vec<usize>,
    /// Layers that read a replaced head first, and are to do so by its difference.
    pub first_readers: Vec<usize>,
}

impl Needs {
    /// What the `trace` stage needs.
    pub fn trace() -> Self {
        Self { unembed: true, ..Default::default() }
    }
}

impl Engine {
    /// Loads the graphs that `export` wrote into `directory`.
    pub fn load(a: &Architecture, directory: &Path, config: &RuntimeConfig, needs: &Needs) -> Result<Self> {
        let (runtime, weights) = (Runtime::get(config)?, SharedWeights::new(directory));
        let combined = after_head::combined(a, directory, &runtime, &weights, needs)?;
        Self::load_shared(a, directory, &runtime, &weights, &combined, needs)
    }

    /// As [`Engine::load`], with weights that other engines use too.
    fn load_shared(
        a: &Architecture,
        directory: &Path,
        runtime: &Runtime,
        weights: &SharedWeights,
        combined: &BTreeMap<usize, Arc<Combined>>,
        needs: &Needs,
    ) -> Result<Self> {
        let load = |name: &str| runtime.load(&directory.join(format!("{name}.onnx")), weights);
        let each = |wanted: bool, name: fn(usize) -> String| -> Result<Vec<Graph>> {
            (0..if wanted { a.layers } else { 0 }).map(|l| load(&name(l))).collect()
        };
        let some = |wanted: bool, name: &str| wanted.then(|| load(name)).transpose();
        let readers = combined.iter().map(|(&l, combined)| Ok((l, FirstReaders::load(a, l, combined, load)?)));
        let neurons = |l| some(needs.neurons.contains(&l), &export::neuron_directions_graph(l));
        Ok(Self {
            architecture: a.clone(),
            embed: load(export::EMBED)?,
            attention: each(true, export::attention_graph)?,
            mlp: each(true, export::mlp_graph)?,
            readout: load(export::READOUT)?,
            directions: load(export::DIRECTIONS)?,
            unembed: some(needs.unembed, export::UNEMBED)?,
            divergence: some(needs.divergence, export::DIVERGENCE)?,
            ablate: each(needs.ablate, export::ablate_graph)?,
            attention_held: each(needs.hold, export::attention_held_graph)?,
            mlp_held: each(needs.hold, export::mlp_held_graph)?,
            attention_masked: each(needs.iterate, export::attention_masked_graph)?,
            head_outputs: each(needs.iterate, export::head_outputs_graph)?,
            neuron_directions: (0..a.layers).map(neurons).collect::<Result<_>>()?,
            first_readers: readers.collect::<Result<_>>()?,
        })
    }

    /// Log-probabilities of `targets` [B · S], or the model's logits [B · S, vocab], after the final stream [B, S, D].
    fn unembed(&mut self, residual: Input<'_>, targets: &DynValue, output: &'static str) -> Result<Vec<f32>> {
        let graph = self.unembed.as_mut().context("this engine was not loaded for trace")?;
        let [values] = graph.run([("residual", residual), ("targets", targets.into())], [output])?;
        Ok(runtime::view(&values)?.to_vec())
    }

    /// The model's logits, [S · vocab], of one prompt.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let target = TargetRow { answer: tokens.to_vec(), wrong: None, measured: 0..tokens.len() };
        let directions = self.directions(&[target])?;
        let clean = self.clean(&[tokens], &directions, &[])?;
        let targets = self::clean::token_tensor(&[tokens])?;
        self.unembed((&clean.residual_final).into(), &targets, "logits")
    }

    /// w = W_out u of the neurons of a layer, [P, S, M].
    pub fn neuron_directions(&mut self, layer: usize, directions: &Directions) -> Result<DynValue> {
        let graph = self.neuron_directions[layer].as_mut().context("this engine was not loaded for neurons")?;
        let [w] = graph.run([("u", Input::from(&directions.u))], ["w"])?;
        Ok(w)
    }

    /// Log-probability of the targets and Kullback-Leibler divergence, each [S], of one ablated run's final stream
    /// [1, S, D] against the clean one.
    pub fn divergence(
        &mut self,
        residual: Input<'_>,
        clean: Input<'_>,
        targets: &TargetRow,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let graph = self.divergence.as_mut().context("this engine was not loaded for distributions")?;
        let ids = clean::token_tensor(&[&targets.answer])?;
        let inputs = [("residual", residual), ("clean_residual", clean), ("targets", Input::from(&ids))];
        let [log_prob, kl] = graph.run(inputs, ["log_prob", "kl"])?;
        Ok((runtime::view(&log_prob)?.to_vec(), runtime::view(&kl)?.to_vec()))
    }
}
