//! The distribution of self-repair over tokens: quantiles and deciles, computed with data frames.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, UInt16Type};

use super::{Tables, quantiles};
use crate::sql::Value;
use selfrepair_core::tables::{Column, Table, Type};
use selfrepair_store::{Metadata, TableWriter};

const QUANTILES: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];
const PARTS: usize = 10;
/// A token whose direct effect falls by less is not asked whether it is repaired.
const SMALLEST_DROP: f32 = 0.05;

pub const QUANTILE_TABLE: Table = Table {
    name: "repair_quantiles",
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

pub const DECILE_TABLE: Table = Table {
    name: "repair_by_decile",
    grain: "an ablation, a hold, a sort of component, a layer and a tenth of its tokens in order of direct effect",
    key: 5,
    columns: &[
        Column("ablation", Type::Text, "", "as in ablations"),
        Column("hold", Type::Text, "", "as in ablations"),
        Column("component", Type::Text, "", "as in ablations"),
        Column("layer", Type::Small, "", "block of the ablated components"),
        Column("decile", Type::Small, "", "decile of the tokens of these components by direct effect; 1 is the lowest"),
        Column("tokens", Type::Int, "", "tokens in it"),
        Column("direct_effect", Type::Float, "logits", "mean direct effect"),
        Column("self_repair", Type::Float, "logits", "mean self-repair"),
        Column("drops", Type::Int, "", "tokens on which direct_effect - ablated_direct_effect exceeds 0.05"),
        Column("not_repaired?", Type::Float, "", "share of the drops with self_repair / that drop ≤ 0"),
        Column("partly_repaired?", Type::Float, "", "share of the drops between 0 and 1"),
        Column("over_repaired?", Type::Float, "", "share of the drops above 1"),
    ],
};

/// Writes both tables, layer after layer so that memory does not grow with the model.
pub fn write(tables: &Tables, out: &Path, meta: &Metadata) -> Result<()> {
    let create = |table: &Table| {
        let path = out.join("tables").join(table.name).join(format!("{}.parquet", table.name));
        TableWriter::create(table, &path, meta)
    };
    let mut quantiles = create(&QUANTILE_TABLE)?;
    let mut deciles = create(&DECILE_TABLE)?;
    let layers = tables.collect(
        "select distinct ablation, hold, component, layer from ablations order by ablation, hold, component, layer",
        &[],
    )?;
    for batch in layers {
        let texts: Vec<ArrayRef> = (0..3).map(|i| cast(batch.column(i), &DataType::Utf8)).collect::<Result<_, _>>()?;
        let text = |i: usize| texts[i].as_string::<i32>();
        for row in 0..batch.num_rows() {
            let layer = Layer {
                ablation: text(0).value(row),
                hold: text(1).value(row),
                component: text(2).value(row),
                layer: batch.column(3).as_primitive::<UInt16Type>().value(row),
            };
            let tokens = layer.tokens(tables)?;
            deciles.write(&layer.deciles(&tokens)?)?;
            if layer.component == "head" {
                quantiles.write(&layer.quantiles(&tokens)?)?;
            }
        }
    }
    quantiles.finish()?;
    deciles.finish()
}

/// One ablation of all components of a sort in a layer.
struct Layer<'a> {
    ablation: &'a str,
    hold: &'a str,
    component: &'a str,
    layer: u16,
}

#[derive(Clone, Copy)]
struct Token {
    direct_effect: f32,
    drop: f32,
    self_repair: f32,
    logit_change: f32,
}

