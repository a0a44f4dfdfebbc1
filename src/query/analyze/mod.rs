//! The `analyze` stage: derived tables and checks with DataFusion; quantiles with polars.

#[expect(
    clippy::indexing_slicing,
    reason = "columns of a query have as many rows as each other; draws are of all prompts"
)]
mod bootstrap;
mod condition;
mod distributions;
mod own;
mod paper;
mod quantiles;
mod queries;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, Result, anyhow, bail};
use arrow::array::{Float64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};

pub use own::tables_of;
pub use paper::authors_schema;
pub use quantiles::quantiles;
pub use queries::{CHECKS, DERIVED, MEASUREMENT_2, PAPER, Query, SCHEMA_2, VIEWS};

pub use crate::sql::Tables;

use crate::sql::{Digits, head, table_text};
use selfrepair_core::config::AnalysisConfig;
use selfrepair_core::files::{fingerprint, sha256_of};
use selfrepair_core::progress;
use selfrepair_core::tables::{MEASURED, Table, name_type};
use selfrepair_store::{Metadata, TableWriter};
use steps::{Item, Step};

/// Queries at a time. Each runs on one core, so that sums are taken in one order and the same run gives the same bytes.
const MOST_THREADS: usize = 4;

/// Derived tables that are no queries.
pub const COMPUTED: [&Table; 3] = [&distributions::QUANTILE_TABLE, &distributions::DECILE_TABLE, &bootstrap::SCHEMA];

/// Names of the built-in tables that this stage writes.
pub fn derived_tables() -> Vec<&'static str> {
    let queries = DERIVED.iter().chain(PAPER).map(|q| &*q.name);
    queries.chain(COMPUTED.iter().map(|t| t.name)).collect()
}

/// Whether a measured or derived table or a view has the name.
pub fn is_built_in(name: &str) -> bool {
    kind_and_grain(name).0 != OWN
}

/// The kind of a table that is none of the built-in ones.
const OWN: &str = "own";

/// The kind of the table with this name, and its grain (none for the user's own tables).
pub fn kind_and_grain(name: &str) -> (&'static str, String) {
    let of = |queries: &[Query]| queries.iter().find(|q| q.name == name).map(Query::grain);
    if let Some(table) = MEASURED.iter().find(|t| t.name == name) {
        return ("measured", table.grain.to_string());
    }
    if let Some(table) = COMPUTED.iter().find(|t| t.name == name) {
        return ("derived", table.grain.to_string());
    }
    let derived = of(DERIVED).or_else(|| of(PAPER)).map(|g| ("derived", g));
    derived.or_else(|| of(VIEWS).map(|g| ("view", g))).unwrap_or((OWN, String::new()))
}

/// The values of `$name` parameters in a query.
pub fn parameters(config: &AnalysisConfig) -> Vec<(&'static str, f64)> {
    vec![("top_fraction", config.top_fraction)]
}

/// Changes when a built-in query, what else this stage computes, or one of the user's own queries does.
pub fn queries_fingerprint(config: &AnalysisConfig) -> Result<String> {
    let own = own::own_queries(config)?;
    let built_in: Vec<&str> = DERIVED.iter().chain(PAPER).chain(CHECKS).map(|q| &*q.text).collect();
    let own: Vec<(&str, &str)> = own.iter().map(|q| (&*q.name, &*q.text)).collect();
    fingerprint(&(built_in, bootstrap::VERSION, sha256_of(paper::AUTHORS), own))
}

/// Runs the checks and computes every derived table, each after the tables that it reads. If a check or a built-in query
/// fails, `discard` removes the tables. If one of the user's own fails, the built-in ones, which passed, stay.
pub fn analyze(
    out: &Path,
    config: &AnalysisConfig,
    meta: &Metadata,
    discard: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let tables = match open(out, config) {
        Ok(tables) => tables,
        Err(e) => return discard().and(Err(e)),
    };
    let own = own::own_queries(config)?;
    let bar = progress::bar("analyze", (CHECKS.len() + derived_tables().len() + own.len()) as u64, "queries");
    let step = |name: &str| {
        bar.set_message(name);
        bar.inc(1);
    };
    let checks = CHECKS.iter().map(|query| {
        Ok(Step {
            name: &query.name,
            reads: Tables::references(&query.text)?,
            work: Box::new(|| {
                step(&query.name);
                check(query, &tables, config)
            }),
        })
    });
    let checks = checks.collect::<Result<Vec<Step>>>();
    let compared = checks.and_then(|checks| derive(&tables, out, config, meta, checks, &step));
    let compared = match compared {
        Ok(compared) => compared,
        Err(e) => return discard().and(Err(e)),
    };
    // The user's own come last: they may read views, which read any built-in table.
    for query in in_order(own.iter().collect())? {
        step(&query.name);
        write(query, &tables, out, config, meta)?;
    }
    bar.finish();
    let written = DERIVED.len() + COMPUTED.len() + compared + own.len();
    Ok(format!("{} checks passed, {written} tables", CHECKS.len()))
}

