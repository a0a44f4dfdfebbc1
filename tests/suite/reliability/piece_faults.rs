//! Kills and faults at the places where pieces are published, dropped and replaced, made by hand from the files that such
//! a moment leaves.

use std::fs;

use super::pieces::{MEASURED, Request, assert_same_rows, rows};
use super::*;

fn request(kinds: &[&'static str], components: &[(&'static str, &'static str)]) -> Request {
    Request { kinds: kinds.to_vec(), components: components.to_vec(), ..Default::default() }
}

fn drop_from(out: &Path, what: &str) -> Output {
    pipeline().args(["drop", what, "--yes", "--out"]).arg(out).output().unwrap()
}

fn lose(out: &Path, table: &str) {
    let lost = files(&out.join("tables").join(table));
    assert!(!lost.is_empty());
    lost.iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// As if the process had ended after its files got their names, and before the manifest said so.
#[test]
fn a_piece_whose_process_ended_while_it_was_published_is_kept_once() {
    let (dir, at_once) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path();
    let manifest = out.join("stages/ablate.json");
    succeeded(request(&["zero"], &[("heads", "L2H2")]).run("ablate", out));
    let before = fs::read(&manifest).unwrap();
    let large = request(&["zero"], &[("heads", "L1")]);
    succeeded(large.run("ablate", out));
    fs::write(&manifest, &before).unwrap();
    // A part of it is asked for, and then all of it.
    succeeded(request(&["zero"], &[("heads", "L1H0")]).run("ablate", out));
    assert_eq!(rows(out, "ablations").len(), 2 * 140 * 7);
    assert_eq!(read(&out.join("tables/ablations")).num_rows(), 2 * 140 * 7, "a part of a piece is among the tables");
    succeeded(large.run("ablate", out));
    let all = request(&["zero"], &[("heads", "L1"), ("heads", "L2H2")]);
    succeeded(all.run("ablate", at_once.path()));
    assert_same_rows(&MEASURED, out, at_once.path(), "a kill before the manifest");

    // The manifest is lost, cut, or says something else: the pieces are found again, and nothing is measured.
    let times = || files(&out.join("tables/ablations")).len();
    let count = times();
    let text = fs::read_to_string(&manifest).unwrap();
    for damaged in [text[..text.len() / 2].to_string(), text.replacen("\"L1H1\"", "\"L0H1\"", 1)] {
        assert_ne!(damaged, text);
        fs::write(&manifest, damaged).unwrap();
        let said = all.run("ablate", out);
        assert!(text_of(&said).contains("ablate"), "{}", text_of(&said));
        succeeded(said);
        assert_same_rows(&MEASURED, out, at_once.path(), "a damaged manifest");
        assert_eq!(times(), count);
    }
    fs::remove_file(&manifest).unwrap();
    succeeded(all.run("ablate", out));
    assert_same_rows(&MEASURED, out, at_once.path(), "a lost manifest");
}

fn text_of(output: &Output) -> String {
    text(&output.stderr)
}

#[test]
fn what_was_dropped_does_not_come_back_with_a_lost_file() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path();
    let large = Request { layers: vec!["L2"], ..request(&["resample", "zero"], &[("heads", "L1")]) };
    succeeded(large.run("ablate", out));
    succeeded(drop_from(out, "name=L1H0"));
    succeeded(drop_from(out, "ablation=resample"));
    let rest = Request {
        components: vec![("heads", "L1H1"), ("heads", "L1H2"), ("heads", "L1H3")],
        kinds: vec!["zero"],
        ..large.clone()
    };
    succeeded(rest.run("ablate", other.path()));
    let same = |when: &str| {
        // Pairs stay, whoever measured with them.
        let tables: Vec<&str> = MEASURED.into_iter().filter(|table| *table != "pairs").collect();
        assert_same_rows(&tables, out, other.path(), when);
    };
    same("two drops");
    for table in ["ablations", "top_tokens", "repair_graph", "neuron_curves", "pairs"] {
        lose(out, table);
        succeeded(rest.run("ablate", out));
        same(&format!("{table} was lost"));
    }
    // Everything at once.
    MEASURED
        .iter()
        .filter(|table| !table.contains("additions") && !["distributions", "head_similarity"].contains(table))
        .for_each(|t| lose(out, t));
    succeeded(rest.run("ablate", out));
    same("all tables were lost");
    // The last of a run: its tables are there without rows.
    succeeded(drop_from(out, "ablation=zero"));
    let count = succeeded(
        pipeline()
            .args(["sql", "select count(*) as n from ablations", "--format", "csv", "--out"])
            .arg(out)
            .output()
            .unwrap(),
    );
    assert_eq!(count.trim(), "n\n0");
}

#[test]
fn a_corrupt_file_is_not_made_valid_by_a_drop() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let asked = request(&["zero"], &[("heads", "L1")]);
    succeeded(asked.run("ablate", out));
    let file = files(&out.join("tables/ablations")).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = failed(drop_from(out, "name=L1H1"));
    assert!(error.contains("has changed since it was written") && error.contains("Nothing was dropped"), "{error}");
    succeeded(asked.run("analyze", out));
    assert_eq!(rows(out, "ablations").len(), 4 * 140 * 7);
    succeeded(drop_from(out, "name=L1H1"));
    assert_eq!(rows(out, "ablations").len(), 3 * 140 * 7);
}

