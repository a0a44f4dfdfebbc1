//! What `pipeline sql` reads a query from, and how it shows rows.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::*;

fn corpus() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", &dir.path().join("out"), &[]));
    dir
}

fn sql(dir: &Path, arguments: &[&str]) -> Output {
    pipeline().arg("sql").arg("--out").arg(dir.join("out")).args(arguments).output().unwrap()
}

#[test]
fn null_is_no_empty_text_and_numbers_stand_to_the_right_with_six_digits() {
    let dir = corpus();
    let query = "select * from (values (1, 2.0 / 3, ''), (null, null, null), (20, -0.5, 'a')) as t (n, x, word)";
    let shown = succeeded(sql(dir.path(), &[query]));
    let expected = "\
+------+----------+------+
|    n |        x | word |
+------+----------+------+
|    1 | 0.666667 |      |
| NULL |     NULL | NULL |
|   20 |     -0.5 | a    |
+------+----------+------+
";
    assert_eq!(shown, expected);
    let digits = |digits: &str| succeeded(sql(dir.path(), &["--digits", digits, query]));
    assert!(digits("all").contains("| 0.6666666666666666 |"), "{}", digits("all"));
    assert!(digits("2").contains("|    1 | 0.67 |"), "{}", digits("2"));
    assert!(failed(sql(dir.path(), &["--digits", "none", query])).contains("expected 1 to 17, or all"));
    // Other formats have every digit and no word for NULL. In CSV it is nothing, and an empty text is quoted.
    let csv = |query: &str| succeeded(sql(dir.path(), &["--format", "csv", query]));
    assert_eq!(csv(query), "n,x,word\n1,0.6666666666666666,\"\"\n,,\n20,-0.5,a\n");
    assert_eq!(csv("select '' as word union all select null order by 1 nulls last"), "word\n\"\"\n\n");
}

#[test]
fn a_query_that_begins_with_from_selects_every_column_and_one_without_columns_is_refused() {
    let dir = corpus();
    let csv = |query: &str| succeeded(sql(dir.path(), &["--format", "csv", query]));
    let expected = csv("select * from tokens order by prompt, position limit 3");
    assert_eq!(csv("from tokens order by prompt, position limit 3"), expected);
    assert_eq!(expected.lines().count(), 4);
    assert_eq!(csv("from tokens where prompt = 0 and position < 3"), expected);
    assert_eq!(csv("with a as (from tokens where prompt = 0) from a where position < 3"), expected);
    // The place of an error is that in the text.
    let error = failed(sql(dir.path(), &["from tokens where promt = 0"]));
    assert!(error.contains("`prompt`") && error.contains("|                   ^^^^^"), "{error}");
    let error = failed(sql(dir.path(), &["select from tokens"]));
    assert!(error.contains("selects no columns") && error.contains("select * from"), "{error}");
}

#[test]
fn an_ending_of_the_output_that_is_not_known_is_an_error_and_capitals_are_none() {
    let dir = corpus();
    let to = |name: &str, more: &[&str]| {
        let path = dir.path().join(name).display().to_string();
        sql(dir.path(), &[&["--output", path.as_str(), "select 1 as one"], more].concat())
    };
    for name in ["rows.xlsx", "rows.csv.gz", "rows.tsv"] {
        let error = failed(to(name, &[]));
        let ending = name.rsplit('.').next().unwrap();
        assert!(error.contains(&format!("the ending .{ending} is not known")) && error.contains(".parquet"), "{error}");
        assert!(!dir.path().join(name).exists());
    }
    succeeded(to("rows.CSV", &[]));
    assert_eq!(fs::read_to_string(dir.path().join("rows.CSV")).unwrap(), "one\n1\n");
    succeeded(to("rows.xlsx", &["--format", "csv"]));
    succeeded(to("rows", &[]));
    assert!(fs::read_to_string(dir.path().join("rows")).unwrap().starts_with("+-----+"));
}

#[test]
fn a_byte_order_mark_before_a_query_is_no_part_of_it() {
    let dir = corpus();
    let path = dir.path().join("query.sql");
    let query = "\u{feff}select count(*) as n from tokens";
    fs::write(&path, query).unwrap();
    assert_eq!(succeeded(sql(dir.path(), &["--format", "csv", "-f", path.to_str().unwrap()])), "n\n192\n");
    let mut command = pipeline();
    command.args(["sql", "--format", "csv", "--out"]).arg(dir.path().join("out"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(query.as_bytes()).unwrap();
    assert_eq!(succeeded(child.wait_with_output().unwrap()), "n\n192\n");
    // Queries of the user's own, and the configuration.
    let queries = dir.path().join("queries");
    fs::create_dir(&queries).unwrap();
    let own = "\u{feff}-- Question: how many?\n-- Grain:    one row\n-- n: tokens\nselect count(*) as n from tokens\n";
    fs::write(queries.join("mine.sql"), own).unwrap();
    let setting = format!("analysis.sql={}", queries.display());
    succeeded(run_tiny("corpus", &dir.path().join("other"), &[&setting]));
    fs::write(&path, [0xff, 0xfe, b's', 0]).unwrap();
    let error = failed(sql(dir.path(), &["-f", path.to_str().unwrap()]));
    assert!(error.contains("query.sql") && error.contains("UTF-16"), "{error}");
}
