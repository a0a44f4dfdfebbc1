//! Iterative inference (on request, for the first prompts of a run): how a head responds to an addition to its input,
//! how all later components respond to a head's output added before any block, and how similar heads' outputs are.

mod self_additions;
mod similarity;
mod stream_additions;

use anyhow::{Context, Result};
use ort::value::DynValue;
use selfrepair_core::config::Config;
use selfrepair_core::interrupt;
use selfrepair_core::pieces::{Additions, Piece};
use selfrepair_core::progress;
use selfrepair_core::prompts::Prompts;
use selfrepair_core::sink::Part;
use selfrepair_core::tables::{HEAD_SIMILARITY, SELF_ADDITIONS, STREAM_ADDITIONS, Table};
use selfrepair_engine::runtime::view;
use selfrepair_engine::{CleanBatch, Directions, Engine, Keep, Needs, WorkerPool};
use selfrepair_model::Architecture;

use crate::MeasureContext;
use crate::ablate::TopTokens;
use self_additions::SelfAdditions;
use similarity::Similarity;
use stream_additions::StreamAdditions;

/// Measures the additions of the context's piece, if it has any.
///
/// # Errors
/// If a number is not finite, the parts do not sum to the change of the logit, or the sink fails.
pub fn iterate(context: &MeasureContext, prompts: &Prompts) -> Result<()> {
    let Some(additions) = &context.piece.additions else { return Ok(()) };
    let numbers: Vec<usize> = (additions.first..additions.prompts.min(prompts.count())).collect();
    let wanted = wanted(additions);
    if numbers.is_empty() || wanted.iter().all(|table| context.sink.has(table, Part::Whole)) {
        return Ok(());
    }
    let a = context.architecture;
    let (rows, prompt_len) = (prompts.tokens(), prompts.longest());
    let needs = Needs { iterate: true, rows, prompt_len, ..Needs::default() };
    let mut pool = WorkerPool::load(a, context.graphs, &context.config.runtime, &needs)?;
    let top = TopTokens::find(context, prompts)?;
    let mut own = SelfAdditions::new(context, additions);
    let mut stream = StreamAdditions::new(context, additions)?;
    let mut similarity = Similarity::new(a);
    let bar = progress::bar("iterate", (numbers.len() * a.layers) as u64, "layers");
    let work = |engine: &mut Engine, &p: &usize| {
        let prompt = Prompt::new(engine, prompts, p)?;
        let outputs: Vec<Vec<f32>> = (0..a.layers).map(|l| prompt.head_outputs(engine, l)).collect::<Result<_>>()?;
        let (mut own, mut stream) = (SelfAdditions::new(context, additions), StreamAdditions::new(context, additions)?);
        for layer in 0..a.layers {
            interrupt::check()?;
            if additions.own && !additions.multiples.is_empty() {
                own.measure(engine, &prompt, &outputs, layer)?;
            }
            stream.measure(engine, &prompt, &outputs, &top, layer)?;
            bar.inc(1);
        }
        let mut similarity = Similarity::new(a);
        if additions.similarity {
            similarity.add(a, &prompt, &outputs)?;
        }
        Ok((own, stream, similarity))
    };
    pool.each(
        &numbers,
        |_| 1.0,
        work,
        |of_prompt| {
            own.append(of_prompt.0);
            stream.append(of_prompt.1);
            similarity.append(&of_prompt.2);
            Ok(())
        },
    )?;
    bar.finish();
    for table in wanted {
        let mut writer = context.sink.open(table, Part::Whole, table.schema(), 1)?;
        match table.name {
            name if name == SELF_ADDITIONS.name => own.write(writer.as_mut())?,
            name if name == STREAM_ADDITIONS.name => stream.write(writer.as_mut())?,
            _ => writer.write(&similarity.rows()?)?,
        }
        writer.finish()?;
    }
    Ok(())
}

/// The tables of additions.
fn wanted(additions: &Additions) -> Vec<&'static Table> {
    let is_changed = !additions.multiples.is_empty();
    let tables = [
        (&HEAD_SIMILARITY, additions.similarity),
        (&STREAM_ADDITIONS, is_changed && !additions.heads.is_empty()),
        (&SELF_ADDITIONS, is_changed && additions.own),
    ];
    tables.into_iter().filter_map(|(table, is_wanted)| is_wanted.then_some(table)).collect()
}

/// Operations of matrix products in the additions of a piece, at top tokens spread evenly over the prompts.
pub fn flops(config: &Config, a: &Architecture, piece: &Piece) -> f64 {
    let Some(additions) = &piece.additions else { return 0.0 };
    let c = &config.corpus;
    let prompts = additions.prompts.min(c.tokens / c.prompt_len).saturating_sub(additions.first);
    let (multiples, heads) = (additions.multiples.len(), additions.heads.len());
    let own = if additions.own { self_additions::flops(config, a, multiples) } else { 0.0 };
    prompts as f64 * (own + stream_additions::flops(config, a, heads, multiples))
}

/// A head's output at position `s`, \[D\], from those of all heads [S · H · D].
fn head_output(outputs: &[f32], heads: usize, d_model: usize, head: usize, s: usize) -> &[f32] {
    &outputs[(s * heads + head) * d_model..][..d_model]
}

/// A prompt and its clean pass.
struct Prompt {
    number: usize,
    measured: std::ops::Range<usize>,
    directions: Directions,
    clean: CleanBatch,
}

impl Prompt {
    fn new(engine: &mut Engine, prompts: &Prompts, number: usize) -> Result<Self> {
        let tokens = prompts.needed(number);
        let target = prompts.target_row(number, tokens.len());
        let measured = target.measured.clone();
        let mut directions = engine.directions(&[target])?;
        let keep = Keep { residual_pre: true, z: true, directions: true, ..Default::default() };
        let clean = engine.clean(&[tokens], &mut directions, &vec![keep; engine.architecture.layers])?;
        Ok(Self { number, measured, directions, clean })
    }

    /// [S · H · D]
    fn head_outputs(&self, engine: &mut Engine, layer: usize) -> Result<Vec<f32>> {
        let z = self.kept(&self.clean.layers[layer].z)?;
        Ok(view(&engine.head_outputs(layer, z, &self.directions)?)?.to_vec())
    }

    fn kept<'a>(&self, value: &'a Option<DynValue>) -> Result<&'a DynValue> {
        value.as_ref().context("the clean pass did not keep the activations that additions need")
    }

    /// A head's clean effect at a position, unscaled.
    fn effect(&self, heads: usize, layer: usize, head: usize, s: usize) -> f32 {
        self.clean.effects.heads[layer][s * heads + head]
    }
}
