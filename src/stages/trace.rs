//! The `trace` stage: one clean pass over the corpus. Tables `clean` and `direct_effects`, the sums behind the mean
//! ablation, and activations on request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{ArrayRef, Float32Array, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;

use super::{Run, activations, balanced};
use crate::config::Activation;
use crate::corpus::Prompts;
use crate::engine::runtime::view;
use crate::engine::{CleanBatch, CleanEffects, Engine, Keep, Purpose};
use crate::progress;
use crate::run_folder::{Stage, write_atomically};
use crate::tables::{CLEAN, DIRECT_EFFECTS, TableWriter, is_whole};

/// Prompts in one file. A constant, so that the same configuration gives the same files on every machine.
const PROMPTS_IN_SHARD: usize = 32;

pub fn trace(run: &Run, prompts: &Prompts) -> Result<String> {
    let a = &run.model.architecture;
    let mut engine = Engine::load(a, &run.folder.model(), &run.config.runtime, Purpose::Trace)?;
    let bar = progress::bar("trace", (prompts.count() * prompts.prompt_len) as u64, "tokens");
    let all: Vec<usize> = (0..prompts.count()).collect();
    for (number, shard) in all.chunks(PROMPTS_IN_SHARD).enumerate() {
        let files = ShardFiles::new(run, number);
        if !files.are_whole(run) {
            trace_shard(run, &mut engine, prompts, shard, &files, &bar)?;
        }
        bar.set_position(((shard[0] + shard.len()) * prompts.prompt_len) as u64);
    }
    bar.finish_and_clear();
    Ok(format!("{} tokens", prompts.count() * prompts.prompt_len))
}

/// The files of one shard. `clean` is written last: if it is there, so are the others.
struct ShardFiles {
    clean: PathBuf,
    direct_effects: PathBuf,
    z_sums: PathBuf,
    number: usize,
}

impl ShardFiles {
    fn new(run: &Run, number: usize) -> Self {
        let file = |table: &str| run.folder.table(table).join(format!("{number:05}.parquet"));
        let z_sums = z_sums_path(&run.folder.work(), number);
        Self { clean: file("clean"), direct_effects: file("direct_effects"), z_sums, number }
    }

    fn are_whole(&self, run: &Run) -> bool {
        let fingerprint = run.fingerprint(Stage::Trace);
        is_whole(&self.direct_effects, fingerprint) && self.z_sums.is_file() && is_whole(&self.clean, fingerprint)
    }
}

fn z_sums_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("z_sums-{number:05}.f64"))
}

fn trace_shard(
    run: &Run,
    engine: &mut Engine,
    prompts: &Prompts,
    shard: &[usize],
    files: &ShardFiles,
    bar: &indicatif::ProgressBar,
) -> Result<()> {
    let a = engine.architecture.clone();
    let save = &run.config.trace.save;
    let keep = Keep { ablation_base: false, z: true, post: save.contains(&Activation::MlpPost) };
    let mut saved = activations::Writers::create(run, &a, files.number)?;
    let mut effects = TableWriter::create(&DIRECT_EFFECTS, &files.direct_effects, &run.meta(Stage::Trace))?;
    let mut clean_table = TableWriter::create(&CLEAN, &files.clean, &run.meta(Stage::Trace))?;
    let mut z_sums = vec![0f64; a.layers * a.heads * a.d_head];

    let keeps = vec![keep; a.layers];
    for group in balanced(shard, run.rows_in_call() / prompts.prompt_len) {
        let tokens: Vec<&[u32]> = group.iter().map(|&p| prompts.prompt(p)).collect();
        let targets = shifted(&tokens);
        let targets: Vec<&[u32]> = targets.iter().map(Vec::as_slice).collect();
        let directions = engine.directions(&targets)?;
        let clean = engine.clean(&tokens, &directions, &keeps)?;
        let log_probs = engine.log_probs(&clean, &targets)?;
        check(&clean.effects, group)?;
        add_z(&mut z_sums, &clean)?;
        effects.write(&direct_effects(&clean.effects, group)?)?;
        clean_table.write(&clean_rows(&clean.effects, &log_probs, group, |s| a.residual_norm(s))?)?;
        saved.write(&clean, group)?;
        bar.inc((group.len() * prompts.prompt_len) as u64);
    }
    saved.finish()?;
    effects.finish()?;
    let bytes: Vec<u8> = z_sums.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_atomically(&files.z_sums, &bytes)?;
    clean_table.finish()
}

/// The next token of each position; the last position, which has none, gets token 0 and is not measured.
fn shifted(tokens: &[&[u32]]) -> Vec<Vec<u32>> {
    tokens.iter().map(|t| t[1..].iter().copied().chain([0]).collect()).collect()
}

/// Every head's mean z over all prompts and positions of the run, [layers · heads · d_head].
pub fn mean_z(run: &Run, prompts: &Prompts) -> Result<Vec<f32>> {
    let a = &run.model.architecture;
    let mut sums = vec![0f64; a.layers * a.heads * a.d_head];
    for number in 0..prompts.count().div_ceil(PROMPTS_IN_SHARD) {
        let path = z_sums_path(&run.folder.work(), number);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(bytes.len() == 8 * sums.len(), "{} has the wrong size; run with --fresh", path.display());
        for (sum, chunk) in sums.iter_mut().zip(bytes.chunks_exact(8)) {
            *sum += f64::from_le_bytes(chunk.try_into()?);
        }
    }
    let tokens = (prompts.count() * prompts.prompt_len) as f64;
    Ok(sums.into_iter().map(|s| (s / tokens) as f32).collect())
}

