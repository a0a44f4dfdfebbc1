//! `pipeline sql` with a query: several runs, formats, several statements, views, errors.

use std::io::{Cursor, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use arrow::ipc::reader::{FileReader, StreamReader};

use crate::support::*;

fn sql(out: &Path, arguments: &[&str]) -> Output {
    pipeline().arg("sql").arg("--out").arg(out).args(arguments).output().unwrap()
}

fn csv(out: &Path, query: &str) -> String {
    succeeded(sql(out, &["--format", "csv", query]))
}

#[test]
fn several_runs_are_one_table_with_a_column_for_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("first"), dir.path().join("second"));
    succeeded(run_tiny("all", &a, &[]));
    succeeded(run_tiny("ablate", &b, &["ablation.kinds=zero"]));
    let both = |query: &str| {
        let mut command = pipeline();
        command.arg("sql").arg("--out").arg(&a).arg("--out").arg(&b).args(["--format", "csv", query]);
        succeeded(command.output().unwrap())
    };
    let rows = both("select run, ablation, count(*) as n from ablations group by run, ablation order by run, ablation");
    assert_eq!(rows, "run,ablation,n\nfirst,mean,2160\nfirst,resample,2160\nfirst,zero,2160\nsecond,zero,2160\n");
    assert!(both("select * from tokens limit 1").starts_with("run,prompt,position,"));
    // One that has not been analysed is missing from the summaries, and only from them.
    assert_eq!(both("select distinct run from head_summary"), "run\nfirst\n");
    // A view joins the tables of each run, never one run's tokens with another's ablations.
    assert_eq!(
        both("select run, count(*) as n from top_contexts where ablation = 'zero' group by run order by run"),
        "run,n\nfirst,36\nsecond,36\n"
    );
    // Folders of the same name are told apart.
    let (c, d) = (dir.path().join("x/out"), dir.path().join("y/out"));
    for out in [&c, &d] {
        succeeded(run_tiny("corpus", out, &[]));
    }
    let mut command = pipeline();
    command.arg("sql").arg("--out").arg(&c).arg("--out").arg(&d);
    let output = command.args(["--format", "csv", "select distinct run from tokens order by run"]);
    assert_eq!(succeeded(output.output().unwrap()), "run\nx/out\ny/out\n");
}

#[test]
fn rows_leave_as_csv_json_parquet_and_arrow() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeeded(run_tiny("corpus", &out, &[]));
    let query = "select prompt, position, text from tokens order by prompt, position";
    let expected = read(&out.join("tables/tokens"));
    let expected = expected.project(&[0, 1, 3]).unwrap();

    let file = |name: &str| dir.path().join(name);
    for name in ["rows.parquet", "rows.arrow", "rows.csv", "rows.jsonl"] {
        let shown = succeeded(sql(&out, &["--output", file(name).to_str().unwrap(), query]));
        assert!(shown.is_empty(), "{shown}");
    }
    let rows = read(&file("rows.parquet"));
    assert_eq!(
        (numbers(&rows, "prompt"), texts(&rows, "text")),
        (numbers(&expected, "prompt"), texts(&expected, "text"))
    );
    let of_file = FileReader::try_new(std::fs::File::open(file("rows.arrow")).unwrap(), None).unwrap();
    assert_eq!(of_file.map(|b| b.unwrap().num_rows()).sum::<usize>(), 192);
    let lines = std::fs::read_to_string(file("rows.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 192);
    assert!(lines.starts_with("{\"prompt\":0,\"position\":0,\"text\":"), "{lines}");
    assert_eq!(std::fs::read_to_string(file("rows.csv")).unwrap(), csv(&out, query));
    // In a pipe: the stream format of Arrow, and Parquet.
    let piped = sql(&out, &["--format", "arrow", query]);
    let stream = StreamReader::try_new(Cursor::new(piped.stdout), None).unwrap();
    assert_eq!(stream.map(|b| b.unwrap().num_rows()).sum::<usize>(), 192);
    assert_eq!(sql(&out, &["--format", "parquet", query]).stdout, std::fs::read(file("rows.parquet")).unwrap());
    // No rows still tell their columns.
    assert_eq!(csv(&out, "select prompt, text from tokens where prompt > 1000"), "prompt,text\n");

    // A query that fails leaves no file, and no half of one.
    let failing = file("none.csv");
    let error = failed(sql(&out, &["--output", failing.to_str().unwrap(), "select cast(text as int) from tokens"]));
    assert!(error.contains("Cannot cast"), "{error}");
    assert!(files(dir.path()).iter().all(|p| !p.to_string_lossy().contains("none.csv")));
    let error = failed(sql(&out, &["--output", failing.to_str().unwrap(), "select 1; select 2"]));
    assert!(error.contains("the output holds one"), "{error}");
}

#[test]
fn standard_input_is_the_query_and_may_be_several() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    let mut command = pipeline();
    command.args(["sql", "--format", "csv", "--out"]).arg(dir.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let query = "create view first as select * from tokens where prompt = 0;\n-- a comment; with a semicolon\n\
                 select count(*) as n from first; select ';' as semicolon;";
    child.stdin.take().unwrap().write_all(query.as_bytes()).unwrap();
    assert_eq!(succeeded(child.wait_with_output().unwrap()), "n\n16\nsemicolon\n;\n");
}

#[test]
fn the_built_in_queries_run_from_their_files_with_the_runs_own_parameters() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &["analysis.top_fraction=0.1"]));
    let from_file = succeeded(sql(dir.path(), &["-f", "sql/head_summary.sql", "--format", "json"]));
    let rows = from_file.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let top: Vec<_> = rows.filter(|r| r["subset"] == "top").map(|r| r["tokens"].clone()).collect();
    assert!(top.len() == 36 && top.iter().all(|t| t == 18), "a tenth of 180 tokens: {top:?}");
    assert_eq!(csv(dir.path(), "select max(rank) as n from top_contexts"), "n\n18\n");
}

