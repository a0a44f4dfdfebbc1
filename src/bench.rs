//! `pipeline bench`: the speed of a run relative to the limit of the machine.
//!
//! The limit is the necessary floating-point work (docs/definitions.md, "Necessary work") at the rate of ONNX Runtime's
//! own MatMul on the model's shapes, on the same threads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stages::Run;
use selfrepair_core::config::Config;
use selfrepair_core::files::files_below;
use selfrepair_core::progress;
use selfrepair_engine::rate::probed;
use selfrepair_engine::runtime::{Spent, profile_files};
use selfrepair_measure::{ablate_flops, trace_flops};
use selfrepair_store::run_folder::Stage;

/// What was measured; times in seconds, rates in floating-point operations a second.
#[derive(Debug, Serialize)]
pub struct Bench {
    pub model: String,
    pub threads: usize,
    pub tokens: usize,
    pub components: usize,
    pub trace: StageBench,
    pub ablate: StageBench,
    /// Share of the time inside ONNX Runtime by operator, from its profiler, on a part of the ablations.
    pub operators: Vec<(String, f64)>,
    /// Highest resident memory of the process, in bytes, while profiling was off.
    pub peak_memory: u64,
    /// Bytes of the `ablations` table for each of its rows.
    pub bytes_a_row: f64,
    pub rows: u64,
}

#[derive(Debug, Serialize)]
pub struct StageBench {
    pub seconds: f64,
    /// Necessary floating-point operations.
    pub flops: f64,
    pub rate: f64,
    /// Of MatMul: the best of the model's own shapes, measured between the pieces of the stage's work.
    pub matmul_rate: f64,
    /// rate / matmul_rate.
    pub ratio: f64,
    /// Inside ONNX Runtime, of all threads together.
    pub runtime_seconds: f64,
    /// Writing Parquet; for ablate, on its own thread beside the computation.
    pub writing_seconds: f64,
    /// What else the engines' threads did, or waited for: replacements, effects, sums, loading.
    pub host_seconds: f64,
}

/// Runs trace and ablate of `config` in a folder of their own and measures them.
pub fn bench(config: Config) -> Result<Bench> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let out = folder.path().join("run");
    let mut measured = config.clone();
    measured.runtime.probe = true;
    let run = Run::open(measured, &out)?;
    run.ensure_up_to(Stage::Export)?;
    let prompts = run.prompts()?;
    let trace = timed(&run, Stage::Trace, trace_flops(&run.model.architecture, &prompts))?;
    let ablate =
        timed(&run, Stage::Ablate, ablate_flops(&run.config, &run.model.architecture, &run.request, &prompts))?;
    let peak_memory = peak_memory();
    let table = out.join("tables/ablations");
    let bytes: u64 = files_below(&table)?.iter().filter_map(|p| Some(p.metadata().ok()?.len())).sum();
    let rows = (run.request.ablations().len() * prompts.measured_tokens()) as u64;
    Ok(Bench {
        model: run.model.source.origin().name.clone(),
        threads: config.runtime.thread_count(),
        tokens: prompts.measured_tokens(),
        components: run.request.components().len(),
        trace,
        ablate,
        operators: operators(&config, folder.path())?,
        peak_memory,
        bytes_a_row: bytes as f64 / rows as f64,
        rows,
    })
}

fn timed(run: &Run, stage: Stage, flops: f64) -> Result<StageBench> {
    let threads = run.config.runtime.engine_count();
    let before = Spent::now();
    let start = Instant::now();
    run.run_through(stage)?;
    let elapsed = start.elapsed().as_secs_f64();
    let (spent, probed) = (Spent::now().since(&before), probed());
    // Without what was measured meanwhile.
    let seconds = elapsed - probed.seconds / threads as f64;
    let runtime_seconds = spent.running - probed.seconds;
    let (rate, matmul_rate) = (flops / seconds, probed.rate(threads));
    Ok(StageBench {
        seconds,
        flops,
        rate,
        matmul_rate,
        ratio: rate / matmul_rate,
        runtime_seconds,
        writing_seconds: spent.writing,
        host_seconds: threads as f64 * seconds - runtime_seconds,
    })
}

/// Runs a few prompts once more under ONNX Runtime's profiler, which slows a run down, and sums the time by operator.
fn operators(config: &Config, folder: &Path) -> Result<Vec<(String, f64)>> {
    let mut config = config.clone();
    config.corpus.tokens = config.corpus.tokens.min(2 * config.corpus.prompt_len);
    let profiles = folder.join("profiles");
    std::fs::create_dir(&profiles)?;
    config.runtime.profile = Some(profiles.clone());
    let run = Run::open(config, &folder.join("profiled"))?;
    run.ensure_up_to(Stage::Ablate)?;
    let mut times: BTreeMap<String, f64> = BTreeMap::new();
    for path in profile_files(&profiles)? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let events: Vec<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is not a profile", path.display()))?;
        for event in events {
            let op = event.pointer("/args/op_name").and_then(|op| op.as_str());
            if let (Some("Node"), Some(op)) = (event.get("cat").and_then(|cat| cat.as_str()), op) {
                *times.entry(op.to_string()).or_default() +=
                    event.get("dur").and_then(|dur| dur.as_f64()).unwrap_or(0.0);
            }
        }
    }
    let total: f64 = times.values().sum();
    let mut shares: Vec<(String, f64)> = times.into_iter().map(|(op, t)| (op, t / total)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(shares)
}

/// The highest resident memory of this process so far, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

impl Bench {
    /// For reading.
    pub fn table(&self) -> Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "{} on {} threads: {} components × {} tokens",
            self.model, self.threads, self.components, self.tokens
        )?;
        for (name, s) in [("trace", &self.trace), ("ablate", &self.ablate)] {
            writeln!(
                text,
                "{name:<14}ratio {:.3}: {:.1} GFLOP/s of necessary work, MatMul on the model's shapes meanwhile {:.1}; {:.3} TFLOP in {}",
                s.ratio,
                s.rate / 1e9,
                s.matmul_rate / 1e9,
                s.flops / 1e12,
                progress::seconds(s.seconds)
            )?;
            writeln!(
                text,
                "{:<14}ONNX Runtime {} of all threads' time, the rest {}; writing tables {}",
                "",
                progress::seconds(s.runtime_seconds),
                progress::seconds(s.host_seconds),
                progress::seconds(s.writing_seconds)
            )?;
        }
        let shares: Vec<String> =
            self.operators.iter().take(8).map(|(op, share)| format!("{op} {:.1} %", 100.0 * share)).collect();
        writeln!(text, "operators     {}", shares.join(", "))?;
        writeln!(text, "memory        {} at most", progress::bytes(self.peak_memory))?;
        write!(text, "ablations     {:.1} bytes per row, {} rows", self.bytes_a_row, self.rows)?;
        Ok(text)
    }
}