/// Computes every built-in derived table beside the steps in `more`; how many tables hold the authors' numbers.
pub fn derive<'a>(
    tables: &'a Tables,
    out: &'a Path,
    config: &'a AnalysisConfig,
    meta: &'a Metadata,
    more: Vec<Step<'a>>,
    step: &'a (impl Fn(&str) + Sync),
) -> Result<usize> {
    let mut steps = more;
    for query in DERIVED {
        let work = move || {
            step(&query.name);
            write(query, tables, out, config, meta)
        };
        let reads = Tables::references(&query.text).with_context(|| format!("in {}", query.file))?;
        steps.push(Step { name: &query.name, reads, work: Box::new(work) });
    }
    let distributions = move || {
        step(distributions::QUANTILE_TABLE.name);
        distributions::write(tables, out, meta)
    };
    steps.push(Step { name: "distributions", reads: vec![], work: Box::new(distributions) });
    let bootstrap = move || {
        step(bootstrap::SCHEMA.name);
        bootstrap::write(tables, out, meta)
    };
    steps.push(Step { name: bootstrap::SCHEMA.name, reads: vec!["head_summary".into()], work: Box::new(bootstrap) });
    steps::run(steps, available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS))?;
    for table in COMPUTED {
        tables.add(table.name, out)?;
    }
    paper::compare(tables, out, config, meta)
}

/// The measured tables, and `thresholds`, whose one column `threshold` has those of the configuration.
pub fn open(out: &Path, config: &AnalysisConfig) -> Result<Tables> {
    let tables = Tables::measured(out, config)?;
    let schema = Schema::new(vec![Field::new("threshold", DataType::Float64, false)]);
    let thresholds = Arc::new(Float64Array::from(config.thresholds.clone()));
    tables.add_rows("thresholds", RecordBatch::try_new(Arc::new(schema), vec![thresholds])?)?;
    Ok(tables)
}

fn check(check: &Query, tables: &Tables, config: &AnalysisConfig) -> Result<()> {
    let rows =
        tables.collect(&check.text, &parameters(config)).with_context(|| format!("in the check {}", check.name))?;
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    if count > 0 {
        let shown = table_text(&head(&rows, 10), Digits::All)?;
        bail!("the check {} failed on {count} row(s): {}\n{shown}", check.name, check.question());
    }
    Ok(())
}

/// The queries, each after those whose tables it reads.
pub fn in_order(queries: Vec<&Query>) -> Result<Vec<&Query>> {
    fn item(query: &Query) -> Result<Item<&Query>> {
        let Query { name, text, file } = query;
        let reads = Tables::references(text).with_context(|| format!("in {file}"))?;
        Ok(Item { name: name.to_string(), reads, thing: query })
    }
    steps::in_order(queries.into_iter().map(item).collect::<Result<_>>()?).map_err(|circle| {
        let files: Vec<&str> = circle.iter().map(|query| &*query.file).collect();
        anyhow!("{} read each other in a circle", files.join(", "))
    })
}

/// Writes the rows of a query as a table that later queries can read.
fn write(query: &Query, tables: &Tables, out: &Path, config: &AnalysisConfig, meta: &Metadata) -> Result<()> {
    let rows = tables.collect(&query.text, &parameters(config)).with_context(|| format!("in {}", query.file))?;
    write_rows(query, &rows, out, meta).with_context(|| format!("writing the table {}", query.name))?;
    tables.add(&query.name, out)
}

/// Settings that people filter by, as Float64: no Float32 equals 0.1.
const SETTINGS: [&str; 5] = ["strength", "multiple", "threshold", "quantile", "top_fraction"];

/// The type that a column of a query has in a derived table: numbers are Float32, but for settings; text is Utf8, but for
/// names of components.
pub fn written_type(column: &str, data_type: &DataType) -> DataType {
    let is_name = matches!(column, "name" | "repairer_name" | "other_name");
    match data_type {
        DataType::Float64 if !SETTINGS.contains(&column) => DataType::Float32,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if is_name => name_type(),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        other => other.clone(),
    }
}

/// One Parquet file of a derived table, with the descriptions of the query's header.
fn write_rows(query: &Query, rows: &[RecordBatch], out: &Path, meta: &Metadata) -> Result<()> {
    let Some(first) = rows.first() else { bail!("the query gave no rows at all, not even their columns") };
    own::check_columns(query, &first.schema())?;
    let descriptions = query.columns();
    let field = |f: &Arc<Field>| {
        let data_type = written_type(f.name(), f.data_type());
        let (description, unit) = descriptions.get(f.name().as_str()).cloned().unwrap_or_default();
        let metadata = [("description".to_string(), description), ("unit".to_string(), unit)];
        Field::new(f.name(), data_type, f.is_nullable()).with_metadata(metadata.into())
    };
    let fields: Vec<Field> = first.schema().fields().iter().map(field).collect();
    let said = [("question".to_string(), query.question()), ("grain".to_string(), query.grain())];
    let schema = Arc::new(Schema::new_with_metadata(fields, said.into()));
    let path = out.join("tables").join(&*query.name).join(format!("{}.parquet", query.name));
    let mut writer = TableWriter::with_schema(&query.name, schema.clone(), 0, &path, meta)?;
    for batch in rows {
        let columns = batch.columns().iter().zip(schema.fields()).map(|(c, f)| cast(c, f.data_type()));
        writer.write(&RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?)?;
    }
    writer.finish()
}
