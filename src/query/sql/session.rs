//! A DataFusion session over the tables of one run or of several.
//!
//! A table is opened when a query names it, and its schema is read from its first file: a session over thousands of
//! shards starts as fast as one over a single file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::listing::{ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::options::ReadOptions;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;
use tokio::runtime::Runtime;

use super::errors;
use super::parameters::{Value, scalars};
use super::place::Place;
use crate::analyze::{Query, VIEWS, kind_and_grain, parameters};
use selfrepair_core::config::AnalysisConfig;

/// As many rows as the prompt and a terminal are shown of a result, unless more are asked for.
pub const ROWS_ON_A_TERMINAL: usize = 500;

/// The column that tells runs apart when there are several.
const RUN: &str = "run";

/// The tables of one run or of several, ready for SQL.
pub struct Tables {
    context: SessionContext,
    runtime: Runtime,
    runs: Vec<Run>,
}

/// One run. Of several, each has a session of its own, so that a view over two tables never joins two runs.
struct Run {
    name: String,
    place: Place,
    tables: BTreeSet<String>,
    context: SessionContext,
    /// What `$name` stands for in its views and in queries.
    analysis: AnalysisConfig,
}

impl Tables {
    /// Every table that lies under `<out>/tables`, and the views over them, on all cores.
    pub fn open(out: &Path) -> Result<Self> {
        Self::of_runs(&[out.to_path_buf()])
    }

    /// The tables of several runs: each has a leading column `run`, the name of its folder.
    pub fn of_runs(folders: &[PathBuf]) -> Result<Self> {
        Self::with_config(folders, SessionConfig::new())
    }

    /// As [`Tables::open`], on one core: rows come in the order of the files, and sums are taken in it, so that the same
    /// run gives the same figures.
    pub fn open_in_order(out: &Path) -> Result<Self> {
        Self::with_config(&[out.to_path_buf()], SessionConfig::new().with_target_partitions(1))
    }

    fn with_config(folders: &[PathBuf], config: SessionConfig) -> Result<Self> {
        ensure!(!folders.is_empty(), "no run is named; name one with --out");
        let mut config = config.with_information_schema(true);
        let parquet = &mut config.options_mut().execution.parquet;
        // Rows leave with the types that the tables were written with.
        parquet.schema_force_view_types = false;
        // A question is often about one head: of the other columns only its rows are read.
        parquet.pushdown_filters = true;
        let (context, runtime) = new_session(config.clone())?;
        let mut runs = Vec::new();
        for (folder, name) in folders.iter().zip(run_names(folders)) {
            let of_run = if folders.len() == 1 { context.clone() } else { new_session(config.clone())?.0 };
            let run = runtime.block_on(Run::open(folder, name, of_run))?;
            // A query over several runs is run here.
            run.place.register(&context)?;
            runs.push(run);
        }
        Ok(Self { context, runtime, runs })
    }

    /// The measured tables alone, on one core: sums are then taken in one order, so that the same run gives the same
    /// bytes. What is derived from them is added as it is made.
    pub fn measured(out: &Path, analysis: &AnalysisConfig) -> Result<Self> {
        let mut config = SessionConfig::new().with_target_partitions(1);
        let parquet = &mut config.options_mut().execution.parquet;
        // Nearly all texts are short words of the key, by which rows are grouped; as views those are compared in place.
        parquet.schema_force_view_types = true;
        // These queries want most rows, which are read faster without asking for each.
        parquet.pushdown_filters = false;
        let (context, runtime) = new_session(config)?;
        let (name, tables, analysis) = (String::new(), BTreeSet::new(), analysis.clone());
        let place = runtime.block_on(Place::open(out))?;
        let run = Run { name, place, tables, context: context.clone(), analysis };
        let tables = Self { context, runtime, runs: vec![run] };
        let there = tables.runtime.block_on(tables.runs[0].place.tables())?;
        for table in selfrepair_core::tables::MEASURED {
            match there.contains(table.name) {
                true => tables.add(table.name, out)?,
                // What was not measured in this run is there without rows, so that every query can be asked.
                false => tables.add_rows(table.name, RecordBatch::new_empty(table.schema()))?,
            }
        }
        Ok(tables)
    }

