//! Dry runs: what a run would do and what it would cost.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::{Prepared, Start, identity};
use crate::describe::EFFICIENCY;
use crate::status::{State, state};
use selfrepair_core::config::{Config, Kind, Mode};
use selfrepair_core::pieces::{Coverage, Piece, counted};
use selfrepair_core::progress;
use selfrepair_engine::Needs;
use selfrepair_engine::rate::matmul_rate;
use selfrepair_engine::residency::{Residency, bytes_of_number};
use selfrepair_measure::{flops_of_token, iterate};
use selfrepair_model::Architecture;
use selfrepair_store::pieces;
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
    /// Of pieces that are to be computed. `None` for a prompt set: its size is not known before it is read.
    pub fn of(config: &Config, a: &Architecture, pieces: &[Piece]) -> Option<Self> {
        let c = &config.corpus;
        if c.mode == Mode::Prompts {
            return None;
        }
        let tokens = (c.tokens / c.prompt_len * (c.prompt_len - 1)) as f64;
        let flops = pieces.iter().map(|piece| flops_of_token(config, a, piece)).sum::<f64>() * tokens;
        let weights = (bytes_of_number(a) * a.stored_numbers()) as f64;
        // Measured: 37 bytes per row of `ablations`, 4 per row of `direct_effects`.
        let of_effects = pieces.iter().filter(|piece| piece.outputs.effects);
        let rows = of_effects.map(|piece| piece.ablations().len()).sum::<usize>() as f64 * tokens;
        let disk = weights + 37.0 * rows + 4.0 * tokens * (a.layers * (a.heads + 1)) as f64;
        let iterate_flops = pieces.iter().map(|piece| iterate::flops(config, a, piece)).sum();
        Some(Self { flops, iterate_flops, tokens, disk, memory: memory(config, a, pieces) })
    }
}

fn layers_of_heads(piece: &Piece) -> Vec<usize> {
    let heads = piece.components().iter().filter(|c| c.head.is_some());
    heads.map(|c| c.layer).collect::<BTreeSet<usize>>().into_iter().collect()
}

/// Bytes of memory that the larger of the clean pass and the ablations takes, with as many layers as there is room for.
fn memory(config: &Config, a: &Architecture, pieces: &[Piece]) -> f64 {
    let (rows, prompt_len) = (config.corpus.tokens, config.corpus.prompt_len);
    let of_piece = |piece: &Piece| Needs {
        ablate: true,
        divergence: piece.outputs.distribution,
        neurons: piece.neuron_layers(),
        first_readers: if a.reads_by_difference() { layers_of_heads(piece) } else { vec![] },
        rows,
        prompt_len,
        partners: if piece.kinds().contains(&Kind::Resample) { config.ablation.resample.samples } else { 0 },
        ..Needs::default()
    };
    let needs = pieces.iter().map(of_piece).chain([Needs::trace(rows, prompt_len)]);
    let bytes = |needs: Needs| Residency::of(&config.runtime, a, &needs).bytes(&config.runtime, a, &needs);
    needs.map(bytes).fold(0.0, f64::max)
}

/// What pieces ablate and add, in words.
pub fn named(pieces: &[Piece]) -> String {
    let mut words = Coverage::of(pieces).lines();
    for piece in pieces.iter().filter(|piece| !piece.outputs.effects && !piece.ablations().is_empty()) {
        let distribution = piece.outputs.distribution.then_some("distributions".to_string());
        let neurons = piece.neuron_layers();
        let neurons = (!neurons.is_empty()).then(|| format!("neurons of {} layers", neurons.len()));
        let outputs: Vec<String> = distribution.into_iter().chain(neurons).collect();
        words.push(format!("{} of {}", outputs.join(" and "), counted(piece.components())));
    }
    words.join("; ")
}

/// Which stages would run, why, what they would add, and what they would cost. The folder is only read.
pub fn dry_run(config: Config, out: &Path, last: Stage, how: Start) -> Result<String> {
    check(out)?;
    let run = Prepared::of(config)?;
    let mut text = String::new();
    let differ = identity::contradictions(out, &run.identity);
    let starts_over = how == Start::Fresh || !differ.is_empty();
    if !differ.is_empty() && identity::is_bound(out) && how == Start::Grow {
        writeln!(text, "{} has another run: {}", out.display(), differ.join(", "))?;
        writeln!(text, "  it has {}", identity::inventory(out)?)?;
        writeln!(text, "  this would be refused; use another --out, or --replace\n")?;
    }
    let pieces = match starts_over {
        true => vec![run.request.clone()],
        false => missing(&run, out)?,
    };
    let mut runs = Vec::new();
    for stage in STAGES.into_iter().filter(|&stage| stage <= last) {
        let state = state(out, stage, Some(&run.inputs(stage, out)?));
        let adds = stage == Stage::Ablate && !pieces.is_empty();
        let what = match &state {
            _ if how == Start::Fresh => "would run: --fresh".to_string(),
            _ if starts_over => format!("would run: {}", differ.join(", ")),
            _ if adds => format!("would add {}", named(&pieces)),
            State::Current if runs.is_empty() => "is up to date".to_string(),
            State::Current => "would run again on what is added".to_string(),
            State::Incomplete => "would resume".to_string(),
            _ => format!("would run: {}", state.why()),
        };
        if starts_over || adds || state != State::Current || !runs.is_empty() && stage > Stage::Ablate {
            runs.push(stage);
        }
        writeln!(text, "{:>8} {what}", stage.name())?;
    }
    let there = pieces::coverage(out)?.lines();
    if !there.is_empty() && !starts_over {
        writeln!(text, "\n   there {}", there.join("\n         "))?;
    }
    if runs.is_empty() {
        text.push_str("\nNothing would run.");
        return Ok(text);
    }
    text.push('\n');
    let Some(estimate) = Estimate::of(&run.config, &run.model.architecture, &pieces) else {
        let (count, source) = (run.request.components().len(), &run.config.corpus.source);
        write!(text, "    work {count} components on every prompt of {source}, whose number is not known yet")?;
        return Ok(text);
    };
    what_it_takes(&mut text, &run, &estimate, &pieces, runs.contains(&Stage::Ablate))?;
    writeln!(text, "    disk about {} in {}", progress::bytes(estimate.disk as u64), out.display())?;
    write!(text, "  memory about {}", progress::bytes(estimate.memory as u64))?;
    Ok(text)
}

/// What the request needs and no finished piece has.
fn missing(run: &Prepared, out: &Path) -> Result<Vec<Piece>> {
    pieces::coverage(out)?.missing(&run.request)
}

fn what_it_takes(
    text: &mut String,
    run: &Prepared,
    estimate: &Estimate,
    pieces: &[Piece],
    ablates: bool,
) -> Result<()> {
    if !ablates || pieces.is_empty() {
        return Ok(writeln!(text, "    work nothing is ablated; seconds to minutes")?);
    }
    let rate = matmul_rate(&run.model.architecture, &run.config.runtime)?;
    let seconds = (estimate.flops / EFFICIENCY + estimate.iterate_flops / ITERATE_EFFICIENCY) / rate;
    let components = pieces.iter().map(|piece| piece.components().len()).max().unwrap_or(0);
    writeln!(
        text,
        "    work {:.2} TFLOP to ablate {components} components on {} tokens",
        estimate.flops / 1e12,
        estimate.tokens,
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
