//! Files that a user, a sync program or another process puts into a run folder.

use std::fs;
use std::process::{Output, Stdio};

use super::*;

fn sql(out: &Path, query: &str) -> Output {
    pipeline().args(["sql", "--format", "csv", query, "--out"]).arg(out).output().unwrap()
}

fn status(out: &Path, arguments: &[&str]) -> String {
    succeeded(pipeline().arg("status").arg("--out").arg(out).args(arguments).output().unwrap())
}

/// `run all` with more arguments.
fn with(out: &Path, more: &[&str]) -> Output {
    let mut command = pipeline();
    command.args(["run", "all", "--out"]).arg(out);
    TINY_SETTINGS.iter().for_each(|s| {
        command.args(["--set", s]);
    });
    command.args(more).output().unwrap()
}

/// `--out .`, and the folders that a user has there later.
#[test]
fn folders_and_files_of_the_user_are_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(run_tiny("corpus", out, &[]));
    let theirs = ["figures/fig1.png", "model/mine.bin", "report/notes/draft.html", "work/x", "activations/a/b"];
    for name in theirs {
        let path = out.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        // Also a stage that works was not begun, and nothing that another one wrote was cleared.
        for more in [&[][..], &["--fresh", "--yes"]] {
            let error = failed(with(out, more));
            assert!(error.contains(name) && error.contains("was not written by this run"), "{error}");
            assert!(
                path.exists()
                    && out.join("tables/tokens/tokens.parquet").exists()
                    && !out.join("tables/model").exists()
            );
        }
        let shown = status(out, &[]);
        assert!(shown.contains("not written by this run") && shown.contains(name), "{shown}");
        fs::remove_file(&path).unwrap();
    }
    // Empty folders are nobody's, and hidden files are no run's.
    fs::write(out.join("figures/.DS_Store"), "").unwrap();
    succeeded(run_tiny("all", out, &[]));
    // What lies there later.
    for name in ["figures/fig1.png", "report/notes.md", "tables/tokens/mine.csv"] {
        fs::write(out.join(name), "mine").unwrap();
        let before = contents(out);
        for more in [&["--fresh", "--yes"][..], &["--replace", "--set", "corpus.tokens=160"]] {
            let error = failed(with(out, more));
            assert!(error.contains(name), "{error}");
            assert_same(out, &before, "a refusal");
        }
        assert!(text(&run_tiny("all", out, &[]).stderr).contains("is not read"), "{name}");
        assert_eq!(status(out, &[]).matches(" current ").count(), 6);
        fs::remove_file(out.join(name)).unwrap();
    }
    succeeded(with(out, &["--replace", "--set", "corpus.tokens=160"]));
    assert!(out.join("figures/.DS_Store").exists());
}

#[test]
fn a_copied_shard_adds_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(run_tiny("all", out, &[]));
    let expected = contents(out);
    let query = "select count(*) as n, sum(prompt) as s from ";
    let answers = ["ablations", "direct_effects", "clean"].map(|table| succeeded(sql(out, &format!("{query}{table}"))));
    let copies = ["ablations", "direct_effects", "clean"].map(|table| {
        let folder = out.join("tables").join(table);
        let copy = folder.join("00000 (conflicted copy).parquet");
        fs::copy(&files(&folder)[0], &copy).unwrap();
        copy
    });
    for (table, answer) in ["ablations", "direct_effects", "clean"].iter().zip(&answers) {
        let output = sql(out, &format!("{query}{table}"));
        let said = text(&output.stderr);
        assert!(
            said.contains(&format!("tables/{table}/00000 (conflicted copy).parquet")) && said.contains("is not read")
        );
        assert_eq!(&succeeded(output), answer);
    }
    let shown = status(out, &["--verify"]);
    for copy in &copies {
        assert!(shown.contains(&copy.strip_prefix(out).unwrap().display().to_string()), "{shown}");
    }
    assert_eq!(shown.matches(" current ").count(), 6, "{shown}");
    // Stages that read these tables.
    fs::remove_file(out.join("stages/analyze.json")).unwrap();
    fs::remove_file(out.join("stages/report.json")).unwrap();
    succeeded(run_tiny("all", out, &[]));
    copies.iter().for_each(|copy| fs::remove_file(copy).unwrap());
    assert_same(out, &expected, "copies of shards beside analyze and report");
    for table in ["direct_effects", "clean"] {
        let folder = out.join("tables").join(table);
        fs::copy(folder.join("00000.parquet"), folder.join("copy.parquet")).unwrap();
    }
    fs::remove_file(out.join("tables/top_tokens/00001.parquet")).unwrap();
    succeeded(run_tiny("all", out, &[]));
    for table in ["direct_effects", "clean"] {
        fs::remove_file(out.join("tables").join(table).join("copy.parquet")).unwrap();
    }
    assert_same(out, &expected, "copies of shards beside ablate");
}