fn add_z(sums: &mut [f64], clean: &CleanBatch) -> Result<()> {
    let width = sums.len() / clean.z.len();
    for (layer_sums, z) in sums.chunks_exact_mut(width).zip(clean.z.iter().flatten()) {
        for row in view(z)?.chunks_exact(width) {
            layer_sums.iter_mut().zip(row).for_each(|(sum, &z)| *sum += f64::from(z));
        }
    }
    Ok(())
}

/// Numbers that cannot be trusted are never written: everything finite, and the direct effects complete.
fn check(clean: &CleanEffects, group: &[usize]) -> Result<()> {
    for (p, s) in measured(clean) {
        let i = p * clean.positions + s;
        let parts = component_dots(clean, i);
        let (sum, size) = parts.fold((0f64, 0f64), |(sum, size), v| (sum + v, size + v.abs()));
        let dot = f64::from(clean.dot[i]);
        // Relative to the size of what is summed: that is what float32 can promise.
        if (sum - dot).abs() > 1e-4 * size.max(1.0) || !sum.is_finite() || !clean.norm_scale[i].is_finite() {
            bail!(
                "prompt {}, position {s}: the direct effects sum to {sum} where the stream gives {dot} (before the \
                 norm's scale {}); the exported graphs do not fit the model",
                group[p],
                clean.norm_scale[i]
            );
        }
    }
    Ok(())
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

/// (prompt of the batch, position) of every measured token.
fn measured(clean: &CleanEffects) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (prompts, positions) = (clean.prompts, clean.positions);
    (0..prompts).flat_map(move |p| (0..positions - 1).map(move |s| (p, s)))
}

fn keys(clean: &CleanEffects, group: &[usize]) -> (ArrayRef, ArrayRef) {
    let prompt: UInt32Array = measured(clean).map(|(p, _)| Some(group[p] as u32)).collect();
    let position: UInt32Array = measured(clean).map(|(_, s)| Some(s as u32)).collect();
    (Arc::new(prompt), Arc::new(position))
}

fn clean_rows(
    clean: &CleanEffects,
    log_probs: &[f32],
    group: &[usize],
    residual_norm: impl Fn(f64) -> f64,
) -> Result<RecordBatch> {
    let floats = |f: &dyn Fn(usize) -> f32| {
        let values = measured(clean).map(|(p, s)| f(p * clean.positions + s));
        Arc::new(Float32Array::from_iter_values(values)) as ArrayRef
    };
    let (prompt, position) = keys(clean, group);
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

/// Rows sorted by (prompt, position, component, layer, head): attention biases, constant, embed, heads, MLPs.
fn direct_effects(clean: &CleanEffects, group: &[usize]) -> Result<RecordBatch> {
    let tokens = clean.prompts * clean.positions;
    let (layers, heads) = (clean.heads.len(), clean.heads[0].len() / tokens);
    let biases = clean.attention_bias.len() / tokens;
    let mut keys: Vec<(&str, Option<u16>, Option<u16>)> = Vec::new();
    keys.extend((0..biases).map(|l| ("attention_bias", Some(l as u16), None)));
    keys.extend([("constant", None, None), ("embed", None, None)]);
    keys.extend((0..layers * heads).map(|i| ("head", Some((i / heads) as u16), Some((i % heads) as u16))));
    keys.extend((0..layers).map(|l| ("mlp", Some(l as u16), None)));

    let mut values: Vec<f32> = Vec::with_capacity(tokens * keys.len());
    for (p, s) in measured(clean) {
        let i = p * clean.positions + s;
        let scale = f64::from(clean.norm_scale[i]);
        let mut effects = component_dots(clean, i).map(|dot| (dot / scale) as f32);
        values.extend(effects.by_ref().take(biases));
        // k is part of the logit as it is, whatever the norm's scale.
        values.push(clean.constant[i]);
        values.extend(effects);
    }
    let rows = values.len() / keys.len();
    let repeat = |f: &dyn Fn(usize, usize) -> u32| -> ArrayRef {
        let tokens = measured(clean).flat_map(|(p, s)| std::iter::repeat_n(f(p, s), keys.len()));
        Arc::new(UInt32Array::from_iter_values(tokens))
    };
    let each = || (0..rows).flat_map(|_| keys.iter());
    let columns: Vec<ArrayRef> = vec![
        repeat(&|p, _| group[p] as u32),
        repeat(&|_, s| s as u32),
        Arc::new(StringArray::from_iter(each().map(|k| Some(k.0)))),
        Arc::new(each().map(|k| k.1).collect::<UInt16Array>()),
        Arc::new(each().map(|k| k.2).collect::<UInt16Array>()),
        Arc::new(Float32Array::from(values)),
    ];
    RecordBatch::try_new(DIRECT_EFFECTS.schema(), columns).context("building the direct_effects table")
}
