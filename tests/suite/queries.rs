//! Every query of `sql/` on small tables whose answer was worked out by hand: `tests/queries/NAME.txt` for
//! `sql/NAME.sql`, and likewise for `sql/checks/` and `sql/views/`. (A view has no order, so its rows are sorted by the
//! columns that the case names.)
//!
//! A case is blocks of lines, separated by empty lines. The first line of a block names a table, the second its
//! columns, and the others are its rows. The last block, `expect`, has the rows that the query must return, for the
//! columns it names. Cells are separated by spaces unless in double quotes; `-` is null; a line that starts with # is a
//! comment. Columns of a key that are not named are what a run without special settings writes (`complete`): full strength,
//! clean holds, and the name that follows from component, layer and head. Other columns of a measured table are 0, empty
//! or, if nullable, null.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use parquet::arrow::ArrowWriter;
use selfrepair_core::config::AnalysisConfig;
use selfrepair_core::tables::MEASURED;
use selfrepair_query::analyze::{CHECKS, DERIVED, Query, VIEWS, open};
use selfrepair_store::test_tables::complete;

/// A table as a case writes it down.
struct Grid<'a> {
    name: &'a str,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The cells of a line, those in quotes without them.
fn cells(line: &str) -> Vec<String> {
    let mut cells = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        match i % 2 {
            0 => cells.extend(part.split_whitespace().map(str::to_string)),
            _ => cells.push(part.to_string()),
        }
    }
    cells
}

fn parse(text: &str) -> Vec<Grid<'_>> {
    let mut grids: Vec<Grid> = Vec::new();
    let mut inside = false;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        match (line.trim().is_empty(), inside) {
            (true, _) => inside = false,
            (false, false) => {
                grids.push(Grid { name: line.trim(), columns: vec![], rows: vec![] });
                inside = true;
            }
            (false, true) => {
                let grid = grids.last_mut().unwrap();
                match grid.columns.is_empty() {
                    true => grid.columns = cells(line),
                    false => {
                        assert_eq!(cells(line).len(), grid.columns.len(), "{line}");
                        grid.rows.push(cells(line));
                    }
                }
            }
        }
    }
    grids
}

fn is_null(cell: &str) -> bool {
    cell == "-"
}

