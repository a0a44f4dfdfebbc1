//! One clean pass over the corpus: the tables `clean` and `direct_effects`, the sums behind the mean ablation, and
//! activations on request.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Float32Array};
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns;
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::Activation;
use selfrepair_core::interrupt;
use selfrepair_core::memory;
use selfrepair_core::precision::Precision;
use selfrepair_core::progress::{self, Bar};
use selfrepair_core::prompts::{Prompts, TargetRow};
use selfrepair_core::sink::{Part, RowSink};
use selfrepair_core::tables::{CLEAN, DIRECT_EFFECTS};
use selfrepair_core::{ensure_check, fail_check};
use selfrepair_engine::runtime::{count_writing, view};
use selfrepair_engine::{CleanBatch, CleanEffects, Engine, Keep, Needs, WorkerPool};
use selfrepair_model::Architecture;

use crate::{MeasureContext, activations};

/// Prompts in one file. A constant, so that the same configuration gives the same files on every machine.
const PROMPTS_IN_SHARD: usize = 32;

/// Measures every prompt without ablation and gives the rows to the context's sink. Existing shards are skipped.
///
/// # Errors
/// If a number is not finite, the direct effects do not sum to the logit, memory is exhausted, or the sink fails.
pub fn trace(context: &MeasureContext, prompts: &Prompts) -> Result<()> {
    let bar = progress::bar("trace", prompts.tokens() as u64, "tokens");
    let all: Vec<usize> = (0..prompts.count()).collect();
    let shards: Vec<&[usize]> = all.chunks(PROMPTS_IN_SHARD).collect();
    let (mut pending, mut batches) = (vec![], vec![]);
    for (number, shard) in shards.iter().enumerate() {
        match is_done(context, number) {
            true => bar.inc(shard.iter().map(|&p| prompts.prompt(p).len() as u64).sum()),
            false => pending.push((number, shard)),
        }
    }
    if !pending.is_empty() {
        let needs = Needs::trace(prompts.tokens(), prompts.longest());
        let mut pool = WorkerPool::load(context.architecture, context.graphs, &context.config.runtime, &needs)?;
        for (number, shard) in pending {
            let of_shard = context.batches_of(prompts.by_length(shard), |p| prompts.prompt(p).len(), pool.parts());
            batches.extend(of_shard.into_iter().map(|batch| (number, batch)));
        }
        pool.each_of_shards(
            &batches,
            |_| 1.0,
            |engine, batch: &Vec<usize>| trace_batch(context, engine, prompts, batch, &bar),
            |number| Ok((activations::Writers::open(context, number)?, Vec::new())),
            |(saved, traced), parts| {
                for mut part in parts {
                    saved.write(std::mem::take(&mut part.activations))?;
                    traced.push(part);
                }
                Ok(())
            },
            |number, (saved, traced)| count_writing(|| write_shard(context, prompts, &traced, saved, number)),
        )?;
    }
    bar.finish();
    Ok(())
}

/// Whether everything of a shard is there.
fn is_done(context: &MeasureContext, number: usize) -> bool {
    let saved = |&what| context.sink.has_arrays(activations::name(what), number);
    has_tables(context.sink, number) && context.config.trace.save.iter().all(saved)
}

fn has_tables(sink: &dyn RowSink, number: usize) -> bool {
    let part = Part::Shard(number);
    sink.has(&CLEAN, part) && sink.has(&DIRECT_EFFECTS, part) && sink.has_kept(&sums_name(number))
}

/// Under which name the sums of a shard are kept.
fn sums_name(number: usize) -> String {
    format!("work/sums-{number:05}.f64")
}

/// What a clean pass gave for some prompts of equal length, until the shard's rows are written in order.
struct Traced {
    prompts: Vec<usize>,
    effects: CleanEffects,
    log_probs: Vec<f32>,
    sums: Sums,
    /// What is saved on request.
    activations: Vec<RecordBatch>,
}

/// One prompt of a clean pass.
struct Row<'a> {
    prompt: usize,
    /// Row of the prompt's first position in the pass.
    first: usize,
    of: &'a Traced,
}