#[test]
fn views_name_heads_and_show_tokens_in_their_text() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &[]));
    let tables = succeeded(sql(dir.path(), &["show tables"]));
    let names: Vec<&str> = tables.lines().filter_map(|l| l.strip_prefix("| ")?.split_whitespace().next()).collect();
    let mut sorted = names[1..].to_vec();
    sorted.sort_unstable();
    assert!(names[1..] == sorted && names.contains(&"contexts") && !tables.contains("information_schema"), "{tables}");

    let names =
        csv(dir.path(), "select name from heads where ablation = 'zero' and subset = 'all' order by layer, head");
    let expected: Vec<String> = (0..12).map(|i| format!("L{}H{}", i / 4, i % 4)).collect();
    assert_eq!(names.lines().skip(1).collect::<Vec<_>>(), expected);

    // A context is the text of the prompt around the marked token.
    let prompt =
        succeeded(sql(dir.path(), &["--format", "json", "select text from tokens where prompt = 3 order by position"]));
    let texts: Vec<String> = prompt
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["text"].as_str().unwrap().to_string())
        .collect();
    let shown = succeeded(sql(
        dir.path(),
        &["--format", "json", "select next_text, context from contexts where prompt = 3 and position = 9"],
    ));
    let shown: serde_json::Value = serde_json::from_str(shown.trim()).unwrap();
    let expected = format!("{}«{}»{}", texts[2..10].concat(), texts[10], texts[11..15].concat()).replace('\n', "⏎");
    assert_eq!(shown["context"], expected);

    let sums = "select max(abs(p.self_repair - t.s)) < 1e-6 as same, count(*) as n from prompt_sums p join (
        select ablation, layer, head, prompt, sum(cast(self_repair as double)) as s from ablations group by 1, 2, 3, 4) t
        on p.ablation = t.ablation and p.layer = t.layer and p.head = t.head and p.prompt = t.prompt";
    assert_eq!(csv(dir.path(), sums), "same,n\ntrue,432\n");

    // Without the tables that it reads, a view is not there.
    let corpus = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", corpus.path(), &[]));
    let tables = succeeded(sql(corpus.path(), &["show tables"]));
    assert!(tables.contains("contexts") && !tables.contains("top_contexts"), "{tables}");
}

/// 64 prompts of 63 measured tokens: 4032 rows of each of four heads, 16128 of each of three layers. Two heads fill a page.
#[test]
fn a_query_for_one_head_reads_the_row_group_of_its_layer_and_in_it_the_pages_of_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let larger = ["corpus.tokens=4096", "corpus.prompt_len=64", "ablation.kinds=resample"];
    succeeded(run_tiny("ablate", dir.path(), &larger));
    let query = "select count(self_repair) as n from ablations where layer = 1 and head = 2";
    assert_eq!(csv(dir.path(), query), "n\n4032\n");
    let plan = csv(dir.path(), &format!("explain analyze {query}"));
    for metric in [
        "row_groups_pruned_statistics=3 total → 1 matched",
        "page_index_pages_pruned=2 total → 1 matched",
        "page_index_rows_pruned=16.13 K total → 8.06 K matched",
        // The other head of the page.
        "pushdown_rows_pruned=4.03 K",
    ] {
        assert!(plan.contains(metric), "`{metric}` is not in {plan}");
    }
}

