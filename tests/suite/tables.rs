//! `pipeline tables`, the documentation of every column, and the help of every command.

use std::process::Command;

use crate::support::*;

fn tables(arguments: &[&str]) -> Command {
    let mut command = pipeline();
    command.arg("tables").args(arguments);
    command
}

#[test]
fn the_committed_documentation_is_current() {
    let committed = std::fs::read_to_string("docs/tables.md").unwrap();
    assert!(
        succeeded(tables(&["--markdown"]).output().unwrap()) == committed,
        "docs/tables.md is out of date; regenerate it: pipeline tables --markdown > docs/tables.md"
    );
}

#[test]
fn every_column_of_every_table_and_view_says_what_it_is() {
    for table in selfrepair_query::catalog::built_in().unwrap() {
        assert!(!table.grain.is_empty() && !table.columns.is_empty(), "{}", table.name);
        assert!(table.kind == "view" || !table.key.is_empty(), "{} is not sorted", table.name);
        for column in &table.columns {
            assert!(!column.description.is_empty(), "{}.{}", table.name, column.name);
        }
    }
}

/// The types in the documentation come from planning; here are those that a run writes, and examples that run.
#[test]
fn a_run_has_the_columns_that_are_documented_and_the_examples_run() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &[&EVERYTHING[..], &["ablation.distribution=true"]].concat()));
    let session = selfrepair_query::sql::Tables::open(dir.path()).unwrap();
    for table in selfrepair_query::catalog::built_in().unwrap() {
        let name = table.name.as_str();
        if TABLES_OF_OTHER_RUNS.contains(&name) {
            let rows = |name| session.collect(&format!("select * from {name}"), &[]).unwrap();
            let empty = !session.has(name).unwrap() || rows(name).iter().all(|batch| batch.num_rows() == 0);
            assert!(empty, "{name} has rows here, so that its example can be tested");
            continue;
        }
        let schema = session.schema(&table.name).unwrap();
        let found: Vec<String> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        let documented = table.columns.iter().map(|c| (c.name.as_str(), c.data_type.as_str()));
        let documented: Vec<String> = documented
            .map(|(name, kind)| match kind {
                "text" => format!("{name} Utf8"),
                "dictionary" => format!("{name} Dictionary(Int32, Utf8)"),
                _ => format!("{name} {}{}", kind[..1].to_uppercase(), &kind[1..]),
            })
            .collect();
        assert_eq!(found, documented, "{}", table.name);
        let rows = session.collect(&table.example, &[]).unwrap_or_else(|e| panic!("{}: {e:#}", table.name));
        assert!(rows.iter().any(|batch| batch.num_rows() > 0), "{}: {} gives no rows", table.name, table.example);
        // The sort key is that of the rows.
        if table.kind == "derived" {
            let key = table.key.join(", ");
            let sql = format!(
                "select count(*) as wrong from (select row_number() over () as i,
                     row_number() over (order by {key} nulls last) as k from {}) where i <> k",
                table.name
            );
            let rows = session.collect(&sql, &[]).unwrap();
            assert_eq!(numbers(&rows[0], "wrong"), [0.0], "{} is not sorted by {key}", table.name);
        }
    }
}

#[test]
fn tables_are_listed_with_rows_and_sizes_and_described_by_name() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &[]));
    let out = dir.path().display().to_string();
    let list = succeeded(tables(&["--out", &out]).output().unwrap());
    let row = |name: &str| {
        let row = list.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}: {list}"));
        row.split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(row("ablations")[1..3], ["measured", "6,480"]);
    assert_eq!(row("head_summary")[1..3], ["derived", "72"]);
    assert_eq!(row("top_contexts")[1], "view");

    let one = succeeded(tables(&["ablations", "--out", &out]).output().unwrap());
    for words in [
        "sorted by   ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name",
        "float32     logits",
        "example",
    ] {
        assert!(one.contains(words), "{words}: {one}");
    }
    // Without a run, from anywhere.
    let bare = tables(&[]).current_dir(dir.path()).output().unwrap();
    assert!(succeeded(bare).contains("a prompt position that has a correct next token"));
    let bare = tables(&["layer_summary"]).current_dir(dir.path()).output().unwrap();
    assert!(succeeded(bare).contains("in which layers is there self-repair"));
    let error = failed(tables(&["layer_sumary"]).output().unwrap());
    assert!(error.contains("did you mean `layer_summary`?"), "{error}");
    let error = failed(tables(&["--out", "no/such/run"]).output().unwrap());
    assert!(error.contains("no/such/run has no tables"), "{error}");
}

#[test]
fn shells_and_man_learn_the_command_line() {
    for (shell, words) in [("bash", "_pipeline()"), ("zsh", "#compdef pipeline"), ("fish", "complete -c pipeline")] {
        let script = succeeded(pipeline().args(["completions", shell]).output().unwrap());
        assert!(script.contains(words) && script.contains("dry-run"), "{shell}");
    }
    let page = succeeded(pipeline().arg("man").output().unwrap());
    assert!(page.contains(".TH pipeline 1") && page.contains("self\\-repair"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    succeeded(pipeline().arg("man").arg(dir.path()).output().unwrap());
    let names: Vec<String> =
        files(dir.path()).iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.contains(&"pipeline-sql.1".to_string()) && names.contains(&"pipeline.1".to_string()), "{names:?}");
}
