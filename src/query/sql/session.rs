//! A DataFusion session over the tables of one or more runs.
//!
//! A table is opened when a query names it, and its schema is read from its first file. So a session over thousands of
//! shards starts as fast as one over a single file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::resolve::resolve_table_references;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::allowed::{self, Rights};
use super::budget::{Budget, Kept};
use super::cells::with_plain_texts;
use super::location::Place;
use super::parameters::{Value, scalars};
use super::parse;
use super::run::{Run, described_schema, open_table, references, run_names, settings, union};
use super::stack::{FAULT, Workers, on_large_stack};
use super::terminal::ONE_ROW_FOR;
use super::{errors, functions, size};
use crate::analyze::{VIEWS, kind_and_grain, parameters};
use selfrepair_core::columns::numbers as numbers_of;
use selfrepair_core::config::AnalysisConfig;
use selfrepair_core::untrusted::caught;

/// As many rows as the prompt and a terminal are shown of a result, unless more are asked for.
pub const ROWS_ON_A_TERMINAL: usize = 500;

/// The tables of one run or of several, ready for SQL.
pub struct Tables {
    context: SessionContext,
    runtime: Workers,
    runs: Vec<Run>,
    rights: Rights,
    budget: Budget,
    /// For rows that do not fit into memory; removed with the session.
    _scratch: Option<TempDir>,
}

/// Planning of a statement, which may take long and call itself often.
pub(super) type Planning = Box<dyn FnOnce() -> Result<DataFrame, DataFusionError> + Send>;

/// Queries that a session may name with `create view`: each may read the one before, which plans ever deeper.
const MOST_VIEWS: usize = 100;

impl Tables {
    /// Every table that lies under `<out>/tables`, and the views over them, on all cores.
    pub fn open(out: &Path) -> Result<Self> {
        Self::of_runs(&[out.to_path_buf()])
    }

    /// The tables of several runs: each has a leading column `run`, the name of its folder.
    pub fn of_runs(folders: &[PathBuf]) -> Result<Self> {
        Self::of_runs_with(folders, Rights::Tables, 0)
    }

    /// As [`Tables::of_runs`], with what statements may do and how many bytes of memory they may take; 0 takes what the
    /// runs' own `runtime.memory` says, or a share of what is free.
    pub fn of_runs_with(folders: &[PathBuf], rights: Rights, memory: u64) -> Result<Self> {
        let tables = Self::with_config(folders, SessionConfig::new(), memory)?;
        Ok(Self { rights, ..tables })
    }

    /// As [`Tables::open`], on one core: rows come in the order of the files, and sums are taken in it, so that the same
    /// run gives the same figures.
    pub fn open_in_order(out: &Path) -> Result<Self> {
        Self::with_config(&[out.to_path_buf()], SessionConfig::new().with_target_partitions(1), 0)
    }

    fn with_config(folders: &[PathBuf], config: SessionConfig, memory: u64) -> Result<Self> {
        ensure!(!folders.is_empty(), "name a run with --out");
        let mut config = config.with_information_schema(true);
        let parquet = &mut config.options_mut().execution.parquet;
        // Rows leave with the types that the tables were written with.
        parquet.schema_force_view_types = false;
        // A question is often about one head: of the other columns only its rows are read.
        parquet.pushdown_filters = true;
        let runtime = Workers::new()?;
        let mut places = Vec::new();
        for folder in folders {
            let place = runtime.block_on(Place::open(folder))?;
            let analysis = runtime.block_on(settings(&place));
            places.push((place, analysis));
        }
        let of_runs = places.iter().map(|(_, analysis)| (analysis.memory, "runtime.memory of the run"));
        let asked = if memory > 0 { vec![(memory, "--memory")] } else { of_runs.collect() };
        let budget = Budget::of(&asked);
        budget.fit(&mut config);
        let (environment, scratch) = budget.environment()?;
        let context = new_session(config.clone(), &environment, &budget);
        let mut runs = Vec::new();
        for ((place, analysis), name) in places.into_iter().zip(run_names(folders)) {
            let of_run = match folders.len() {
                1 => context.clone(),
                _ => new_session(config.clone(), &environment, &budget),
            };
            let run = runtime.block_on(Run::open(place, analysis, name, of_run))?;
            // A query over several runs is run here.
            run.place.register(&context)?;
            runs.push(run);
        }
        Ok(Self { context, runtime, runs, rights: Rights::Tables, budget, _scratch: scratch })
    }

