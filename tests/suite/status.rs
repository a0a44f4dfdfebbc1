//! `pipeline status` and `pipeline run --dry-run`: what is current, what is not, and why.

use selfrepair_core::provenance::MEASUREMENT_VERSION;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::SystemTime;

use crate::support::*;

fn status(out: &Path, settings: &[&str]) -> Output {
    let mut command = pipeline();
    command.arg("status").arg("--out").arg(out);
    settings.iter().for_each(|s| {
        command.args(["--set", s]);
    });
    command.output().unwrap()
}

fn dry_run(stage: &str, out: &Path, more: &[&str]) -> String {
    let mut command = pipeline();
    command.args(["run", stage, "--dry-run", "--out"]).arg(out);
    TINY_SETTINGS.iter().chain(more).for_each(|s| {
        command.args(["--set", s]);
    });
    succeeded(command.output().unwrap())
}

/// Second word (or two, for `not run`) of the line of each stage.
fn states(shown: &str) -> Vec<(String, String)> {
    let stages = ["corpus", "export", "trace", "ablate", "analyze", "report"];
    let line = |stage: &str| {
        let line = shown.lines().find(|l| l.starts_with(stage)).unwrap_or_else(|| panic!("{stage}: {shown}"));
        (stage.to_string(), line[9..].split("  ").next().unwrap().trim().to_string())
    };
    stages.map(line).to_vec()
}

fn all_but(default: &str, others: &[(&str, &str)]) -> Vec<(String, String)> {
    let state = |stage: &str| others.iter().find(|(s, _)| *s == stage).map_or(default, |(_, state)| state);
    let stages = ["corpus", "export", "trace", "ablate", "analyze", "report"];
    stages.map(|stage| (stage.to_string(), state(stage).to_string())).to_vec()
}

/// Every file with its size and time of change.
fn contents(out: &Path) -> Vec<(std::path::PathBuf, u64, SystemTime)> {
    let of = |p: std::path::PathBuf| {
        let meta = p.metadata().unwrap();
        (p, meta.len(), meta.modified().unwrap())
    };
    files(out).into_iter().map(of).collect()
}

#[test]
fn stages_are_shown_with_rows_times_and_states() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    let shown = succeeded(status(dir.path(), &[]));
    let later = [("analyze", "not run"), ("report", "not run")];
    assert_eq!(states(&shown), all_but("current", &later), "{shown}");
    let ablate = shown.lines().find(|l| l.starts_with("ablate")).unwrap();
    // A size, a time, a date; rows are counted. The second file of the corpus is the table of targets, without rows.
    assert!(shown.lines().any(|l| l.starts_with("corpus   current          2           192 ")), "{shown}");
    for words in ["kB", " s", "UTC"] {
        assert!(ablate.contains(words), "{words}: {ablate}");
    }

    let lost = files(&dir.path().join("tables/clean"))[0].clone();
    std::fs::remove_file(&lost).unwrap();
    let manifest = dir.path().join("stages/ablate.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"complete\": true", "\"complete\": false")).unwrap();
    let shown = succeeded(status(dir.path(), &[]));
    let expected = [&later[..], &[("trace", "damaged"), ("ablate", "incomplete")]].concat();
    assert_eq!(states(&shown), all_but("current", &expected), "{shown}");
    assert!(shown.contains("tables/clean/00000.parquet missing"), "{shown}");
    let plan = dry_run("all", dir.path(), &[]);
    assert!(plan.contains("trace would run: tables/clean/00000.parquet missing"), "{plan}");
    assert!(plan.contains("ablate would resume"), "{plan}");

    let error = failed(status(Path::new("no/such/run"), &[]));
    assert!(error.contains("no/such/run is not a run") && error.contains("pipeline run all"), "{error}");
}

