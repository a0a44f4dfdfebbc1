//! The catalog of tables and views: grain, sort key, columns, and an example query.
//!
//! Descriptions come from `src/core/tables.rs` and the headers of `sql/`; types come from planning those queries. So
//! the catalog cannot be out of date.

mod builtin;
pub mod escape;
mod markdown;
mod of_run;

use std::fmt::Write;

use anyhow::{Context, Result};
use arrow::datatypes::{DataType, Schema};

pub use builtin::built_in;
pub use markdown::{markdown, markdown_of};
pub use of_run::{list_of_run, list_of_session, rows, table_of_session, tables_of_run, thousands};

use selfrepair_core::plain::visible;
use selfrepair_core::tables::name_type;

/// One table or view.
pub struct TableDoc {
    pub name: String,
    /// `measured`, `derived`, `view`, or `own` for a table of the user's own analysis.
    pub kind: &'static str,
    /// What a derived table answers.
    pub question: String,
    /// The grain: what one row is.
    pub grain: String,
    /// Columns by which the rows are sorted.
    pub key: Vec<String>,
    pub columns: Vec<ColumnDoc>,
    pub example: String,
}

pub struct ColumnDoc {
    pub name: String,
    pub data_type: String,
    pub unit: String,
    pub description: String,
}

impl TableDoc {
    /// The whole documentation as text for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{} ({})\n", visible(&self.name), self.kind);
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                writeln!(text, "  {name:<12}{}", wrapped(value, 14)).ok();
            }
        };
        row("answers", &self.question);
        row("one row for", &self.grain);
        row("sorted by", &self.key.join(", "));
        text.push('\n');
        let width = |of: fn(&ColumnDoc) -> &str| self.columns.iter().map(|c| of(c).chars().count()).max().unwrap_or(0);
        let (names, types, units) = (width(|c| &c.name), width(|c| &c.data_type), width(|c| &c.unit));
        for column in &self.columns {
            let indent = 2 + names + 2 + types + 2 + units + 2;
            writeln!(
                text,
                "  {:names$}  {:types$}  {:units$}  {}",
                visible(&column.name),
                visible(&column.data_type),
                visible(&column.unit),
                wrapped(&column.description, indent)
            )
            .ok();
        }
        write!(text, "\nexample\n  {}", self.example.replace('\n', "\n  ")).ok();
        text
    }
}

/// The built-in documentation of one table.
///
/// # Errors
/// If there is none of that name; the nearest names are suggested.
pub fn find(name: &str) -> Result<TableDoc> {
    let all = built_in()?;
    let names: Vec<String> = all.iter().map(|t| t.name.clone()).collect();
    all.into_iter().find(|t| t.name == name).with_context(|| unknown(name, &names))
}

fn unknown(name: &str, names: &[String]) -> String {
    crate::sql::no_such_table(name, names)
}

/// The list of the built-in tables, without a run.
pub fn list() -> Result<String> {
    let all = built_in()?;
    Ok(columns(&[&["table", "kind", "one row for"]], all.iter().map(|t| vec![&*t.name, t.kind, &*t.grain])))
}

/// `float32`, `text`: types as a notebook calls them.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_string(),
        dictionary if *dictionary == name_type() => "dictionary".to_string(),
        other => other.to_string().to_lowercase(),
    }
}

/// The columns of a schema, described by its metadata or, where that says nothing, by `described`.
fn columns_of(schema: &Schema, described: impl Fn(&str) -> Option<(String, String)>) -> Vec<ColumnDoc> {
    let of = |field: &arrow::datatypes::Field| {
        let said = |key: &str| field.metadata().get(key).cloned().unwrap_or_default();
        let (description, unit) = match said("description") {
            none if none.is_empty() => described(field.name()).unwrap_or_default(),
            description => (description, said("unit")),
        };
        ColumnDoc { name: field.name().clone(), data_type: type_name(field.data_type()), unit, description }
    };
    schema.fields().iter().map(|f| of(f)).collect()
}

/// Rows of words as aligned columns; the last column is wrapped.
fn columns<'a>(header: &[&[&'a str]], rows: impl Iterator<Item = Vec<&'a str>>) -> String {
    let rows: Vec<Vec<&str>> = header.iter().map(|h| h.to_vec()).chain(rows).collect();
    let count = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count.saturating_sub(1)).map(width).collect();
    let indent: usize = widths.iter().map(|w| w + 2).sum();
    let line = |row: &Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "{:width$}  ", visible(cell)).ok();
        }
        text.push_str(&wrapped(row.last().copied().unwrap_or_default(), indent));
        text.trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Breaks a text into lines that fit 110 columns behind an indent.
fn wrapped(text: &str, indent: usize) -> String {
    let width = 110usize.saturating_sub(indent).max(40);
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(&visible(word));
        used += length;
    }
    out
}
