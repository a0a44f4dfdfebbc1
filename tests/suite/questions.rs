//! The queries of `docs/questions.md` run as printed.

use arrow::array::Array;

use crate::support::*;

/// The headings and the SQL of the page.
fn questions() -> Vec<(String, Vec<String>)> {
    let page = std::fs::read_to_string("docs/questions.md").unwrap();
    let sections = page.split("\n## ").skip(1);
    sections.map(|s| (s.lines().next().unwrap_or_default().to_string(), code_blocks(s, "sql"))).collect()
}

#[test]
fn ten_questions_are_answered_by_one_query_each() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &EVERYTHING));
    let session = selfrepair_query::sql::Tables::open(dir.path()).unwrap();
    let questions = questions();
    assert_eq!(questions.len(), 10);
    for (i, (title, queries)) in questions.iter().enumerate() {
        assert!(title.starts_with(&format!("{}. ", i + 1)) && title.ends_with('?'), "{title}");
        let [query] = &queries[..] else { panic!("{title}: {} queries", queries.len()) };
        let answer = session.collect(query, &[]).unwrap_or_else(|e| panic!("{title}: {e:#}"));
        let rows: usize = answer.iter().map(|batch| batch.num_rows()).sum();
        assert!(rows > 0, "{title}: no rows");
        for (i, field) in answer[0].schema().fields().iter().enumerate() {
            let nulls: usize = answer.iter().map(|batch| batch.column(i).null_count()).sum();
            assert!(nulls < rows, "{title}: {} has no value", field.name());
        }
    }
}
