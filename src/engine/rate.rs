//! The machine's own speed: ONNX Runtime's MatMul on a model's shapes, which is what a run's time is held against.

use std::time::Instant;

use std::thread;

use anyhow::{Result, anyhow};

use super::runtime::{Graph, Input, Runtime, tensor};
use super::weights::SharedWeights;
use crate::config::RuntimeConfig;
use crate::export;
use crate::model::Architecture;

const ROWS: usize = 1024;
const TIMES: usize = 12;

/// Every graph on a thread of its own, each with its rows: operations a second of all together.
fn rate_of(graphs: &mut [Graph], inputs: usize, outputs: usize) -> Result<f64> {
    let x: Vec<f32> = (0..ROWS * inputs).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let start = Instant::now();
    let threads = graphs.len();
    thread::scope(|scope| {
        let run = |graph: &mut Graph| -> Result<()> {
            let x = tensor(&[ROWS, inputs], x.clone())?;
            (0..TIMES).try_for_each(|_| graph.run_all([("x", Input::from(&x))], &["y"]).map(|_| ()))
        };
        let handles: Vec<_> = graphs.iter_mut().map(|graph| scope.spawn(move || run(graph))).collect();
        handles.into_iter().try_for_each(|h| h.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(2.0 * (threads * TIMES * ROWS * inputs * outputs) as f64 / start.elapsed().as_secs_f64())
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
        for _ in 0..3 {
            best = best.max(rate_of(&mut graphs, inputs, outputs)?);
        }
    }
    Ok(best)
}
