//! The `trace` stage: one clean pass over the corpus. Tables `clean` and `direct_effects`, the sums behind the mean
//! ablation, and activations on request.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{ArrayRef, Float32Array, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;

use super::{Run, activations, balanced};
use crate::bench::count_writing;
use crate::config::Activation;
use crate::corpus::Prompts;
use crate::engine::runtime::view;
use crate::engine::{CleanBatch, CleanEffects, Engine, Keep, Needs, TargetRow};
use crate::interrupt;
use crate::memory;
use crate::model::Architecture;
use crate::progress;
use crate::run_folder::{Stage, sha256_of, write_atomically};
use crate::tables::{CLEAN, DIRECT_EFFECTS, TableWriter, is_whole};

/// Prompts in one file. A constant, so that the same configuration gives the same files on every machine.
const PROMPTS_IN_SHARD: usize = 32;

pub fn trace(run: &Run, prompts: &Prompts) -> Result<String> {
    let a = &run.model.architecture;
    let mut engine = Engine::load(a, &run.folder.model(), &run.config.runtime, &Needs::trace())?;
    let bar = progress::bar("trace", prompts.tokens() as u64, "tokens");
    let all: Vec<usize> = (0..prompts.count()).collect();
    let mut bar_before = 0;
    for (number, shard) in all.chunks(PROMPTS_IN_SHARD).enumerate() {
        let files = ShardFiles::new(run, number);
        if !files.are_whole(run) {
            trace_shard(run, &mut engine, prompts, shard, &files, &bar)?;
        }
        bar.set_position(shard.iter().map(|&p| prompts.prompt(p).len() as u64).sum::<u64>() + bar_before);
        bar_before = bar.position();
    }
    bar.finish_and_clear();
    Ok(format!("{} tokens", prompts.tokens()))
}

/// The files of one shard. `clean` is written last: if it is there, so are the others.
struct ShardFiles {
    clean: PathBuf,
    direct_effects: PathBuf,
    sums: PathBuf,
    /// Raw activations, if any are saved.
    activations: Vec<PathBuf>,
    number: usize,
}

impl ShardFiles {
    fn new(run: &Run, number: usize) -> Self {
        let file = |table: &str| run.folder.table(table).join(format!("{number:05}.parquet"));
        let sums = sums_path(&run.folder.work(), number);
        let activations = activations::paths(run, number);
        Self { clean: file("clean"), direct_effects: file("direct_effects"), sums, activations, number }
    }

    fn are_whole(&self, run: &Run) -> bool {
        let (meta, ledger) = (run.meta(Stage::Trace), run.folder.ledger(Stage::Trace));
        is_whole(&self.clean, &meta)
            && is_whole(&self.direct_effects, &meta)
            && self.activations.iter().chain([&self.sums]).all(|path| ledger.holds(path))
    }
}

fn sums_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("sums-{number:05}.f64"))
}

/// What a clean pass gave for one prompt, until the shard's rows are written in order.
struct Traced {
    prompt: usize,
    /// Row of the prompt's first position in the batch.
    first: usize,
    batch: std::rc::Rc<(CleanEffects, Vec<f32>)>,
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
    let post = save.contains(&Activation::MlpPost);
    let keep = Keep { z: true, attention_out: true, mlp_out: true, post, ..Default::default() };
    let keeps = vec![keep; a.layers];
    let mut saved = activations::Writers::create(run, &a, files.number)?;
    let mut sums = Sums::new(&a);
    let mut traced = Vec::new();
    for equal in prompts.by_length(shard) {
        let length = prompts.prompt(equal[0]).len();
        let mut groups: VecDeque<&[usize]> = balanced(&equal, run.rows_in_call() / length).collect();
        while let Some(group) = groups.pop_front() {
            interrupt::check()?;
            let rows = run.rows_in_call();
            let clean = match trace_group(engine, prompts, group, &keeps) {
                Err(e) if memory::is_exhausted(&e) && group.len() > 1 => {
                    run.shrink(rows.min(group.len() * length), length);
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.push_front(second);
                    groups.push_front(first);
                    continue;
                }
                result => result?,
            };
            let (clean, log_probs) = clean;
            sums.add(&clean)?;
            saved.write(&clean, group)?;
            let batch = std::rc::Rc::new((clean.effects, log_probs));
            traced.extend(group.iter().enumerate().map(|(i, &prompt)| Traced {
                prompt,
                first: i * length,
                batch: batch.clone(),
            }));
            bar.inc((group.len() * length) as u64);
        }
    }
    traced.sort_by_key(|t| t.prompt);
    count_writing(|| write_shard(run, prompts, &traced, files, &mut sums))?;
    saved.finish(run.folder.ledger(Stage::Trace))?;
    // Last: if it is there, so are the others.
    write_clean(run, prompts, &traced, files)
}

