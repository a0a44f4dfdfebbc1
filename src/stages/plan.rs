//! Dry runs: what a run would do and what it would cost.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Prepared;
use crate::describe::{EFFICIENCY, memory};
use crate::status::{State, state};
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::{Config, Kind, Mode};
use selfrepair_core::progress;
use selfrepair_engine::rate::matmul_rate;
use selfrepair_measure::iterate;
use selfrepair_model::Architecture;
use selfrepair_store::run_folder::{STAGES, Stage, check};

/// The rate of additions as a share of the matrix product's rate, measured on SmolLM2-135M. Their calls are small.
const ITERATE_EFFICIENCY: f64 = 0.6;

/// The cost of a run.
pub struct Estimate {
    /// Necessary floating-point operations of the ablations.
    pub flops: f64,
    /// Operations of the additions (`iterative.prompts`).
    pub iterate_flops: f64,
    /// Tokens measured.
    pub tokens: f64,
    /// Bytes of disk.
    pub disk: f64,
    /// Bytes of memory.
    pub memory: f64,
}

impl Estimate {
    /// `None` for a prompt set: its size is not known before it is read.
    pub fn of(config: &Config, a: &Architecture, components: &[Ablatable]) -> Option<Self> {
        let c = &config.corpus;
        if c.mode == Mode::Prompts {
            return None;
        }
        let tokens = (c.tokens / c.prompt_len * (c.prompt_len - 1)) as f64;
        let samples = config.ablation.resample.samples as f64;
        let runs: f64 = config.ablation.kinds.iter().map(|&k| if k == Kind::Resample { samples } else { 1.0 }).sum();
        let runs = runs * (1 + config.ablation.hold.len()) as f64;
        let flops = components.iter().map(|c| a.suffix_flops(c)).sum::<f64>() * tokens * runs;
        let weights = 4.0 * a.parameters() as f64;
        // Measured: 37 bytes per row of `ablations`, 4 per row of `direct_effects`.
        let rows = config.ablation.kinds.len() as f64 * components.len() as f64 * tokens;
        let disk = weights + 37.0 * rows + 4.0 * tokens * (a.layers * (a.heads + 1)) as f64;
        let iterate_flops = iterate::flops(config, a, components);
        Some(Self { flops, iterate_flops, tokens, disk, memory: memory(a) })
    }
}

/// Which stages would run, why, and what they would cost. The folder is only read.
pub fn dry_run(config: Config, out: &Path, last: Stage, fresh: bool) -> Result<String> {
    check(out)?;
    let run = Prepared::of(config)?;
    let mut text = String::new();
    let mut runs = Vec::new();
    for stage in STAGES {
        let state = state(out, stage, Some((run.fingerprint(stage), run.parts(stage))));
        let what = match (&state, stage <= last) {
            (State::Current, true) if !fresh => "is up to date".to_string(),
            (_, true) if fresh => "would run: --fresh".to_string(),
            (State::Incomplete, true) => "would resume".to_string(),
            (_, true) => format!("would run: {}", state.why()),
            (State::Stale(_), false) => format!("would be cleared: {}", state.why()),
            (_, false) => continue,
        };
        if stage <= last && (fresh || !matches!(state, State::Current)) {
            runs.push(stage);
        }
        writeln!(text, "{:>8} {what}", stage.name())?;
    }
    if runs.is_empty() {
        text.push_str("\nNothing would run.");
        return Ok(text);
    }
    text.push('\n');
    let Some(estimate) = Estimate::of(&run.config, &run.model.architecture, &run.components) else {
        let (count, source) = (run.components.len(), &run.config.corpus.source);
        write!(text, "    work {count} components on every prompt of {source}, whose number is not known yet")?;
        return Ok(text);
    };
    what_it_takes(&mut text, &run, &estimate, runs.contains(&Stage::Ablate))?;
    writeln!(text, "    disk about {} in {}", progress::bytes(estimate.disk as u64), out.display())?;
    write!(text, "  memory about {}", progress::bytes(estimate.memory as u64))?;
    Ok(text)
}

fn what_it_takes(text: &mut String, run: &Prepared, estimate: &Estimate, ablates: bool) -> Result<()> {
    if !ablates {
        return Ok(writeln!(text, "    work nothing is ablated; seconds to minutes")?);
    }
    let rate = matmul_rate(&run.model.architecture, &run.config.runtime)?;
    let seconds = (estimate.flops / EFFICIENCY + estimate.iterate_flops / ITERATE_EFFICIENCY) / rate;
    writeln!(
        text,
        "    work {:.2} TFLOP to ablate {} components on {} tokens, {}",
        estimate.flops / 1e12,
        run.components.len(),
        estimate.tokens,
        run.config.ablation.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
    )?;
    if estimate.iterate_flops > 0.0 {
        let (tflop, prompts) = (estimate.iterate_flops / 1e12, run.config.iterative.prompts);
        writeln!(
            text,
            "         {tflop:.2} TFLOP to add heads' outputs to the stream, on {prompts} prompts (iterative)"
        )?;
    }
    writeln!(
        text,
        "    time about {} at {EFFICIENCY} of this machine's {:.0} GFLOP/s in matrix products; less if some shards \
         exist already",
        progress::seconds(seconds),
        rate / 1e9
    )?;
    Ok(())
}