    /// Makes the table of that name readable (again, if it was before).
    pub fn add(&self, name: &str, out: &Path) -> Result<()> {
        self.context.deregister_table(name)?;
        let table = self.runtime.block_on(async { open_table(&self.context, &Place::open(out).await?, name).await })?;
        self.context.register_table(name, table)?;
        Ok(())
    }

    /// Makes rows readable that lie in no file of the run.
    pub(crate) fn add_rows(&self, name: &str, rows: RecordBatch) -> Result<()> {
        self.context.register_batch(name, rows)?;
        Ok(())
    }

    /// Whether there is a table or a view of that name.
    pub fn has(&self, name: &str) -> Result<bool> {
        Ok(self.context.table_exist(name)? || self.provides(name))
    }

    /// Names of all tables and views, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = self.runs.iter().flat_map(|r| r.tables.iter().cloned()).collect();
        names.extend(VIEWS.iter().map(|v| v.name.to_string()).filter(|name| self.provides(name)));
        // What the session itself made: `create view …`.
        let catalog = self.context.catalog("datafusion").and_then(|c| c.schema("public"));
        names.extend(catalog.map(|s| s.table_names()).unwrap_or_default());
        names.into_iter().collect()
    }

    /// Names of all functions, in order.
    pub fn functions(&self) -> Vec<String> {
        let state = self.context.state();
        let scalar = state.scalar_functions().keys();
        let names = scalar.chain(state.aggregate_functions().keys()).chain(state.window_functions().keys());
        names.filter(|n| n.starts_with(char::is_alphabetic)).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The columns of a table, with `description` and `unit` in their metadata where they have them.
    pub fn schema(&self, name: &str) -> Result<SchemaRef> {
        if let [run] = self.runs.as_slice()
            && run.tables.contains(name)
        {
            return self.runtime.block_on(described_schema(&run.context, &run.place, name));
        }
        self.provide(name)?;
        let table = self.runtime.block_on(self.context.table_provider(name));
        Ok(table.map_err(|e| self.explain(&e, ""))?.schema())
    }

    /// The runs that were begun and not completed, with the stages in question.
    pub fn unfinished(&self) -> Vec<(&str, Vec<&'static str>)> {
        let of = |run: &'_ Run| self.runtime.block_on(run.place.incomplete_stages());
        self.runs.iter().map(|run| (run.name.as_str(), of(run))).filter(|(_, stages)| !stages.is_empty()).collect()
    }

    /// Bytes and rows of a table of the only run.
    pub fn size(&self, name: &str) -> Result<(u64, u64)> {
        let [run] = self.runs.as_slice() else { bail!("sizes are those of one run") };
        let (bytes, rows) = self.runtime.block_on(run.place.size(name))?;
        let count = || -> Result<u64> {
            let rows = self.collect(&format!("select count(*) from {name}"), &[])?;
            Ok(rows[0].column(0).as_primitive::<Int64Type>().value(0) as u64)
        };
        Ok((bytes, rows.map_or_else(count, Ok)?))
    }

    /// A number that a query names as `$name`: the run's own settings.
    pub fn parameters(&self) -> Result<Vec<(&'static str, f64)>> {
        let settings: Vec<_> = self.runs.iter().map(|run| parameters(&run.analysis)).collect();
        let Some(first) = settings.first() else { bail!("no run") };
        ensure!(
            settings.iter().all(|s| s == first),
            "the runs differ in what $-parameters stand for ({}); write numbers instead",
            settings.iter().flatten().map(|(k, v)| format!("${k} = {v}")).collect::<Vec<_>>().join(", ")
        );
        Ok(first.clone())
    }

    /// Runs one query; `$name` in it stands for a parameter.
    pub fn collect(&self, sql: &str, parameters: &[(&str, f64)]) -> Result<Vec<RecordBatch>> {
        self.collect_values(sql, &numbers(parameters))
    }

    /// As [`Tables::collect`], with parameters that may be texts.
    pub fn collect_values(&self, sql: &str, parameters: &[(&str, Value)]) -> Result<Vec<RecordBatch>> {
        let mut statements = self.statements(sql)?;
        ensure!(statements.len() == 1, "expected one query and found {} in: {sql}", statements.len());
        let frame = self.frame_of(&statements.remove(0), sql, parameters)?;
        self.runtime.block_on(collect(frame)).map_err(|e| self.explain(&e, sql))
    }

    /// The statements of a text, which `;` separates.
    pub fn statements(&self, sql: &str) -> Result<Vec<Statement>> {
        let statements = DFParser::parse_sql(sql).map_err(|e| self.explain(&e, sql))?;
        Ok(statements.into_iter().collect())
    }

    /// A statement made ready to run. `sql` is the text that it comes from, for errors that show the place.
    pub fn frame(&self, statement: &Statement, sql: &str, parameters: &[(&str, f64)]) -> Result<DataFrame> {
        self.frame_of(statement, sql, &numbers(parameters))
    }

    fn frame_of(&self, statement: &Statement, sql: &str, parameters: &[(&str, Value)]) -> Result<DataFrame> {
        if let Statement::Statement(inner) = statement
            && matches!(inner.as_ref(), ast::Statement::ShowTables { .. })
        {
            return self.list();
        }
        let (references, _) = resolve_table_references(statement, true).map_err(|e| self.explain(&e, sql))?;
        let of_session = references.iter().any(|t| t.schema().is_some_and(|s| s == "information_schema"));
        if of_session || statement.to_string().to_uppercase().starts_with("SHOW ") {
            self.names().iter().try_for_each(|name| self.provide(name).map(|_| ()))?;
        }
        for table in references {
            self.provide(table.table())?;
        }
        let plan = async {
            let plan = self.context.state().statement_to_plan(statement.clone()).await?;
            SQLOptions::new().with_allow_dml(false).verify_plan(&plan)?;
            self.context.execute_logical_plan(plan.with_param_values(scalars(parameters))?).await
        };
        self.runtime.block_on(plan).map_err(|e| self.explain(&e, sql))
    }

    /// Runs a statement, its rows as a stream.
    pub fn stream(&self, frame: DataFrame, sql: &str) -> Result<SendableRecordBatchStream> {
        self.runtime.block_on(frame.execute_stream()).map_err(|e| self.explain(&e, sql))
    }

    /// The next rows of a stream.
    pub fn next(&self, stream: &mut SendableRecordBatchStream, sql: &str) -> Result<Option<RecordBatch>> {
        let next = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
        self.runtime.block_on(next).transpose().map_err(|e| self.explain(&e, sql))
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Names of the tables a query reads.
    pub fn references(sql: &str) -> Result<Vec<String>> {
        references(sql)
    }

    /// An error as a person can act on it.
    pub(super) fn explain(&self, error: &DataFusionError, sql: &str) -> anyhow::Error {
        anyhow!(errors::explain(error, sql, &self.names(), &self.functions()))
    }

    /// `show tables`: without DataFusion's own, and without opening any.
    fn list(&self) -> Result<DataFrame> {
        let names = self.names();
        let column = |f: &dyn Fn(&str) -> String| {
            Arc::new(StringArray::from_iter_values(names.iter().map(|n| f(n)))) as ArrayRef
        };
        let batch = RecordBatch::try_from_iter([
            ("table_name", column(&str::to_string)),
            ("kind", column(&|n| kind_and_grain(n).0.to_string())),
            ("one_row_for", column(&|n| kind_and_grain(n).1)),
        ])?;
        Ok(self.context.read_batch(batch)?)
    }

    /// Whether some run has the table, or all that the view reads.
    fn provides(&self, name: &str) -> bool {
        self.runs.iter().any(|run| run.provides(name))
    }

    /// Opens a table or a view, if a run has it and it is not open yet; what nobody has is left for DataFusion to miss.
    fn provide(&self, name: &str) -> Result<()> {
        if self.context.table_exist(name)? || !self.provides(name) {
            return Ok(());
        }
        let having: Vec<&Run> = self.runs.iter().filter(|run| run.provides(name)).collect();
        for run in &having {
            run.provide(name, &self.runtime).with_context(|| match self.runs.len() {
                1 => format!("cannot read the table {name}"),
                _ => format!("cannot read the table {name} of {}", run.name),
            })?;
        }
        if self.runs.len() > 1 {
            let frame = self.runtime.block_on(union(&having, name));
            let frame = frame.map_err(|e| anyhow!("{name} differs between the runs: {}", e.strip_backtrace()))?;
            self.context.register_table(name, frame.into_view())?;
        }
        Ok(())
    }
}

impl Run {
    async fn open(folder: &Path, name: String, context: SessionContext) -> Result<Self> {
        let place = Place::open(folder).await?;
        place.register(&context)?;
        Ok(Self { name, tables: place.tables().await?, analysis: settings(&place).await, place, context })
    }

    fn provides(&self, name: &str) -> bool {
        let reads_what_is_there =
            |view: &Query| references(&view.text).is_ok_and(|read| read.iter().all(|table| self.provides(table)));
        let is_open = self.context.table_exist(name).unwrap_or(false);
        is_open || self.tables.contains(name) || VIEWS.iter().any(|view| view.name == name && reads_what_is_there(view))
    }

    fn provide(&self, name: &str, runtime: &Runtime) -> Result<()> {
        if self.context.table_exist(name)? {
            return Ok(());
        }
        let view = VIEWS.iter().find(|view| view.name == name && !self.tables.contains(name));
        let table = match view {
            Some(view) => {
                references(&view.text)?.iter().try_for_each(|table| self.provide(table, runtime))?;
                let frame = runtime.block_on(self.context.sql(&view.text))?;
                frame.with_param_values(scalars(&numbers(&parameters(&self.analysis))))?.into_view()
            }
            None => runtime.block_on(open_table(&self.context, &self.place, name))?,
        };
        self.context.register_table(name, table)?;
        Ok(())
    }
}

/// `[analysis]` of what was run, as the report wrote it; the defaults before there is a report.
async fn settings(place: &Place) -> AnalysisConfig {
    let text = place.read("report/config.toml").await;
    let mut table: toml::Table = text.and_then(|text| toml::from_str(&text).ok()).unwrap_or_default();
    table.remove("analysis").and_then(|section| section.try_into().ok()).unwrap_or_default()
}

fn numbers<'a>(parameters: &[(&'a str, f64)]) -> Vec<(&'a str, Value)> {
    parameters.iter().map(|&(name, number)| (name, number.into())).collect()
}