/// The clean pass of prompts of equal length, and the log-probabilities of their targets.
fn trace_group(
    engine: &mut Engine,
    prompts: &Prompts,
    group: &[usize],
    keeps: &[Keep],
) -> Result<(CleanBatch, Vec<f32>)> {
    let tokens: Vec<&[u32]> = group.iter().map(|&p| prompts.prompt(p)).collect();
    let targets: Vec<TargetRow> = group.iter().map(|&p| prompts.target_row(p, tokens[0].len())).collect();
    let directions = engine.directions(&targets)?;
    let clean = engine.clean(&tokens, &directions, keeps)?;
    let log_probs = engine.log_probs(&clean, &targets)?;
    check(&clean.effects, group, &targets)?;
    Ok((clean, log_probs))
}

/// Everything of a shard but `clean`.
fn write_shard(run: &Run, prompts: &Prompts, traced: &[Traced], files: &ShardFiles, sums: &mut Sums) -> Result<()> {
    let mut writer = TableWriter::create(&DIRECT_EFFECTS, &files.direct_effects, &run.meta(Stage::Trace))?;
    for t in traced {
        writer.write(&direct_effects(t, prompts.measured(t.prompt))?)?;
    }
    writer.finish()?;
    let bytes = sums.bytes();
    write_atomically(&files.sums, &bytes)?;
    run.folder.ledger(Stage::Trace).record(&files.sums, sha256_of(&bytes))
}

fn write_clean(run: &Run, prompts: &Prompts, traced: &[Traced], files: &ShardFiles) -> Result<()> {
    let a = &run.model.architecture;
    let mut writer = TableWriter::create(&CLEAN, &files.clean, &run.meta(Stage::Trace))?;
    for t in traced {
        writer.write(&clean_rows(t, prompts.measured(t.prompt), |s| a.residual_norm(s))?)?;
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
    pub fn read(run: &Run, prompts: &Prompts) -> Result<Self> {
        let mut sums = Sums::new(&run.model.architecture);
        for number in 0..prompts.count().div_ceil(PROMPTS_IN_SHARD) {
            let path = sums_path(&run.folder.work(), number);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let length: usize = sums.parts().iter().map(|part| part.len()).sum();
            ensure!(bytes.len() == 8 * length, "{} has the wrong size; run with --fresh", path.display());
            let mut chunks = bytes.chunks_exact(8);
            for part in sums.parts() {
                for (sum, chunk) in part.iter_mut().zip(chunks.by_ref()) {
                    *sum += f64::from_le_bytes(chunk.try_into()?);
                }
                ensure!(
                    part.iter().all(|sum| sum.is_finite()),
                    "{} holds sums that are no numbers: the model's activations overflow",
                    path.display()
                );
            }
        }
        let tokens = prompts.tokens() as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / tokens) as f32).collect();
        Ok(Self { z: mean(sums.z), attention_out: mean(sums.attention_out), mlp_out: mean(sums.mlp_out) })
    }
}

/// Numbers that cannot be trusted are never written: everything finite, and the direct effects complete.
fn check(clean: &CleanEffects, group: &[usize], targets: &[TargetRow]) -> Result<()> {
    for (p, target) in targets.iter().enumerate() {
        for s in target.measured.clone() {
            let i = p * clean.positions + s;
            let parts = component_dots(clean, i);
            let (sum, size) = parts.fold((0f64, 0f64), |(sum, size), v| (sum + v, size + v.abs()));
            let dot = f64::from(clean.dot[i]);
            if let Some(name) = first_without_number(clean, i) {
                bail!(
                    "prompt {}, position {s}: the {name} is not a number that can be trusted; the model's activations \
                     overflow float32 here, so nothing of this shard is written",
                    group[p]
                );
            }
            // Relative to the size of what is summed: that is what float32 can promise.
            if (sum - dot).abs() > 1e-4 * size.max(1.0) {
                bail!(
                    "prompt {}, position {s}: the direct effects sum to {sum} where the stream gives {dot} (before the \
                     norm's scale {}); the exported graphs do not fit the model",
                    group[p],
                    clean.norm_scale[i]
                );
            }
        }
    }
    Ok(())
}

