//! Small hand-written runs for tests whose expected numbers are computed on paper.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use selfrepair_core::tables::{MEASURED, name_type};

use crate::{Metadata, TableWriter};

pub fn metadata() -> Metadata {
    Metadata { run_id: "run".into(), fingerprint: "print".into(), ledger: None }
}

/// Writes `<out>/tables/<name>`: names of the columns, then rows, all separated by spaces; `-` is null. Types are those of
/// the measured table, or follow from a column's name. What else belongs to a key is added by [`complete`].
pub fn table(out: &Path, name: &str, columns: &str, rows: &[impl AsRef<str>]) {
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let (mut names, mut rows) = (words(columns), rows.iter().map(|r| words(r.as_ref())).collect::<Vec<_>>());
    assert!(rows.iter().all(|r| r.len() == names.len()), "{name}: a row has other columns than {names:?}");
    complete(&mut names, &mut rows);
    let measured = MEASURED.iter().find(|t| t.name == name).map(|t| t.schema());
    let column = |i: usize| -> ArrayRef {
        let cells: StringArray = rows.iter().map(|r| Some(r[i].as_str()).filter(|c| *c != "-")).collect();
        let of_table = measured.as_ref().and_then(|schema| Some(schema.field_with_name(&names[i]).ok()?.data_type()));
        let column = cast(&cells, &of_table.cloned().unwrap_or_else(|| type_of(&names[i]))).unwrap();
        assert_eq!(column.null_count(), cells.null_count(), "{name}: a cell of {} is not of its type", names[i]);
        column
    };
    let arrays: Vec<ArrayRef> = (0..names.len()).map(column).collect();
    let fields: Vec<Field> =
        names.iter().zip(&arrays).map(|(n, a)| Field::new(n, a.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let folder = out.join("tables").join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.parquet"));
    let mut writer = TableWriter::with_schema(name, schema.clone(), 0, &path, &metadata()).unwrap();
    writer.write(&RecordBatch::try_new(schema, arrays).unwrap()).unwrap();
    writer.finish().unwrap();
}

fn type_of(column: &str) -> DataType {
    match column {
        "name" | "repairer_name" | "other_name" => name_type(),
        "ablation" | "hold" | "hold_value" | "component" | "subset" | "repairer" | "added" | "text" | "next_text"
        | "measure" | "sort" => DataType::Utf8,
        "layer" | "head" | "repairer_layer" | "repairer_head" | "neuron_layer" | "other_layer" | "other_head"
        | "added_at" | "prompt" | "position" | "rank" | "neuron" | "expert" | "document" => DataType::Int32,
        "tokens" | "prompts" => DataType::Int64,
        "strength" | "multiple" | "threshold" | "quantile" | "top_fraction" => DataType::Float64,
        "hold_own_mlp" => DataType::Boolean,
        _ => DataType::Float32,
    }
}

/// Adds what a run without special settings writes into the columns of a key that are not named: full strength, clean
/// holds, the components' names, the subset of neurons, and no norms on what parts write.
pub fn complete(names: &mut Vec<String>, rows: &mut [Vec<String>]) {
    let place = |names: &[String], name: &str| names.iter().position(|n| n == name);
    let mut add = |names: &mut Vec<String>, name: &str, cell: &dyn Fn(&[String]) -> String| {
        if place(names, name).is_none() {
            names.push(name.to_string());
            rows.iter_mut().for_each(|row| row.push(cell(row)));
        }
    };
    let has = |names: &[String], all: &[&str]| all.iter().all(|name| place(names, name).is_some());
    if has(names, &["ablation"]) {
        for (name, cell) in [("strength", "1"), ("hold_value", "clean"), ("hold_own_mlp", "true")] {
            add(names, name, &|_| cell.to_string());
        }
    }
    for (sort, prefix) in [("component", ""), ("repairer", "repairer_"), ("component", "other_")] {
        let (layer, head) = (format!("{prefix}layer"), format!("{prefix}head"));
        if let (Some(layer), Some(head)) = (place(names, &layer), place(names, &head)) {
            let sort = place(names, sort);
            let name = |row: &[String]| component_name(sort.map(|i| row[i].as_str()), &row[layer], &row[head]);
            add(names, &format!("{prefix}name"), &name);
        }
    }
    if has(names, &["neuron_layer"]) {
        add(names, "subset", &|_| "top".to_string());
        add(names, "expert", &|_| "-".to_string());
    }
    if has(names, &["repair_norm"]) {
        add(names, "repair_write_norm", &|_| "0".to_string());
        add(names, "repair_write_norm_own", &|_| "0".to_string());
    }
    if has(names, &["norm_clipped"]) {
        add(names, "write_norm_clipped", &|_| "0".to_string());
    }
}

fn component_name(component: Option<&str>, layer: &str, head: &str) -> String {
    match component {
        Some("mlp") => format!("MLP{layer}"),
        Some("attention") => format!("ATTN{layer}"),
        Some("attention_bias") => format!("BIAS{layer}"),
        Some("block") => format!("BLOCK{layer}"),
        Some(other) if layer == "-" => other.to_uppercase(),
        _ => format!("L{layer}H{head}"),
    }
}

pub const ABLATIONS: &str = "ablation hold component layer head prompt position logit_change direct_effect \
     ablated_direct_effect self_repair repair_attention repair_mlp repair_norm repair_by_erasers norm_scale \
     ablated_norm_scale ablated_residual_norm";

/// A row of `ablations` by its key up to the position, and its direct effect and self-repair: nothing replaces the head,
/// and all repair is by MLPs.
pub fn ablation(key: &str, direct_effect: f64, self_repair: f64) -> String {
    let change = self_repair - direct_effect;
    format!("{key} {change} {direct_effect} 0 {self_repair} 0 {self_repair} 0 0 2 2 10")
}

/// The table `model`.
pub fn model(out: &Path, name: &str, source: &str, architecture: &str, layers: u16, heads: u16, d_model: u32) {
    table(
        out,
        "model",
        "name architecture layers heads d_model d_mlp vocab dtype source revision sha256",
        &[format!("{name} {architecture} {layers} {heads} {d_model} 4 5 F32 {source} main 0123456789abcdef")],
    );
}

/// The table `clean`, whose numbers are the same everywhere.
pub fn clean(out: &Path, prompts: u32, positions: u32) {
    let rows: Vec<String> =
        (0..prompts).flat_map(|p| (0..positions).map(move |q| format!("{p} {q} 1 -2 2 10"))).collect();
    table(out, "clean", "prompt position logit log_prob norm_scale residual_norm", &rows);
}
