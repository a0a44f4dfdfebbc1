//! The `report` stage: what a run found, in the terminal and as one self-contained HTML file with its figures.

mod figures;
mod html;
mod summary;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};

pub use summary::summary;

use crate::analyze::Tables;
use crate::run_folder::write_atomically;

/// Raised when the report would look different on the same tables.
pub const VERSION: u32 = 1;

/// Writes `<out>/report/index.html` and its figures beside it.
pub fn report(out: &Path) -> Result<String> {
    let tables = Tables::open(out)?;
    let folder = out.join("report");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let figures = figures::all(&tables)?;
    for figure in &figures {
        write_atomically(&folder.join(format!("{}.svg", figure.name)), figure.svg.as_bytes())?;
    }
    let page = folder.join("index.html");
    write_atomically(&page, html::page(&tables, &figures)?.as_bytes())?;
    Ok(format!("{} figures in {}", figures.len(), page.display()))
}

/// The rows of a query as text and number columns, for tables and figures of a few hundred rows.
pub(crate) struct Rows {
    batches: Vec<RecordBatch>,
}

impl Rows {
    pub fn of(tables: &Tables, sql: &str) -> Result<Self> {
        Ok(Self { batches: tables.collect(sql, &[]).with_context(|| format!("in the query {sql}"))? })
    }

    /// A column as numbers; null becomes NaN.
    pub fn numbers(&self, column: &str) -> Result<Vec<f64>> {
        let mut out = Vec::new();
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
            let array = cast(array, &DataType::Float64)?;
            out.extend(array.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)));
        }
        Ok(out)
    }

    pub fn texts(&self, column: &str) -> Result<Vec<String>> {
        let mut out = Vec::new();
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
            let array = cast(array, &DataType::Utf8)?;
            debug_assert_eq!(array.len(), batch.num_rows());
            out.extend(array.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_string()));
        }
        Ok(out)
    }

    /// The only row's number.
    pub fn number(&self, column: &str) -> Result<f64> {
        self.numbers(column)?.first().copied().with_context(|| format!("no rows for {column}"))
    }
}
