//! The schema of tables, as other programs read it: signed integers, sorted files, every table there.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt16Array};
use arrow::compute::SortOptions;
use arrow::row::{RowConverter, SortField};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use selfrepair_core::tables::{MEASURED, SCHEMA_VERSION};
use selfrepair_query::sql::Tables;
use serde_json::Value;

use crate::support::*;

/// Fails where a file says that it is sorted by columns that do not sort it.
fn assert_sorted(path: &Path) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let Some(group) = builder.metadata().row_groups().first() else { return };
    let by: Vec<usize> = group.sorting_columns().unwrap().iter().map(|c| c.column_idx as usize).collect();
    let batch = read(path);
    let options = SortOptions { descending: false, nulls_first: false };
    let fields = by.iter().map(|&i| SortField::new_with_options(batch.column(i).data_type().clone(), options));
    let columns: Vec<ArrayRef> = by.iter().map(|&i| batch.column(i).clone()).collect();
    let rows = RowConverter::new(fields.collect()).unwrap().convert_columns(&columns).unwrap();
    let wrong = (1..rows.num_rows()).find(|&i| rows.row(i - 1) > rows.row(i));
    assert!(wrong.is_none(), "{}: row {wrong:?} is not in the order that the file declares", path.display());
}

#[test]
fn rows_are_in_the_order_that_the_files_declare() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &[&EVERYTHING[..], &["ablation.distribution=true"]].concat()));
    for path in MEASURED.iter().flat_map(|table| files(&dir.path().join("tables").join(table.name))) {
        assert_sorted(&path);
    }
    for computed in selfrepair_query::analyze::COMPUTED {
        files(&dir.path().join("tables").join(computed.name)).iter().for_each(|path| assert_sorted(path));
    }
    let key = ["ablation", "hold", "component", "layer", "head", "prompt", "position"];
    let rows = |table: &str| {
        let batch = read(&dir.path().join("tables").join(table));
        key.map(|column| texts(&batch, column))
    };
    assert!(rows("ablations") == rows("distributions"), "the rows of distributions are those of ablations");
}

#[test]
fn no_integer_is_unsigned() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &EVERYTHING));
    let session = Tables::open(dir.path()).unwrap();
    for name in session.names() {
        for field in session.schema(&name).unwrap().fields() {
            assert!(!field.data_type().is_unsigned_integer(), "{name}.{} is {}", field.name(), field.data_type());
        }
    }
    // Also in the tables and views of other runs.
    for table in selfrepair_query::catalog::built_in().unwrap() {
        for column in table.columns {
            assert!(!column.data_type.contains("uint"), "{}.{} is {}", table.name, column.name, column.data_type);
        }
    }
}

#[test]
fn a_table_that_was_not_measured_is_empty_and_says_what_measures_it() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &["neurons.layers=[]"]));
    for table in MEASURED {
        let files = files(&dir.path().join("tables").join(table.name));
        let first = files.first().unwrap_or_else(|| panic!("{} has no file", table.name));
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(first).unwrap()).unwrap();
        let (found, expected) = (builder.schema().fields().clone(), table.schema().fields().clone());
        assert_eq!(found, expected, "{}", table.name);
        let said = builder.metadata().file_metadata().key_value_metadata().unwrap();
        let version = said.iter().find(|kv| kv.key == "pipeline.schema_version").unwrap();
        assert_eq!(version.value.as_deref(), Some(SCHEMA_VERSION));
    }
    let ask = |query: &str| {
        let mut command = pipeline();
        let output = command.args(["sql", "--format", "csv", query, "--out"]).arg(dir.path()).output().unwrap();
        (text(&output.stderr), succeeded(output))
    };
    for (table, setting) in [
        ("head_similarity", "iterative.prompts"),
        ("distributions", "ablation.distribution = true"),
        ("neuron_totals", "neurons.layers"),
        ("targets", "corpus.mode = \"prompts\""),
    ] {
        let (note, rows) = ask(&format!("select * from {table}"));
        assert!(rows.lines().count() <= 1, "{rows}");
        assert!(note.contains(&format!("{table} is empty")) && note.contains(setting), "{note}");
    }
    let (note, rows) = ask("select count(*) as n from ablations");
    assert!(note.is_empty() && rows.starts_with("n\n"), "{note}{rows}");
}

/// Each expression and its value from the tables' files, computed here.
fn expected(out: &Path) -> Vec<f64> {
    let table = |name: &str| read(&out.join("tables").join(name));
    let sum = |batch: &RecordBatch, column: &str| numbers(batch, column).iter().sum::<f64>();
    let (repairs, ablations, tokens) = (table("component_repairs"), table("ablations"), table("tokens"));
    let mean = (sum(&repairs, "layer") - sum(&repairs, "repairer_layer")) / repairs.num_rows() as f64;
    let (heads, layers) = (numbers(&ablations, "head"), numbers(&ablations, "layer"));
    let least = heads.iter().zip(layers).map(|(h, l)| h - l).fold(f64::INFINITY, f64::min);
    let positions = numbers(&tokens, "position");
    let back = positions.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let graph = table("repair_graph");
    vec![mean, least, back, sum(&graph, "layer") - sum(&graph, "repairer_layer")]
}

