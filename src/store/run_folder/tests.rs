//! Run folders as stages write them, and as other people and other programs leave them.

use selfrepair_core::files::{files_below, sha256_of};

use super::*;

/// As a stage does it.
fn write(run: &RunFolder, stage: Stage, path: &Path, text: &str) {
    run.ledger(stage).record(path, sha256_of(text.as_bytes())).unwrap();
    write_atomically(path, text.as_bytes()).unwrap();
}

#[test]
fn a_stage_is_current_until_its_fingerprint_or_a_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let folders = [run.table("tokens")];
    run.begin(Stage::Corpus, "a", &folders).unwrap();
    assert!(!run.is_current(Stage::Corpus, "a"));
    let file = folders[0].join("0.parquet");
    write(&run, Stage::Corpus, &file, "12345");
    run.finish(Stage::Corpus, "a", &folders).unwrap();
    assert!(run.is_current(Stage::Corpus, "a") && !run.is_current(Stage::Corpus, "b"));
    fs::write(&file, "123").unwrap();
    assert!(!run.is_current(Stage::Corpus, "a"));
}

#[test]
fn another_fingerprint_removes_the_old_files_and_the_same_one_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let folders = [run.table("ablations")];
    run.begin(Stage::Ablate, "a", &folders).unwrap();
    write(&run, Stage::Ablate, &folders[0].join("0.parquet"), "whole");
    fs::write(folders[0].join("1.parquet.partial"), "half").unwrap();
    run.begin(Stage::Ablate, "a", &folders).unwrap();
    assert_eq!(files_below(&folders[0]).unwrap().len(), 1);
    run.begin(Stage::Ablate, "b", &folders).unwrap();
    assert_eq!(files_below(&folders[0]).unwrap().len(), 0);
}

#[test]
fn a_folder_that_is_no_run_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("model.safetensors"), "weights").unwrap();
    let error = RunFolder::open(dir.path(), "id".into(), &[], None).err().unwrap().to_string();
    assert!(error.contains("holds `model` but is not a run"), "{error}");
    assert!(model.join("model.safetensors").exists());
}

#[test]
fn an_input_inside_the_run_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    drop(RunFolder::open(dir.path(), "id".into(), &[], None).unwrap());
    let input = dir.path().join("tables/corpus.txt");
    fs::write(&input, "text").unwrap();
    let error = RunFolder::open(dir.path(), "id".into(), std::slice::from_ref(&input), None).err().unwrap().to_string();
    assert!(error.contains("lies in `tables`") && input.exists(), "{error}");
}

/// Beside the stage's own files, in place of them, and in a folder that the stage had under another configuration.
#[test]
fn a_stage_is_refused_where_a_file_lies_that_no_record_lists_and_removes_nothing() {
    for place in ["tables/ablations/copy.parquet", "tables/ablations/sub/x", "tables/pairs/x", "sums/mine"] {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
        let folders = [run.table("ablations"), run.table("pairs"), run.sums()];
        run.begin(Stage::Ablate, "a", &folders).unwrap();
        let ours = folders[0].join("0.parquet");
        write(&run, Stage::Ablate, &ours, "ours");
        run.finish(Stage::Ablate, "a", &folders).unwrap();
        let theirs = dir.path().join(place);
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "theirs").unwrap();
        for error in [run.begin(Stage::Ablate, "b", &folders[..1]), run.clear(Stage::Ablate, &folders[..1])] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(place) && error.contains("was not written by this run"), "{error}");
        }
        assert!(ours.exists() && run.is_current(Stage::Ablate, "a"), "{place}");
        fs::remove_file(&theirs).unwrap();
        run.clear(Stage::Ablate, &folders).unwrap();
        assert!(!ours.exists());
    }
}

#[test]
fn what_a_fresh_run_forgot_is_still_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let folders = [run.table("tokens")];
    run.begin(Stage::Corpus, "a", &folders).unwrap();
    let file = folders[0].join("0.parquet");
    write(&run, Stage::Corpus, &file, "12345");
    run.finish(Stage::Corpus, "a", &folders).unwrap();
    run.forget().unwrap();
    assert!(!run.has_begun(Stage::Corpus, "a") && !run.is_stale(Stage::Corpus, "b"));
    assert!(manifest(dir.path(), Stage::Corpus).is_none() && file.exists());
    run.begin(Stage::Corpus, "a", &folders).unwrap();
    assert!(!file.exists());
}

#[test]
fn a_second_run_into_the_same_folder_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _first = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let error = RunFolder::open(dir.path(), "id".into(), &[], None).err().unwrap().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
}
