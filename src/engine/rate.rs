//! The machine's own speed: ONNX Runtime's MatMul on a model's shapes, which is what a run's time is held against.

use std::time::Instant;

use anyhow::Result;

use super::runtime::{Input, Runtime, tensor};
use crate::config::RuntimeConfig;
use crate::export;
use crate::model::Architecture;

/// Floating-point operations a second of the best of the model's own matrix products, on 1024 rows.
pub fn matmul_rate(a: &Architecture, config: &RuntimeConfig) -> Result<f64> {
    const ROWS: usize = 1024;
    let runtime = Runtime::get(config)?;
    let folder = tempfile::tempdir()?;
    let mut best = 0f64;
    for (inputs, outputs) in [(a.d_model, a.d_model), (a.d_model, a.d_mlp), (a.d_mlp, a.d_model)] {
        let mut graph = runtime.load(&export::matmul(inputs, outputs, folder.path())?)?;
        let x = tensor(&[ROWS, inputs], (0..ROWS * inputs).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect())?;
        for _ in 0..8 {
            let start = Instant::now();
            graph.run_all([("x", Input::from(&x))], &["y"])?;
            best = best.max(2.0 * (ROWS * inputs * outputs) as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}
