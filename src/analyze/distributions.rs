//! How self-repair is spread over tokens: quantiles, which a data frame computes better than SQL.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray, UInt16Array};
use arrow::datatypes::{Float32Type, UInt16Type};
use polars::prelude::{ChunkQuantile, Float32Chunked, NamedFrom, QuantileMethod};

use super::Tables;
use crate::tables::{Column, Metadata, Table, TableWriter, Type};

const TABLE: &str = "repair_quantiles";

const QUANTILES: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];

pub const SCHEMA: Table = Table {
    name: TABLE,
    grain: "an ablation, a hold, a layer and a quantile",
    key: 4,
    columns: &[
        Column("ablation", Type::Text, "", "as in ablations"),
        Column("hold", Type::Text, "", "as in ablations"),
        Column("layer", Type::Small, "", "block of the ablated heads"),
        Column("quantile", Type::Float, "", "share of the tokens below self_repair"),
        Column("self_repair", Type::Float, "logits", "quantile over the tokens of all ablated heads of the layer"),
        Column("logit_change", Type::Float, "logits", "quantile of logit_change over the same tokens"),
    ],
};

/// Writes the table, layer after layer so that memory does not grow with the model.
pub fn write(tables: &Tables, out: &Path, meta: &Metadata) -> Result<()> {
    let path = out.join("tables").join(TABLE).join(format!("{TABLE}.parquet"));
    let mut writer = TableWriter::create(&SCHEMA, &path, meta)?;
    let groups = tables.collect(
        "select distinct ablation, hold, layer from ablations where component = 'head' order by ablation, hold, layer",
        &[],
    )?;
    for batch in groups {
        let text = |i: usize| batch.column(i).as_string::<i32>();
        let layers = batch.column(2).as_primitive::<UInt16Type>();
        for row in 0..batch.num_rows() {
            let (ablation, hold, layer) = (text(0).value(row), text(1).value(row), layers.value(row));
            let rows = tables.collect(
                &format!(
                    "select self_repair, logit_change from ablations where component = 'head' \
                     and ablation = '{ablation}' and hold = '{hold}' and layer = {layer}"
                ),
                &[],
            )?;
            let n = QUANTILES.len();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(vec![ablation; n])),
                Arc::new(StringArray::from(vec![hold; n])),
                Arc::new(UInt16Array::from(vec![layer; n])),
                Arc::new(Float32Array::from_iter_values(QUANTILES.iter().map(|&q| q as f32))),
                Arc::new(quantiles(&rows, 0)?),
                Arc::new(quantiles(&rows, 1)?),
            ];
            writer.write(&RecordBatch::try_new(SCHEMA.schema(), columns)?)?;
        }
    }
    writer.finish()
}

fn quantiles(rows: &[RecordBatch], column: usize) -> Result<Float32Array> {
    let values: Vec<f32> =
        rows.iter().flat_map(|b| b.column(column).as_primitive::<Float32Type>().values().iter().copied()).collect();
    let values = Float32Chunked::new("values".into(), values);
    let at = |&q: &f64| values.quantile(q, QuantileMethod::Linear)?.context("no tokens");
    QUANTILES.iter().map(at).collect::<Result<Vec<f32>>>().map(Float32Array::from)
}
