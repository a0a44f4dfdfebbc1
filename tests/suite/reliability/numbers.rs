//! Non-finite and wrong numbers are never written.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int32Array, RecordBatch};
use selfrepair_core::files::sha256_of_file;
use selfrepair_core::tables::CLEAN;
use selfrepair_store::{Metadata, TableWriter};

use super::*;
use crate::support::EVERYTHING as EVERYTHING_ELSE;

#[test]
fn a_non_finite_weight_is_named_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let all = tensors(&bytes);
    let mut dice = Dice::new();
    // The embedding, a norm and what a head writes always; then any.
    let mut wanted: Vec<usize> =
        ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.o_proj.weight"]
            .iter()
            .map(|name| all.iter().position(|t| t.0 == *name).unwrap())
            .collect();
    wanted.extend((0..cases(3, 60)).map(|i| (i + dice.below(3)) % all.len()));
    for (i, which) in wanted.iter().enumerate() {
        let (name, shape, offset) = &all[*which];
        let element = dice.below(shape.iter().product());
        let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
        let mut corrupt = bytes.clone();
        corrupt[offset + 4 * element..][..4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, corrupt).unwrap();
        let out = dir.path().join(format!("out-{i}"));
        let error = failed(run_tiny("ablate", &out, &[&format!("model.source={}", folder.display())]));
        assert!(error.contains(&format!("`{name}`")) && error.contains(&format!("at element {element}")), "{error}");
        assert!(files(&out.join("tables/clean")).is_empty());
    }
    println!("non-finite weights: {}", wanted.len());
}

/// Finite weights can give activations that are not.
#[test]
fn activations_that_overflow_stop_the_run_and_name_prompt_position_and_head() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (_, shape, offset) =
        tensors(&bytes).into_iter().find(|t| t.0 == "model.layers.1.self_attn.o_proj.weight").unwrap();
    // What head 2 of 4 writes: its twelve columns.
    for row in 0..shape[0] {
        for column in 24..36 {
            let at = offset + 4 * (row * shape[1] + column);
            bytes[at..at + 4].copy_from_slice(&3e38f32.to_le_bytes());
        }
    }
    fs::write(&path, bytes).unwrap();
    let out = dir.path().join("out");
    let error = failed(run_tiny("ablate", &out, &[&format!("model.source={}", folder.display())]));
    for words in ["prompt 0, position 0", "head 2 of layer 1", "overflow"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
    for table in ["clean", "direct_effects", "ablations"] {
        assert!(files(&out.join("tables").join(table)).is_empty(), "{table}");
    }
}

/// No number may be a division by zero.
#[test]
fn a_head_that_writes_nothing_is_measured_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (_, shape, offset) =
        tensors(&bytes).into_iter().find(|t| t.0 == "model.layers.1.self_attn.o_proj.weight").unwrap();
    for row in 0..shape[0] {
        bytes[offset + 4 * (row * shape[1] + 24)..][..4 * 12].fill(0);
    }
    fs::write(&path, bytes).unwrap();
    let out = dir.path().join("out");
    let source = format!("model.source={}", folder.display());
    succeeded(run_tiny("all", &out, &[&[&*source, "neurons.layers=all"], &EVERYTHING_ELSE[..]].concat()));
    let heads = read(&out.join("tables/head_summary"));
    let (layer, head) = (numbers(&heads, "layer"), numbers(&heads, "head"));
    let (effect, repair) = (numbers(&heads, "direct_effect"), numbers(&heads, "self_repair"));
    let pruned: Vec<usize> = (0..layer.len()).filter(|&i| (layer[i], head[i]) == (1.0, 2.0)).collect();
    assert!(!pruned.is_empty());
    for i in pruned {
        assert_eq!((effect[i], repair[i]), (0.0, 0.0));
    }
}

#[test]
fn a_table_refuses_non_finite_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("00000.parquet");
    let meta = Metadata { run_id: "r".into(), fingerprint: "f".into(), ledger: None };
    let schema = CLEAN.schema();
    let ints = |values: Vec<i32>| Arc::new(Int32Array::from(values)) as ArrayRef;
    let floats = |values: Vec<f32>| Arc::new(Float32Array::from(values)) as ArrayRef;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut columns = vec![ints(vec![3, 3]), ints(vec![7, 8])];
        columns.extend((2..schema.fields().len()).map(|i| floats(vec![1.0, if i == 3 { bad } else { 1.0 }])));
        let mut writer = TableWriter::create(&CLEAN, &path, &meta).unwrap();
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let error = format!("{:#}", writer.write(&batch).unwrap_err());
        let column = schema.field(3).name();
        for words in ["00000.parquet is not written", &format!("{column} is {bad}"), "prompt 3, position 8"] {
            assert!(error.contains(words), "`{words}` is not in: {error}");
        }
        drop(writer);
        assert!(files(dir.path()).is_empty(), "not even half a file is left");
    }
}

/// A table changed so that even its checksum agrees must not reach a summary; nor may older summaries stay.
#[test]
fn a_failed_check_leaves_no_derived_table() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &[]));
    let path = files(&dir.path().join("tables/ablations"))[0].clone();
    let (size, sum) = (path.metadata().unwrap().len(), sha256_of_file(&path).unwrap());
    let batch = read(&path);
    let at = batch.schema().index_of("repair_mlp").unwrap();
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(Float32Array::from(vec![5.0; batch.num_rows()]));
    let batch = RecordBatch::try_new(batch.schema(), columns).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    for (record, from, to) in [
        ("ablate.json", size.to_string(), path.metadata().unwrap().len().to_string()),
        ("ablate.sha256", sum, sha256_of_file(&path).unwrap()),
    ] {
        let record = dir.path().join("stages").join(record);
        let text = fs::read_to_string(&record).unwrap();
        assert!(text.contains(&from));
        // Without its checksum, as the manifest of an earlier program.
        fs::write(&record, text.replace(&from, &to).replace("\"checksum\"", "\"left out\"")).unwrap();
    }
    // Part of the derived tables is lost, so that they are made again under the same fingerprint.
    fs::remove_file(&files(&dir.path().join("tables/head_summary"))[0]).unwrap();
    let error = failed(run_tiny("analyze", dir.path(), &[]));
    assert!(error.contains("the check causes_sum_to_self_repair failed"), "{error}");
    for table in selfrepair_query::analyze::derived_tables() {
        assert!(files(&dir.path().join("tables").join(table)).is_empty(), "{table} is still there");
    }
    let status = succeeded(pipeline().arg("status").arg("--out").arg(dir.path()).output().unwrap());
    assert!(status.lines().any(|l| l.starts_with("analyze  incomplete")), "{status}");
}