/// Names of the tables a query reads.
fn references(sql: &str) -> Result<Vec<String>> {
    let explain = |e: DataFusionError| anyhow!(errors::explain(&e, sql, &[], &[]));
    let mut statements = DFParser::parse_sql(sql).map_err(explain)?;
    let Some(statement) = statements.pop_front() else { bail!("the query is empty") };
    let (tables, _) = resolve_table_references(&statement, true).map_err(explain)?;
    Ok(tables.iter().map(|t| t.table().to_string()).collect())
}

fn new_session(mut config: SessionConfig) -> Result<(SessionContext, Runtime)> {
    let options = config.options_mut();
    // Errors can then point at the place in the text.
    options.sql_parser.collect_spans = true;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok((SessionContext::new_with_config(config), runtime))
}

async fn open_table(context: &SessionContext, place: &Place, name: &str) -> Result<Arc<dyn TableProvider>> {
    let (folder, first) = place.table(name).await?;
    let options = ParquetReadOptions::default()
        .to_listing_options(&context.copied_config(), context.copied_table_options())
        // Files tell by what they are sorted. To carry that through a plan takes a tenth of a short query's time and
        // saves nothing that was seen (docs/performance-log.md). For an empty list the files would be asked: this is one
        // order, of no columns.
        .with_file_sort_order(vec![vec![]]);
    let schema = options.infer_schema(&context.state(), &ListingTableUrl::parse(&first)?).await;
    let schema = schema.map_err(|e| anyhow!("{first} is not a complete Parquet file: {}", e.strip_backtrace()))?;
    // Ends with a slash, as DataFusion tells a folder from a file.
    let config = ListingTableConfig::new(ListingTableUrl::parse(format!("{folder}/"))?)
        .with_listing_options(options)
        .with_schema(schema);
    let cache = context.runtime_env().cache_manager.get_file_statistic_cache();
    Ok(Arc::new(ListingTable::try_new(config)?.with_cache(cache)))
}