#[test]
fn errors_suggest_names_and_show_the_place() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    for (query, words) in [
        ("select * from ablation", &["no table `ablation`", "did you mean `ablations`?", "1 | select", "^^^^^^^^"][..]),
        ("select self_repare from ablations", &["no column `self_repare`", "`self_repair`"]),
        ("select a.layr from ablations a", &["no column `a.layr`", "`layer`"]),
        (
            "select * from ablations where hold = \"None\"",
            &["no column `None`", "single quotes for text: 'None'", "^^^^"],
        ),
        ("select avrg(layer) from ablations", &["no function `avrg`", "`avg`"]),
        ("select 1\nfrm tokens where", &["not SQL", "found: tokens", "2 | frm tokens", "  |     ^"]),
        ("select layer, head from ablations group by layer", &["`head` must be in `group by`"]),
        ("select $top", &["$top is not defined", "$top_fraction"]),
        ("insert into tokens select * from tokens", &["read only", "--output"]),
        (
            "select * from ablations where component = \"head\"",
            &["Cannot cast string", "single quotes are for text: 'head'"],
        ),
        ("select sum(self_repair > 0) from ablations", &["sum(Boolean)", "Cast the argument", "cast(x > 0 as int)"]),
        ("", &["there is no query"]),
    ] {
        let error = failed(sql(dir.path(), &[query]));
        words.iter().for_each(|word| assert!(error.contains(word), "{query}: `{word}` is not in {error}"));
        assert!(!error.contains("External") && !error.contains("bug in"), "{query}: {error}");
    }
    let rows = csv(dir.path(), "select count(*) as n from tokens");
    assert_eq!(rows, "n\n192\n", "nothing was inserted");
}

#[test]
fn operators_on_bits_refuse_numbers_that_are_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    for query in [
        "select self_repair ^ 2 from ablations",
        "select sqrt(avg(self_repair ^ 2)) from ablations",
        "select 1 from ablations where layer ^ 2 > 1",
    ] {
        let error = failed(sql(dir.path(), &[query]));
        assert!(error.contains("write power(x, 2)"), "{query}: {error}");
    }
    for operator in ["|", "&", "<<", ">>"] {
        for query in [
            format!("select self_repair {operator} 2 from ablations"),
            format!("select 1 {operator} self_repair from ablations"),
            format!("select layer {operator} 1.5 from ablations"),
            format!("select cast(self_repair as decimal(5, 2)) {operator} 1 from ablations"),
            format!("select 1 from ablations where (layer + 0.5) {operator} 1 = 0"),
            format!("select (select max(self_repair {operator} 1) from ablations) as x"),
            format!("select max(a.layer) from ablations a join tokens t on a.self_repair {operator} 1 = t.prompt"),
        ] {
            let error = failed(sql(dir.path(), &[&query]));
            assert!(error.contains(&format!("`{operator}` works on integers")), "{query}: {error}");
        }
    }
    assert_eq!(
        csv(dir.path(), "select 5 | 2 as a, 5 & 4 as b, 1 << 3 as c, power(1.5, 2) as d"),
        "a,b,c,d\n7,4,8,2.25\n"
    );
    let squares = csv(dir.path(), "select max(abs(power(logit, 2) - logit * logit)) < 1e-5 as same from clean");
    assert_eq!(squares, "same\ntrue\n");
}

/// Not a benchmark: a guard against reading every footer, or building an inference session, before the first word.
#[test]
fn it_starts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    // Without records, every file is the table's.
    std::fs::remove_dir_all(dir.path().join("stages")).unwrap();
    let folder = dir.path().join("tables/tokens");
    for i in 0..2000 {
        std::fs::hard_link(folder.join("tokens.parquet"), folder.join(format!("{i:05}.parquet"))).unwrap();
    }
    let best = |arguments: &[&str]| {
        let time = |_| {
            let started = std::time::Instant::now();
            assert!(pipeline().args(arguments).output().unwrap().status.success());
            started.elapsed().as_secs_f64()
        };
        (0..3).map(time).fold(f64::MAX, f64::min)
    };
    let out = dir.path().display().to_string();
    assert!(best(&["--help"]) < 2.0);
    assert!(best(&["sql", "--out", &out, "select 1"]) < 2.0);
    assert_eq!(csv(dir.path(), "select count(*) as n from tokens"), format!("n\n{}\n", 192 * 2001));
}
