//! The `ablate` stage: every selected head of every prompt ablated, only what follows it run again. Tables `pairs` and
//! `ablations`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use arrow::array::{ArrayRef, Float32Array, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use indicatif::ProgressBar;
use ort::value::DynValue;

use super::repair::{AblatedHead, Repair, repair};
use super::{Run, balanced, trace};
use crate::config::Kind;
use crate::corpus::Prompts;
use crate::engine::runtime::view;
use crate::engine::{AblatedRun, CleanBatch, Directions, Engine, Keep, Purpose};
use crate::model::Architecture;
use crate::pairing::pairings;
use crate::progress;
use crate::run_folder::Stage;
use crate::tables::{ABLATIONS, Metadata, PAIRS, TableWriter, is_whole};

pub fn ablate(run: &Run, prompts: &Prompts) -> Result<String> {
    let a = &run.model.architecture;
    let pairings = match run.has(Kind::Resample) {
        true => pairings(prompts.count(), run.config.ablation.resample.samples, run.config.ablation.seed)?,
        false => vec![],
    };
    write_pairs(&pairings, &run.folder.table("pairs"), &run.meta(Stage::Ablate))?;
    let mean_z = match run.has(Kind::Mean) {
        true => trace::mean_z(run, prompts)?,
        false => vec![],
    };
    let plan = Plan::new(run, a, prompts, pairings, mean_z);
    let mut engine = Engine::load(a, &run.folder.model(), &run.config.runtime, Purpose::Ablate)?;
    let bar = progress::bar("ablate", (plan.flops_per_prompt * prompts.count() as f64 / 1e9) as u64, "GFLOP");
    let bar = &bar;

    // Files are written by a thread of their own, so that the arithmetic never waits for Parquet. One finished shard
    // is handed over at a time; more would let memory grow, and a kill lose more.
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Shard>(0);
        let meta = run.meta(Stage::Ablate);
        let writer = scope.spawn(move || receiver.iter().try_for_each(|shard| shard.write(&meta)));
        let computed = ablate_shards(run, &plan, &mut engine, sender, bar);
        let written = writer.join().map_err(|_| anyhow!("the writer thread panicked"))?;
        written.and(computed)
    })?;
    bar.finish_and_clear();
    Ok(format!("{} heads × {} tokens", run.heads.len(), prompts.count() * prompts.measured_positions()))
}

/// What to ablate, the same for every prompt.
struct Plan<'a> {
    prompts: &'a Prompts,
    /// In the order of the table: ablation, layer, head.
    kinds: Vec<Kind>,
    heads: &'a [(usize, usize)],
    by_layer: BTreeMap<usize, Vec<usize>>,
    /// `pairings[sample][prompt]`; empty without resample ablation.
    pairings: Vec<Vec<usize>>,
    /// [layers · heads · d_head]; empty without mean ablation.
    mean_z: Vec<f32>,
    flops_per_prompt: f64,
}

/// One ablation of a head: a row of a batch.
#[derive(Clone, Copy)]
struct Item {
    kind: Kind,
    /// Which pairing, for resample.
    sample: usize,
    head: usize,
}

impl<'a> Plan<'a> {
    fn new(run: &'a Run, a: &Architecture, prompts: &'a Prompts, pairings: Vec<Vec<usize>>, mean_z: Vec<f32>) -> Self {
        let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &(layer, head) in &run.heads {
            by_layer.entry(layer).or_default().push(head);
        }
        let kinds = run.config.ablation.kinds.clone();
        let repeats = kinds.len() + pairings.len().saturating_sub(1);
        let flops: f64 = run.heads.iter().map(|&(l, _)| a.ablation_flops(l)).sum();
        let flops_per_prompt = flops * (repeats * prompts.measured_positions()) as f64;
        Self { prompts, kinds, heads: &run.heads, by_layer, pairings, mean_z, flops_per_prompt }
    }

    /// Prompts in one file: about 10¹³ operations, a minute or so of two cores, which is what a kill can lose. It
    /// depends on the configuration only, so that the same one gives the same files on every machine.
    fn prompts_in_shard(&self) -> usize {
        ((1e13 / self.flops_per_prompt) as usize).clamp(1, 64)
    }

