//! Small hand-written runs for tests whose expected numbers are computed on paper.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow::datatypes::{Field, Schema};

use crate::{Metadata, TableWriter};

pub fn metadata() -> Metadata {
    Metadata { run_id: "run".into(), fingerprint: "print".into(), ledger: None }
}

/// Writes `<out>/tables/<name>`: names of the columns, then rows, all separated by spaces; `-` is null. A column's name
/// decides its type, as in the schemas.
pub fn table(out: &Path, name: &str, columns: &str, rows: &[impl AsRef<str>]) {
    let rows: Vec<Vec<&str>> = rows.iter().map(|r| r.as_ref().split_whitespace().collect()).collect();
    let names: Vec<&str> = columns.split_whitespace().collect();
    assert!(rows.iter().all(|r| r.len() == names.len()), "{name}: a row has other columns than {names:?}");
    let column = |i: usize| -> ArrayRef {
        let cells = rows.iter().map(|r| Some(r[i]).filter(|c| *c != "-"));
        fn parsed<T: std::str::FromStr>(cell: &str) -> T {
            cell.parse().unwrap_or_else(|_| panic!("{cell} is not a number of its column's type"))
        }
        match names[i] {
            "ablation" | "hold" | "component" | "subset" | "ablated" | "repairer" | "added" | "name"
            | "architecture" | "dtype" | "source" | "revision" | "sha256" | "text" => {
                Arc::new(cells.collect::<StringArray>())
            }
            "layer" | "head" | "layers" | "heads" | "repairer_layer" | "repairer_head" | "neuron_layer"
            | "other_layer" | "other_head" | "added_at" => {
                Arc::new(cells.map(|c| c.map(parsed::<u16>)).collect::<UInt16Array>())
            }
            "token" | "next_token" | "document" | "prompt" | "position" | "rank" | "neuron" | "tokens" | "prompts"
            | "d_model" | "d_mlp" | "vocab" => Arc::new(cells.map(|c| c.map(parsed::<u32>)).collect::<UInt32Array>()),
            _ => Arc::new(cells.map(|c| c.map(parsed::<f32>)).collect::<Float32Array>()),
        }
    };
    let arrays: Vec<ArrayRef> = (0..names.len()).map(column).collect();
    let fields: Vec<Field> =
        names.iter().zip(&arrays).map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let folder = out.join("tables").join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.parquet"));
    let mut writer = TableWriter::with_schema(name, schema.clone(), 0, &path, &metadata()).unwrap();
    writer.write(&RecordBatch::try_new(schema, arrays).unwrap()).unwrap();
    writer.finish().unwrap();
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
