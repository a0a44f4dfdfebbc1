//! A run that an earlier program wrote: `tests/fixtures/schema-2`, made by `tests/reference/schema_2.sh`.

use std::fs::{self, File};

use super::pieces::{MEASURED, assert_rows_within, assert_same_rows};
use super::*;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use selfrepair_query::older;

const FIXTURE: &str = "tests/fixtures/schema-2";

/// The fixture in a folder that may be written.
fn older_run() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").arg(format!("{FIXTURE}/.")).arg(dir.path()).status().unwrap().success());
    dir
}

fn run_present(out: &Path) -> Output {
    pipeline()
        .args(["run", "all", "--config", &format!("{FIXTURE}/report/config.toml"), "--out"])
        .arg(out)
        .output()
        .unwrap()
}

fn of_folder(out: &Path, folder: &str) -> Vec<(String, Vec<u8>)> {
    contents(out).into_iter().filter(|(name, _)| name.starts_with(folder)).collect()
}

#[test]
fn a_run_of_schema_2_has_the_rows_of_one_of_the_present_schema() {
    let (older, present) = (older_run(), tempfile::tempdir().unwrap());
    succeeded(run_present(present.path()));
    let mapped = older::as_present(older.path()).unwrap().expect("another schema");
    assert_same_rows(&MEASURED, mapped.path(), present.path(), "schema 2");
    let others =
        ["model", "clean", "direct_effects", "head_summary", "layer_summary", "hold_summary", "addition_summary"];
    // The fixture was made on another processor, and its rounding counts a thousandfold in a ratio of small effects.
    assert_rows_within(1e-3, &others, mapped.path(), present.path(), "schema 2");
    for table in MEASURED.iter().chain(&others).chain(&["tokens"]) {
        let types = |out: &Path| {
            let schema = read(&out.join("tables").join(table)).schema();
            schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
        };
        assert_eq!(types(mapped.path()), types(present.path()), "{table}");
    }
    assert!(older::as_present(present.path()).unwrap().is_none());
}

#[test]
fn a_run_of_schema_2_can_be_queried_and_reported() {
    let (older, present) = (older_run(), tempfile::tempdir().unwrap());
    let out = older.path();
    let tables = of_folder(out, "tables/");
    // Its own column names.
    let query = "select ablated, component, repairer_layer from repair_graph limit 1";
    assert!(succeeded(pipeline().args(["sql", query, "--out"]).arg(out).output().unwrap()).contains("ablated"));

    let reported = pipeline().args(["report", "--out"]).arg(out).output().unwrap();
    assert!(text(&reported.stderr).contains("has schema 2"), "{}", text(&reported.stderr));
    succeeded(reported);
    succeeded(run_present(present.path()));
    let names = |out: &Path| of_folder(out, "figures/").into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(out), names(present.path()));
    // Beside a run of the present schema.
    let to = present.path().join("both");
    let mut both = pipeline();
    both.args(["report", "--out"]).arg(out).arg("--out").arg(present.path()).arg("--to").arg(&to);
    succeeded(both.output().unwrap());
    assert!(fs::read_to_string(to.join("index.html")).unwrap().contains("tiny-llama"));
    // Nothing is added to it or changed.
    let error = failed(run_present(out));
    assert!(error.contains("schema version 2 → 3") && error.contains("nothing was changed"), "{error}");
    assert!(of_folder(out, "tables/") == tables);
}

/// A table's file without some columns, as a program of measurement version 2 wrote it.
fn as_version_2(out: &Path, table: &str, without: &[&str]) {
    let folder = out.join("tables").join(table);
    let rows = read(&folder);
    let kept: Vec<usize> =
        (0..rows.num_columns()).filter(|&i| !without.contains(&rows.schema().field(i).name().as_str())).collect();
    assert_eq!(kept.len() + without.len(), rows.num_columns(), "{table}");
    let rows = rows.project(&kept).unwrap();
    let said = [("pipeline.schema_version", "3"), ("pipeline.measurement_version", "2"), ("pipeline.table", table)];
    let said = said.map(|(key, value)| KeyValue::new(key.into(), Some(value.into())));
    let properties = WriterProperties::builder().set_key_value_metadata(Some(said.to_vec())).build();
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.iter().for_each(|file| fs::remove_file(file).unwrap());
    let mut writer = ArrowWriter::try_new(File::create(&files[0]).unwrap(), rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_run_of_an_earlier_measurement_version_can_be_reported() {
    let present = tempfile::tempdir().unwrap();
    let out = present.path();
    succeeded(run_present(out));
    let figures = of_folder(out, "figures/");
    as_version_2(out, "stream_additions", &["response_write_norm"]);
    as_version_2(out, "head_summary", &["write_norm_clipped"]);
    let reported = pipeline().args(["report", "--out"]).arg(out).output().unwrap();
    assert!(text(&reported.stderr).contains("has measurement version 2"), "{}", text(&reported.stderr));
    succeeded(reported);
    // Nothing that was measured has changed.
    assert!(of_folder(out, "figures/") == figures);
}
