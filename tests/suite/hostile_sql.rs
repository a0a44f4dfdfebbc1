//! Queries that ask for too much: too deep, too large, too long, or for other files. Each gives an answer or an error,
//! never an abort, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::*;

/// One run for all tests here, which only read it.
fn finished() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
        succeeded(run_tiny("all", &out, &[]));
        out
    })
}

fn sql(arguments: &[&str]) -> Output {
    pipeline().args(["sql", "--out"]).arg(finished()).args(arguments).output().unwrap()
}

fn csv(query: &str) -> String {
    succeeded(sql(&["--format", "csv", query]))
}

#[track_caller]
fn refused(arguments: &[&str], words: &[&str]) {
    let error = failed(sql(arguments));
    words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in {error}"));
}

/// A query that is too long for a command line.
fn from_file(query: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("query.sql");
    fs::write(&path, query).unwrap();
    sql(&["--format", "csv", "-f", path.to_str().unwrap()])
}

#[test]
fn deep_queries_are_answered_or_refused() {
    let chain =
        |term: &dyn Fn(usize) -> String, n: usize, between: &str| (0..n).map(term).collect::<Vec<_>>().join(between);
    let terms = |n| chain(&|i| format!("(prompt = {} and position = {})", i % 12, i % 16), n, " or ");
    let rows = succeeded(from_file(&format!("select count(*) as n from tokens where {}", terms(3000))));
    // 48 is the least common multiple of 12 and 16.
    assert_eq!(rows, "n\n48\n");
    for deep in [
        format!("select {}", vec!["1"; 10_000].join(" + ")),
        format!("select {} from tokens", vec!["prompt"; 10_000].join(" * ")),
        format!("select {}", vec!["'a'"; 5000].join(" || ")),
        format!("select {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        vec!["select 1"; 5000].join(" union all "),
        vec!["select 1"; 5000].join(" intersect "),
        format!("select {}prompt{} from tokens", "abs(".repeat(3000), ")".repeat(3000)),
        format!("select 1 from {}", vec!["tokens"; 3000].join(" cross join ")),
        format!("{}select 1", "explain ".repeat(50_000)),
    ] {
        let error = failed(from_file(&deep));
        assert!(error.contains("too deep"), "{}: {error}", &deep[..40]);
    }
    // As deep as is allowed, evaluated over rows.
    for deep in [
        format!("select sum({}) from tokens", vec!["prompt"; 490].join(" + ")),
        format!("select max({}) from tokens", vec!["text"; 480].join(" || ")),
        vec!["select prompt from tokens"; 200].join(" union all "),
        format!("select {}prompt{} from tokens", "abs(".repeat(20), ")".repeat(20)),
    ] {
        let output = from_file(&deep);
        assert!(output.status.code() == Some(0), "{}: {:?} {}", &deep[..40], output.status, text(&output.stderr));
    }
}

#[test]
fn queries_that_read_each_other_twice_are_refused_before_they_fill_the_memory() {
    let doubled: String =
        (1..40).map(|i| format!(", a{i} as (select * from a{0} union all select * from a{0})", i - 1)).collect();
    refused(&[&format!("with a0 as (select 1 as x){doubled} select count(*) from a39")], &["too large"]);
    let views: String = (1..40)
        .map(|i| format!("create view v{i} as select * from v{0} union all select * from v{0};", i - 1))
        .collect();
    refused(&[&format!("create view v0 as select 1 as x; {views} select count(*) from v39")], &["too large"]);
    let chain: String = (1..500).map(|i| format!("create view v{i} as select x + 1 as x from v{};", i - 1)).collect();
    refused(&[&format!("create view v0 as select 1 as x; {chain} select * from v499")], &["at most 100 queries"]);
    let chain: String = (1..3000).map(|i| format!(", a{i} as (select x + 1 as x from a{})", i - 1)).collect();
    let output = from_file(&format!("with a0 as (select 1 as x){chain} select * from a2999"));
    assert!(failed(output).contains("too large"));
}

#[test]
fn a_statement_reads_the_runs_tables_and_nothing_else_unless_files_are_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret.csv");
    fs::write(&file, "a secret\n").unwrap();
    let before = files(finished());
    let external = format!(
        "create external table p (line varchar) stored as csv location '{}' options ('format.has_header' 'false')",
        file.display()
    );
    let copy = format!("copy (select 1 as one) to '{}'", dir.path().join("written.csv").display());
    for statement in [&*external, &copy, "create table mine as select 1", &format!("explain analyze {copy}")] {
        refused(&[statement], &["--allow-files"]);
    }
    refused(&[&format!("select * from '{}'", file.display())], &["no table"]);
    for statement in [
        "create or replace view head_summary as select 1",
        "create view heads as select 1",
        "drop view heads",
        "drop table tokens",
        "insert into tokens select * from tokens",
        "explain analyze insert into tokens select * from tokens",
        "delete from tokens",
        "with a as (select 1) insert into tokens select * from tokens",
        "set datafusion.runtime.memory_limit = '900G'",
        "set datafusion.runtime.temp_directory = '/'",
        "select 1 as one into mine",
    ] {
        refused(&[statement], &[]);
        refused(&["--allow-files", statement], &[]);
    }
    assert!(!dir.path().join("written.csv").exists());
    let allowed = succeeded(sql(&["--allow-files", "--format", "csv", &format!("{external}; select * from p")]));
    assert_eq!(allowed, "line\na secret\n");
    succeeded(sql(&["--allow-files", &copy]));
    assert_eq!(fs::read_to_string(dir.path().join("written.csv")).unwrap(), "one\n1\n");
    assert_eq!(files(finished()), before);
    assert_eq!(
        csv("create view mine as select 1 as one; select * from mine; explain select 1").lines().next(),
        Some("one")
    );
}

