//! The error of a lower precision: recomputes the first shard in float32 and compares its rows.

use std::iter::repeat_n;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use selfrepair_core::columns::{self, numbers};
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::precision::Precision;
use selfrepair_core::progress::{self, Bar};
use selfrepair_core::sink::{Part, RowSink};
use selfrepair_core::tables::{ABLATIONS, ROUNDING};
use selfrepair_engine::WorkerPool;

use super::plan::Job;
use super::shard::Shard;
use super::{Plan, ablate_job, jobs};
use crate::MeasureContext;

/// Sums over the rows of one column.
#[derive(Default, Clone)]
struct Difference {
    largest: f64,
    squares: f64,
    /// Of the float32 values themselves.
    own_squares: f64,
}

/// Writes the table `rounding` and says what it found, unless everything is float32 anyway. A run that was stopped after it
/// measures anew: its warning would be missing else.
pub fn measure(context: &MeasureContext, plan: &Plan) -> Result<()> {
    let precision = context.config.runtime.precision;
    if precision == Precision::Fp32 || !plan.outputs.effects {
        return Ok(());
    }
    let spinner = progress::spinner("the first shard again in float32, to measure the rounding error");
    let exact = in_float32(context, plan)?;
    spinner.finish();
    let (rows, differences) = compare(context.sink, &exact)?;
    let root = |squares: f64| (squares / rows as f64).sqrt();
    let of = |name: &str| {
        let found = differences.iter().find(|(column, _)| column == name).map(|(_, d)| d.clone());
        found.with_context(|| format!("ablations has no {name}"))
    };
    let repair = of("self_repair")?;
    context.sink.warn(format!(
        "projections were computed in {}: on the first shard's {rows} rows, self_repair has an error of {:.2e} \
        against float32 (root mean square; of self_repair itself: {:.2e}), at most {:.2e}; the table rounding has \
        every column",
        precision.name(),
        root(repair.squares),
        root(repair.own_squares),
        repair.largest
    ));
    let floats = |f: &dyn Fn(&Difference) -> f64| columns::floats(differences.iter().map(|(_, d)| f(d) as f32));
    let count = differences.len();
    let columns: Vec<ArrayRef> = vec![
        columns::texts(differences.iter().map(|d| &d.0)),
        columns::texts(repeat_n(precision.name(), count)),
        columns::counts(repeat_n(rows, count)),
        floats(&|d| root(d.own_squares)),
        floats(&|d| root(d.squares)),
        floats(&|d| d.largest),
        columns::floats(repeat_n(precision.tolerance() as f32, count)),
    ];
    let mut writer = context.sink.open(&ROUNDING, Part::Whole, ROUNDING.schema(), 1)?;
    writer.write(&RecordBatch::try_new(ROUNDING.schema(), columns)?)?;
    writer.finish()
}

fn in_float32<'a>(context: &MeasureContext, plan: &'a Plan<'a>) -> Result<Shard> {
    // `bench` measures products in the precision that was asked for.
    let config = RuntimeConfig { precision: Precision::Fp32, probe: false, ..context.config.runtime.clone() };
    let mut pool = WorkerPool::load(plan.architecture, context.graphs, &config, &plan.needs())?;
    let prompts: Vec<usize> = (0..plan.prompts.count().min(plan.prompts_in_shard())).collect();
    let jobs = jobs(context, plan, &[&prompts], &[0], pool.parts());
    let mut shard = Shard::new(plan, &prompts);
    let bar = Bar::hidden();
    let work = |engine: &mut _, (_, job): &(usize, Job<'a>)| ablate_job(context, plan, engine, job, &bar);
    pool.each(
        &jobs,
        |(_, job)| job.share,
        work,
        |part| {
            shard.absorb(plan, part);
            Ok(())
        },
    )?;
    Ok(shard)
}

/// The rows of the first shard and, by column, how far they are from `exact`, whose rows are in the same order.
fn compare(sink: &dyn RowSink, exact: &Shard) -> Result<(usize, Vec<(String, Difference)>)> {
    let names: Vec<&str> = ABLATIONS.columns[ABLATIONS.key..].iter().map(|c| c.0).collect();
    let mut differences: Vec<_> = names.iter().map(|name| (name.to_string(), Difference::default())).collect();
    let mut rows = 0;
    for batch in sink.read(&ABLATIONS, Some(Part::Shard(0)), &names, 1024)? {
        let batch = batch?;
        let columns = exact.columns(rows..rows + batch.num_rows())?;
        for ((name, d), exact) in differences.iter_mut().zip(&columns) {
            let rounded = numbers::<Float32Type>(&batch, batch.schema().index_of(name)?)?;
            for (&x, &exact) in rounded.values().iter().zip(exact.as_primitive::<Float32Type>().values()) {
                let (difference, exact) = (f64::from(x) - f64::from(exact), f64::from(exact));
                d.largest = d.largest.max(difference.abs());
                d.squares += difference * difference;
                d.own_squares += exact * exact;
            }
        }
        rows += batch.num_rows();
    }
    ensure!(rows > 0, "the first shard of ablations has no rows");
    Ok((rows, differences))
}