    fn items(&self, heads: &[usize]) -> Vec<Item> {
        let samples = |kind| if kind == Kind::Resample { self.pairings.len() } else { 1 };
        let kinds = self.kinds.iter().flat_map(|&kind| (0..samples(kind)).map(move |sample| (kind, sample)));
        kinds.flat_map(|(kind, sample)| heads.iter().map(move |&head| Item { kind, sample, head })).collect()
    }
}

fn ablate_shards(
    run: &Run,
    plan: &Plan,
    engine: &mut Engine,
    sender: SyncSender<Shard>,
    bar: &ProgressBar,
) -> Result<()> {
    let all: Vec<usize> = (0..plan.prompts.count()).collect();
    let most = plan.prompts_in_shard();
    for (number, group) in all.chunks(most).enumerate() {
        let path = run.folder.table("ablations").join(format!("{number:05}.parquet"));
        if !is_whole(&path, run.fingerprint(Stage::Ablate)) {
            let mut shard = Shard::new(plan, group, &path);
            for batch in balanced(group, run.rows_in_call() / plan.prompts.measured_positions()) {
                ablate_prompts(run, plan, engine, batch, &mut shard, bar)
                    .with_context(|| format!("ablating prompts {} to {}", batch[0], batch[batch.len() - 1]))?;
            }
            if sender.send(shard).is_err() {
                // The writer has failed and says why.
                return Ok(());
            }
        }
        bar.set_position((plan.flops_per_prompt * (group[0] + group.len()) as f64 / 1e9) as u64);
    }
    Ok(())
}

/// The clean pass of some prompts and of their partners, then every ablation of them.
fn ablate_prompts(
    run: &Run,
    plan: &Plan,
    engine: &mut Engine,
    batch: &[usize],
    shard: &mut Shard,
    bar: &ProgressBar,
) -> Result<()> {
    // The last position has no target and nothing after it depends on it: it is left out.
    let positions = plan.prompts.measured_positions();
    let tokens_of = |p: usize| &plan.prompts.prompt(p)[..positions];
    let layers = engine.architecture.layers;
    let wanted: Vec<bool> = (0..layers).map(|l| plan.by_layer.contains_key(&l)).collect();
    let keep: Vec<Keep> = wanted.iter().map(|&w| Keep { ablation_base: w, z: w, post: false }).collect();

    let tokens: Vec<&[u32]> = batch.iter().map(|&p| tokens_of(p)).collect();
    let targets: Vec<&[u32]> = batch.iter().map(|&p| &plan.prompts.prompt(p)[1..]).collect();
    let directions = engine.directions(&targets)?;
    let clean = engine.clean(&tokens, &directions, &keep)?;
    let mut partner_z = Vec::new();
    for pairing in &plan.pairings {
        let partners: Vec<&[u32]> = batch.iter().map(|&p| tokens_of(pairing[p])).collect();
        partner_z.push(engine.z(&partners, &wanted)?);
    }

    let work = Work { plan, batch, clean: &clean, directions: &directions, partner_z: &partner_z };
    let rows = run.rows_in_call();
    for (&layer, heads) in &plan.by_layer {
        let items = plan.items(heads);
        let flops = engine.architecture.ablation_flops(layer);
        let done = |runs: usize| bar.inc((flops * (runs * positions) as f64 / 1e9) as u64);
        // Many ablations of one prompt share its directions; where a layer has few, many prompts share the ablation.
        if items.len() * positions >= rows / 2 {
            for p in 0..batch.len() {
                for chunk in balanced(&items, rows / positions) {
                    let runs: Vec<(usize, Item)> = chunk.iter().map(|&item| (p, item)).collect();
                    work.run(engine, layer, &runs, shard)?;
                    done(runs.len());
                }
            }
        } else {
            let everyone: Vec<usize> = (0..batch.len()).collect();
            for &item in &items {
                for chunk in balanced(&everyone, rows / positions) {
                    let runs: Vec<(usize, Item)> = chunk.iter().map(|&p| (p, item)).collect();
                    work.run(engine, layer, &runs, shard)?;
                    done(runs.len());
                }
            }
        }
    }
    Ok(())
}