#[test]
fn activations_are_there_when_all_their_shards_are() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let asked = request(&["zero"], &[("heads", "L1H0")]);
    let save = |save: bool| {
        let setting = format!("trace.save=[{}]", if save { "\"residual_final\"" } else { "" });
        succeeded(asked.command("trace", out).args(["--set", &setting]).output().unwrap());
        files(&out.join("activations/residual_final"))
    };
    let all = save(true);
    fs::remove_file(&all[1]).unwrap();
    assert_eq!(save(false).len(), all.len() - 1);
    assert_eq!(save(true), all);
}

#[test]
fn a_replacement_takes_its_place_for_the_request_that_made_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let asked = request(&["zero"], &[("heads", "L1H0")]);
    let other = |seed: &str| {
        let mut command = asked.command("ablate", &out);
        command.args(["--set", &format!("ablation.seed={seed}"), "--set", "ablation.kinds=resample"]);
        command
    };
    succeeded(asked.run("all", &out));
    let old = contents(&out);
    // Fewer stages than are there.
    let mut corpus = asked.command("corpus", &out);
    let error = failed(corpus.args(["--set", "ablation.seed=7", "--replace"]).output().unwrap());
    assert!(error.contains("has finished ablate"), "{error}");
    // As if the process had ended when the replacement was complete.
    let aside = out.join("replacement");
    let mut begun = asked.command("ablate", &aside);
    succeeded(begun.args(["--set", "ablation.seed=7", "--set", "ablation.kinds=resample"]).output().unwrap());
    fs::write(aside.join(".complete"), "").unwrap();
    succeeded(asked.run("all", &out));
    assert!(contents(&out) == old, "an ordinary request changed the run");
    let error = failed(other("8").arg("--replace").output().unwrap());
    assert!(error.contains("holds a complete replacement with other settings"), "{error}");
    let status = succeeded(pipeline().arg("status").arg("--out").arg(&out).output().unwrap());
    assert!(status.contains("a replacement that was begun"), "{status}");
    // Somebody's file where one of the replacement will lie.
    let theirs = out.join("tables/pairs/00001.parquet");
    fs::write(&theirs, "mine").unwrap();
    assert!(failed(other("7").output().unwrap()).contains("was not written by this run"));
    fs::remove_file(&theirs).unwrap();
    // The request that made it, also without --replace.
    succeeded(other("7").output().unwrap());
    assert!(!aside.exists() && read(&out.join("tables/pairs")).num_rows() == 140);

    // One that was begun with other settings starts over.
    succeeded(asked.command("corpus", &aside).args(["--set", "ablation.seed=9"]).output().unwrap());
    let said = other("8").arg("--replace").output().unwrap();
    assert!(text_of(&said).contains("was begun with other settings"), "{}", text_of(&said));
    succeeded(said);
    assert!(!aside.exists());
}
