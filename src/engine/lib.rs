//! Running the exported graphs: the clean pass, and ablated runs that start in the middle.
//!
//! Shapes as in `export::graphs`: B runs, S positions, D = d_model, H heads. Effects are dot products with the unscaled
//! direction `u`; they become direct effects when divided by the clean scale of the final norm.

pub mod batch;
mod blocks;
mod clean;
pub mod export;
pub mod hooks;
mod iterate;
mod lender;
pub mod library;
pub mod load;
mod next_readers;
mod operators;
mod posts;
pub mod rate;
pub mod residency;
pub mod runtime;
mod suffix;
mod weights;
mod worker_pool;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ort::value::DynValue;

use blocks::{Block, Blocks};
pub use clean::{CleanBatch, CleanEffects, Directions, Keep, Kept, WriteScales};
pub use iterate::{Addition, Response};
use next_readers::Combined;
pub use next_readers::HeadChange;
pub use posts::Posts;
pub use suffix::{Ablated, HoldMasks, Place, Suffix};
pub use worker_pool::WorkerPool;

use hooks::HookPoint;
use runtime::{Graph, Input, Runtime};
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::prompts::TargetRow;
use selfrepair_model::Architecture;
use weights::SharedWeights;

/// The graphs of one model, loaded and ready.
pub struct Engine {
    pub architecture: Architecture,
    embed: Graph,
    blocks: Blocks,
    /// Layers that read a replaced head by its difference.
    first_readers: Vec<usize>,
    readout: Graph,
    directions: Graph,
    /// These are loaded as [`Needs`] says.
    unembed: Option<Graph>,
    divergence: Option<Graph>,
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
    /// Positions of all prompts. How much memory they take decides how many layers can be there.
    pub rows: usize,
    /// Positions of the longest prompt.
    pub prompt_len: usize,
    /// How many partners each ablated prompt has.
    pub partners: usize,
}

impl Needs {
    /// What the `trace` stage needs.
    pub fn trace(rows: usize, prompt_len: usize) -> Self {
        Self { unembed: true, rows, prompt_len, ..Default::default() }
    }
}

impl Engine {
    /// Loads the graphs that `export` wrote into `directory`.
    pub fn load(a: &Architecture, directory: &Path, config: &RuntimeConfig, needs: &Needs) -> Result<Self> {
        let (runtime, weights) = (Runtime::get(config)?, SharedWeights::new(directory));
        let combined = next_readers::combined(a, directory, &runtime, &weights, needs, 1)?;
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
        let blocks = (0..a.layers).map(|layer| Block::load(a, layer, needs, combined, load)).collect::<Result<_>>()?;
        Self::with_blocks(a, Blocks::Own(blocks), combined.keys().copied().collect(), needs, load)
    }

    fn with_blocks(
        a: &Architecture,
        blocks: Blocks,
        first_readers: Vec<usize>,
        needs: &Needs,
        load: impl Fn(&str) -> Result<Graph>,
    ) -> Result<Self> {
        let some = |wanted: bool, name: &str| wanted.then(|| load(name)).transpose();
        Ok(Self {
            architecture: a.clone(),
            embed: load(export::EMBED)?,
            blocks,
            first_readers,
            readout: load(export::READOUT)?,
            directions: load(export::DIRECTIONS)?,
            unembed: some(needs.unembed, export::UNEMBED)?,
            divergence: some(needs.divergence, export::DIVERGENCE)?,
        })
    }

    /// Log-probabilities of `targets` [B · S], or the model's logits [B · S, vocab], after the final stream [B, S, D].
    fn unembed(&mut self, residual: Input<'_>, targets: &DynValue, output: HookPoint) -> Result<Vec<f32>> {
        let graph = self.unembed.as_mut().context("this engine was not loaded for trace")?;
        let inputs = vec![(HookPoint::Resid, residual), (HookPoint::Targets, targets.into())];
        let values = graph.run(inputs, &[output])?.take(output)?;
        Ok(runtime::view(&values)?.to_vec())
    }