    /// Bytes of memory that are counted of queries. They may take as much again for rows on their way.
    pub fn memory(&self) -> u64 {
        self.budget.counted
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
        let budget = Budget::of(&[(analysis.memory, "runtime.memory")]);
        budget.fit(&mut config);
        let (environment, scratch) = budget.environment()?;
        let (context, runtime) = (new_session(config, &environment, &budget), Workers::new()?);
        let (name, tables, analysis) = (String::new(), BTreeSet::new(), analysis.clone());
        let place = runtime.block_on(Place::open(out))?;
        let run = Run { name, place, tables, context: context.clone(), analysis };
        let tables = Self { context, runtime, runs: vec![run], rights: Rights::Tables, budget, _scratch: scratch };
        let run = tables.runs.first().context("there is no run")?;
        let there = tables.runtime.block_on(run.place.tables())?;
        for table in selfrepair_core::tables::MEASURED {
            let has_files = || tables.runtime.block_on(run.place.has_files(table.name));
            match there.contains(table.name) && has_files()? {
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
        let table = self.runtime.read(async { open_table(&self.context, &Place::open(out).await?, name).await })?;
        self.context.register_table(name, table)?;
        Ok(())
    }

    /// Makes rows readable that lie in no file of the run.
    pub(crate) fn add_rows(&self, name: &str, rows: RecordBatch) -> Result<()> {
        self.context.register_batch(name, rows)?;
        Ok(())
    }

    pub(crate) fn add_function(&self, function: ScalarUDF) {
        self.context.register_udf(function);
    }

    /// `[analysis]` of the only run.
    pub(crate) fn analysis(&self) -> Result<&AnalysisConfig> {
        let [run] = self.runs.as_slice() else { bail!("settings are those of one run") };
        Ok(&run.analysis)
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
            return self.runtime.read(described_schema(&run.context, &run.place, name));
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
        let (bytes, rows) = self.runtime.read(run.place.size(name))?;
        let count = || -> Result<u64> {
            let rows = self.collect(&format!("select count(*) from {name}"), &[])?;
            let first = rows.first().context("a count has no rows")?;
            Ok(numbers_of::<Int64Type>(first, 0)?.value(0) as u64)
        };
        Ok((bytes, rows.map_or_else(count, Ok)?))
    }

    /// A number that a query names as `$name`: the run's own settings.
    pub fn parameters(&self) -> Result<Vec<(&'static str, f64)>> {
        let settings: Vec<_> = self.runs.iter().map(|run| parameters(&run.analysis)).collect();
        let Some(first) = settings.first() else { bail!("no run") };
        ensure!(
            settings.iter().all(|s| s == first),
            "the runs have different values of the $-parameters ({}); write numbers instead",
            settings.iter().flatten().map(|(k, v)| format!("${k} = {v}")).collect::<Vec<_>>().join(", ")
        );
        Ok(first.clone())
    }

    /// Runs one query, which may have `$name` parameters.
    pub fn collect(&self, sql: &str, parameters: &[(&str, f64)]) -> Result<Vec<RecordBatch>> {
        self.collect_values(sql, &numbers(parameters))
    }

    /// As [`Tables::collect`], with parameters that may be texts.
    pub fn collect_values(&self, sql: &str, parameters: &[(&str, Value)]) -> Result<Vec<RecordBatch>> {
        let mut statements = self.statements(sql)?;
        ensure!(statements.len() == 1, "expected one query and found {} in: {sql}", statements.len());
        let frame = self.frame_of(&statements.remove(0), sql, parameters)?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let mut kept = Kept::of(&frame);
        let mut stream = self.stream(frame, sql)?;
        while let Some(batch) = self.next(&mut stream, sql)? {
            kept.add(batch).map_err(|e| self.explain(&e, sql))?;
        }
        if kept.rows.is_empty() {
            // An empty result still tells its columns.
            kept.rows.push(RecordBatch::new_empty(schema));
        }
        kept.rows.into_iter().map(with_plain_texts).collect()
    }

    /// The statements of a text, which `;` separates.
    pub fn statements(&self, sql: &str) -> Result<Vec<Statement>> {
        parse::statements(sql)
    }

    /// A statement made ready to run. `sql` is the text that it comes from, for errors that show the place.
    pub fn frame(&self, statement: &Statement, sql: &str, parameters: &[(&str, f64)]) -> Result<DataFrame> {
        self.frame_of(statement, sql, &numbers(parameters))
    }

    fn frame_of(&self, statement: &Statement, sql: &str, parameters: &[(&str, Value)]) -> Result<DataFrame> {
        on_large_stack(self.planning(statement, sql, parameters)?)?.map_err(|e| self.explain(&e, sql))
    }

    /// The work of [`Tables::frame`], once the tables that the statement reads are open.
    pub(super) fn planning(&self, statement: &Statement, sql: &str, parameters: &[(&str, Value)]) -> Result<Planning> {
        allowed::check(statement, self.rights, |name| self.runs.iter().any(|run| run.owns(name)))?;
        if allowed::lists_tables(statement) {
            let list = self.list()?;
            return Ok(Box::new(|| Ok(list)));
        }
        if allowed::names_a_query(statement) {
            self.check_views()?;
        }
        let (references, _) =
            on_large_stack(|| resolve_table_references(statement, true))?.map_err(|e| self.explain(&e, sql))?;
        let of_session = references.iter().any(|t| t.schema().is_some_and(|s| s == "information_schema"));
        if of_session || allowed::asks_about_the_session(statement) {
            // A view may need columns that a run of another version does not have.
            let is_view = |name: &str| VIEWS.iter().any(|view| view.name == name);
            self.names()
                .iter()
                .try_for_each(|name| self.provide(name).or_else(|e| if is_view(name) { Ok(()) } else { Err(e) }))?;
        }
        for table in references {
            self.provide(table.table())?;
        }
        let (context, handle, rights) = (self.context.clone(), Handle::clone(&self.runtime), self.rights);
        let (statement, values) = (statement.clone(), scalars(parameters));
        let plan = async move {
            let plan = context.state().statement_to_plan(statement.clone()).await?;
            allowed::check_plan(&plan, &statement, rights)?;
            size::check_plan_size(&plan)?;
            parse::check_bits(&plan)?;
            if allowed::is_query(&statement) && plan.schema().fields().is_empty() {
                let advice = "the query selects no columns; write `select * from …` for all of them";
                return Err(DataFusionError::Plan(advice.into()));
            }
            context.execute_logical_plan(plan.with_param_values(values)?).await
        };
        Ok(Box::new(move || handle.block_on(plan)))
    }

    /// # Errors
    /// If the session has named so many queries that another one may be too deep.
    fn check_views(&self) -> Result<()> {
        let there = self.context.catalog("datafusion").and_then(|c| c.schema("public"));
        let is_own = |name: &&String| !self.runs.iter().any(|run| run.owns(name));
        let own = there.map_or(0, |s| s.table_names().iter().filter(is_own).count());
        ensure!(own < MOST_VIEWS, "a session names at most {MOST_VIEWS} queries with `create view`");
        Ok(())
    }

    /// Runs a statement, its rows as a stream.
    pub fn stream(&self, frame: DataFrame, sql: &str) -> Result<SendableRecordBatchStream> {
        on_large_stack(|| self.runtime.block_on(frame.execute_stream()))?.map_err(|e| self.explain(&e, sql))
    }

    /// The next rows of a stream.
    pub fn next(&self, stream: &mut SendableRecordBatchStream, sql: &str) -> Result<Option<RecordBatch>> {
        let next = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
        let next = caught(|| self.runtime.block_on(next)).context(FAULT)?;
        next.transpose().map_err(|e| self.explain(&e, sql))
    }

    pub(super) fn runtime(&self) -> &Workers {
        &self.runtime
    }

    /// Names of the tables a query reads.
    pub fn references(sql: &str) -> Result<Vec<String>> {
        references(sql)
    }

    /// An error as a person can act on it.
    pub(super) fn explain(&self, error: &DataFusionError, sql: &str) -> Error {
        if let DataFusionError::ResourcesExhausted(why) = error.find_root() {
            return self.budget.exceeded(why);
        }
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
            (ONE_ROW_FOR, column(&|n| kind_and_grain(n).1)),
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

pub(super) fn numbers<'a>(parameters: &[(&'a str, f64)]) -> Vec<(&'a str, Value)> {
    parameters.iter().map(|&(name, number)| (name, number.into())).collect()
}

fn new_session(mut config: SessionConfig, environment: &Arc<RuntimeEnv>, budget: &Budget) -> SessionContext {
    let options = config.options_mut();
    // Errors can then point at the place in the text.
    options.sql_parser.collect_spans = true;
    let context = SessionContext::new_with_config_rt(config, Arc::clone(environment));
    functions::limit(&context, budget.counted / 4);
    context
}
