//! The queries of figures, of the page's tables and of the summary: one file each in `sql/figures/`, compiled in.
//!
//! A file starts with the same header comment as the others in `sql/`. Values that depend on the run (an ablation, a
//! head) are `$name` parameters, so no text from a table becomes part of a query.

use anyhow::{Context, Result};

use selfrepair_query::analyze::Query;
use selfrepair_query::sql::{Value, with_literals};

/// A query with the values of its parameters.
pub struct Asked {
    pub query: Query,
    pub parameters: Vec<(&'static str, Value)>,
}

/// `ask!("NAME", parameter = value, …)`: the query `sql/figures/NAME.sql` with its parameters.
macro_rules! ask {
    ($name:literal $(, $parameter:ident = $value:expr)* $(,)?) => {
        $crate::query::Asked {
            query: selfrepair_query::analyze::Query {
                name: std::borrow::Cow::Borrowed($name),
                text: std::borrow::Cow::Borrowed(include_str!(concat!(
                    env!("CARGO_MANIFEST_DIR"), "/../../sql/figures/", $name, ".sql"
                ))),
                file: std::borrow::Cow::Borrowed(concat!("sql/figures/", $name, ".sql")),
            },
            parameters: vec![$((stringify!($parameter), selfrepair_query::sql::Value::from($value))),*],
        }
    };
}
pub(super) use ask;

impl Asked {
    /// The query with one more parameter.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// The query as the page shows it: without its comment, its parameters replaced by their values.
    pub fn shown(&self) -> Result<String> {
        let query: Vec<&str> = self.query.text.lines().skip_while(|line| line.starts_with("--")).collect();
        with_literals(&query.join("\n"), &self.parameters).with_context(|| format!("in {}", self.query.file))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use selfrepair_core::tables::MEASURED;
    use selfrepair_query::analyze::{COMPUTED, DERIVED, PAPER, authors_schema, in_order};
    use selfrepair_query::sql::Planner;

    /// Names of the queries that lie in `sql/figures/`.
    fn files() -> BTreeSet<String> {
        let files =
            fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../sql/figures")).unwrap().map(|f| f.unwrap().path());
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect()
    }

    fn read(name: &str) -> Query {
        let file = format!("{}/../../sql/figures/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(&file).unwrap();
        Query { name: name.to_string().into(), text: text.into(), file: file.into() }
    }

    /// Sources of the report below a folder.
    fn sources(folder: &Path) -> String {
        let paths = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
        paths.map(|p| if p.is_dir() { sources(&p) } else { fs::read_to_string(&p).unwrap_or_default() }).collect()
    }

    #[test]
    fn every_file_is_asked() {
        let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")));
        let asked: BTreeSet<String> = sources
            .split("ask!(")
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
            .map(str::to_string)
            .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .collect();
        assert_eq!(files(), asked);
    }

    /// Tables of a run that are empty, derived ones with the columns that their queries give.
    fn planner() -> Planner {
        let planner = Planner::new().unwrap();
        for table in MEASURED.into_iter().chain(COMPUTED) {
            planner.add(table.name, table.schema()).unwrap();
        }
        let threshold = arrow::datatypes::Field::new("threshold", arrow::datatypes::DataType::Float64, false);
        planner.add("thresholds", arrow::datatypes::Schema::new(vec![threshold]).into()).unwrap();
        planner.add("authors", authors_schema().unwrap()).unwrap();
        for query in in_order(DERIVED.iter().chain(PAPER).collect()).unwrap() {
            planner.add(&query.name, planner.schema(&query.text).unwrap().into()).unwrap();
        }
        planner
    }

    #[test]
    fn every_query_is_planned_over_empty_tables_and_says_what_it_gives() {
        let planner = planner();
        for name in files() {
            let query = read(&name);
            let columns = planner.schema(&query.text).unwrap_or_else(|e| panic!("{}: {e:#}", query.file));
            assert!(query.question().ends_with('?'), "{name}: {}", query.question());
            assert!(!query.grain().is_empty(), "{name}");
            let described = query.columns();
            for field in columns.fields() {
                assert!(described.contains_key(field.name().as_str()), "{name}: what is {}?", field.name());
            }
            assert_eq!(described.len(), columns.fields().len(), "{name} describes {described:?}");
        }
        assert!(planner.schema(&read("heads").text.replace("self_repair", "self_repare")).is_err());
    }

    #[test]
    fn a_query_is_shown_with_its_values_and_without_its_comment() {
        let asked = ask!("repair_by_layer_means", ablation = "it's");
        let expected = "select layer, self_repair\nfrom layer_summary\nwhere component = 'head' and hold = 'none' and \
                        strength = 1 and ablation = 'it''s' and subset = 'top'\norder by layer";
        assert_eq!(asked.shown().unwrap(), expected);
        assert!(ask!("repair_by_layer_means").shown().unwrap().contains("ablation = $ablation"));
    }
}
