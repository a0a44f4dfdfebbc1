//! The `analyze` stage and SQL over a run: DataFusion for queries, polars for what a data frame says better.

mod distributions;
mod own;
mod queries;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};

pub use distributions::SCHEMA as REPAIR_QUANTILES;
pub use own::tables_of;
pub use queries::{CHECKS, DERIVED, Query, VIEWS};

pub use crate::sql::Tables;

use crate::config::AnalysisConfig;
use crate::progress;
use crate::run_folder::fingerprint;
use crate::sql::{head, table_text};
use crate::tables::{MEASURED, Metadata, TableWriter};

/// Names of the built-in tables that this stage writes.
pub fn derived_tables() -> Vec<&'static str> {
    DERIVED.iter().map(|q| &*q.name).chain([REPAIR_QUANTILES.name]).collect()
}

/// Whether a measured or derived table or a view has the name.
pub fn is_built_in(name: &str) -> bool {
    kind_and_grain(name).0 != OWN
}

/// The kind of a table that is none of the built-in ones.
const OWN: &str = "own";

/// What sort of table has the name, and what one of its rows stands for; of a table of the user's own, no grain.
pub fn kind_and_grain(name: &str) -> (&'static str, String) {
    let of = |queries: &[Query]| queries.iter().find(|q| q.name == name).map(Query::grain);
    if let Some(table) = MEASURED.iter().find(|t| t.name == name) {
        return ("measured", table.grain.to_string());
    }
    if name == REPAIR_QUANTILES.name {
        return ("derived", REPAIR_QUANTILES.grain.to_string());
    }
    of(DERIVED).map(|g| ("derived", g)).or_else(|| of(VIEWS).map(|g| ("view", g))).unwrap_or((OWN, String::new()))
}

/// What `$name` stands for in a query.
pub fn parameters(config: &AnalysisConfig) -> Vec<(&'static str, f64)> {
    vec![("top_fraction", config.top_fraction)]
}

/// Changes when a built-in query or one of the user's own does.
pub fn queries_fingerprint(config: &AnalysisConfig) -> Result<String> {
    let own = own::own_queries(config)?;
    let built_in: Vec<&str> = DERIVED.iter().chain(CHECKS).map(|q| &*q.text).collect();
    let own: Vec<(&str, &str)> = own.iter().map(|q| (&*q.name, &*q.text)).collect();
    // Without own queries, what it was before there were any.
    if own.is_empty() { fingerprint(&built_in) } else { fingerprint(&(built_in, own)) }
}

/// Runs the checks, then every derived table in the order in which they read each other.
pub fn analyze(out: &Path, config: &AnalysisConfig, meta: &Metadata) -> Result<String> {
    let tables = Tables::measured(out, config)?;
    let own = own::own_queries(config)?;
    let bar = progress::bar("analyze", (CHECKS.len() + DERIVED.len() + own.len() + 1) as u64, "queries");
    for check in CHECKS {
        bar.set_message(check.name.clone());
        let rows = tables.collect(&check.text, &[])?;
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if count > 0 {
            let shown = table_text(&head(&rows, 10))?;
            bail!("the check {} failed on {count} row(s): {}\n{shown}", check.name, check.question());
        }
        bar.inc(1);
    }
    distributions::write(&tables, out, meta)?;
    tables.add(REPAIR_QUANTILES.name, out)?;
    // The user's own come last: they may read views, which read any built-in table.
    let built_in = in_order(DERIVED.iter().collect())?;
    for query in built_in.into_iter().chain(in_order(own.iter().collect())?) {
        bar.set_message(query.name.clone());
        let rows = tables.collect(&query.text, &parameters(config)).with_context(|| format!("in {}", query.file))?;
        write(query, &rows, out, meta).with_context(|| format!("writing the table {}", query.name))?;
        tables.add(&query.name, out)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(format!("{} checks passed, {} tables", CHECKS.len(), derived_tables().len() + own.len()))
}

/// The queries, each after those whose tables it reads.
pub fn in_order(mut pending: Vec<&Query>) -> Result<Vec<&Query>> {
    let mut ordered = Vec::new();
    while !pending.is_empty() {
        let mut names = Vec::new();
        for query in &pending {
            let reads = Tables::references(&query.text).with_context(|| format!("in {}", query.file))?;
            names.push((query.name.to_string(), reads));
        }
        let waits = |query: &Query| {
            names
                .iter()
                .any(|(name, reads)| *name == query.name && reads.iter().any(|r| names.iter().any(|n| n.0 == *r)))
        };
        let (waiting, ready): (Vec<&Query>, Vec<&Query>) = pending.into_iter().partition(|query| waits(query));
        if ready.is_empty() {
            let files: Vec<&str> = waiting.iter().map(|q| &*q.file).collect();
            bail!("{} read each other in a circle", files.join(", "));
        }
        ordered.extend(ready);
        pending = waiting;
    }
    Ok(ordered)
}

/// One Parquet file of a derived table: floats as Float32, with the descriptions of the query's header.
fn write(query: &Query, rows: &[RecordBatch], out: &Path, meta: &Metadata) -> Result<()> {
    let Some(first) = rows.first() else { bail!("the query gave no rows at all, not even their columns") };
    own::check_columns(query, &first.schema())?;
    let descriptions = query.columns();
    let field = |f: &Arc<Field>| {
        let data_type = if f.data_type() == &DataType::Float64 { DataType::Float32 } else { f.data_type().clone() };
        let (description, unit) = descriptions.get(f.name().as_str()).cloned().unwrap_or_default();
        let metadata = [("description".to_string(), description), ("unit".to_string(), unit)];
        Field::new(f.name(), data_type, f.is_nullable()).with_metadata(metadata.into())
    };
    let fields: Vec<Field> = first.schema().fields().iter().map(field).collect();
    let documentation = [("grain".to_string(), query.grain()), ("question".to_string(), query.question())];
    let schema = Arc::new(Schema::new_with_metadata(fields, documentation.into()));
    let path = out.join("tables").join(&*query.name).join(format!("{}.parquet", query.name));
    let mut writer = TableWriter::with_schema(&query.name, schema.clone(), 0, &path, meta)?;
    for batch in rows {
        let columns = batch.columns().iter().zip(schema.fields()).map(|(c, f)| cast(c, f.data_type()));
        writer.write(&RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?)?;
    }
    writer.finish()
}
