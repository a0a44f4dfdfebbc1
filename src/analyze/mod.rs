//! The `analyze` stage and SQL over a run: DataFusion for queries, polars for what a data frame says better.

mod bootstrap;
mod context;
mod distributions;
mod paper;
mod queries;
mod tops;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};

pub use context::{Format, Tables, print};
pub use queries::{CHECKS, DERIVED, Query};
pub use tops::top_tokens;

use crate::config::AnalysisConfig;
use crate::progress;
use crate::run_folder::{fingerprint, sha256_of};
use crate::tables::{Metadata, TableWriter};

/// Names of the tables that this stage writes.
pub fn derived_tables() -> Vec<&'static str> {
    let queries = DERIVED.iter().chain(queries::PAPER).map(|q| q.name);
    queries.chain([distributions::TABLE, bootstrap::TABLE]).collect()
}

/// Changes when a built-in query, or what else this stage computes, does.
pub fn queries_fingerprint() -> Result<String> {
    let queries: Vec<_> = DERIVED.iter().chain(queries::PAPER).chain(CHECKS).map(|q| q.text).collect();
    fingerprint(&(queries, bootstrap::VERSION, sha256_of(paper::AUTHORS)))
}

/// Runs the checks, then computes every derived table.
pub fn analyze(out: &Path, config: &AnalysisConfig, meta: &Metadata) -> Result<String> {
    let tables = Tables::measured(out)?;
    let bar = progress::bar("analyze", (CHECKS.len() + derived_tables().len()) as u64, "queries");
    let step = |name: &str| {
        bar.set_message(name.to_string());
        bar.inc(1);
    };
    check(&tables, step)?;
    let written = derive(&tables, out, config.top_fraction, meta, step)?;
    bar.finish_and_clear();
    Ok(format!("{} checks passed, {written} tables", CHECKS.len()))
}

/// Runs the checks; `step` is told the name of each.
fn check(tables: &Tables, step: impl Fn(&str)) -> Result<()> {
    for check in CHECKS {
        step(check.name);
        let rows = tables.collect(check.text, &[])?;
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if count > 0 {
            let shown = context::table_text(&context::head(&rows, 10))?;
            bail!("the check {} failed on {count} row(s): {}\n{shown}", check.name, check.question());
        }
    }
    Ok(())
}

/// Computes every derived table, queries in the order in which they read each other; how many were written.
pub(crate) fn derive(
    tables: &Tables,
    out: &Path,
    top_fraction: f64,
    meta: &Metadata,
    step: impl Fn(&str),
) -> Result<usize> {
    let mut pending: Vec<&Query> = DERIVED.iter().collect();
    while !pending.is_empty() {
        let names: Vec<&str> = pending.iter().map(|q| q.name).collect();
        let (ready, waiting): (Vec<&Query>, Vec<&Query>) = pending
            .into_iter()
            .partition(|q| tables.references(q.text).is_ok_and(|r| !r.iter().any(|t| names.contains(&t.as_str()))));
        if ready.is_empty() {
            bail!("the queries {} read each other in a circle or cannot be parsed", names.join(", "));
        }
        for query in ready {
            step(query.name);
            write(query, tables, out, top_fraction, meta)?;
        }
        pending = waiting;
    }
    let compared = paper::compare(tables, out, top_fraction, meta)?;
    step(distributions::TABLE);
    distributions::write(tables, out, meta)?;
    step(bootstrap::TABLE);
    bootstrap::write(tables, out, meta)?;
    Ok(DERIVED.len() + compared + 2)
}

/// Writes the rows of a query as a table that later queries can read.
fn write(query: &Query, tables: &Tables, out: &Path, top_fraction: f64, meta: &Metadata) -> Result<()> {
    let rows = tables.collect(query.text, &[("top_fraction", top_fraction)])?;
    write_rows(query, &rows, out, meta).with_context(|| format!("writing the table {}", query.name))?;
    tables.add(query.name, out)
}

/// One Parquet file of a derived table: floats as Float32, with the descriptions of the query's header.
fn write_rows(query: &Query, rows: &[RecordBatch], out: &Path, meta: &Metadata) -> Result<()> {
    let Some(first) = rows.first() else { bail!("the query gave no rows at all, not even their columns") };
    let descriptions = query.columns();
    let field = |f: &Arc<Field>| {
        let data_type = if f.data_type() == &DataType::Float64 { DataType::Float32 } else { f.data_type().clone() };
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
