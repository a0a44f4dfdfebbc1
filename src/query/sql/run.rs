//! One run in a session: its tables and views, opened when a query names them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::listing::{ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::options::ReadOptions;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use datafusion::sql::resolve::resolve_table_references;

use super::location::{Place, TableFiles};
use super::parameters::scalars;
use super::session::numbers;
use super::stack::{Workers, on_large_stack};
use super::{errors, parse};
use crate::analyze::{Query, VIEWS, parameters};
use selfrepair_core::config::AnalysisConfig;
use selfrepair_core::progress;
use selfrepair_core::tables::name_type;

/// The column that tells runs apart when there are several.
const RUN: &str = "run";

/// One run. Of several, each has a session of its own, so that a view over two tables never joins two runs.
pub(super) struct Run {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) tables: BTreeSet<String>,
    pub(super) context: SessionContext,
    /// The values of `$name` parameters in views and queries.
    pub(super) analysis: AnalysisConfig,
}

impl Run {
    pub(super) async fn open(
        place: Place,
        analysis: AnalysisConfig,
        name: String,
        context: SessionContext,
    ) -> Result<Self> {
        place.register(&context)?;
        Ok(Self { name, tables: place.tables().await?, analysis, place, context })
    }

    /// Whether the name is that of a table or a view of the run's own.
    pub(super) fn owns(&self, name: &str) -> bool {
        self.tables.contains(name) || VIEWS.iter().any(|view| view.name == name)
    }

    pub(super) fn provides(&self, name: &str) -> bool {
        let reads_what_is_there =
            |view: &Query| references(&view.text).is_ok_and(|read| read.iter().all(|table| self.provides(table)));
        let is_open = self.context.table_exist(name).unwrap_or(false);
        is_open || self.tables.contains(name) || VIEWS.iter().any(|view| view.name == name && reads_what_is_there(view))
    }

    pub(super) fn provide(&self, name: &str, runtime: &Workers) -> Result<()> {
        if self.context.table_exist(name)? {
            return Ok(());
        }
        let view = VIEWS.iter().find(|view| view.name == name && !self.tables.contains(name));
        let table = match view {
            Some(view) => {
                references(&view.text)?.iter().try_for_each(|table| self.provide(table, runtime))?;
                let frame = runtime.block_on(self.context.sql(&view.text)).map_err(|e| {
                    anyhow!(
                        "the view {name} does not fit this run's tables, which may be of another version of the program \
                         (`pipeline tables --out` lists their columns): {}",
                        e.strip_backtrace()
                    )
                })?;
                frame.with_param_values(scalars(&numbers(&parameters(&self.analysis))))?.into_view()
            }
            None => runtime.read(open_table(&self.context, &self.place, name))?,
        };
        self.context.register_table(name, table)?;
        Ok(())
    }
}

/// `[analysis]` of what was run, as the report wrote it; the defaults before there is a report.
pub(super) async fn settings(place: &Place) -> AnalysisConfig {
    let text = place.read("report/config.toml").await;
    let mut table: toml::Table = text.and_then(|text| toml::from_str(&text).ok()).unwrap_or_default();
    let memory = table.get("runtime").and_then(|section| section.get("memory")?.as_integer());
    let analysis = table.remove("analysis").and_then(|section| section.try_into().ok()).unwrap_or_default();
    AnalysisConfig { memory: memory.and_then(|m| u64::try_from(m).ok()).unwrap_or(0), ..analysis }
}

/// Names of the tables a query reads.
pub(super) fn references(sql: &str) -> Result<Vec<String>> {
    let explain = |e: DataFusionError| anyhow!(errors::explain(&e, sql, &[], &[]));
    let statements = parse::statements(sql)?;
    let Some(statement) = statements.first() else { bail!("the query is empty") };
    let (tables, _) = on_large_stack(|| resolve_table_references(statement, true))?.map_err(explain)?;
    Ok(tables.iter().map(|t| t.table().to_string()).collect())
}

pub(super) async fn open_table(context: &SessionContext, place: &Place, name: &str) -> Result<Arc<dyn TableProvider>> {
    let TableFiles { urls, first, first_shown, foreign, missing } = place.table(name).await?;
    for (files, what) in [(foreign, "was not written by this run and is not read"), (missing, "is not there")] {
        if let Some(file) = files.first() {
            let more = if files.len() > 1 { format!(" (and {} more)", files.len() - 1) } else { String::new() };
            progress::line("warning", &format!("tables/{name}/{file}{more} {what}"));
        }
    }
    let options = ParquetReadOptions::default()
        .to_listing_options(&context.copied_config(), context.copied_table_options())
        // Files tell by what they are sorted. To carry that through a plan takes a tenth of a short query's time and
        // saves nothing that was seen (docs/performance-log.md). For an empty list the files would be asked: this is one
        // order, of no columns.
        .with_file_sort_order(vec![vec![]]);
    let schema = options.infer_schema(&context.state(), &ListingTableUrl::parse(&first)?).await;
    let schema =
        schema.map_err(|e| anyhow!("{first_shown} is not a complete Parquet file: {}", e.strip_backtrace()))?;
    // Where texts are read as views, so are names: rows are grouped by those faster than by dictionaries.
    let schema = match context.copied_config().options().execution.parquet.schema_force_view_types {
        true => with_names_as_views(&schema),
        false => schema,
    };
    let urls = urls.iter().map(ListingTableUrl::parse).collect::<Result<_, _>>()?;
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    let cache = context.runtime_env().cache_manager.get_file_statistic_cache();
    Ok(Arc::new(ListingTable::try_new(config)?.with_cache(cache)))
}

fn with_names_as_views(schema: &Schema) -> SchemaRef {
    let field = |f: &FieldRef| match f.data_type() {
        name if *name == name_type() => Arc::new(f.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(f),
    };
    Arc::new(Schema::new_with_metadata(
        schema.fields().iter().map(field).collect::<Vec<_>>(),
        schema.metadata().clone(),
    ))
}

/// The schema of a table's first file with its metadata, which a scan goes without.
pub(super) async fn described_schema(context: &SessionContext, place: &Place, name: &str) -> Result<SchemaRef> {
    let TableFiles { first, first_shown, .. } = place.table(name).await?;
    let options = ParquetReadOptions::default()
        .skip_metadata(false)
        .to_listing_options(&context.copied_config(), context.copied_table_options());
    let schema = options.infer_schema(&context.state(), &ListingTableUrl::parse(&first)?).await;
    schema.map_err(|e| anyhow!("{first_shown} is not a complete Parquet file: {}", e.strip_backtrace()))
}

/// One table of several runs, the run's name first.
pub(super) async fn union(runs: &[&Run], name: &str) -> Result<DataFrame, DataFusionError> {
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

/// The folders' own names; where two agree, with their parents until they differ.
pub(super) fn run_names(folders: &[PathBuf]) -> Vec<String> {
    let tail = |path: &Path, parts: usize| {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let all: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        all.split_at(all.len().saturating_sub(parts)).1.join("/")
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
