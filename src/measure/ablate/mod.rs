//! The `ablate` stage: ablates every selected component of every prompt, and reruns only what follows it.
//!
//! `plan` lists what is ablated, `key` has the columns that say so, `top` each component's top tokens. `work` runs batches
//! of prompts, `tally` collects the changes of components and neurons, `sums` keeps sums over the whole corpus, and `shard`
//! lays out the rows of one file. `rounding` measures the error of a lower precision.

mod key;
mod plan;
mod replace;
mod rounding;
mod shard;
mod sums;
mod tally;
mod top;
mod work;

use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result, anyhow};
use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns;
use selfrepair_core::config::Kind;
use selfrepair_core::memory;
use selfrepair_core::pairing::pairings_within;
use selfrepair_core::progress::{self, Bar};
use selfrepair_core::prompts::Prompts;
use selfrepair_core::shards::ShardSet;
use selfrepair_core::sink::Part;
use selfrepair_core::tables::{PAIRS, TOP_TOKENS};
use selfrepair_engine::runtime::count_writing;
use selfrepair_engine::{Engine, WorkerPool};

use crate::trace::Means;
use crate::{MeasureContext, iterate};
use plan::Job;
pub use plan::Plan;
use shard::{Finished, Shard};
use sums::SavedSums;
pub use top::TopTokens;

/// Ablates every component of the context on every prompt and gives the rows to its sink. Needs what
/// [`trace`](crate::trace()) gave to the same sink. Existing shards are skipped.
///
/// # Errors
/// If a number is not finite, the causes do not sum to the self-repair, memory is exhausted, or the sink fails.
pub fn ablate(context: &MeasureContext, prompts: &Prompts) -> Result<()> {
    if !context.piece.ablations().is_empty() {
        let plan = begin(context, prompts)?;
        ablate_shards(context, &plan, ShardSet::ALL)?;
        rounding::measure(context, &plan)?;
        SavedSums::open(context, &plan, ShardSet::ALL)?.write_tables(&plan)?;
    }
    iterate::iterate(context, prompts)
}

/// Computes what all shards need, and writes its tables: partners and top tokens.
///
/// # Errors
/// If the clean pass is incomplete, or a prompt has no partner.
pub fn begin<'a>(context: &'a MeasureContext, prompts: &'a Prompts) -> Result<Plan<'a>> {
    let plan = plan(context, prompts)?;
    write_pairs(context, &plan.pairings)?;
    plan.top.write(context)?;
    Ok(plan)
}

fn plan<'a>(context: &'a MeasureContext, prompts: &'a Prompts) -> Result<Plan<'a>> {
    let all: Vec<usize> = (0..prompts.count()).collect();
    let kinds = context.piece.kinds();
    let pairings = match kinds.contains(&Kind::Resample) {
        true => {
            let resample = &context.config.ablation.resample;
            pairings_within(&prompts.by_length(&all), resample.samples, context.config.ablation.seed)?
        }
        false => vec![],
    };
    let top = TopTokens::find(context, prompts)?;
    let means = kinds.contains(&Kind::Mean).then(|| Means::read(context, prompts)).transpose()?;
    Plan::new(context, prompts, pairings, means, top)
}

/// Whether the tables of [`begin`] exist, so that shards can be computed.
pub fn has_begun(context: &MeasureContext) -> bool {
    context.sink.has(&PAIRS, Part::Whole) && context.sink.has(&TOP_TOKENS, Part::Whole)
}

/// Computes the shards of one of several processes.
///
/// # Errors
/// As [`ablate`].
pub fn ablate_set(context: &MeasureContext, prompts: &Prompts, set: ShardSet) -> Result<()> {
    ablate_shards(context, &plan(context, prompts)?, set)
}

/// Unfinished shard sets, in the division of `set`.
///
/// # Errors
/// If the sink cannot be read.
pub fn sets_left(context: &MeasureContext, prompts: &Prompts, set: ShardSet) -> Result<Vec<ShardSet>> {
    let plan = plan(context, prompts)?;
    let saved = SavedSums::open(context, &plan, set)?;
    let count = prompts.count().div_ceil(plan.prompts_in_shard());
    let mut left = Vec::new();
    for of in (0..count).filter(|&number| !is_done(context, &plan, &saved, number)).map(|number| set.holding(number)) {
        if !left.contains(&of) {
            left.push(of);
        }
    }
    Ok(left)
}

/// Whether a shard's rows are written and summed.
fn is_done(context: &MeasureContext, plan: &Plan, saved: &SavedSums, number: usize) -> bool {
    saved.contains(number) && shard::is_written(context.sink, plan, number, saved.are_done())
}

/// Computes the shards of a set that are not done yet.
fn ablate_shards<'a>(context: &MeasureContext, plan: &'a Plan<'a>, set: ShardSet) -> Result<()> {
    let saved = SavedSums::open(context, plan, set)?;
    let all: Vec<usize> = (0..plan.prompts.count()).collect();
    let shards: Vec<&[usize]> = all.chunks(plan.prompts_in_shard()).collect();
    let gflop = |numbers: &[usize]| {
        let prompts = numbers.iter().flat_map(|&number| shards[number]);
        (prompts.map(|&p| plan.flops_of(p)).sum::<f64>() / 1e9) as u64
    };
    let of_set: Vec<usize> = (0..shards.len()).filter(|&number| set.contains(number)).collect();
    let (done, left): (Vec<usize>, Vec<usize>) =
        of_set.iter().partition(|&&number| is_done(context, plan, &saved, number));
    let bar = progress::bar("ablate", gflop(&of_set), "GFLOP");
    bar.inc(gflop(&done));
    if !left.is_empty() {
        compute_shards(context, plan, saved, &shards, &left, &bar)?;
    }
    bar.finish();
    Ok(())
}

