//! `analysis.sql`: the user's own queries as tables of the run.

use std::fs;
use std::path::Path;

use crate::support::*;

const STRONG: &str = "-- Question: which heads are repaired most?
-- Grain:    ablation × layer × head
-- Example:  select * from strong order by self_repair desc
--
-- ablation, layer, head: as in `ablations`
-- self_repair: mean self-repair on the top tokens [logits]
select ablation, layer, head, self_repair from head_summary where subset = 'top' and self_repair > 0
";

/// Reads the other one, a built-in view and the run's parameter.
const COUNTS: &str = "-- Question: how many of each layer's heads are strong?
-- Grain:    layer
--
-- layer: block
-- strong_heads: rows of `strong` in it
-- share: the run's top_fraction
-- named: of them, those that `heads` knows
select s.layer, count(*) as strong_heads, cast($top_fraction as double) as share, count(distinct h.name) as named
from strong s
join heads h on h.ablation = s.ablation and h.layer = s.layer and h.head = s.head and h.subset = 'top'
group by s.layer
order by s.layer
";

fn folder(dir: &Path, queries: &[(&str, &str)]) -> String {
    let folder = dir.join("my-queries");
    fs::create_dir_all(&folder).unwrap();
    queries.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    format!("analysis.sql={}", folder.display())
}

#[test]
fn own_queries_become_tables_that_are_documented_and_follow_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let setting = folder(dir.path(), &[("strong.sql", STRONG), ("counts.sql", COUNTS)]);
    let shown = run_tiny("analyze", &out, &[&setting]);
    // The built-in ones and two.
    let count = selfrepair_query::analyze::DERIVED.len() + selfrepair_query::analyze::COMPUTED.len() + 2;
    assert!(text(&shown.stderr).contains(&format!("{count} tables")), "{}", text(&shown.stderr));
    succeeded(shown);
    let strong = read(&out.join("tables/strong"));
    assert!(strong.num_rows() > 0 && numbers(&strong, "self_repair").iter().all(|&v| v > 0.0));
    assert_eq!(numbers(&read(&out.join("tables/counts")), "share")[0] as f32, 0.02);

    let shown = succeeded(pipeline().args(["tables", "strong", "--out"]).arg(&out).output().unwrap());
    for words in ["strong (own)", "which heads are repaired most?", "mean self-repair on the top tokens", "logits"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let list = succeeded(pipeline().args(["tables", "--out"]).arg(&out).output().unwrap());
    assert!(list.lines().any(|l| l.starts_with("strong ") && l.contains("ablation × layer × head")), "{list}");

    let up_to_date = |setting: &str| {
        let output = run_tiny("analyze", &out, &[setting]);
        assert!(output.status.success());
        text(&output.stderr).contains("analyze up to date")
    };
    assert!(up_to_date(&setting));
    fs::write(dir.path().join("my-queries/strong.sql"), STRONG.replace("> 0", "> 0.1")).unwrap();
    assert!(!up_to_date(&setting), "another text is another table");
    assert!(read(&out.join("tables/strong")).num_rows() < strong.num_rows());
    // A query that is gone takes its table with it.
    fs::remove_file(dir.path().join("my-queries/counts.sql")).unwrap();
    assert!(!up_to_date(&setting));
    assert!(!out.join("tables/counts").exists() && out.join("tables/strong").exists());
}

#[test]
fn an_own_query_that_cannot_be_used_is_named() {
    let error = |name: &str, text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let setting = folder(dir.path(), &[(name, text)]);
        failed(run_tiny("analyze", &dir.path().join("out"), &[&setting]))
    };
    for (name, text, words) in [
        ("tokens.sql", STRONG, &["tokens.sql", "built-in table `tokens`"][..]),
        ("heads.sql", STRONG, &["heads.sql", "built-in"]),
        ("My Table.sql", STRONG, &["My Table.sql", "a-z"]),
        ("bare.sql", "select 1 as one", &["bare.sql", "-- Question:"]),
        ("mine.sql", &STRONG.replace("-- Grain:", "-- Grian:"), &["mine.sql", "-- Grain:"]),
        (
            "mine.sql",
            &STRONG.replace("-- self_repair:", "-- repair:"),
            &["mine.sql", "does not describe `self_repair`"],
        ),
        ("mine.sql", &STRONG.replace("head_summary", "head_sumary"), &["mine.sql", "`head_sumary`", "`head_summary`"]),
        ("mine.sql", &STRONG.replace("select ablation", "selekt ablation"), &["mine.sql", "not SQL"]),
        ("mine.sql", &STRONG.replace("from head_summary", "from mine"), &["mine.sql", "circle"]),
    ] {
        let error = error(name, text);
        words.iter().for_each(|word| assert!(error.contains(word), "{name}: `{word}` is not in {error}"));
    }
    let dir = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("analyze", dir.path(), &["analysis.sql=no/such/folder"]));
    assert!(error.contains("no/such/folder") && error.contains("folder of .sql files"), "{error}");
}

/// The example of the documentation, as it stands there.
#[test]
fn the_documented_example_runs() {
    let page = fs::read_to_string("docs/own-queries.md").unwrap();
    let query = page.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let setting = folder(dir.path(), &[("head_agreement.sql", query)]);
    succeeded(run_tiny("analyze", &out, &[&setting]));
    assert_eq!(read(&out.join("tables/head_agreement")).num_rows(), 12);
}