/// What at row `i` is infinite or not a number, by name.
fn first_without_number(clean: &CleanEffects, i: usize) -> Option<String> {
    let tokens = clean.prompts * clean.positions;
    let biases = clean.attention_bias.len() / tokens;
    let keys = component_keys(clean.heads.len(), clean.heads[0].len() / tokens, biases);
    let components = keys.into_iter().filter(|k| k.0 != "constant").zip(component_dots(clean, i));
    let named = components.map(|((name, layer, head), value)| {
        let layer = layer.map_or(String::new(), |l| format!(" of layer {l}"));
        let head = head.map_or(String::new(), |h| format!(" {h}"));
        (format!("direct effect of {name}{head}{layer}"), value)
    });
    let whole = [("final norm's scale", clean.norm_scale[i]), ("logit", clean.dot[i])];
    let whole = whole.map(|(name, value)| (name.to_string(), f64::from(value)));
    named.chain(whole).find(|(_, value)| !value.is_finite()).map(|(name, _)| name)
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
    let prompts = UInt32Array::from_iter_values(positions.clone().map(|_| prompt as u32));
    (Arc::new(prompts), Arc::new(UInt32Array::from_iter_values(positions.map(|s| s as u32))))
}

fn clean_rows(t: &Traced, measured: Range<usize>, residual_norm: impl Fn(f64) -> f64) -> Result<RecordBatch> {
    let (clean, log_probs) = &*t.batch;
    let floats = |f: &dyn Fn(usize) -> f32| {
        let values = measured.clone().map(|s| f(t.first + s));
        Arc::new(Float32Array::from_iter_values(values)) as ArrayRef
    };
    let (prompt, position) = keys(t.prompt, measured.clone());
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
pub fn component_keys(layers: usize, heads: usize, biases: usize) -> Vec<(&'static str, Option<u16>, Option<u16>)> {
    let mut keys = Vec::new();
    keys.extend((0..biases).map(|l| ("attention_bias", Some(l as u16), None)));
    keys.extend([("constant", None, None), ("embed", None, None)]);
    keys.extend((0..layers * heads).map(|i| ("head", Some((i / heads) as u16), Some((i % heads) as u16))));
    keys.extend((0..layers).map(|l| ("mlp", Some(l as u16), None)));
    keys
}

/// Rows sorted by (prompt, position, component, layer, head).
fn direct_effects(t: &Traced, measured: Range<usize>) -> Result<RecordBatch> {
    let clean = &t.batch.0;
    let tokens = clean.prompts * clean.positions;
    let biases = clean.attention_bias.len() / tokens;
    let keys_of_token = component_keys(clean.heads.len(), clean.heads[0].len() / tokens, biases);
    let mut values: Vec<f32> = Vec::with_capacity(measured.len() * keys_of_token.len());
    for s in measured.clone() {
        let i = t.first + s;
        let scale = f64::from(clean.norm_scale[i]);
        let mut effects = component_dots(clean, i).map(|dot| (dot / scale) as f32);
        values.extend(effects.by_ref().take(biases));
        // k is part of the logit as it is, whatever the norm's scale.
        values.push(clean.constant[i]);
        values.extend(effects);
    }
    let n = keys_of_token.len();
    let (prompt, position) = keys(t.prompt, measured.clone().flat_map(|s| std::iter::repeat_n(s, n)));
    let each = || measured.clone().flat_map(|_| keys_of_token.iter());
    let columns: Vec<ArrayRef> = vec![
        prompt,
        position,
        Arc::new(StringArray::from_iter(each().map(|k| Some(k.0)))),
        Arc::new(each().map(|k| k.1).collect::<UInt16Array>()),
        Arc::new(each().map(|k| k.2).collect::<UInt16Array>()),
        Arc::new(Float32Array::from(values)),
    ];
    RecordBatch::try_new(DIRECT_EFFECTS.schema(), columns).context("building the direct_effects table")
}
