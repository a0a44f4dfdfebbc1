//! The speed of this machine: ONNX Runtime's MatMul on a model's shapes. A run's speed is compared with it.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use ort::value::DynValue;

use super::hooks::HookPoint;
use super::runtime::{Graph, Input, Runtime, tensor};
use super::weights::SharedWeights;
use crate::export;
use crate::load::{ALIASED, PADDING};
use selfrepair_core::config::RuntimeConfig;
use selfrepair_model::Architecture;

const ROWS: usize = 1024;
/// Products of a shape in one measurement, after one that brings the weights into the cache.
const TIMES: usize = 2;
/// Measurements of a thread, of which the median counts: a machine shared with others has fast and slow moments.
const MEASUREMENTS: usize = 9;
/// After so long, no other measurement is begun.
const PATIENCE: Duration = Duration::from_millis(700);
/// Wider products have the same rate, and take the longer to measure: those of an 8B model minutes.
const WIDEST: usize = 1024;

/// The model's matrix products with nothing around them, for one thread.
pub struct Probe {
    products: Vec<Product>,
}

struct Product {
    graph: Graph,
    x: DynValue,
    flops: f64,
}

/// Inputs and outputs of the model's matrix products.
fn shapes(a: &Architecture) -> Vec<(usize, usize)> {
    let neurons = a.experts.as_ref().map_or(a.d_mlp, |experts| experts.neurons);
    vec![(a.d_model, a.d_model), (a.d_model, neurons), (neurons, a.d_model)]
}

impl Probe {
    pub fn load(a: &Architecture, runtime: &Runtime) -> Result<Self> {
        Self::of(&shapes(a), runtime)
    }

    fn of(shapes: &[(usize, usize)], runtime: &Runtime) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let load = |&(inputs, outputs): &(usize, usize)| {
            // As the model's graphs have them.
            let inputs = if inputs.is_multiple_of(ALIASED) { inputs + PADDING } else { inputs };
            let path = export::matmul(inputs, outputs, folder.path())?;
            let graph = runtime.load(&path, &SharedWeights::new(folder.path()))?;
            let x = (0..ROWS * inputs).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
            let flops = 2.0 * (ROWS * inputs * outputs) as f64;
            Ok(Product { graph, x: tensor(&[ROWS, inputs], x)?, flops })
        };
        Ok(Self { products: shapes.iter().map(load).collect::<Result<_>>()? })
    }

    /// Floating-point operations a second of each shape, now, on the thread that asks.
    fn measure(&mut self) -> Result<Vec<f64>> {
        self.products.iter_mut().map(Product::measure).collect()
    }

    /// Measures for [`probed`], after so much of the work.
    pub fn take(&mut self, work: f64) -> Result<()> {
        let start = Instant::now();
        let rates = self.measure()?;
        let mut probed = PROBED.lock().unwrap_or_else(|e| e.into_inner());
        probed.samples.push((work, rates));
        probed.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }
}

impl Product {
    fn measure(&mut self) -> Result<f64> {
        let mut multiply = || self.graph.run(vec![(HookPoint::X, Input::from(&self.x))], &[HookPoint::Y]);
        multiply()?;
        let start = Instant::now();
        for _ in 0..TIMES {
            multiply()?;
        }
        Ok(TIMES as f64 * self.flops / start.elapsed().as_secs_f64())
    }
}

/// What probes measured while engines were at work on the same machine.
#[derive(Default)]
pub struct Probed {
    /// Of one thread each: work that was done before, and the rates by shape.
    samples: Vec<(f64, Vec<f64>)>,
    /// How long it took, of all threads together.
    pub seconds: f64,
}

static PROBED: Mutex<Probed> = Mutex::new(Probed { samples: vec![], seconds: 0.0 });

/// Takes away what was measured so far.
pub fn probed() -> Probed {
    std::mem::take(&mut PROBED.lock().unwrap_or_else(|e| e.into_inner()))
}

impl Probed {
    /// Floating-point operations a second of the best shape on so many threads: of the time that each piece of work would
    /// take at the rate that was measured after it.
    pub fn rate(&self, threads: usize) -> f64 {
        let shapes = self.samples.first().map_or(0, |(_, rates)| rates.len());
        let work: f64 = self.samples.iter().map(|(work, _)| work).sum();
        let seconds = |shape: usize| self.samples.iter().map(|(work, rates)| work / rates[shape]).sum::<f64>();
        let rate = |shape| threads as f64 * work / seconds(shape);
        (0..shapes).map(rate).fold(0.0, f64::max)
    }
}

/// Floating-point operations a second of the best of the model's own matrix products, on 1024 rows a thread. It takes about
/// a second, whatever the model: wide matrices are measured on narrower ones.
pub fn matmul_rate(a: &Architecture, config: &RuntimeConfig) -> Result<f64> {
    let runtime = Runtime::get(config)?;
    let mut shapes: Vec<_> = shapes(a).into_iter().map(|(n, m)| (n.min(WIDEST), m.min(WIDEST))).collect();
    shapes.dedup();
    let of_thread = || -> Result<Vec<f64>> {
        let mut probe = Probe::of(&shapes, &runtime)?;
        let (start, mut samples) = (Instant::now(), vec![probe.measure()?]);
        while samples.len() < MEASUREMENTS && start.elapsed() < PATIENCE {
            samples.push(probe.measure()?);
        }
        let median = |shape: usize| {
            let mut rates: Vec<f64> = samples.iter().map(|rates| rates[shape]).collect();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        Ok((0..samples[0].len()).map(median).collect())
    };
    let rates: Vec<Vec<f64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..config.thread_count()).map(|_| scope.spawn(of_thread)).collect();
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?).collect::<Result<_>>()
    })?;
    let of_shape = |shape: usize| rates.iter().map(|rates| rates[shape]).sum::<f64>();
    Ok((0..rates.first().map_or(0, Vec::len)).map(of_shape).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_best_shape_over_all_moments() {
        let rate =
            |samples: [(f64, Vec<f64>); 2], threads| Probed { samples: samples.into(), seconds: 0.0 }.rate(threads);
        // The first shape does two units of work in 1/10 + 1/40 s.
        assert_eq!(rate([(1.0, vec![10.0, 30.0]), (1.0, vec![40.0, 30.0])], 2), 60.0);
        assert_eq!(rate([(1.0, vec![10.0, 1.0]), (1.0, vec![40.0, 1.0])], 1), 16.0);
        // And four in 1/10 + 3/30.
        assert_eq!(rate([(1.0, vec![10.0]), (3.0, vec![30.0])], 1), 20.0);
    }
}