#[test]
fn a_stale_stage_says_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &[]));
    let before = contents(dir.path());
    let with = |more: &[&str]| succeeded(status(dir.path(), &[&TINY_SETTINGS, more].concat()));
    assert_eq!(states(&with(&[])), all_but("current", &[("report", "not run")]));
    // Speed changes nothing.
    assert_eq!(states(&with(&["runtime.batch=32"])), all_but("current", &[("report", "not run")]));
    let shown = with(&["analysis.thresholds=[0.5]"]);
    let expected = [("analyze", "stale"), ("report", "not run")];
    assert_eq!(states(&shown), all_but("current", &expected), "{shown}");
    assert!(shown.contains("analysis.thresholds [0.1,0.5,1.0] → [0.5]"), "{shown}");
    let shown = with(&["ablation.seed=7"]);
    assert_eq!(states(&shown), all_but("stale", &[("report", "not run")]), "{shown}");
    assert!(shown.contains("contradicts the run that is here: ablation.seed 0 → 7"), "{shown}");
    let shown = with(&["corpus.tokens=160", "corpus.separator=x"]);
    assert!(shown.contains("corpus.separator (default) → x, corpus.tokens 192 → 160"), "{shown}");

    let plan = dry_run("ablate", dir.path(), &["corpus.tokens=160"]);
    for words in [
        "has another run: corpus.tokens 192 → 160",
        "this would be refused; use another --out, or --replace",
        "corpus would run: corpus.tokens 192 → 160",
        "ablate would run: corpus.tokens 192 → 160",
        "work ",
        "TFLOP",
        "GFLOP/s",
        "disk about",
        "memory about",
    ] {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    assert!(!plan.contains("report") && !plan.contains("iterative"), "{plan}");
    let plan = dry_run("all", dir.path(), &["iterative.prompts=2", "ablation.mlps=[\"L1\"]"]);
    for words in [
        "trace is up to date",
        "ablate would add mean: 1 MLP (layer 1); resample: 1 MLP (layer 1); zero: 1 MLP (layer 1); additions of 1, 3, 5 \
         times a head's output on 2 prompts",
        "analyze would run again on what is added",
        "there mean: 12 heads (layers 0 to 2)",
    ] {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    assert!(plan.contains("TFLOP to add heads' outputs to the stream, on 2 prompts (iterative)"), "{plan}");
    assert!(dry_run("analyze", dir.path(), &[]).contains("Nothing would run"));
    assert_eq!(contents(dir.path()), before, "status or a dry run touched the folder");
}

/// As if an older version had made it: the version is a part of a run's identity.
#[test]
fn what_another_version_of_the_program_made_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("trace", dir.path(), &[]));
    for stage in ["corpus", "export", "trace"] {
        let path = dir.path().join(format!("stages/{stage}.json"));
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(manifest["parts"]["measurement version"], MEASUREMENT_VERSION.to_string());
        manifest["parts"]["measurement version"] = "0".into();
        // An older version hashed other things.
        manifest["fingerprint"] = "0123456789abcdef".into();
        std::fs::write(&path, manifest.to_string()).unwrap();
    }
    let before = contents(dir.path());
    let change = format!("measurement version 0 → {MEASUREMENT_VERSION}");
    let shown = succeeded(status(dir.path(), &TINY_SETTINGS));
    assert!(shown.contains(&change), "{shown}");
    for stage in ["corpus", "all"] {
        let error = failed(run_tiny(stage, dir.path(), &[]));
        assert!(error.contains(&change) && error.contains("another version of this program made it"), "{error}");
    }
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_dry_run_of_nothing_makes_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = dry_run("trace", &out, &[]);
    assert!(plan.contains("trace would run: it has not run yet") && plan.contains("nothing is ablated"), "{plan}");
    assert!(!out.exists());
}

#[test]
fn a_run_that_goes_on_is_shown_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    // What a run holds while it is at work.
    let lock = std::fs::File::options().read(true).write(true).open(dir.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let holder = std::fs::read_to_string(dir.path().join(".lock")).unwrap();
    let child = pipeline().arg("status").arg("--out").arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let shown = succeeded(child.wait_with_output().unwrap());
    assert!(shown.contains(&format!("a run is active in process {}", holder.trim())), "{shown}");
}