fn compute_shards<'a>(
    context: &MeasureContext,
    plan: &'a Plan<'a>,
    mut saved: SavedSums<'_>,
    shards: &[&[usize]],
    left: &[usize],
    bar: &Bar,
) -> Result<()> {
    let mut pool = WorkerPool::load(plan.architecture, context.graphs, &context.config.runtime, &plan.needs())?;
    let work = |engine: &mut Engine, job: &Job<'a>| {
        let (part, prompts) = (ablate_job(context, plan, engine, job, bar), &job.prompts);
        part.with_context(|| format!("ablating prompts {} to {}", prompts[0], prompts[prompts.len() - 1]))
    };
    let jobs = jobs(context, plan, shards, left, pool.parts());
    let absorb = |shard: &mut Shard, part| {
        shard.absorb(plan, part);
        Ok(())
    };
    // Files are written by a thread of their own, so that the arithmetic never waits for Parquet. One finished shard
    // is handed over at a time; more would let memory grow, and a kill lose more.
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Finished>(0);
        let sink = context.sink;
        let writer =
            scope.spawn(move || receiver.iter().try_for_each(|finished| count_writing(|| finished.write(sink))));
        // The sender goes with it, which ends the writer.
        let finish = move |number: usize, shard: Shard| {
            // A shard that vanished after its sums were saved is written again, but not summed again.
            let finished = Finished::new(plan, shard, &mut saved, number)?;
            sender.send(finished).map_err(|_| anyhow!("the writer has stopped"))
        };
        let open = |number: usize| Ok(Shard::new(plan, shards[number]));
        let computed = pool.each_of_shards(&jobs, |job| job.share, work, open, absorb, finish);
        let written = writer.join().map_err(|_| anyhow!("the writer thread panicked"))?;
        written.and(computed)
    })
}

/// The work of some shards, each job with its shard's number: prompts that fill a call, as many such batches at a time as
/// there are engines, divided by layers, so that no engine is left waiting for another's last prompts.
fn jobs<'a>(
    context: &MeasureContext,
    plan: &Plan<'a>,
    shards: &[&[usize]],
    numbers: &[usize],
    engines: usize,
) -> Vec<(usize, Job<'a>)> {
    let length = |p: usize| plan.prompts.needed(p).len();
    let mut batches = Vec::new();
    for &number in numbers {
        let of_shard = context.batches_of(plan.prompts.by_length(shards[number]), length, engines);
        batches.extend(of_shard.into_iter().map(|prompts| (number, prompts)));
    }
    let mut jobs = Vec::new();
    let count = batches.len().div_ceil(engines);
    for (i, at_a_time) in batches.chunks(engines).enumerate() {
        // Jobs of one shard lie together: where each of these batches is of another, engines would begin with the same
        // one, and one wait for the other's clean pass.
        let is_of_one = at_a_time.iter().all(|(number, _)| *number == at_a_time[0].0);
        let is_divided = engines > 1 && (is_of_one || i + 1 == count);
        let of = |(number, prompts): &(usize, Vec<usize>)| {
            let jobs = if is_divided { plan.divided(prompts) } else { vec![plan.whole(prompts)] };
            let jobs = jobs.into_iter().enumerate();
            jobs.map(|(turn, job)| (*number, turn, job)).collect::<Vec<_>>()
        };
        let mut divided: Vec<_> = at_a_time.iter().flat_map(of).collect();
        // In turn, so that each engine begins with prompts of its own and all end with little.
        divided.sort_by_key(|(number, turn, _)| (*number, *turn));
        jobs.extend(divided.into_iter().map(|(number, _, job)| (number, job)));
    }
    jobs
}

/// One job. Where memory is short, with smaller calls and fewer prompts at a time.
fn ablate_job<'a>(
    context: &MeasureContext,
    plan: &'a Plan<'a>,
    engine: &mut Engine,
    job: &Job<'a>,
    bar: &Bar,
) -> Result<Shard> {
    let prompts = &job.prompts[..];
    loop {
        let rows = context.rows_in_call();
        let mut part = Shard::of(plan, job);
        let Err(error) = work::ablate_prompts(context, plan, engine, job, &mut part, bar) else { return Ok(part) };
        let length = plan.prompts.needed(prompts[0]).len();
        // What the largest call really had.
        let most = rows.min(length * plan.most_items().max(prompts.len()));
        let smaller = || context.shrink(most, length) || prompts.len() > 1;
        if !memory::is_exhausted(&error) || !smaller() {
            return Err(error);
        }
        if prompts.len() > 1 {
            let (first, second) = prompts.split_at(prompts.len() / 2);
            let mut whole = Shard::of(plan, job);
            for half in [first, second] {
                let half =
                    Job { prompts: half.to_vec(), groups: job.groups.clone(), share: job.share / 2.0, shared: None };
                whole.absorb(plan, ablate_job(context, plan, engine, &half, bar)?);
            }
            return Ok(whole);
        }
    }
}

fn write_pairs(context: &MeasureContext, pairings: &[Vec<usize>]) -> Result<()> {
    let rows = || {
        let samples = pairings.iter().enumerate();
        samples.flat_map(|(sample, partners)| partners.iter().enumerate().map(move |(p, &q)| (sample, p, q)))
    };
    let columns: Vec<ArrayRef> = vec![
        columns::keys(rows().map(|r| r.0)),
        columns::keys(rows().map(|r| r.1)),
        columns::keys(rows().map(|r| r.2)),
    ];
    let mut writer = context.sink.open(&PAIRS, Part::Whole, PAIRS.schema(), 1)?;
    writer.write(&RecordBatch::try_new(PAIRS.schema(), columns)?)?;
    writer.finish()
}