/// The schema of a table's first file with its metadata, which a scan goes without.
async fn described_schema(context: &SessionContext, place: &Place, name: &str) -> Result<SchemaRef> {
    let (_, first) = place.table(name).await?;
    let options = ParquetReadOptions::default()
        .skip_metadata(false)
        .to_listing_options(&context.copied_config(), context.copied_table_options());
    let schema = options.infer_schema(&context.state(), &ListingTableUrl::parse(&first)?).await;
    schema.map_err(|e| anyhow!("{first} is not a complete Parquet file: {}", e.strip_backtrace()))
}

/// One table of several runs, the run's name first.
async fn union(runs: &[&Run], name: &str) -> Result<DataFrame, DataFusionError> {
    let mut all: Option<DataFrame> = None;
    for run in runs {
        let frame = run.context.table(name).await?;
        let columns = frame.schema().fields().iter().filter(|f| f.name() != RUN).map(|f| ident(f.name()));
        let frame = frame.clone().select(std::iter::once(lit(run.name.as_str()).alias(RUN)).chain(columns))?;
        all = Some(match all {
            Some(before) => before.union_by_name(frame)?,
            None => frame,
        });
    }
    all.ok_or_else(|| DataFusionError::Plan(format!("table '{name}' not found")))
}

async fn collect(frame: DataFrame) -> Result<Vec<RecordBatch>, DataFusionError> {
    // An empty result still tells its columns.
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let mut batches = frame.collect().await?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    batches.into_iter().map(with_plain_texts).collect()
}