/// Everything that the ablations of some prompts read.
struct Work<'a> {
    plan: &'a Plan<'a>,
    batch: &'a [usize],
    clean: &'a CleanBatch,
    directions: &'a Directions,
    /// `partner_z[sample][layer]`.
    partner_z: &'a [Vec<Option<DynValue>>],
}

impl Work<'_> {
    fn run(&self, engine: &mut Engine, layer: usize, runs: &[(usize, Item)], shard: &mut Shard) -> Result<()> {
        let positions = self.clean.effects.positions;
        let mut own_changes = Vec::with_capacity(runs.len());
        let mut ablated_runs = Vec::with_capacity(runs.len());
        for &(p, item) in runs {
            let z_change = self.z_change(&engine.architecture, layer, p, item)?;
            own_changes.push(self.own_change(&engine.architecture, layer, p, item.head, &z_change)?);
            ablated_runs.push(AblatedRun { prompt: p, head: item.head, z_change });
        }
        let ablated = engine.ablated(layer, self.clean, self.directions, ablated_runs)?;
        for (b, &(p, item)) in runs.iter().enumerate() {
            let weight = if item.kind == Kind::Resample { 1.0 / self.plan.pairings.len() as f64 } else { 1.0 };
            for (s, &own_change) in own_changes[b].iter().enumerate() {
                let what = AblatedHead { layer, head: item.head, own_change };
                let mut token = repair(&self.clean.effects, p * positions + s, &ablated, b * positions + s, &what)
                    .with_context(|| format!("L{layer}H{}, prompt {}, position {s}", item.head, self.batch[p]))?;
                token.ablated_residual_norm = engine.architecture.residual_norm(token.ablated_norm_scale);
                shard.add(item.kind, (layer, item.head), self.batch[p], s, &token, weight);
            }
        }
        Ok(())
    }

    /// Replacement z less clean z of one head, [S, d_head].
    fn z_change(&self, a: &Architecture, layer: usize, p: usize, item: Item) -> Result<Vec<f32>> {
        let missing = "the pass did not keep this layer's z";
        let clean = self.head_rows(a, self.clean.z[layer].as_ref().context(missing)?, p, item.head)?;
        Ok(match item.kind {
            Kind::Zero => clean.map(|z| -z).collect(),
            Kind::Mean => {
                let start = (layer * a.heads + item.head) * a.d_head;
                let mean = self.plan.mean_z[start..start + a.d_head].iter().cycle();
                clean.zip(mean).map(|(z, mean)| mean - z).collect()
            }
            Kind::Resample => {
                let partner = self.partner_z[item.sample][layer].as_ref().context(missing)?;
                let partner = self.head_rows(a, partner, p, item.head)?;
                clean.zip(partner).map(|(z, partner)| partner - z).collect()
            }
        })
    }

    /// Δz · v at each position: how far replacing the head moves its own effect, unscaled.
    fn own_change(&self, a: &Architecture, layer: usize, p: usize, head: usize, z_change: &[f32]) -> Result<Vec<f64>> {
        let v: Vec<f32> = self.head_rows(a, &self.directions.v[layer], p, head)?.collect();
        let rows = z_change.chunks_exact(a.d_head).zip(v.chunks_exact(a.d_head));
        Ok(rows.map(|(z, v)| z.iter().zip(v).map(|(&z, &v)| f64::from(z) * f64::from(v)).sum()).collect())
    }

    /// One head's part of a tensor [B, S, H · d_head], for prompt `p`: S · d_head numbers.
    fn head_rows<'v>(
        &self,
        a: &Architecture,
        value: &'v DynValue,
        p: usize,
        head: usize,
    ) -> Result<impl Iterator<Item = f32> + use<'v>> {
        let (width, d_head) = (a.heads * a.d_head, a.d_head);
        let rows =
            &view(value)?[p * self.clean.effects.positions * width..(p + 1) * self.clean.effects.positions * width];
        Ok(rows.chunks_exact(width).flat_map(move |row| row[head * d_head..(head + 1) * d_head].iter().copied()))
    }
}

