//! The distribution of self-repair over tokens: quantiles and deciles, computed with data frames.

use std::iter::repeat_n;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Error, Result};
use arrow::array::{ArrayRef, Float32Array, RecordBatch};
use arrow::datatypes::{Float32Type, Int32Type};

use super::condition::{ABLATION, COMPONENT, Condition, HOLD, HOLD_OWN_MLP, HOLD_VALUE, STRENGTH, WHERE};
use super::{Tables, quantiles};
use selfrepair_core::columns;
use selfrepair_core::tables::{Column, Table, Type};
use selfrepair_store::{Metadata, TableWriter};

const QUANTILES: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];
const PARTS: usize = 10;
/// A token whose direct effect falls by less is not asked whether it is repaired.
const SMALLEST_DROP: f32 = 0.05;

pub const QUANTILE_TABLE: Table = Table {
    name: "repair_quantiles",
    grain: "an ablation, a hold, a layer and a quantile",
    key: 7,
    setting: None,
    columns: &[
        ABLATION,
        STRENGTH,
        HOLD,
        HOLD_VALUE,
        HOLD_OWN_MLP,
        Column("layer", Type::Key, "", "block of the ablated heads"),
        Column("quantile", Type::Setting, "", "share of the tokens below self_repair"),
        Column("self_repair", Type::Float, "logits", "quantile over the tokens of all ablated heads of the layer"),
        Column("logit_change", Type::Float, "logits", "quantile of logit_change over the same tokens"),
    ],
};

pub const DECILE_TABLE: Table = Table {
    name: "repair_by_decile",
    grain: "an ablation, a hold, a sort of component, a layer and a tenth of its tokens in order of direct effect",
    key: 8,
    setting: None,
    columns: &[
        ABLATION,
        STRENGTH,
        HOLD,
        HOLD_VALUE,
        HOLD_OWN_MLP,
        COMPONENT,
        Column("layer", Type::Key, "", "block of the ablated components"),
        Column("decile", Type::Key, "", "decile of the tokens of these components by direct effect; 1 is the lowest"),
        Column("tokens", Type::Count, "", "tokens in it"),
        Column("direct_effect", Type::Float, "logits", "mean direct effect"),
        Column("self_repair", Type::Float, "logits", "mean self-repair"),
        Column("drops", Type::Count, "", "tokens on which direct_effect - ablated_direct_effect exceeds 0.05"),
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
    for condition in Condition::all(tables)? {
        let layers = format!("select distinct layer from ablations where {WHERE} and layer is not null order by layer");
        for batch in tables.collect_values(&layers, &condition.parameters())? {
            for &layer in columns::numbers::<Int32Type>(&batch, 0)?.values() {
                let layer = Layer { condition: &condition, layer };
                let tokens = layer.tokens(tables)?;
                deciles.write(&layer.deciles(&tokens)?)?;
                if condition.component == "head" {
                    quantiles.write(&layer.quantiles(&tokens)?)?;
                }
            }
        }
    }
    quantiles.finish()?;
    deciles.finish()
}

/// One ablation of all components of a sort in a layer.
struct Layer<'a> {
    condition: &'a Condition,
    layer: i32,
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
        let sql = format!(
            "select direct_effect, direct_effect - ablated_direct_effect, self_repair, logit_change from ablations \
             where {WHERE} and layer = $layer"
        );
        let of_layer = [self.condition.parameters(), vec![("layer", i64::from(self.layer).into())]].concat();
        let rows = tables.collect_values(&sql, &of_layer)?;
        let mut tokens = Vec::with_capacity(rows.iter().map(RecordBatch::num_rows).sum());
        for batch in rows {
            let column = |i: usize| Ok::<_, Error>(columns::numbers::<Float32Type>(&batch, i)?.values());
            let values = column(0)?.iter().zip(column(1)?).zip(column(2)?.iter().zip(column(3)?));
            tokens.extend(values.map(|((&direct_effect, &drop), (&self_repair, &logit_change))| Token {
                direct_effect,
                drop,
                self_repair,
                logit_change,
            }));
        }
        Ok(tokens)
    }

    fn quantiles(&self, tokens: &[Token]) -> Result<RecordBatch> {
        let n = QUANTILES.len();
        let of = |column: fn(&Token) -> f32| {
            let values = quantiles(tokens.iter().map(|t| f64::from(column(t))).collect(), &QUANTILES);
            columns::floats(values.into_iter().map(|v| v as f32))
        };
        let mut columns = self.condition.columns(n);
        columns.extend([
            columns::keys(repeat_n(self.layer as usize, n)),
            columns::settings(QUANTILES),
            of(|t| t.self_repair),
            of(|t| t.logit_change),
        ]);
        Ok(RecordBatch::try_new(QUANTILE_TABLE.schema(), columns)?)
    }

    fn deciles(&self, tokens: &[Token]) -> Result<RecordBatch> {
        let mut sorted = tokens.to_vec();
        // Stable: tokens of equal effect stay in the order of the table.
        sorted.sort_by(|a, b| a.direct_effect.total_cmp(&b.direct_effect));
        let parts: Vec<(usize, Decile)> = (0..PARTS)
            .map(|d| (d + 1, sorted.get(d * sorted.len() / PARTS..(d + 1) * sorted.len() / PARTS).unwrap_or_default()))
            .filter(|(_, part)| !part.is_empty())
            .map(|(d, part)| (d, Decile::of(part)))
            .collect();
        let n = parts.len();
        let float = |f: fn(&Decile) -> f64| columns::floats(parts.iter().map(|(_, part)| f(part) as f32));
        let share = |f: fn(&Decile) -> usize| -> ArrayRef {
            let share = |d: &Decile| (d.drops > 0).then(|| (f(d) as f64 / d.drops as f64) as f32);
            Arc::new(parts.iter().map(|(_, part)| share(part)).collect::<Float32Array>())
        };
        let count = |f: fn(&Decile) -> usize| columns::counts(parts.iter().map(|(_, part)| f(part)));
        let mut columns = self.condition.columns(n);
        columns.extend([
            columns::texts(repeat_n(&self.condition.component, n)),
            columns::keys(repeat_n(self.layer as usize, n)),
            columns::keys(parts.iter().map(|(d, _)| *d)),
            count(|d| d.tokens),
            float(|d| d.direct_effect),
            float(|d| d.self_repair),
            count(|d| d.drops),
            share(|d| d.not),
            share(|d| d.drops - d.not - d.over),
            share(|d| d.over),
        ]);
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
    use arrow::array::AsArray;

    fn condition() -> Condition {
        Condition::of("head")
    }

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
        let rows = Layer { condition: &condition(), layer: 3 }.quantiles(&tokens).unwrap();
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
        let condition = condition();
        let layer = Layer { condition: &condition, layer: 3 };
        let rows = layer.deciles(&tokens).unwrap();
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
        assert_eq!(layer.deciles(&tokens[..3]).unwrap().num_rows(), 3);
    }
}
