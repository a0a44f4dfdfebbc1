//! What a run would do, and what it would take, before anything is run.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Prepared;
use crate::config::{Config, Kind};
use crate::describe::{EFFICIENCY, memory};
use crate::engine::rate::matmul_rate;
use crate::model::Architecture;
use crate::progress;
use crate::run_folder::{STAGES, Stage};
use crate::status::{State, state};

/// What a run takes.
pub struct Estimate {
    /// Necessary floating-point operations of `ablate`, nearly all of the work.
    pub flops: f64,
    /// Tokens measured.
    pub tokens: f64,
    /// Bytes of disk.
    pub disk: f64,
    /// Bytes of memory.
    pub memory: f64,
}

impl Estimate {
    pub fn of(config: &Config, a: &Architecture, heads: &[(usize, usize)]) -> Self {
        let c = &config.corpus;
        let tokens = (c.tokens / c.prompt_len * (c.prompt_len - 1)) as f64;
        let samples = config.ablation.resample.samples as f64;
        let runs: f64 = config.ablation.kinds.iter().map(|&k| if k == Kind::Resample { samples } else { 1.0 }).sum();
        let flops = heads.iter().map(|&(l, _)| a.ablation_flops(l)).sum::<f64>() * tokens * runs;
        let weights = 4.0 * a.parameters() as f64;
        // Measured: 37 bytes a row of `ablations`, 4 a row of `direct_effects`.
        let rows = config.ablation.kinds.len() as f64 * heads.len() as f64 * tokens;
        let disk = weights + 37.0 * rows + 4.0 * tokens * (a.layers * (a.heads + 1)) as f64;
        Self { flops, tokens, disk, memory: memory(a) }
    }
}

/// Which stages would run and why, and what they would take. The folder is only read.
pub fn dry_run(config: Config, out: &Path, last: Stage, fresh: bool) -> Result<String> {
    let run = Prepared::of(config)?;
    let mut text = String::new();
    let mut runs = Vec::new();
    for stage in STAGES {
        let state = state(out, stage, Some((run.fingerprint(stage), run.parts(stage))));
        let what = match (&state, stage <= last) {
            (State::Current, true) if !fresh => "is up to date".to_string(),
            (_, true) if fresh => "would run: --fresh".to_string(),
            (State::Incomplete, true) => "would go on where it was stopped".to_string(),
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
    let estimate = Estimate::of(&run.config, &run.model.architecture, &run.heads);
    text.push('\n');
    if runs.contains(&Stage::Ablate) {
        let rate = matmul_rate(&run.model.architecture, &run.config.runtime)?;
        let time = progress::seconds(estimate.flops / (EFFICIENCY * rate));
        writeln!(
            text,
            "    work {:.2} TFLOP to ablate {} heads on {} tokens, {}",
            estimate.flops / 1e12,
            run.heads.len(),
            estimate.tokens,
            run.config.ablation.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
        )?;
        writeln!(
            text,
            "    time about {time} at {EFFICIENCY} of this machine's {:.0} GFLOP/s in matrix products; less if shards of \
             it are there",
            rate / 1e9
        )?;
    } else {
        writeln!(text, "    work nothing is ablated; seconds to minutes")?;
    }
    writeln!(text, "    disk about {} in {}", progress::bytes(estimate.disk as u64), out.display())?;
    write!(text, "  memory about {}", progress::bytes(estimate.memory as u64))?;
    Ok(text)
}
