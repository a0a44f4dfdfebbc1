//! The rows of a query as columns of texts and numbers, for tables and figures.

use anyhow::{Context, Result};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type};

use super::chart::Point;
use super::query::Asked;
use selfrepair_query::analyze::Tables;

pub struct Rows {
    batches: Vec<RecordBatch>,
}

impl Rows {
    pub fn of(tables: &Tables, sql: &str) -> Result<Self> {
        Ok(Self { batches: tables.collect(sql, &[]).with_context(|| format!("in the query {sql}"))? })
    }

    pub fn ask(tables: &Tables, asked: &Asked) -> Result<Self> {
        let rows = tables.collect_values(&asked.query.text, &asked.parameters);
        Ok(Self { batches: rows.with_context(|| format!("in {}", asked.query.file))? })
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// A column as numbers; null becomes NaN.
    pub fn numbers(&self, column: &str) -> Result<Vec<f64>> {
        let mut out = Vec::with_capacity(self.len());
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
            let array = cast(array, &DataType::Float64)?;
            out.extend(array.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)));
        }
        Ok(out)
    }

    /// A column as text; null becomes the empty text.
    pub fn texts(&self, column: &str) -> Result<Vec<String>> {
        let mut out = Vec::with_capacity(self.len());
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
            let array = cast(array, &DataType::Utf8)?;
            out.extend(array.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_string()));
        }
        Ok(out)
    }

    /// The first row's number.
    pub fn number(&self, column: &str) -> Result<f64> {
        self.numbers(column)?.first().copied().with_context(|| format!("no rows for {column}"))
    }

    /// Two columns as points.
    pub fn points(&self, x: &str, y: &str) -> Result<Vec<Point>> {
        Ok(self.numbers(x)?.into_iter().zip(self.numbers(y)?).collect())
    }

    /// The rows whose text column has this value.
    pub fn filtered(&self, column: &str, value: &str) -> Result<Self> {
        let keep = |batch: &RecordBatch| -> Result<RecordBatch> {
            let array = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
            let array = cast(array, &DataType::Utf8)?;
            let mask: BooleanArray = array.as_string::<i32>().iter().map(|v| Some(v == Some(value))).collect();
            Ok(filter_record_batch(batch, &mask)?)
        };
        Ok(Self { batches: self.batches.iter().map(keep).collect::<Result<_>>()? })
    }
}