    /// The model's logits, [S · vocab], of one prompt.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let target = TargetRow { answer: tokens.to_vec(), wrong: None, measured: 0..tokens.len() };
        let mut directions = self.directions(&[target])?;
        let clean = self.clean(&[tokens], &mut directions, &[])?;
        let targets = self::clean::token_tensor(&[tokens])?;
        self.unembed((&clean.residual_final).into(), &targets, HookPoint::Logits)
    }

    /// w = W_out u of the neurons of a layer, [P, S, M], after a clean pass. In a model that norms what the MLP writes,
    /// W_out (γ_post ⊙ u) over that norm's clean scale.
    pub fn neuron_directions(&mut self, layer: usize, directions: &Directions) -> Result<DynValue> {
        let inputs = vec![(HookPoint::U, Input::from(&directions.u))];
        let mut w = self.blocks.get(layer)?.neuron_directions()?.run(inputs, &[HookPoint::W])?.take(HookPoint::W)?;
        if let Some(scale) = directions.write_scales.mlp.get(layer) {
            clean::divide_rows(runtime::view_mut(&mut w)?, scale);
        }
        Ok(w)
    }

    /// Log-probability of the targets and Kullback-Leibler divergence, each \[S\], of one ablated run's final stream
    /// [1, S, D] against the clean one.
    pub fn divergence(
        &mut self,
        residual: Input<'_>,
        clean: Input<'_>,
        targets: &TargetRow,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let graph = self.divergence.as_mut().context("this engine was not loaded for distributions")?;
        let ids = clean::token_tensor(&[&targets.answer])?;
        let inputs =
            vec![(HookPoint::Resid, residual), (HookPoint::CleanResid, clean), (HookPoint::Targets, Input::from(&ids))];
        let mut outputs = graph.run(inputs, &[HookPoint::LogProb, HookPoint::Kl])?;
        let (log_prob, kl) = (outputs.take(HookPoint::LogProb)?, outputs.take(HookPoint::Kl)?);
        Ok((runtime::view(&log_prob)?.to_vec(), runtime::view(&kl)?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use ort::memory::AllocationDevice;

    use super::runtime::{int_tensor, memory_of, tensor, view};
    use super::*;
    use selfrepair_core::config::ModelConfig;
    use selfrepair_model::{Model, ModelSource};

    /// Of two runs with a head of layer 1 replaced: effects of heads, of MLPs, and of the final stream, and the stream; and
    /// what the layers of the clean run gave.
    type Numbers = [Vec<f32>; 5];

    struct Exported {
        model: Model,
        folder: tempfile::TempDir,
    }

    impl Exported {
        fn new(source: &str) -> Self {
            let config = ModelConfig { source: source.into(), ..Default::default() };
            let model = Model::open(ModelSource::resolve(&config).unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            export::export(&model, 16, folder.path()).unwrap();
            Self { model, folder }
        }

        /// By a runtime that `change` has changed; the first readers read by differences or not.
        fn ablated(&self, by_difference: bool, change: impl FnOnce(&mut Runtime)) -> Numbers {
            let (a, folder) = (&self.model.architecture, self.folder.path());
            let mut runtime = Runtime::get(&RuntimeConfig::default()).unwrap();
            change(&mut runtime);
            let weights = SharedWeights::new(folder);
            let reader = if a.parallel { 2 } else { 1 };
            let first_readers = if a.reads_by_difference() { vec![reader] } else { vec![] };
            let needs = Needs { ablate: true, first_readers, ..Default::default() };
            let combined = next_readers::combined(a, folder, &runtime, &weights, &needs, 1).unwrap();
            self.numbers(Engine::load_shared(a, folder, &runtime, &weights, &combined, &needs).unwrap(), by_difference)
        }

        /// With so many layers in memory at a time.
        fn with_lent_layers(&self, layers: usize) -> Numbers {
            let (a, folder, config) = (&self.model.architecture, self.folder.path(), RuntimeConfig::default());
            let runtime = Runtime::get(&config).unwrap();
            let needs = Needs { ablate: true, ..Default::default() };
            let lender = worker_pool::lender(a, folder, &config, &needs, &runtime, layers);
            let mut engines = worker_pool::with_lender(a, folder, &needs, &runtime, &lender, 1).unwrap();
            self.numbers(engines.remove(0), false)
        }

        fn numbers(&self, mut engine: Engine, by_difference: bool) -> Numbers {
            let a = &self.model.architecture;
            let reader = if a.parallel { 2 } else { 1 };
            let tokens: Vec<u32> = (3..19).collect();
            let target = TargetRow { answer: tokens.clone(), wrong: None, measured: 0..tokens.len() };
            let mut directions = engine.directions(&[target]).unwrap();
            let within = Keep { z: true, attention_out: true, mlp_out: true, post: true, ..Default::default() };
            let around = Keep { attention_linear: a.write_norms, ..within };
            let keep = vec![Keep { mid: true, residual_post: true, directions: true, ..around }; a.layers];
            let clean = engine.clean(&[&tokens], &mut directions, &keep).unwrap();
            let of_layer = &clean.layers[1];
            let (place, base) = match a.parallel {
                true => (Place::Post, of_layer.residual_post.as_ref().unwrap()),
                false => (Place::Mid, of_layer.mid.as_ref().unwrap()),
            };
            let size = 2 * tokens.len() * a.d_head;
            let z_change = (0..size).map(|i| (i as f32).sin()).collect();
            let z_change = tensor(&[2, tokens.len(), a.d_head], z_change).unwrap();
            let heads = int_tensor(&[2], vec![0, 2]).unwrap();
            let reads = engine.clean_reads(reader, base, of_layer.attention_out.as_ref()).unwrap();
            let (stream, write_scales) = match a.write_norms {
                false => (engine.replace_heads(1, base, 0..1, &heads, &z_change).unwrap(), None),
                true => {
                    let along = tensor(&[2, tokens.len()], vec![0.0; 2 * tokens.len()]).unwrap();
                    let changes = [&heads, &z_change, &along];
                    let replaced = engine.replace_heads_before_norm(1, of_layer, 0..1, changes, &directions).unwrap();
                    let clean = &directions.write_scales.attention[1];
                    let scales = [(1, clean), (2, &replaced.1)];
                    let scales = scales.map(|(n, scale)| tensor(&[n, tokens.len()], scale.clone()).unwrap());
                    (replaced.0, Some(scales))
                }
            };
            let suffix = Suffix {
                layer: 1,
                place,
                stream,
                prompts: 0..1,
                change: reads.as_ref().filter(|_| by_difference).map(|reads| HeadChange {
                    z_change,
                    heads,
                    clean: base,
                    reads,
                    write_scales,
                }),
                hold: None,
                neurons: &[],
                residual_final: true,
                clean: &clean,
                directions: &directions,
            };
            let found = engine.suffix(suffix).unwrap();
            let stream = view(found.residual_final.as_ref().unwrap()).unwrap().to_vec();
            let neurons = |l: &'_ Kept| view(&l.post.as_ref().unwrap().neurons).unwrap().to_vec();
            let others = clean.layers.iter().flat_map(|l| [&l.z, &l.attention_out, &l.mlp_out]);
            let others = others.flat_map(|x| view(x.as_ref().unwrap()).unwrap()).copied();
            let kept = others.chain(clean.layers.iter().flat_map(neurons)).collect();
            [found.head_effects.concat(), found.mlp_effects.concat(), found.dot, stream, kept]
        }
    }

    /// As on a GPU, but that the device whose memory is bound is the host.
    #[test]
    fn streams_that_stay_on_a_device_give_the_same_numbers() {
        let exported = Exported::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-llama"));
        for by_difference in [false, true] {
            let unbound = exported.ablated(by_difference, |_| ());
            assert!(unbound.iter().flatten().all(|x| x.is_finite()));
            let bound = exported.ablated(by_difference, |runtime| {
                runtime.memory = Some(memory_of(AllocationDevice::CPU, 0).unwrap());
            });
            assert_eq!(bound, unbound);
        }
    }

    /// Weights are not prepacked there, and first readers read the stream.
    #[test]
    fn layers_that_are_lent_give_the_same_numbers() {
        for family in ["gpt2", "gemma2", "phi", "gpt_oss"] {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/families");
            let exported = Exported::new(&format!("{folder}/{family}"));
            let all = exported.ablated(false, |_| ());
            for layers in [1, 2, 3] {
                let lent = exported.with_lent_layers(layers);
                for (lent, all) in lent.iter().zip(&all) {
                    let largest = all.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let far = lent.iter().zip(all).find(|(a, b)| (*a - *b).abs() > 1e-5 * largest.max(1.0));
                    assert_eq!((far, lent.len()), (None, all.len()), "{family}");
                }
            }
        }
    }

    /// Of every family, whose activations, biases, norms and shapes differ.
    #[test]
    fn operators_of_our_own_give_the_standard_ones_numbers() {
        for family in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/families")).unwrap()
        {
            let path = family.unwrap().path();
            let exported = Exported::new(path.to_str().unwrap());
            for by_difference in [false, true] {
                let fused = exported.ablated(by_difference, |_| ());
                let standard = exported.ablated(by_difference, |runtime| runtime.fused = None);
                let padded = exported.ablated(by_difference, |runtime| runtime.fused = Some(1));
                for (own, standard) in fused.iter().chain(&padded).zip(standard.iter().chain(&standard)) {
                    let largest = standard.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let far = own.iter().zip(standard).find(|(a, b)| (*a - *b).abs() > 1e-5 * largest.max(1.0));
                    assert_eq!(far, None, "{}, by difference: {by_difference}", path.display());
                }
                assert_ne!(fused, standard, "{}: nothing was fused", path.display());
            }
        }
    }
}
