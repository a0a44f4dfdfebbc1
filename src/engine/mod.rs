//! Running the exported graphs: the clean pass, and ablated runs that start in the middle.
//!
//! Shapes as in `export::graphs`: B runs, S positions, D = d_model, H heads. Effects are dot products with the unscaled
//! direction `u`; they become direct effects when divided by the clean scale of the final norm.

mod clean;
pub mod rate;
pub mod runtime;
mod suffix;

use std::path::Path;

use anyhow::{Context, Result};
use ort::value::DynValue;

pub use clean::{CleanBatch, CleanEffects, Directions, Keep};
pub use suffix::{Ablated, AblatedRun};

use crate::config::RuntimeConfig;
use crate::export;
use crate::model::Architecture;
use runtime::{Graph, Input, Runtime};

/// The graphs of one model, loaded and ready.
pub struct Engine {
    pub architecture: Architecture,
    embed: Graph,
    attention: Vec<Graph>,
    mlp: Vec<Graph>,
    readout: Graph,
    directions: Graph,
    /// Only the clean pass over the corpus needs the whole distribution.
    unembed: Option<Graph>,
    /// Only ablated runs need them.
    ablate: Vec<Graph>,
}

/// What an engine is loaded for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Trace,
    Ablate,
}

impl Engine {
    /// Loads the graphs that `export` wrote into `directory`.
    pub fn load(a: &Architecture, directory: &Path, config: &RuntimeConfig, purpose: Purpose) -> Result<Self> {
        let runtime = Runtime::get(config)?;
        let bar = crate::progress::bar("load", 2 * a.layers as u64 + 4, "graphs");
        let load = |name: &str| -> Result<Graph> {
            let graph = runtime.load(&directory.join(format!("{name}.onnx")))?;
            bar.inc(1);
            Ok(graph)
        };
        let engine = Self {
            architecture: a.clone(),
            embed: load(export::EMBED)?,
            attention: (0..a.layers).map(|l| load(&export::attention_graph(l))).collect::<Result<_>>()?,
            mlp: (0..a.layers).map(|l| load(&export::mlp_graph(l))).collect::<Result<_>>()?,
            readout: load(export::READOUT)?,
            directions: load(export::DIRECTIONS)?,
            unembed: if purpose == Purpose::Trace { Some(load(export::UNEMBED)?) } else { None },
            ablate: match purpose {
                Purpose::Trace => vec![],
                Purpose::Ablate => (0..a.layers).map(|l| load(&export::ablate_graph(l))).collect::<Result<_>>()?,
            },
        };
        bar.finish_and_clear();
        Ok(engine)
    }

    /// Log-probabilities of `targets` [B · S], or the model's logits [B · S, vocab], after the final stream [B, S, D].
    fn unembed(&mut self, residual: Input<'_>, targets: &DynValue, output: &'static str) -> Result<Vec<f32>> {
        let graph = self.unembed.as_mut().context("this engine was not loaded for trace")?;
        let [values] = graph.run([("residual", residual), ("targets", targets.into())], [output])?;
        Ok(runtime::view(&values)?.to_vec())
    }

    /// The model's logits, [S · vocab], of one prompt.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let directions = self.directions(&[tokens])?;
        let clean = self.clean(&[tokens], &directions, &[])?;
        let targets = self::clean::token_tensor(&[tokens])?;
        self.unembed((&clean.residual_final).into(), &targets, "logits")
    }
}