#[test]
fn an_own_query_that_fails_keeps_the_built_in_tables() {
    let (dir, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path();
    succeeded(run_tiny("analyze", out, &[]));
    let rows = || read(&out.join("tables/head_summary")).num_rows();
    let derived = selfrepair_query::analyze::derived_tables();
    let tables = || derived.iter().filter(|t| !files(&out.join("tables").join(t)).is_empty()).count();
    let expected = (tables(), rows());
    let header = "-- Question: q?\n-- Grain: g\n-- one: o\n";
    fs::write(own.path().join("first.sql"), format!("{header}select 1 as one")).unwrap();
    for typo in
        ["select nope from tokens", "select 1 as two", "select one from nothing", "select cast('x' as int) as one"]
    {
        fs::write(own.path().join("mine.sql"), format!("{header}{typo}")).unwrap();
        let error = failed(run_tiny("all", out, &[&format!("analysis.sql={}", own.path().display())]));
        assert!(error.contains("mine.sql"), "{error}");
        assert_eq!((tables(), rows()), expected, "{typo}");
        assert!(out.join("tables/first/first.parquet").exists() && !out.join("tables/mine/mine.parquet").exists());
        // They can be asked, while the stage counts as unfinished.
        assert_eq!(succeeded(sql(out, "select count(*) > 0 as some from head_summary")), "some\ntrue\n");
        assert!(status(out, &[]).contains("analyze  incomplete"));
    }
    fs::write(own.path().join("mine.sql"), format!("{header}select 1 as one")).unwrap();
    succeeded(run_tiny("all", out, &[&format!("analysis.sql={}", own.path().display())]));
}

#[test]
fn two_reports_at_once_and_one_beside_the_run_both_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(run_tiny("all", out, &[]));
    let expected = contents(out);
    let spawn = |command: &mut Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let report = || spawn(pipeline().args(["report", "--out"]).arg(out));
    for _ in 0..cases(2, 20) {
        let reports: Vec<_> = (0..3).map(|_| report()).collect();
        reports.into_iter().for_each(|child| {
            succeeded(child.wait_with_output().unwrap());
        });
        fs::remove_file(out.join("report/index.html")).unwrap();
        let mut run = pipeline();
        run.args(["run", "all", "--out"]).arg(out);
        TINY_SETTINGS.iter().for_each(|s| {
            run.args(["--set", s]);
        });
        let children = [report(), spawn(&mut run), report()];
        children.into_iter().for_each(|child| {
            succeeded(child.wait_with_output().unwrap());
        });
        assert_same(out, &expected, "reports at once");
    }
}

#[test]
fn a_shard_with_another_configuration_is_refused_and_clears_nothing() {
    let (dir, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path();
    fs::write(own.path().join("q.sql"), "-- Question: q?\n-- Grain: g\n-- one: o\nselect 1 as one").unwrap();
    let shard = |set: &str, more: &str| {
        let mut command = everything("all", out);
        command.args(["--shard", set]);
        if !more.is_empty() {
            command.args(["--set", more]);
        }
        command
    };
    // At work, and after it has ended.
    let first = shard("1/2", "").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !out.join("stages/ablate.json").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let own = format!("analysis.sql={}", own.path().display());
    let others = [
        ("ablation.seed=7", "ablation.seed 0 → 7"),
        ("corpus.tokens=560", "corpus.tokens 1120 → 560"),
        ("trace.save=[]", "trace.save"),
        ("analysis.thresholds=[0.5]", "analysis.thresholds"),
        (&own, "analysis.sql"),
    ];
    let refuse = || {
        for (setting, words) in others {
            let error = failed(shard("2/2", setting).output().unwrap());
            assert!(error.contains(words) && error.contains("nothing was changed"), "{setting}: {error}");
        }
    };
    refuse();
    succeeded(first.wait_with_output().unwrap());
    let before = contents(out);
    refuse();
    assert_same(out, &before, "shards with another configuration");
    succeeded(shard("2/2", "").output().unwrap());
    assert_eq!(status(out, &[]).matches(" current ").count(), 6);
    // A finished run is not replaced by one of several processes.
    assert!(failed(shard("1/2", "ablation.seed=7").output().unwrap()).contains("--replace"));
}
