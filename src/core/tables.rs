//! Columns of the measured tables. Users' scripts depend on these names.

mod ablated;
mod added;
mod clean;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

pub use ablated::{
    ABLATIONS, COMPONENT_REPAIRS, DISTRIBUTIONS, NEURON_CURVES, NEURON_REPAIRS, NEURON_TOTALS, REPAIR_GRAPH, ROUNDING,
};
pub use added::{HEAD_SIMILARITY, SELF_ADDITIONS, STREAM_ADDITIONS};
pub use clean::{CLEAN, DIRECT_EFFECTS, MODEL, PAIRS, TARGETS, TOKENS, TOP_TOKENS};

/// Raised when a column is added, or its name, type or meaning changes.
pub const SCHEMA_VERSION: &str = "3";

/// A column: name, type, unit, description. A name that ends in `?` may be null.
pub struct Column(pub &'static str, pub Type, pub &'static str, pub &'static str);

/// Integers are signed: a difference of two unsigned ones wraps around in DataFusion, pandas and polars.
#[derive(Clone, Copy)]
pub enum Type {
    /// Utf8
    Text,
    /// Dictionary(Int32, Utf8): the name of a component.
    Name,
    /// Int32: a number that identifies something.
    Key,
    /// Int64: how many.
    Count,
    /// Float32: a measured number.
    Float,
    /// Float64: a setting, so that `where multiple = 0.1` finds it.
    Setting,
    Flag,
}

impl Type {
    fn data_type(self) -> DataType {
        match self {
            Type::Text => DataType::Utf8,
            Type::Name => name_type(),
            Type::Key => DataType::Int32,
            Type::Count => DataType::Int64,
            Type::Float => DataType::Float32,
            Type::Setting => DataType::Float64,
            Type::Flag => DataType::Boolean,
        }
    }
}

/// The type of every column that names a component.
pub fn name_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

pub struct Table {
    pub name: &'static str,
    /// What one row is.
    pub grain: &'static str,
    /// How many leading columns are the key; [`sort_order`] says how rows are sorted by it.
    pub key: usize,
    /// What has the table measured, such as `ablation.distribution = true`, where not every run measures it. The table of
    /// another run is empty.
    pub setting: Option<&'static str>,
    pub columns: &'static [Column],
}

impl Table {
    pub fn schema(&self) -> SchemaRef {
        let field = |Column(name, kind, unit, description): &Column| {
            let metadata = [("description", *description), ("unit", *unit)];
            Field::new(name.trim_end_matches('?'), kind.data_type(), name.ends_with('?'))
                .with_metadata(metadata.map(|(k, v)| (k.to_string(), v.to_string())).into_iter().collect())
        };
        let metadata = HashMap::from([("grain".to_string(), self.grain.to_string())]);
        Arc::new(Schema::new_with_metadata(self.columns.iter().map(field).collect::<Vec<_>>(), metadata))
    }
}

/// Indices of the first `key` columns in the order by which rows are sorted: the columns' own, but a component's name comes
/// after its layer and head. So layers stay together, and `L10` does not come before `L2`.
pub fn sort_order(schema: &Schema, key: usize) -> Vec<usize> {
    let (mut order, mut name) = (Vec::with_capacity(key), None);
    for (i, field) in schema.fields().iter().enumerate().take(key) {
        let column = field.name().as_str();
        if !column.ends_with("layer") && !column.ends_with("head") {
            order.extend(name.take());
        }
        match column == "name" || column.ends_with("_name") {
            true => name = Some(i),
            false => order.push(i),
        }
    }
    order.extend(name);
    order
}

use Type::Key;

const PROMPT: Column = Column("prompt", Key, "", "number of the prompt, from 0");
const POSITION: Column = Column("position", Key, "", "position in the prompt, from 0 (the BOS if there is one)");

/// All tables that the stages measure, in the order in which a run writes them.
pub const MEASURED: [&Table; 18] = [
    &TOKENS,
    &TARGETS,
    &MODEL,
    &CLEAN,
    &DIRECT_EFFECTS,
    &PAIRS,
    &TOP_TOKENS,
    &ABLATIONS,
    &DISTRIBUTIONS,
    &COMPONENT_REPAIRS,
    &NEURON_REPAIRS,
    &NEURON_TOTALS,
    &NEURON_CURVES,
    &REPAIR_GRAPH,
    &SELF_ADDITIONS,
    &STREAM_ADDITIONS,
    &HEAD_SIMILARITY,
    &ROUNDING,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_says_what_it_is() {
        for table in MEASURED {
            assert!(!table.grain.is_empty() && table.key <= table.columns.len());
            for field in table.schema().fields() {
                assert!(!field.metadata()["description"].is_empty(), "{}.{}", table.name, field.name());
                assert!(field.metadata().contains_key("unit"), "{}.{}", table.name, field.name());
                assert!(!field.data_type().is_unsigned_integer(), "{}.{}", table.name, field.name());
            }
        }
    }

    /// The names and order that other people's scripts read.
    #[test]
    fn the_contract_of_ablations_holds() {
        const KEY: &str = "ablation strength hold hold_value hold_own_mlp component name layer head prompt position";
        let expected = format!(
            "{KEY} logit_change direct_effect ablated_direct_effect self_repair repair_attention repair_mlp \
             repair_norm repair_write_norm repair_write_norm_own repair_by_erasers norm_scale ablated_norm_scale \
             ablated_residual_norm"
        );
        assert_eq!(names(&ABLATIONS), expected.split_whitespace().collect::<Vec<_>>());
        let key: Vec<&str> = KEY.split_whitespace().collect();
        for table in [&ABLATIONS, &DISTRIBUTIONS, &COMPONENT_REPAIRS, &NEURON_REPAIRS, &NEURON_TOTALS] {
            assert_eq!(names(table)[..11], key, "{}", table.name);
        }
        for table in [&NEURON_CURVES, &REPAIR_GRAPH] {
            assert_eq!(names(table)[..9], key[..9], "{}", table.name);
        }
    }

    fn names(table: &Table) -> Vec<&'static str> {
        table.columns.iter().map(|c| c.0.trim_end_matches('?')).collect()
    }

    #[test]
    fn rows_are_sorted_by_layer_and_head_before_the_name() {
        let sorted = |table: &Table| {
            let order = sort_order(&table.schema(), table.key);
            order.into_iter().map(|i| names(table)[i]).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            sorted(&ABLATIONS),
            "ablation strength hold hold_value hold_own_mlp component layer head name prompt position"
        );
        assert_eq!(sorted(&HEAD_SIMILARITY), "layer head name other_layer other_head other_name");
        assert_eq!(sorted(&MODEL), "name");
        assert!(sorted(&REPAIR_GRAPH).ends_with("subset repairer repairer_layer repairer_head repairer_name"));
    }
}
