//! Runs of an older schema or measurement version, for the report: their measured tables are rewritten with the present columns in a temporary
//! folder, and the derived tables are computed from them. The run itself is not changed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type};
use datafusion::common::internal_err;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use tempfile::TempDir;

use crate::analyze::{self, MEASUREMENT_2, Query, SCHEMA_2};
use crate::sql::Tables;
use selfrepair_core::components::{Ablatable, Component};
use selfrepair_core::interrupt;
use selfrepair_core::own_files;
use selfrepair_core::progress;
use selfrepair_core::provenance::MEASUREMENT_VERSION;
use selfrepair_core::tables::{DISTRIBUTIONS, MEASURED, SCHEMA_VERSION, Table};
use selfrepair_store::{Metadata, TableWriter, measurement_version, schema_version};

/// A folder with the tables of a finished run in the present schema, if the run has schema 2 or was written by an earlier
/// measurement version. `None` if it has the present ones.
///
/// # Errors
/// If the run's schema is neither, or a table cannot be read.
pub fn as_present(out: &Path) -> Result<Option<TempDir>> {
    let file = out.join("tables/head_summary/head_summary.parquet");
    let rewritten = |what: &str, queries: &[Query]| {
        rewritten(out, what, queries).with_context(|| format!("reading {} as {what}", out.display())).map(Some)
    };
    match schema_version(&file).as_deref() {
        None => Ok(None),
        Some(SCHEMA_VERSION) => match measurement_version(&file) {
            Some(version) if version < MEASUREMENT_VERSION => {
                rewritten(&format!("measurement version {version}"), MEASUREMENT_2)
            }
            _ => Ok(None),
        },
        Some("2") => rewritten("schema 2", SCHEMA_2),
        Some(version) => bail!(
            "the tables of {} have schema version {version}; this program reports on versions 2 and {SCHEMA_VERSION}. Use \
             the version of the program that wrote them (`pipeline sql` still reads the tables)",
            out.display()
        ),
    }
}

fn rewritten(out: &Path, what: &str, queries: &[Query]) -> Result<TempDir> {
    progress::line(
        "report",
        &format!("{} has {what}; its tables are read with the columns of schema {SCHEMA_VERSION}", out.display()),
    );
    let folder = interrupt::scratch_folder("self-repair-report-")?;
    let tables = Tables::open_in_order(out)?;
    tables.add_function(component_name());
    let names = MEASURED.iter().map(|table| table.name).chain(analyze::derived_tables());
    for name in names {
        fs::create_dir_all(folder.path().join("tables").join(name))?;
    }
    let meta = Metadata { run_id: String::new(), fingerprint: String::new(), ledger: None };
    for table in MEASURED {
        let query = queries.iter().find(|query| query.name == table.name);
        if is_there(&tables, table)? {
            rewrite(&tables, table, query, folder.path(), &meta)
                .with_context(|| format!("the table {}", table.name))?;
        }
    }
    // The report says what was asked for.
    let config = Path::new("report/config.toml");
    if let Ok(text) = own_files::read_record(&out.join(config)) {
        fs::create_dir_all(folder.path().join("report"))?;
        fs::write(folder.path().join(config), text)?;
    }
    let analysis = tables.analysis()?;
    let measured = analyze::open(folder.path(), analysis)?;
    analyze::derive(&measured, folder.path(), analysis, &meta, vec![], &|_: &str| {})?;
    Ok(folder)
}

/// Whether a run has what the table is made of. Distributions are columns of `ablations` in schema 2.
fn is_there(tables: &Tables, table: &Table) -> Result<bool> {
    match table.name == DISTRIBUTIONS.name && !tables.has(table.name)? {
        true => Ok(tables.has("ablations")? && tables.schema("ablations")?.column_with_name("kl_divergence").is_some()),
        false => tables.has(table.name),
    }
}

/// Writes a table with the columns of the present schema, which the query has by name.
fn rewrite(tables: &Tables, table: &Table, query: Option<&Query>, folder: &Path, meta: &Metadata) -> Result<()> {
    let all = format!("select * from {}", table.name);
    let sql = query.map_or(all.as_str(), |query| &query.text);
    let schema = table.schema();
    let mut writer = TableWriter::create(table, &folder.join(format!("tables/{0}/{0}.parquet", table.name)), meta)?;
    let statements = tables.statements(sql)?;
    let statement = statements.first().context("no query")?;
    let mut rows = tables.stream(tables.frame(statement, sql, &[])?, sql)?;
    while let Some(batch) = tables.next(&mut rows, sql)? {
        let column = |field: &arrow::datatypes::FieldRef| {
            let column = batch.column_by_name(field.name()).with_context(|| format!("no column {}", field.name()))?;
            Ok(cast(column, field.data_type())?)
        };
        let columns: Vec<ArrayRef> = schema.fields().iter().map(column).collect::<Result<_>>()?;
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    writer.finish()
}

/// `component_name(component, layer, head)`: the `name` of the present schema, such as L26H2, BIAS26 or EMBED.
fn component_name() -> ScalarUDF {
    let types = vec![DataType::Utf8, DataType::Int32, DataType::Int32];
    let names = |arguments: &[ColumnarValue]| -> DataFusionResult<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(arguments)?;
        let [component, layer, head] = &columns[..] else {
            return internal_err!("component_name takes three arguments");
        };
        let number = |column: &ArrayRef, row: usize| {
            let column = column.as_primitive::<Int32Type>();
            column.is_valid(row).then(|| column.value(row) as usize)
        };
        let name = |row: usize| named(component.as_string::<i32>().value(row), number(layer, row), number(head, row));
        Ok(ColumnarValue::Array(Arc::new(StringArray::from_iter_values((0..component.len()).map(name)))))
    };
    create_udf("component_name", types, DataType::Utf8, Volatility::Immutable, Arc::new(names))
}

fn named(component: &str, layer: Option<usize>, head: Option<usize>) -> String {
    let sorts = [Component::Attention, Component::Block, Component::Head, Component::Mlp];
    match (sorts.into_iter().find(|sort| sort.name() == component), layer) {
        (Some(component), Some(layer)) => Ablatable { component, layer, head }.name(),
        (None, Some(layer)) => format!("BIAS{layer}"),
        (_, None) => component.to_uppercase(),
    }
}