/// The clean pass of prompts of equal length; in halves where memory is short.
fn trace_batch(
    context: &MeasureContext,
    engine: &mut Engine,
    prompts: &Prompts,
    batch: &[usize],
    bar: &Bar,
) -> Result<Vec<Traced>> {
    interrupt::check()?;
    let (rows, length) = (context.rows_in_call(), prompts.prompt(batch[0]).len());
    match trace_group(context, engine, prompts, batch) {
        Err(e) if memory::is_exhausted(&e) && batch.len() > 1 => {
            context.shrink(rows.min(batch.len() * length), length);
            let (first, second) = batch.split_at(batch.len() / 2);
            let mut parts = trace_batch(context, engine, prompts, first, bar)?;
            parts.extend(trace_batch(context, engine, prompts, second, bar)?);
            Ok(parts)
        }
        result => {
            bar.inc((batch.len() * length) as u64);
            Ok(vec![result?])
        }
    }
}

fn trace_group(context: &MeasureContext, engine: &mut Engine, prompts: &Prompts, group: &[usize]) -> Result<Traced> {
    let a = engine.architecture.clone();
    let post = context.config.trace.save.contains(&Activation::MlpPost);
    let keep = Keep { z: true, attention_out: true, mlp_out: true, post, ..Default::default() };
    let tokens: Vec<&[u32]> = group.iter().map(|&p| prompts.prompt(p)).collect();
    let targets: Vec<TargetRow> = group.iter().map(|&p| prompts.target_row(p, tokens[0].len())).collect();
    let mut directions = engine.directions(&targets)?;
    let clean = engine.clean(&tokens, &mut directions, &vec![keep; a.layers])?;
    let log_probs = engine.log_probs(&clean, &targets)?;
    check(&clean.effects, group, &targets, context.config.runtime.precision)?;
    let mut sums = Sums::new(&a);
    sums.add(&clean)?;
    let activations = activations::batches(context, &clean, group)?;
    Ok(Traced { prompts: group.to_vec(), effects: clean.effects, log_probs, sums, activations })
}

/// Writes what is not there yet. `clean` comes last: if it is there, so are the others.
fn write_shard(
    context: &MeasureContext,
    prompts: &Prompts,
    traced: &[Traced],
    saved: activations::Writers,
    number: usize,
) -> Result<()> {
    let (a, sink, part) = (context.architecture, context.sink, Part::Shard(number));
    let mut rows: Vec<Row> = traced
        .iter()
        .flat_map(|of| {
            let prompts = of.prompts.iter().enumerate();
            prompts.map(move |(i, &prompt)| Row { prompt, first: i * of.effects.positions, of })
        })
        .collect();
    rows.sort_by_key(|row| row.prompt);
    saved.finish()?;
    if has_tables(sink, number) {
        return Ok(());
    }
    let mut writer = sink.open(&DIRECT_EFFECTS, part, DIRECT_EFFECTS.schema(), 1)?;
    for row in &rows {
        writer.write(&direct_effects(row, prompts.measured(row.prompt))?)?;
    }
    writer.finish()?;
    let mut sums = Sums::new(a);
    traced.iter().for_each(|part| sums.append(&part.sums));
    sink.keep(&sums_name(number), &sums.bytes())?;
    let mut writer = sink.open(&CLEAN, part, CLEAN.schema(), 1)?;
    for row in &rows {
        writer.write(&clean_rows(row, prompts.measured(row.prompt), |s| a.residual_norm(s))?)?;
    }
    writer.finish()
}

/// Sums over tokens of what every component gave, for the mean ablation.
struct Sums {
    /// [layers · heads · d_head]
    z: Vec<f64>,
    /// [layers · d_model]
    attention_out: Vec<f64>,
    /// [layers · d_model]
    mlp_out: Vec<f64>,
}

impl Sums {
    fn new(a: &Architecture) -> Self {
        let stream = vec![0.0; a.layers * a.d_model];
        Self { z: vec![0.0; a.layers * a.heads * a.d_head], attention_out: stream.clone(), mlp_out: stream }
    }

    fn parts(&mut self) -> [&mut Vec<f64>; 3] {
        [&mut self.z, &mut self.attention_out, &mut self.mlp_out]
    }

