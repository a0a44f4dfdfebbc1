//! A DataFusion session over the tables of a run.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::DFParser;
use datafusion::sql::resolve::resolve_table_references;
use tokio::runtime::Runtime;

/// How `pipeline sql` prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for reading.
    Table,
    Csv,
    /// One JSON object a line.
    Json,
}

/// The tables of one run, ready for SQL.
pub struct Tables {
    context: SessionContext,
    runtime: Runtime,
}

impl Tables {
    /// Every table that lies under `<out>/tables`, on all cores.
    pub fn open(out: &Path) -> Result<Self> {
        let tables = Self::new(SessionConfig::new().with_information_schema(true), false)?;
        for name in table_names(out)? {
            tables.add(&name, out)?;
        }
        Ok(tables)
    }

    /// The measured tables alone, on one core: sums are then taken in one order, so that the same run gives the same
    /// bytes.
    pub fn measured(out: &Path) -> Result<Self> {
        let tables = Self::new(SessionConfig::new().with_target_partitions(1), true)?;
        for table in crate::tables::MEASURED {
            match has_files(&out.join("tables").join(table.name)) {
                true => tables.add(table.name, out)?,
                // What was not measured in this run is there without rows, so that every query can be asked.
                false => {
                    tables.context.register_batch(table.name, RecordBatch::new_empty(table.schema()))?;
                }
            }
        }
        Ok(tables)
    }

    /// Text read as views makes grouping by it a tenth faster; as plain strings, as which it is written, it needs no undoing
    /// in what is shown.
    fn new(config: SessionConfig, views: bool) -> Result<Self> {
        let mut config = config;
        let options = config.options_mut();
        options.execution.parquet.schema_force_view_types = views;
        options.execution.parquet.pushdown_filters = true;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { context: SessionContext::new_with_config(config), runtime })
    }

    /// Makes the table of that name readable (again, if it was before).
    pub fn add(&self, name: &str, out: &Path) -> Result<()> {
        let folder = out.join("tables").join(name);
        ensure!(folder.is_dir(), "{} is missing; has the run finished?", folder.display());
        let path = folder.to_str().with_context(|| format!("{} is not Unicode", folder.display()))?;
        let register = self.context.register_parquet(name, path, ParquetReadOptions::default());
        self.runtime.block_on(register).with_context(|| format!("cannot read the table {}", folder.display()))
    }

    /// A table of these rows, which lies in no file.
    pub fn add_rows(&self, name: &str, rows: RecordBatch) -> Result<()> {
        self.context.register_batch(name, rows)?;
        Ok(())
    }

    /// Runs one query; `$name` in it stands for a parameter.
    pub fn collect(&self, sql: &str, parameters: &[(&str, f64)]) -> Result<Vec<RecordBatch>> {
        self.runtime
            .block_on(async {
                let frame = self.context.sql(sql).await?;
                let values: Vec<_> =
                    parameters.iter().map(|&(k, v)| (k.to_string(), ScalarValue::from(v).into())).collect();
                let frame = match values.is_empty() || !sql.contains('$') {
                    true => frame,
                    false => frame.with_param_values(ParamValues::Map(values.into_iter().collect()))?,
                };
                // An empty result still tells its columns.
                let schema = std::sync::Arc::new(frame.schema().as_arrow().clone());
                let mut batches = frame.collect().await?;
                if batches.is_empty() {
                    batches.push(RecordBatch::new_empty(schema));
                }
                Ok::<_, datafusion::error::DataFusionError>(batches)
            })
            .map_err(|e| anyhow::anyhow!("{}", e.strip_backtrace()))
    }

    /// Names of the tables a query reads.
    pub fn references(&self, sql: &str) -> Result<Vec<String>> {
        let mut statements = DFParser::parse_sql(sql)?;
        let Some(statement) = statements.pop_front() else { bail!("the query is empty") };
        let (tables, _) = resolve_table_references(&statement, true)?;
        Ok(tables.iter().map(|t| t.table().to_string()).collect())
    }
}

/// Whether a folder of that name has at least one file of a table.
fn has_files(folder: &Path) -> bool {
    let is_table = |f: std::fs::DirEntry| f.path().extension().is_some_and(|e| e == "parquet");
    std::fs::read_dir(folder).is_ok_and(|mut files| files.any(|f| f.is_ok_and(is_table)))
}

/// The folders of `<out>/tables` that hold at least one file.
fn table_names(out: &Path) -> Result<Vec<String>> {
    let folder = out.join("tables");
    let entries = std::fs::read_dir(&folder).with_context(|| {
        format!("{} has no tables; run `pipeline run all` first or name a run with --out", out.display())
    })?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if has_files(&path) {
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "{} has no tables yet; run `pipeline run all` first", out.display());
    names.sort();
    Ok(names)
}

/// Prints rows in one of the formats.
pub fn print(rows: &[RecordBatch], format: Format, out: &mut impl Write) -> Result<()> {
    match format {
        Format::Table => writeln!(out, "{}", table_text(rows)?)?,
        Format::Csv => {
            let mut writer = arrow::csv::Writer::new(out);
            rows.iter().try_for_each(|batch| writer.write(batch))?;
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(out);
            rows.iter().try_for_each(|batch| writer.write(batch))?;
            writer.finish()?;
        }
    }
    Ok(())
}

pub fn table_text(rows: &[RecordBatch]) -> Result<String> {
    Ok(pretty_format_batches(rows)?.to_string())
}

/// The first `n` rows.
pub fn head(rows: &[RecordBatch], n: usize) -> Vec<RecordBatch> {
    let mut left = n;
    let mut out = Vec::new();
    for batch in rows {
        let take = left.min(batch.num_rows());
        out.push(batch.slice(0, take));
        left -= take;
    }
    out
}
