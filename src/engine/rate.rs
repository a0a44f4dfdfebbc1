//! The machine's own speed: ONNX Runtime's MatMul on a model's shapes, which is what a run's time is held against.

use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::runtime::{Graph, Input, Runtime, tensor};
use super::weights::SharedWeights;
use crate::config::RuntimeConfig;
use crate::export;
use crate::model::Architecture;

const ROWS: usize = 1024;
/// Operations of one measurement on a thread, about.
const WORK: f64 = 2e10;
/// Measurements of a shape, of which the median counts: a machine shared with others has fast and slow moments.
const MEASUREMENTS: usize = 9;

/// Every graph on a thread of its own, each with its rows: operations a second of all together.
fn rate_of(graphs: &mut [Graph], inputs: usize, outputs: usize) -> Result<f64> {
    let x: Vec<f32> = (0..ROWS * inputs).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let start = Instant::now();
    let threads = graphs.len();
    let product = 2.0 * (ROWS * inputs * outputs) as f64;
    let times = ((WORK / product) as usize).max(1);
    thread::scope(|scope| {
        let run = |graph: &mut Graph| -> Result<()> {
            let x = tensor(&[ROWS, inputs], x.clone())?;
            (0..times).try_for_each(|_| graph.run_all([("x", Input::from(&x))], &["y"]).map(|_| ()))
        };
        let handles: Vec<_> = graphs.iter_mut().map(|graph| scope.spawn(move || run(graph))).collect();
        handles.into_iter().try_for_each(|h| h.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok((threads * times) as f64 * product / start.elapsed().as_secs_f64())
}

/// Floating-point operations a second of the best of the model's own matrix products, on 1024 rows.
pub fn matmul_rate(a: &Architecture, config: &RuntimeConfig) -> Result<f64> {
    let runtime = Runtime::get(config)?;
    let folder = tempfile::tempdir()?;
    let mut best = 0f64;
    for (inputs, outputs) in [(a.d_model, a.d_model), (a.d_model, a.d_mlp), (a.d_mlp, a.d_model)] {
        let path = export::matmul(inputs, outputs, folder.path())?;
        let weights = SharedWeights::new(folder.path());
        let mut graphs: Vec<Graph> =
            (0..config.thread_count()).map(|_| runtime.load(&path, &weights)).collect::<Result<_>>()?;
        let mut rates: Vec<f64> =
            (0..MEASUREMENTS).map(|_| rate_of(&mut graphs, inputs, outputs)).collect::<Result<_>>()?;
        rates.sort_by(f64::total_cmp);
        best = best.max(rates[MEASUREMENTS / 2]);
    }
    Ok(best)
}
