//! Run folders as stages write them, and as other people and other programs leave them.

use selfrepair_core::files::{files_below, sha256_of};

use super::*;

/// Inputs that differ by name.
fn made_from(name: &str) -> Inputs {
    Inputs::of([("name".to_string(), name.to_string())].into()).unwrap()
}

fn is_current(run: &RunFolder, stage: Stage, name: &str) -> bool {
    run.is_current(stage, &made_from(name).fingerprint)
}

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
    run.begin(Stage::Corpus, &made_from("a"), &folders).unwrap();
    assert!(!is_current(&run, Stage::Corpus, "a"));
    let file = folders[0].join("0.parquet");
    write(&run, Stage::Corpus, &file, "12345");
    run.finish(Stage::Corpus, &made_from("a"), &folders).unwrap();
    assert!(is_current(&run, Stage::Corpus, "a") && !is_current(&run, Stage::Corpus, "b"));
    fs::write(&file, "123").unwrap();
    assert!(!is_current(&run, Stage::Corpus, "a"));
}

#[test]
fn other_inputs_remove_the_old_files_and_the_same_ones_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let folders = [run.table("clean")];
    run.begin(Stage::Trace, &made_from("a"), &folders).unwrap();
    write(&run, Stage::Trace, &folders[0].join("0.parquet"), "whole");
    fs::write(folders[0].join("1.parquet.partial"), "half").unwrap();
    run.begin(Stage::Trace, &made_from("a"), &folders).unwrap();
    assert_eq!(files_below(&folders[0]).unwrap().len(), 1);
    run.begin(Stage::Trace, &made_from("b"), &folders).unwrap();
    assert_eq!(files_below(&folders[0]).unwrap().len(), 0);
}

/// A derived table is there until it is replaced, and one that is written no more stays on record.
#[test]
fn derived_tables_stay_until_they_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let (kept, mine) = (run.table("head_summary"), run.table("mine"));
    let both = [kept.clone(), mine.clone()];
    run.begin(Stage::Analyze, &made_from("a"), &both).unwrap();
    both.iter().for_each(|folder| write(&run, Stage::Analyze, &folder.join("0.parquet"), "old"));
    run.finish(Stage::Analyze, &made_from("a"), &both).unwrap();
    run.begin(Stage::Analyze, &made_from("b"), &both[..1]).unwrap();
    assert!(both.iter().all(|folder| fs::read_to_string(folder.join("0.parquet")).unwrap() == "old"));
    write(&run, Stage::Analyze, &kept.join("0.parquet"), "new");
    run.finish(Stage::Analyze, &made_from("b"), &both[..1]).unwrap();
    assert!(is_current(&run, Stage::Analyze, "b") && run.foreign(Stage::Analyze, &both).unwrap().is_empty());
    assert_eq!(fs::read_to_string(mine.join("0.parquet")).unwrap(), "old");
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
    for place in ["tables/clean/copy.parquet", "tables/clean/sub/x", "tables/direct_effects/x", "work/mine"] {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
        let folders = [run.table("clean"), run.table("direct_effects"), run.work()];
        run.begin(Stage::Trace, &made_from("a"), &folders).unwrap();
        let ours = folders[0].join("0.parquet");
        write(&run, Stage::Trace, &ours, "ours");
        run.finish(Stage::Trace, &made_from("a"), &folders).unwrap();
        let theirs = dir.path().join(place);
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "theirs").unwrap();
        for error in [run.begin(Stage::Trace, &made_from("b"), &folders[..1]), run.remove_all()] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(place) && error.contains("was not written by this run"), "{error}");
        }
        assert!(ours.exists() && is_current(&run, Stage::Trace, "a"), "{place}");
        fs::remove_file(&theirs).unwrap();
        run.remove_all().unwrap();
        assert!(!ours.exists() && manifest(dir.path(), Stage::Trace).is_none());
    }
}

#[test]
fn a_second_run_into_the_same_folder_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _first = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
    let error = RunFolder::open(dir.path(), "id".into(), &[], None).err().unwrap().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
}