    fn add(&mut self, clean: &CleanBatch) -> Result<()> {
        let layers = clean.layers.len();
        for (l, kept) in clean.layers.iter().enumerate() {
            for (sum, values) in self.parts().into_iter().zip([&kept.z, &kept.attention_out, &kept.mlp_out]) {
                let width = sum.len() / layers;
                let sum = &mut sum[l * width..(l + 1) * width];
                for row in view(values.as_ref().context("the pass did not keep an output")?)?.chunks_exact(width) {
                    sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, other: &Sums) {
        let others = [&other.z, &other.attention_out, &other.mlp_out];
        for (sum, other) in self.parts().into_iter().zip(others) {
            sum.iter_mut().zip(other).for_each(|(sum, &v)| *sum += v);
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.parts()
            .into_iter()
            .flat_map(|part| part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
            .collect()
    }
}

/// Means over all prompts and positions of the run.
pub struct Means {
    /// Every head's z, [layers · heads · d_head].
    pub z: Vec<f32>,
    /// What every layer's attention writes, [layers · d_model].
    pub attention_out: Vec<f32>,
    /// What every layer's MLP writes, [layers · d_model].
    pub mlp_out: Vec<f32>,
}

impl Means {
    /// From the sums that `trace` left.
    pub fn read(context: &MeasureContext, prompts: &Prompts) -> Result<Self> {
        let mut sums = Sums::new(context.architecture);
        for number in 0..prompts.count().div_ceil(PROMPTS_IN_SHARD) {
            let name = sums_name(number);
            let bytes = context.sink.kept(&name)?;
            let length: usize = sums.parts().iter().map(|part| part.len()).sum();
            ensure!(bytes.len() == 8 * length, "{name} has the wrong size; run with --fresh");
            let mut chunks = bytes.chunks_exact(8);
            for part in sums.parts() {
                for (sum, chunk) in part.iter_mut().zip(chunks.by_ref()) {
                    *sum += f64::from_le_bytes(chunk.try_into()?);
                }
                ensure_check!(
                    part.iter().all(|sum| sum.is_finite()),
                    "{name} has non-finite sums: the model's activations overflow"
                );
            }
        }
        let tokens = prompts.tokens() as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / tokens) as f32).collect();
        Ok(Self { z: mean(sums.z), attention_out: mean(sums.attention_out), mlp_out: mean(sums.mlp_out) })
    }
}

/// Checks numbers before they are written: all finite, and direct effects that sum to the logit.
fn check(clean: &CleanEffects, group: &[usize], targets: &[TargetRow], precision: Precision) -> Result<()> {
    for (p, target) in targets.iter().enumerate() {
        for s in target.measured.clone() {
            let i = p * clean.positions + s;
            let parts = component_dots(clean, i);
            let (sum, size) = parts.fold((0f64, 0f64), |(sum, size), v| (sum + v, size + v.abs()));
            let dot = f64::from(clean.dot[i]);
            if let Some(name) = first_without_number(clean, i) {
                fail_check!(
                    "prompt {}, position {s}: the {name} is not finite; the model's activations \
                     overflow {} here, so nothing of this shard is written",
                    group[p],
                    precision.name()
                );
            }
            // Relative to the size of what is summed: that is what rounding leaves.
            if (sum - dot).abs() > 1e-4 * precision.tolerance() * size.max(1.0) {
                fail_check!(
                    "prompt {}, position {s}: the direct effects sum to {sum}, but the stream gives {dot} (before the \
                     norm's scale {}); the exported graphs do not fit the model",
                    group[p],
                    clean.norm_scale[i]
                );
            }
        }
    }
    Ok(())
}

/// The name of a non-finite value at row `i`; of several, the one that the model computes first.
fn first_without_number(clean: &CleanEffects, i: usize) -> Option<String> {
    let tokens = clean.prompts * clean.positions;
    let biases = clean.attention_bias.len() / tokens;
    let keys = component_keys(clean.heads.len(), clean.heads[0].len() / tokens, biases);
    let components = keys.into_iter().filter(|k| k.0 != "constant").zip(component_dots(clean, i));
    let non_finite = components.filter(|(_, value)| !value.is_finite()).map(|(key, _)| key);
    // An overflow makes everything after it non-finite, so the first in block order is reported.
    let first = non_finite.min_by_key(|&(name, layer, _)| (layer.map_or(0, |l| l + 1), name == "mlp"));
    let named = first.map(|(name, layer, head)| {
        let layer = layer.map_or(String::new(), |l| format!(" of layer {l}"));
        let head = head.map_or(String::new(), |h| format!(" {h}"));
        format!("direct effect of {name}{head}{layer}")
    });
    let whole = [("final norm's scale", clean.norm_scale[i]), ("logit", clean.dot[i])];
    named.or_else(|| whole.iter().find(|(_, value)| !value.is_finite()).map(|(name, _)| name.to_string()))
}

/// Every component's dot product with u at row `i`: attention biases, embedding, heads, MLPs.
fn component_dots(clean: &CleanEffects, i: usize) -> impl Iterator<Item = f64> {
    let heads = clean.heads.iter().flat_map(move |layer| {
        let n = layer.len() / (clean.prompts * clean.positions);
        layer[i * n..(i + 1) * n].iter().copied()
    });
    let mlps = clean.mlps.iter().map(move |layer| layer[i]);
    let n = clean.attention_bias.len() / (clean.prompts * clean.positions);
    let biases = clean.attention_bias[i * n..(i + 1) * n].iter().copied();
    biases.chain([clean.embed[i]]).chain(heads).chain(mlps).map(f64::from)
}

fn keys(prompt: usize, positions: impl Iterator<Item = usize> + Clone) -> (ArrayRef, ArrayRef) {
    (columns::keys(positions.clone().map(|_| prompt)), columns::keys(positions))
}

fn clean_rows(row: &Row, measured: Range<usize>, residual_norm: impl Fn(f64) -> f64) -> Result<RecordBatch> {
    let (clean, log_probs) = (&row.of.effects, &row.of.log_probs);
    let floats = |f: &dyn Fn(usize) -> f32| {
        let values = measured.clone().map(|s| f(row.first + s));
        Arc::new(Float32Array::from_iter_values(values)) as ArrayRef
    };
    let (prompt, position) = keys(row.prompt, measured.clone());
    let columns = vec![
        prompt,
        position,
        floats(&|i| (f64::from(clean.dot[i]) / f64::from(clean.norm_scale[i]) + f64::from(clean.constant[i])) as f32),
        floats(&|i| log_probs[i]),
        floats(&|i| clean.norm_scale[i]),
        floats(&|i| residual_norm(f64::from(clean.norm_scale[i])) as f32),
    ];
    RecordBatch::try_new(CLEAN.schema(), columns).context("building the clean table")
}

/// The components of one token in the order of `direct_effects`: attention biases, constant, embed, heads, MLPs.
pub fn component_keys(layers: usize, heads: usize, biases: usize) -> Vec<(&'static str, Option<usize>, Option<usize>)> {
    let mut keys = Vec::new();
    keys.extend((0..biases).map(|l| ("attention_bias", Some(l), None)));
    keys.extend([("constant", None, None), ("embed", None, None)]);
    keys.extend((0..layers * heads).map(|i| ("head", Some(i / heads), Some(i % heads))));
    keys.extend((0..layers).map(|l| ("mlp", Some(l), None)));
    keys
}

/// `L26H2`, `MLP26`, `BIAS26`, `EMBED` or `CONSTANT`.
fn component_name(&(component, layer, head): &(&str, Option<usize>, Option<usize>)) -> String {
    match (component, layer) {
        ("attention_bias", Some(layer)) => format!("BIAS{layer}"),
        (_, Some(layer)) => Ablatable::head_or_mlp(layer, head).name(),
        (component, None) => component.to_uppercase(),
    }
}

/// Rows sorted by (prompt, position, component, layer, head).
fn direct_effects(row: &Row, measured: Range<usize>) -> Result<RecordBatch> {
    let clean = &row.of.effects;
    let tokens = clean.prompts * clean.positions;
    let biases = clean.attention_bias.len() / tokens;
    let keys_of_token = component_keys(clean.heads.len(), clean.heads[0].len() / tokens, biases);
    let mut values: Vec<f32> = Vec::with_capacity(measured.len() * keys_of_token.len());
    for s in measured.clone() {
        let i = row.first + s;
        let scale = f64::from(clean.norm_scale[i]);
        let mut effects = component_dots(clean, i).map(|dot| (dot / scale) as f32);
        values.extend(effects.by_ref().take(biases));
        // k is part of the logit as it is, whatever the norm's scale.
        values.push(clean.constant[i]);
        values.extend(effects);
    }
    let n = keys_of_token.len();
    let (prompt, position) = keys(row.prompt, measured.clone().flat_map(|s| std::iter::repeat_n(s, n)));
    let names: Vec<String> = keys_of_token.iter().map(component_name).collect();
    let each = || measured.clone().flat_map(|_| keys_of_token.iter());
    let columns: Vec<ArrayRef> = vec![
        prompt,
        position,
        columns::texts(each().map(|k| k.0)),
        columns::names(measured.clone().flat_map(|_| &names)),
        columns::keys_or_null(each().map(|k| k.1)),
        columns::keys_or_null(each().map(|k| k.2)),
        Arc::new(Float32Array::from(values)),
    ];
    RecordBatch::try_new(DIRECT_EFFECTS.schema(), columns).context("building the direct_effects table")
}