/// Texts as plain strings, however they were read.
fn with_plain_texts(batch: RecordBatch) -> Result<RecordBatch, DataFusionError> {
    let schema = batch.schema();
    if schema.fields().iter().all(|f| f.data_type() != &DataType::Utf8View) {
        return Ok(batch);
    }
    let plain = |f: &FieldRef| match f.data_type() {
        DataType::Utf8View => Arc::new(f.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => f.clone(),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(plain).collect();
    let columns = batch.columns().iter().zip(&fields).map(|(column, f)| cast(column, f.data_type()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// The folders' own names; where two agree, with their parents until they differ.
fn run_names(folders: &[PathBuf]) -> Vec<String> {
    let tail = |path: &Path, parts: usize| {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let all: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    for parts in 1..8 {
        let names: Vec<String> = folders.iter().map(|f| tail(f, parts)).collect();
        if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
            return names;
        }
    }
    // The same folder twice.
    folders.iter().enumerate().map(|(i, f)| format!("{} ({})", tail(f, 1), i + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_by_as_much_of_their_path_as_it_takes() {
        let names = |paths: &[&str]| run_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["/x/gpt2", "/x/pythia"]), ["gpt2", "pythia"]);
        assert_eq!(names(&["/x/a/out", "/x/b/out"]), ["a/out", "b/out"]);
        assert_eq!(names(&["/x/out", "/x/out"]), ["out (1)", "out (2)"]);
    }
}
