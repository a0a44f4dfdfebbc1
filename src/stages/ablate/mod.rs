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
use crate::config::Kind;
use crate::corpus::Prompts;
use crate::engine::Engine;
use crate::pairing::pairings_within;
use crate::progress;
use crate::run_folder::Stage;
use crate::tables::{Metadata, PAIRS, TableWriter};
use plan::Plan;
use shard::{Finished, Shard, ShardFiles};
use sums::SavedSums;
use top::TopTokens;

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

    let mut engine = Engine::load(a, &run.folder.model(), &run.config.runtime, &plan.needs())?;
    ablate_shards(run, &plan, &mut engine)?;
    iterate::iterate(run, prompts, &mut engine)?;
    let tokens = prompts.measured_tokens();
    Ok(format!("{} components × {tokens} tokens", run.components.len()))
}

fn ablate_shards(run: &Run, plan: &Plan, engine: &mut Engine) -> Result<()> {
    let saved = SavedSums::open(run, plan)?;
    let bar = progress::bar("ablate", (plan.flops() / 1e9) as u64, "GFLOP");
    let bar = &bar;
    // Files are written by a thread of their own, so that the arithmetic never waits for Parquet. One finished shard
    // is handed over at a time; more would let memory grow, and a kill lose more.
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Finished>(0);
        let meta = run.meta(Stage::Ablate);
        let writer = scope.spawn(move || receiver.iter().try_for_each(|finished| finished.write(&meta)));
        let computed = compute_shards(run, plan, engine, saved, sender, bar);
        let written = writer.join().map_err(|_| anyhow!("the writer thread panicked"))?;
        written.and(computed)
    })?;
    bar.finish_and_clear();
    SavedSums::open(run, plan)?.write_tables(run, plan)
}

fn compute_shards(
    run: &Run,
    plan: &Plan,
    engine: &mut Engine,
    mut saved: SavedSums,
    sender: SyncSender<Finished>,
    bar: &ProgressBar,
) -> Result<()> {
    let all: Vec<usize> = (0..plan.prompts.count()).collect();
    let most = plan.prompts_in_shard();
    let mut done = 0.0;
    for (number, group) in all.chunks(most).enumerate() {
        let files = ShardFiles::new(run, plan, number);
        done += group.iter().map(|&p| plan.flops_of(p)).sum::<f64>();
        if !(saved.contains(number) && files.are_whole(run.fingerprint(Stage::Ablate))) {
            let mut shard = Shard::new(plan, group, files, saved.empty());
            for equal in plan.prompts.by_length(group) {
                let length = plan.prompts.needed(equal[0]).len();
                for batch in balanced(&equal, run.rows_in_call() / length) {
                    work::ablate_prompts(run, plan, engine, batch, &mut shard, bar)
                        .with_context(|| format!("ablating prompts {} to {}", batch[0], batch[batch.len() - 1]))?;
                }
            }
            // A shard that vanished after its sums were saved is written again, but not summed again.
            let finished = Finished::new(plan, shard, &mut saved, number, run.fingerprint(Stage::Ablate));
            if sender.send(finished).is_err() {
                // The writer has failed and says why.
                return Ok(());
            }
        }
        bar.set_position((done / 1e9) as u64);
    }
    Ok(())
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