/// The rows of one file, laid out in the table's order from the start: ablation, layer, head, prompt, position.
struct Shard {
    path: std::path::PathBuf,
    kinds: Vec<Kind>,
    heads: Vec<(usize, usize)>,
    first_prompt: usize,
    prompts: usize,
    positions: usize,
    rows: Vec<Repair>,
}

impl Shard {
    fn new(plan: &Plan, group: &[usize], path: &Path) -> Self {
        let positions = plan.prompts.measured_positions();
        let rows = plan.kinds.len() * plan.heads.len() * group.len() * positions;
        Self {
            path: path.to_path_buf(),
            kinds: plan.kinds.clone(),
            heads: plan.heads.to_vec(),
            first_prompt: group[0],
            prompts: group.len(),
            positions,
            rows: vec![Repair::default(); rows],
        }
    }

    fn add(&mut self, kind: Kind, head: (usize, usize), prompt: usize, position: usize, r: &Repair, weight: f64) {
        let k = self.kinds.iter().position(|&x| x == kind).unwrap_or_default();
        let h = self.heads.binary_search(&head).unwrap_or_default();
        let block = (k * self.heads.len() + h) * self.prompts + (prompt - self.first_prompt);
        self.rows[block * self.positions + position].add(r, weight);
    }

    fn write(&self, meta: &Metadata) -> Result<()> {
        let mut writer = TableWriter::create(&ABLATIONS, &self.path, meta)?;
        let block = self.prompts * self.positions;
        for (i, rows) in self.rows.chunks_exact(block).enumerate() {
            writer.write(&self.batch(self.kinds[i / self.heads.len()], self.heads[i % self.heads.len()], rows)?)?;
        }
        writer.finish()
    }

    /// The rows of one ablated head.
    fn batch(&self, kind: Kind, (layer, head): (usize, usize), rows: &[Repair]) -> Result<RecordBatch> {
        let n = rows.len();
        let text = |s: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(s, n))) as ArrayRef;
        let small = |v: usize| Arc::new(UInt16Array::from(vec![v as u16; n])) as ArrayRef;
        let keys = |f: &dyn Fn(usize) -> usize| -> ArrayRef {
            Arc::new(UInt32Array::from_iter_values((0..n).map(|i| f(i) as u32)))
        };
        let floats = |f: fn(&Repair) -> f64| -> ArrayRef {
            Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| f(r) as f32)))
        };
        let columns = vec![
            text(kind.name()),
            text("none"),
            text("head"),
            small(layer),
            small(head),
            keys(&|i| self.first_prompt + i / self.positions),
            keys(&|i| i % self.positions),
            floats(|r| r.logit_change),
            floats(|r| r.direct_effect),
            floats(|r| r.ablated_direct_effect),
            floats(|r| r.self_repair),
            floats(|r| r.repair_attention),
            floats(|r| r.repair_mlp),
            floats(|r| r.repair_norm),
            floats(|r| r.repair_by_erasers),
            floats(|r| r.norm_scale),
            floats(|r| r.ablated_norm_scale),
            floats(|r| r.ablated_residual_norm),
        ];
        RecordBatch::try_new(ABLATIONS.schema(), columns).context("building the ablations table")
    }
}

fn write_pairs(pairings: &[Vec<usize>], folder: &Path, meta: &Metadata) -> Result<()> {
    let rows = || {
        let samples = pairings.iter().enumerate();
        samples.flat_map(|(sample, partners)| partners.iter().enumerate().map(move |(p, &q)| (sample, p, q)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt16Array::from_iter_values(rows().map(|r| r.0 as u16))),
        Arc::new(UInt32Array::from_iter_values(rows().map(|r| r.1 as u32))),
        Arc::new(UInt32Array::from_iter_values(rows().map(|r| r.2 as u32))),
    ];
    let mut writer = TableWriter::create(&PAIRS, &folder.join("pairs.parquet"), meta)?;
    writer.write(&RecordBatch::try_new(PAIRS.schema(), columns)?)?;
    writer.finish()
}
