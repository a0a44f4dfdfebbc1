//! The `analyze` stage and SQL over a run: DataFusion for queries, polars for what a data frame says better.

mod context;
mod distributions;
mod queries;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use arrow::array::{Float64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};

pub use context::{Format, Tables, print};
pub use queries::{CHECKS, DERIVED, Query};

use crate::config::AnalysisConfig;
use crate::progress;
use crate::run_folder::fingerprint;
use crate::tables::{Metadata, TableWriter};
use steps::Step;

/// Queries at a time. Each runs on one core, so that sums are taken in one order and the same run gives the same bytes.
const MOST_THREADS: usize = 4;

/// Names of the tables that this stage writes.
pub fn derived_tables() -> Vec<&'static str> {
    DERIVED.iter().map(|q| q.name).chain(distributions::TABLES).collect()
}

/// Changes when a built-in query does.
pub fn queries_fingerprint() -> Result<String> {
    fingerprint(&DERIVED.iter().chain(CHECKS).map(|q| q.text).collect::<Vec<_>>())
}

/// Runs the checks and every derived table, each after the tables that it reads.
pub fn analyze(out: &Path, config: &AnalysisConfig, meta: &Metadata) -> Result<String> {
    let tables = open(out, config)?;
    let parameters = [("top_fraction", config.top_fraction)];
    let bar = progress::bar("analyze", (CHECKS.len() + DERIVED.len() + 1) as u64, "queries");
    let mut steps: Vec<Step> = Vec::new();
    for query in CHECKS {
        let work = || {
            bar.set_message(query.name);
            check(query, &tables, &parameters)?;
            bar.inc(1);
            Ok(())
        };
        steps.push(Step { name: query.name, reads: tables.references(query.text)?, work: Box::new(work) });
    }
    for query in DERIVED {
        let work = || {
            bar.set_message(query.name);
            let rows = tables.collect(query.text, &parameters).with_context(|| query.name)?;
            write(query, &rows, out, meta).with_context(|| format!("writing the table {}", query.name))?;
            tables.add(query.name, out)?;
            bar.inc(1);
            Ok(())
        };
        steps.push(Step { name: query.name, reads: tables.references(query.text)?, work: Box::new(work) });
    }
    let work = || {
        distributions::write(&tables, out, meta)?;
        bar.inc(1);
        Ok(())
    };
    steps.push(Step { name: "distributions", reads: vec![], work: Box::new(work) });
    steps::run(steps, available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS))?;
    bar.finish_and_clear();
    Ok(format!("{} checks passed, {} tables", CHECKS.len(), derived_tables().len()))
}

/// The measured tables, and `thresholds`, whose one column `threshold` has those of the configuration.
pub fn open(out: &Path, config: &AnalysisConfig) -> Result<Tables> {
    let tables = Tables::measured(out)?;
    let schema = Schema::new(vec![Field::new("threshold", DataType::Float64, false)]);
    let thresholds = Arc::new(Float64Array::from(config.thresholds.clone()));
    tables.add_rows("thresholds", RecordBatch::try_new(Arc::new(schema), vec![thresholds])?)?;
    Ok(tables)
}

fn check(check: &Query, tables: &Tables, parameters: &[(&str, f64)]) -> Result<()> {
    let rows = tables.collect(check.text, parameters).with_context(|| format!("in the check {}", check.name))?;
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    if count > 0 {
        let shown = context::table_text(&context::head(&rows, 10))?;
        bail!("the check {} failed on {count} row(s): {}\n{shown}", check.name, check.question());
    }
    Ok(())
}

/// One Parquet file of a derived table: floats as Float32, with the descriptions of the query's header.
fn write(query: &Query, rows: &[RecordBatch], out: &Path, meta: &Metadata) -> Result<()> {
    let Some(first) = rows.first() else { bail!("the query gave no rows at all, not even their columns") };
    let descriptions = query.columns();
    let field = |f: &Arc<Field>| {
        let data_type = match f.data_type() {
            DataType::Float64 => DataType::Float32,
            DataType::Utf8View => DataType::Utf8,
            other => other.clone(),
        };
        let (description, unit) = descriptions.get(f.name().as_str()).cloned().unwrap_or_default();
        let metadata = [("description".to_string(), description), ("unit".to_string(), unit)];
        Field::new(f.name(), data_type, f.is_nullable()).with_metadata(metadata.into())
    };
    let fields: Vec<Field> = first.schema().fields().iter().map(field).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, [("grain".to_string(), query.grain())].into()));
    let path = out.join("tables").join(query.name).join(format!("{}.parquet", query.name));
    let mut writer = TableWriter::with_schema(query.name, schema.clone(), 0, &path, meta)?;
    for batch in rows {
        let columns = batch.columns().iter().zip(schema.fields()).map(|(c, f)| cast(c, f.data_type()));
        writer.write(&RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?)?;
    }
    writer.finish()
}
