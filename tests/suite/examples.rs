//! The programs in `examples/` run, on the tiny model.

use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

/// Where an example was built.
pub fn path(name: &str) -> PathBuf {
    let suite = std::env::current_exe().unwrap();
    suite.parent().unwrap().parent().unwrap().join("examples").join(name)
}

fn example(name: &str, args: &[&str]) -> String {
    succeeded(Command::new(path(name)).args(args).output().unwrap())
}

#[test]
fn one_head_prints_tokens_and_repairs() {
    let said = example("one_head", &[TINY, "L0H1", "the cat sat on the mat"]);
    assert!(said.contains("self-repair") && said.contains("MLP0"), "{said}");
}

#[test]
fn a_sweep_becomes_tables_that_sql_reads() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let out = out.to_str().unwrap();
    assert!(example("sweep_to_parquet", &[out, TINY, "L1"]).contains("query_a_run"));
    let said = example("query_a_run", &[out]);
    assert!(said.contains("self_repair") && said.matches("| L1H").count() >= 4, "{said}");
}