#[test]
fn differences_of_keys_are_right_in_every_engine() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    let expected = expected(dir.path());
    assert!(expected.iter().all(|v| *v < 0.0), "an unsigned difference would wrap: {expected:?}");
    let queries = [
        "select avg(layer - repairer_layer) as x from component_repairs",
        "select min(head - layer) as x from ablations",
        "select min(d) as x from (select position - lag(position) over (order by prompt, position) as d from tokens)",
        "select sum(layer) - sum(repairer_layer) as x from repair_graph",
    ];
    let session = Tables::open(dir.path()).unwrap();
    for (query, expected) in queries.iter().zip(&expected) {
        let found = numbers(&session.collect(query, &[]).unwrap()[0], "x")[0];
        assert!((found - expected).abs() < 1e-6, "DataFusion, {query}: {found} and not {expected}");
    }
    let script = format!(
        "import json, duckdb, pandas as pd, polars as pl\n\
         tables = {:?}\n\
         queries = {queries:?}\n\
         read = lambda t: pd.read_parquet(f'{{tables}}/{{t}}')\n\
         c, a, t, g = map(read, ['component_repairs', 'ablations', 'tokens', 'repair_graph'])\n\
         found = {{'pandas': [(c.layer - c.repairer_layer).mean(), (a['head'] - a.layer).min(),\n    \
             (t.position - t.position.shift(1)).min(), g.layer.sum() - g.repairer_layer.sum()]}}\n\
         read = lambda t: pl.read_parquet(f'{{tables}}/{{t}}/*.parquet')\n\
         c, a, t, g = map(read, ['component_repairs', 'ablations', 'tokens', 'repair_graph'])\n\
         found['polars'] = [(c['layer'] - c['repairer_layer']).mean(), (a['head'] - a['layer']).min(),\n    \
             (t['position'] - t['position'].shift(1)).min(), g['layer'].sum() - g['repairer_layer'].sum()]\n\
         for t in ['component_repairs', 'ablations', 'tokens', 'repair_graph']:\n    \
             duckdb.execute(f\"create view {{t}} as select * from '{{tables}}/{{t}}/*.parquet'\")\n\
         found['duckdb'] = [duckdb.execute(q).fetchall()[0][0] for q in queries]\n\
         print(json.dumps({{k: [float(x) for x in v] for k, v in found.items()}}))\n",
        dir.path().join("tables").display().to_string()
    );
    let mut python = Command::new("python3");
    python.args(["-c", &script]).env("PYTHONPATH", python_for_notebooks());
    let found: Value = serde_json::from_str(&succeeded(python.output().unwrap())).unwrap();
    for engine in ["pandas", "polars", "duckdb"] {
        for (i, expected) in expected.iter().enumerate() {
            let value = found[engine][i].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-6, "{engine}, {}: {value} and not {expected}", queries[i]);
        }
    }
}

/// A run as an earlier version wrote it: no names, unsigned keys.
fn of_schema(version: &str, out: &Path) {
    let keys: ArrayRef = Arc::new(UInt16Array::from(vec![3, 4]));
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; 2])) };
    let columns = [
        ("ablation", text("zero")),
        ("hold", text("none")),
        ("component", text("head")),
        ("layer", keys.clone()),
        ("head", keys),
        ("subset", text("top")),
        ("self_repair", Arc::new(Float32Array::from(vec![0.25, 0.5])) as ArrayRef),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let said = vec![KeyValue::new("pipeline.schema_version".to_string(), version.to_string())];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(said)).build();
    let folder = out.join("tables/head_summary");
    std::fs::create_dir_all(&folder).unwrap();
    let file = File::create(folder.join("head_summary.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_run_of_an_earlier_schema_is_read_under_its_own_names() {
    let dir = tempfile::tempdir().unwrap();
    of_schema("2", dir.path());
    let sql = |query: &str| {
        let mut command = pipeline();
        command.args(["sql", "--format", "csv", query, "--out"]).arg(dir.path()).output().unwrap()
    };
    let rows = "layer,self_repair\n3,0.25\n4,0.5\n";
    assert_eq!(succeeded(sql("select layer, self_repair from head_summary order by layer")), rows);
    let columns =
        succeeded(sql("select count(*) as n from information_schema.columns where table_name = 'head_summary'"));
    assert_eq!(columns, "n\n7\n", "views that do not fit the run do not break other queries");
    let error = failed(sql("select * from heads"));
    assert!(error.contains("the view heads does not fit this run's tables"), "{error}");
}

/// Reports of schema 2 are tested on a stored run, in `reliability/older_runs.rs`.
#[test]
fn a_report_of_an_unknown_schema_is_refused() {
    for version in ["1", "4"] {
        let dir = tempfile::tempdir().unwrap();
        of_schema(version, dir.path());
        let error = failed(pipeline().arg("report").arg("--out").arg(dir.path()).output().unwrap());
        for words in
            [format!("schema version {version}"), format!("versions 2 and {SCHEMA_VERSION}"), "pipeline sql".into()]
        {
            assert!(error.contains(&words), "{words}: {error}");
        }
    }
}