impl Layer<'_> {
    fn tokens(&self, tables: &Tables) -> Result<Vec<Token>> {
        let Layer { ablation, hold, component, layer } = self;
        let sql = "select direct_effect, direct_effect - ablated_direct_effect, self_repair, logit_change from ablations \
                   where ablation = $ablation and hold = $hold and component = $component and layer = $layer";
        let of_layer = [
            ("ablation", Value::from(*ablation)),
            ("hold", (*hold).into()),
            ("component", (*component).into()),
            ("layer", i64::from(*layer).into()),
        ];
        let rows = tables.collect_values(sql, &of_layer)?;
        let mut tokens = Vec::with_capacity(rows.iter().map(RecordBatch::num_rows).sum());
        for batch in rows {
            let column = |i: usize| batch.column(i).as_primitive::<Float32Type>().values();
            let (effect, drop, repair, change) = (column(0), column(1), column(2), column(3));
            tokens.extend((0..batch.num_rows()).map(|i| Token {
                direct_effect: effect[i],
                drop: drop[i],
                self_repair: repair[i],
                logit_change: change[i],
            }));
        }
        Ok(tokens)
    }

    fn quantiles(&self, tokens: &[Token]) -> Result<RecordBatch> {
        let n = QUANTILES.len();
        let of = |column: fn(&Token) -> f32| -> ArrayRef {
            let values = quantiles(tokens.iter().map(|t| f64::from(column(t))).collect(), &QUANTILES);
            Arc::new(Float32Array::from_iter_values(values.into_iter().map(|v| v as f32)))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![self.ablation; n])),
            Arc::new(StringArray::from(vec![self.hold; n])),
            Arc::new(UInt16Array::from(vec![self.layer; n])),
            Arc::new(Float32Array::from_iter_values(QUANTILES.iter().map(|&q| q as f32))),
            of(|t| t.self_repair),
            of(|t| t.logit_change),
        ];
        Ok(RecordBatch::try_new(QUANTILE_TABLE.schema(), columns)?)
    }

    fn deciles(&self, tokens: &[Token]) -> Result<RecordBatch> {
        let mut sorted = tokens.to_vec();
        // Stable: tokens of equal effect stay in the order of the table.
        sorted.sort_by(|a, b| a.direct_effect.total_cmp(&b.direct_effect));
        let parts: Vec<(u16, Decile)> = (0..PARTS)
            .map(|d| (d as u16 + 1, &sorted[d * sorted.len() / PARTS..(d + 1) * sorted.len() / PARTS]))
            .filter(|(_, part)| !part.is_empty())
            .map(|(d, part)| (d, Decile::of(part)))
            .collect();
        let n = parts.len();
        let float = |f: fn(&Decile) -> f64| -> ArrayRef {
            Arc::new(Float32Array::from_iter_values(parts.iter().map(|(_, part)| f(part) as f32)))
        };
        let share = |f: fn(&Decile) -> usize| -> ArrayRef {
            let share = |d: &Decile| (d.drops > 0).then(|| (f(d) as f64 / d.drops as f64) as f32);
            Arc::new(parts.iter().map(|(_, part)| share(part)).collect::<Float32Array>())
        };
        let count = |f: fn(&Decile) -> usize| -> ArrayRef {
            Arc::new(UInt32Array::from_iter_values(parts.iter().map(|(_, part)| f(part) as u32)))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![self.ablation; n])),
            Arc::new(StringArray::from(vec![self.hold; n])),
            Arc::new(StringArray::from(vec![self.component; n])),
            Arc::new(UInt16Array::from(vec![self.layer; n])),
            Arc::new(UInt16Array::from_iter_values(parts.iter().map(|(d, _)| *d))),
            count(|d| d.tokens),
            float(|d| d.direct_effect),
            float(|d| d.self_repair),
            count(|d| d.drops),
            share(|d| d.not),
            share(|d| d.drops - d.not - d.over),
            share(|d| d.over),
        ];
        Ok(RecordBatch::try_new(DECILE_TABLE.schema(), columns)?)
    }
}

/// Means of a part of the tokens, and how many were (not) repaired.
struct Decile {
    tokens: usize,
    direct_effect: f64,
    self_repair: f64,
    drops: usize,
    not: usize,
    over: usize,
}

impl Decile {
    fn of(tokens: &[Token]) -> Self {
        let mean = |f: fn(&Token) -> f32| tokens.iter().map(|t| f64::from(f(t))).sum::<f64>() / tokens.len() as f64;
        let drops = || tokens.iter().filter(|t| t.drop > SMALLEST_DROP);
        Self {
            tokens: tokens.len(),
            direct_effect: mean(|t| t.direct_effect),
            self_repair: mean(|t| t.self_repair),
            drops: drops().count(),
            not: drops().filter(|t| t.self_repair <= 0.0).count(),
            over: drops().filter(|t| t.self_repair > t.drop).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Layer = Layer { ablation: "zero", hold: "none", component: "head", layer: 3 };

    fn token(direct_effect: f32, drop: f32, self_repair: f32) -> Token {
        Token { direct_effect, drop, self_repair, logit_change: self_repair - drop }
    }

    fn floats(batch: &RecordBatch, name: &str) -> Vec<Option<f32>> {
        batch.column_by_name(name).unwrap().as_primitive::<Float32Type>().iter().collect()
    }

    #[test]
    fn quantiles_lie_between_the_values() {
        // Of 0 … 100, each quantile is its own percentage.
        let tokens: Vec<Token> = (0..=100).rev().map(|i| token(0.0, 0.0, i as f32)).collect();
        let rows = LAYER.quantiles(&tokens).unwrap();
        let expected = [1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0].map(Some);
        for (got, expected) in floats(&rows, "self_repair").into_iter().zip(expected) {
            assert!((got.unwrap() - expected.unwrap()).abs() < 1e-4, "{got:?}");
        }
    }

    #[test]
    fn deciles_are_tenths_in_order_of_direct_effect() {
        // Twenty tokens of effect 19 … 0: the first tenth holds 0 and 1. The highest tenth loses 1 on both tokens and gets
        // back 0.5 of it on the one, 1.5 on the other; the next gets back nothing, or less; no other loses any.
        let mut tokens: Vec<Token> = (0..20).rev().map(|i| token(i as f32, 0.0, 1.0)).collect();
        tokens[0] = token(19.0, 1.0, 0.5);
        tokens[1] = token(18.0, 1.0, 1.5);
        tokens[2] = token(17.0, 1.0, 0.0);
        tokens[3] = token(16.0, 1.0, -4.0);
        let rows = LAYER.deciles(&tokens).unwrap();
        assert_eq!(rows.num_rows(), 10);
        let ends = |name: &str| {
            let column = floats(&rows, name);
            [column[0], column[8], column[9]]
        };
        assert_eq!(ends("direct_effect"), [Some(0.5), Some(16.5), Some(18.5)]);
        assert_eq!(ends("self_repair"), [Some(1.0), Some(-2.0), Some(1.0)]);
        assert_eq!(ends("not_repaired"), [None, Some(1.0), Some(0.0)]);
        assert_eq!(ends("partly_repaired"), [None, Some(0.0), Some(0.5)]);
        assert_eq!(ends("over_repaired"), [None, Some(0.0), Some(0.5)]);
        // Fewer tokens than tenths leave some out.
        assert_eq!(LAYER.deciles(&tokens[..3]).unwrap().num_rows(), 3);
    }
}