/// The folder for temporary files is this test's own, so that what is left there is seen.
fn within(memory: &str, temporary: &Path, query: &str) -> Command {
    let mut command = pipeline();
    command.args(["sql", "--memory", memory, "--format", "csv", "--out"]).arg(finished()).arg(query);
    command.env("TMPDIR", temporary);
    command
}

#[test]
fn queries_that_need_more_memory_than_they_may_have_say_so() {
    let dir = tempfile::tempdir().unwrap();
    for query in [
        "select array_length(array_agg(a.self_repair)) from ablations a cross join ablations b",
        "select length(repeat('x', 10000000000))",
        "select max(length(repeat(text, 1000000000))) from tokens",
        "select length(lpad('x', 2000000000))",
        "select length(rpad(text, 2000000000)) from tokens",
        "select length(repeat(repeat('x', 100000), 100000))",
        "select length(replace(repeat('x', 1000000), 'x', repeat('y', 1000000)))",
        "select array_length(generate_series(1, 10000000000))",
        "select array_length(range(10000000000))",
        "select array_length(array_repeat(1, 10000000000))",
        "select array_length(array_resize([1], 10000000000))",
        "select length(string_agg(repeat(a.text, 1000), '')) from tokens a cross join tokens b cross join tokens c",
    ] {
        let error = failed(within("200000000", dir.path(), query).output().unwrap());
        let named = ["--memory = 200000000", "for one text; at most 1.0 MB are allowed"];
        assert!(named.iter().any(|words| error.contains(words)), "{query}: {error}");
    }
    // A value that is small by itself, for every row: one piece of memory that no operator counts.
    let wide = format!(
        "select count(distinct x) from (select prompt, {} as x from ablations) t",
        vec!["repeat('x', 1000000)"; 300].join(" || ")
    );
    let error = failed(within("200000000", dir.path(), &wide).output().unwrap());
    assert!(error.contains("--memory"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_does_not_fit_into_memory_is_sorted_on_disk_and_nothing_is_left_there() {
    let dir = tempfile::tempdir().unwrap();
    let query = "select count(*) as n, max(i) as i from (
        select row_number() over (order by a.self_repair, a.logit_change, a.direct_effect, a.repair_norm, b.logit, b.log_prob, \
        b.prompt, b.position) as i from (select * from ablations limit 6000) a cross join clean b)";
    let rows = succeeded(within("130000000", dir.path(), query).output().unwrap());
    assert_eq!(rows, "n,i\n1080000,1080000\n");
    let plan = succeeded(within("130000000", dir.path(), &format!("explain analyze {query}")).output().unwrap());
    let spilled = plan.split("spill_count=").skip(1).any(|rest| !rest.starts_with('0'));
    assert!(spilled, "nothing was written to disk: {plan}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Ctrl-C ends a query at once, whatever it is at, and takes its temporary files along.
#[test]
fn ctrl_c_ends_a_query_and_removes_its_temporary_files() {
    let dir = tempfile::tempdir().unwrap();
    let query = "select count(*) from ablations a, ablations b, ablations c where a.logit_change + b.logit_change > c.logit_change";
    let mut child = within("0", dir.path(), query).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while fs::read_dir(dir.path()).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let asked = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn own_queries_are_one_select_and_the_same_every_time() {
    let header = "-- Question: what?\n-- Grain:    layer\n--\n-- x: a number\n";
    for (query, words) in [
        ("create or replace view head_summary as select 1 as x", "expected a query"),
        ("select 1 as x; drop table ablations", "found 2 statements"),
        ("copy (select 1 as x) to 'x.csv'", "expected a query"),
        ("create external table x (line varchar) stored as csv location '/etc/passwd'", "expected a query"),
        ("set datafusion.execution.batch_size = 1", "expected a query"),
        ("select random() as x", "random()"),
        ("select x from (select uuid() as x)", "uuid()"),
        ("select layer as x from ablations order by random()", "random()"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("queries");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mine.sql"), format!("{header}{query}\n")).unwrap();
        let out = dir.path().join("out");
        let error = failed(run_tiny("analyze", &out, &[&format!("analysis.sql={}", folder.display())]));
        assert!(error.contains("mine.sql") && error.contains(words), "{query}: {error}");
        // It is found before anything is computed.
        assert!(!out.join("tables").exists(), "{query}");
    }
}