impl Grid<'_> {
    /// A measured table has its own types; of a derived one they follow from the cells.
    fn batch(&self) -> RecordBatch {
        let Some(table) = MEASURED.iter().find(|t| t.name == self.name) else { return self.untyped() };
        let schema = table.schema();
        for name in &self.columns {
            assert!(schema.field_with_name(name).is_ok(), "{} has no column {name}", self.name);
        }
        let columns = schema.fields().iter().map(|field| {
            let values: Vec<Option<String>> = match self.columns.iter().position(|c| c == field.name()) {
                Some(i) => self.rows.iter().map(|r| Some(r[i].clone()).filter(|c| !is_null(c))).collect(),
                None if field.is_nullable() => vec![None; self.rows.len()],
                None if field.data_type() == &DataType::Boolean => vec![Some("false".to_string()); self.rows.len()],
                None if !field.data_type().is_numeric() => vec![Some(String::new()); self.rows.len()],
                None => vec![Some("0".to_string()); self.rows.len()],
            };
            let array = cast(&StringArray::from(values.clone()), field.data_type()).unwrap();
            assert_eq!(array.null_count(), values.iter().filter(|v| v.is_none()).count(), "{}", field.name());
            array
        });
        RecordBatch::try_new(schema.clone(), columns.collect()).unwrap()
    }

    fn untyped(&self) -> RecordBatch {
        let column = |i: usize| -> ArrayRef {
            let cells = || self.rows.iter().map(|r| Some(r[i].as_str()).filter(|c| !is_null(c)));
            if cells().flatten().all(|c| c.parse::<i64>().is_ok()) {
                return Arc::new(cells().map(|c| c.map(|c| c.parse().unwrap())).collect::<Int64Array>());
            }
            if cells().flatten().all(|c| c.parse::<bool>().is_ok()) {
                return Arc::new(cells().map(|c| c.map(|c| c.parse().unwrap())).collect::<BooleanArray>());
            }
            match cells().flatten().all(|c| c.parse::<f64>().is_ok()) {
                true => Arc::new(cells().map(|c| c.map(|c| c.parse().unwrap())).collect::<Float64Array>()),
                false => Arc::new(cells().collect::<StringArray>()),
            }
        };
        let columns: Vec<ArrayRef> = (0..self.columns.len()).map(column).collect();
        let field = |(name, array): (&String, &ArrayRef)| Field::new(name, array.data_type().clone(), true);
        let fields: Vec<Field> = self.columns.iter().zip(&columns).map(field).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn write(&self, out: &Path) {
        let folder = out.join("tables").join(self.name);
        fs::create_dir_all(&folder).unwrap();
        let batch = self.batch();
        let file = fs::File::create(folder.join("0.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn assert_is(&self, got: &RecordBatch, query: &str) {
        let shown = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(got)).unwrap();
        assert_eq!(got.num_rows(), self.rows.len(), "rows of {query}:\n{shown}");
        for (i, name) in self.columns.iter().enumerate() {
            let column = got.column_by_name(name).unwrap_or_else(|| panic!("{query} gives no column {name}:\n{shown}"));
            let texts = cast(column, &DataType::Utf8).unwrap();
            let numbers = cast(column, &DataType::Float64).unwrap();
            for (row, cells) in self.rows.iter().enumerate() {
                let expected = cells[i].as_str();
                let agrees = match expected.parse::<f64>() {
                    _ if is_null(expected) => column.is_null(row),
                    Ok(x) => {
                        let value = numbers.as_primitive::<Float64Type>().value(row);
                        numbers.is_valid(row) && (value - x).abs() <= 1e-5 * x.abs().max(1.0)
                    }
                    Err(_) => texts.is_valid(row) && texts.as_string::<i32>().value(row) == expected,
                };
                assert!(agrees, "{query}: {name} of row {row} is not {expected}:\n{shown}");
            }
        }
    }
}

fn assert_cases(folder: &str, queries: &[Query]) {
    for query in queries {
        let path = format!("{folder}/{}.txt", query.name);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut grids = parse(&text);
        let expected = grids.pop().unwrap();
        assert_eq!(expected.name, "expect", "the last block of {path}");
        let out = tempfile::tempdir().unwrap();
        grids.iter_mut().for_each(|g| complete(&mut g.columns, &mut g.rows));
        grids.iter().for_each(|g| g.write(out.path()));
        let config = AnalysisConfig::default();
        let tables = open(out.path(), &config).unwrap();
        for grid in grids.iter().filter(|g| MEASURED.iter().all(|t| t.name != g.name)) {
            tables.add(grid.name, out.path()).unwrap();
        }
        let sql = match folder.ends_with("views") {
            true => format!("select * from (\n{}\n) order by {}", query.text, expected.columns.join(", ")),
            false => query.text.to_string(),
        };
        let rows = tables.collect(&sql, &[("top_fraction", config.top_fraction)]);
        let rows = rows.unwrap_or_else(|e| panic!("{path}: {e}"));
        let schema = rows[0].schema();
        expected.assert_is(&concat_batches(&schema, &rows).unwrap(), &query.name);
        let documented = query.columns();
        for field in schema.fields().iter().filter(|_| !folder.ends_with("checks")) {
            assert!(documented.contains_key(field.name().as_str()), "{}: what is {}?", query.name, field.name());
        }
    }
}

#[test]
fn derived_tables_are_what_was_worked_out_by_hand() {
    assert_cases("tests/queries", DERIVED);
}

#[test]
fn views_are_what_was_worked_out_by_hand() {
    assert_cases("tests/queries/views", VIEWS);
}

#[test]
fn checks_find_what_is_wrong_and_nothing_else() {
    assert_cases("tests/queries/checks", CHECKS);
}
