//! The `ablate` stage: every selected component of every prompt ablated, only what follows it run again.
//!
//! `plan` says what is ablated, `top` which tokens are each component's strongest, `work` runs batches of prompts,
//! `tally` gathers what components and neurons changed, `sums` keeps what is summed over the whole corpus, and `shard`
//! lays out the rows of one file.

mod plan;
mod replace;
mod shard;
mod sums;
mod tally;
mod top;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use arrow::array::{ArrayRef, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use indicatif::ProgressBar;

use super::trace::Means;
use super::{Run, balanced, iterate};
use crate::bench::count_writing;
use crate::config::Kind;
use crate::corpus::Prompts;
use crate::engine::{Crew, Engine};
use crate::memory;
use crate::pairing::pairings_within;
use crate::progress;
use crate::run_folder::Stage;
use crate::tables::{Metadata, PAIRS, TableWriter};
use plan::Plan;
use shard::{Finished, Shard, ShardFiles};
use sums::{SavedSums, Sums};
pub use top::TopTokens;

pub fn ablate(run: &Run, prompts: &Prompts) -> Result<String> {
    let a = &run.model.architecture;
    let meta = run.meta(Stage::Ablate);
    let all: Vec<usize> = (0..prompts.count()).collect();
    let pairings = match run.has(Kind::Resample) {
        true => {
            let resample = &run.config.ablation.resample;
            pairings_within(&prompts.by_length(&all), resample.samples, run.config.ablation.seed)?
        }
        false => vec![],
    };
    write_pairs(&pairings, &run.folder.table("pairs"), &meta)?;
    let top = TopTokens::find(run, prompts)?;
    top.write(&run.components, &run.folder.table("top_tokens"), &meta)?;
    let means = run.has(Kind::Mean).then(|| Means::read(run, prompts)).transpose()?;
    let plan = Plan::new(run, prompts, pairings, means, top)?;

    let mut crew = Crew::load(a, &run.folder.model(), &run.config.runtime, &plan.needs())?;
    ablate_shards(run, &plan, &mut crew)?;
    iterate::iterate(run, prompts, &plan.top, &mut crew)?;
    let tokens = prompts.measured_tokens();
    Ok(format!("{} components × {tokens} tokens", run.components.len()))
}

fn ablate_shards(run: &Run, plan: &Plan, crew: &mut Crew) -> Result<()> {
    let saved = SavedSums::open(run, plan)?;
    let bar = progress::bar("ablate", (plan.flops() / 1e9) as u64, "GFLOP");
    let bar = &bar;
    // Files are written by a thread of their own, so that the arithmetic never waits for Parquet. One finished shard
    // is handed over at a time; more would let memory grow, and a kill lose more.
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Finished>(0);
        let meta = run.meta(Stage::Ablate);
        let writer =
            scope.spawn(move || receiver.iter().try_for_each(|finished| count_writing(|| finished.write(&meta))));
        let computed = compute_shards(run, plan, crew, saved, sender, bar);
        let written = writer.join().map_err(|_| anyhow!("the writer thread panicked"))?;
        written.and(computed)
    })?;
    bar.finish_and_clear();
    SavedSums::open(run, plan)?.write_tables(run, plan)
}

/// Prompts of equal length that are ablated together.
struct Batch {
    shard: usize,
    prompts: Vec<usize>,
}

fn compute_shards(
    run: &Run,
    plan: &Plan,
    crew: &mut Crew,
    mut saved: SavedSums,
    sender: SyncSender<Finished>,
    bar: &ProgressBar,
) -> Result<()> {
    let (meta, fingerprint) = (run.meta(Stage::Ablate), run.fingerprint(Stage::Ablate));
    let all: Vec<usize> = (0..plan.prompts.count()).collect();
    let shards: Vec<&[usize]> = all.chunks(plan.prompts_in_shard()).collect();
    let mut batches = Vec::new();
    for (number, group) in shards.iter().enumerate() {
        if saved.contains(number) && ShardFiles::new(run, plan, number).are_whole(&meta, saved.are_done()) {
            bar.inc((group.iter().map(|&p| plan.flops_of(p)).sum::<f64>() / 1e9) as u64);
        } else {
            batches.extend(batches_of(run, plan, number, group, crew.size()));
        }
    }
    let work = |engine: &mut Engine, batch: &Batch| {
        let prompts = &batch.prompts;
        let part = ablate_batch(run, plan, engine, prompts, bar);
        let part =
            part.with_context(|| format!("ablating prompts {} to {}", prompts[0], prompts[prompts.len() - 1]))?;
        Ok((batch.shard, part))
    };
    let mut current: Option<(usize, Shard)> = None;
    let mut finish = |number: usize, shard: Shard| {
        // A shard that vanished after its sums were saved is written again, but not summed again.
        let files = ShardFiles::new(run, plan, number);
        let finished = Finished::new(plan, shard, files, &mut saved, number, fingerprint);
        sender.send(finished).map_err(|_| anyhow!("the writer has stopped"))
    };
    crew.each(&batches, work, |(number, part)| {
        match &mut current {
            Some((open, shard)) if *open == number => shard.absorb(plan, part),
            _ => {
                let mut shard = Shard::new(plan, shards[number], saved_sums_like(plan, run));
                shard.absorb(plan, part);
                if let Some((number, whole)) = current.replace((number, shard)) {
                    finish(number, whole)?;
                }
            }
        }
        Ok(())
    })?;
    current.map_or(Ok(()), |(number, whole)| finish(number, whole))
}

/// Every ablation of some prompts. Where memory is short, with smaller calls and fewer prompts at a time.
fn ablate_batch(run: &Run, plan: &Plan, engine: &mut Engine, prompts: &[usize], bar: &ProgressBar) -> Result<Shard> {
    let empty = || Shard::new(plan, prompts, saved_sums_like(plan, run));
    loop {
        let rows = run.rows_in_call();
        let mut part = empty();
        let Err(error) = work::ablate_prompts(run, plan, engine, prompts, &mut part, bar) else { return Ok(part) };
        let length = plan.prompts.needed(prompts[0]).len();
        // What the largest call really had.
        let runs = plan.groups.values().map(|members| plan.items(members).len()).max().unwrap_or(1);
        let most = rows.min(length * runs.max(prompts.len()));
        let smaller = || run.shrink(most, length) || prompts.len() > 1;
        if !memory::is_exhausted(&error) || !smaller() {
            return Err(error);
        }
        if prompts.len() > 1 {
            let (first, second) = prompts.split_at(prompts.len() / 2);
            let mut whole = empty();
            for half in [first, second] {
                whole.absorb(plan, ablate_batch(run, plan, engine, half, bar)?);
            }
            return Ok(whole);
        }
    }
}

fn saved_sums_like(plan: &Plan, run: &Run) -> Sums {
    Sums::new(plan, if plan.curves() > 0 { run.model.architecture.d_mlp } else { 0 })
}

/// The prompts of a shard in batches that fill a call and leave nobody without work.
fn batches_of(run: &Run, plan: &Plan, shard: usize, group: &[usize], crew: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for equal in plan.prompts.by_length(group) {
        let length = plan.prompts.needed(equal[0]).len();
        let most = (run.rows_in_call() / length).min(equal.len().div_ceil(crew));
        batches.extend(balanced(&equal, most).map(|prompts| Batch { shard, prompts: prompts.to_vec() }));
    }
    batches
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
