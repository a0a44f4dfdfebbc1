//! The next readers of an ablated head. They compute the difference from the clean stream (formula in
//! `export::readers`): products with inner dimension d_head instead of d_model.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use anyhow::{Context, Result, anyhow};
use ort::value::DynValue;

use super::hooks::Projection;
use super::runtime::{Graph, Input, Inputs, Runtime, rows};
use super::weights::SharedWeights;
use super::{Engine, Needs};
use crate::export;
use crate::hooks::{HookPoint, Outputs};
use selfrepair_model::Architecture;

/// W_O γ W of every head, [H, d_head, N], for the attention's readers and the MLP's.
pub struct Combined {
    attention: Vec<DynValue>,
    mlp: Vec<DynValue>,
}

/// One layer's graphs.
pub struct FirstReaders {
    clean_reads: Graph,
    /// Where attention is among the first readers.
    attention: Option<Graph>,
    mlp: Graph,
    combined: Arc<Combined>,
}

/// Which half of a block reads.
#[derive(Clone, Copy)]
pub enum Part {
    Attention,
    Mlp,
}

/// What the first readers of B runs need besides the stream.
pub struct HeadChange<'a> {
    /// Replacement z less clean z, [B, S, d_head].
    pub z_change: DynValue,
    /// Which head each run replaces, \[B\].
    pub heads: DynValue,
    /// The clean stream that the heads wrote to, [P, S, D] over the clean batch.
    pub clean: &'a DynValue,
    /// What the readers read of it: [`Engine::clean_reads`].
    pub reads: &'a [DynValue],
    /// Where what attention writes is normed, that norm's scale in the clean batch, [P, S], and with the head replaced,
    /// [B, S].
    pub write_scales: Option<[DynValue; 2]>,
}

/// The combined weights of the layers that an engine needs them of, to be shared by engines; computed by so many threads.
pub fn combined(
    a: &Architecture,
    directory: &Path,
    runtime: &Runtime,
    weights: &SharedWeights,
    needs: &Needs,
    threads: usize,
) -> Result<BTreeMap<usize, Arc<Combined>>> {
    let (attention, mlp) = export::readers(a);
    let points = |projections: &[Projection]| -> Vec<HookPoint> {
        projections.iter().map(|&projection| HookPoint::OfHeads(projection)).collect()
    };
    let (of_attention, of_mlp) = (points(attention), points(mlp));
    let of_layer = |layer: usize| {
        let mut graph = runtime.load(&directory.join(format!("{}.onnx", export::combined_graph(layer))), weights)?;
        let mut outputs = graph.run(vec![], &[&of_attention[..], &of_mlp].concat())?;
        let mut take = |points: &[HookPoint]| points.iter().map(|&point| outputs.take(point)).collect::<Result<_>>();
        Ok((layer, Arc::new(Combined { attention: take(&of_attention)?, mlp: take(&of_mlp)? })))
    };
    let next = AtomicUsize::new(0);
    let some = || -> Result<Vec<_>> {
        let layers = std::iter::from_fn(|| needs.first_readers.get(next.fetch_add(1, Relaxed)));
        layers.map(|&layer| of_layer(layer)).collect()
    };
    let combined = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?).collect::<Result<Vec<_>>>()
    })?;
    weights.release();
    Ok(combined.into_iter().flatten().collect())
}

impl FirstReaders {
    pub fn load(
        a: &Architecture,
        layer: usize,
        combined: &Arc<Combined>,
        load: &impl Fn(&str) -> Result<Graph>,
    ) -> Result<Self> {
        Ok(Self {
            clean_reads: load(&export::clean_reads_graph(layer))?,
            attention: a.parallel.then(|| load(&export::attention_after_head_graph(layer))).transpose()?,
            mlp: load(&export::mlp_after_head_graph(layer))?,
            combined: combined.clone(),
        })
    }
}

impl Engine {
    /// What the first readers in `layer` read of a clean stream [P, S, D], [P, S, N] each, and then, where what attention
    /// writes is normed, of that; nothing if the engine was not loaded to read by differences there.
    pub fn clean_reads(
        &mut self,
        layer: usize,
        clean: &DynValue,
        attention_out: Option<&DynValue>,
    ) -> Result<Option<Vec<DynValue>>> {
        if !self.first_readers.contains(&layer) {
            return Ok(None);
        }
        let (attention, mlp) = export::readers(&self.architecture);
        let projections = || attention.iter().chain(mlp);
        let mut points: Vec<HookPoint> = projections().map(|&p| HookPoint::CleanRead(p)).collect();
        let mut inputs = vec![(HookPoint::Resid, Input::from(clean))];
        if self.architecture.write_norms {
            let written = attention_out.context("the clean pass did not keep what attention writes")?;
            inputs.push((HookPoint::AttnOut, Input::from(written)));
            points.extend(projections().map(|&p| HookPoint::CleanAttnRead(p)));
        }
        let mut block = self.blocks.get(layer)?;
        let mut outputs = block.first_readers()?.clean_reads.run(inputs, &points)?;
        points.into_iter().map(|point| outputs.take(point)).collect::<Result<_>>().map(Some)
    }

    /// Runs the attention or the MLP that reads a replaced head first; `inputs` are those of the usual graph, and `shape`
    /// is the stream's.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn read_first(
        &mut self,
        layer: usize,
        part: Part,
        inputs: Inputs,
        prompts: Range<usize>,
        shape: &[i64],
        change: &HeadChange,
        outputs: &[HookPoint],
    ) -> Result<Outputs> {
        let (attention, mlp) = export::readers(&self.architecture);
        let mut block = self.blocks.get(layer)?;
        let own = block.first_readers()?;
        let (graph, readers, first, combined) = match part {
            Part::Attention => (own.attention.as_mut(), attention, 0, &own.combined.attention),
            Part::Mlp => (Some(&mut own.mlp), mlp, attention.len(), &own.combined.mlp),
        };
        let (of_stream, of_written) = change.reads.split_at(attention.len() + mlp.len());
        let mut inputs = inputs;
        if self.architecture.read_norms {
            inputs.push((HookPoint::CleanResid, rows(change.clean, prompts.clone())?));
        }
        if let Some([clean, replaced]) = &change.write_scales {
            inputs.push((HookPoint::CleanAttnWriteScale, rows(clean, prompts.clone())?));
            inputs.push((HookPoint::AttnWriteScale, Input::from(replaced)));
            for (&projection, read) in readers.iter().zip(&of_written[first..]) {
                inputs.push((HookPoint::CleanAttnRead(projection), rows(read, prompts.clone())?));
            }
        }
        inputs.push((HookPoint::ZChange, Input::from(&change.z_change)));
        inputs.push((HookPoint::Head, Input::from(&change.heads)));
        for ((&projection, read), combined) in readers.iter().zip(&of_stream[first..]).zip(combined) {
            inputs.push((HookPoint::CleanRead(projection), rows(read, prompts.clone())?));
            inputs.push((HookPoint::OfHeads(projection), Input::from(combined)));
        }
        graph.context("this attention is not among the first readers")?.run_on_device(inputs, outputs, shape)
    }
}
