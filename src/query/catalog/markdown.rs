//! Writes `docs/tables.md`.

use std::fmt::Write;

use anyhow::Result;

use super::escape::{self, code, is_plain};
use super::{ColumnDoc, TableDoc, built_in};
use selfrepair_core::tables::MEASURED;

/// The documentation of every built-in table and view as Markdown.
pub fn markdown() -> Result<String> {
    let all = built_in()?;
    let mut text = String::from(
        "# Tables\n\n\
         Written by `pipeline tables --markdown` from `src/core/tables.rs` and the headers of `sql/`; a test keeps it \
         current.\n\n\
         Measured and derived tables are Parquet files below `<out>/tables/NAME/`. A view is computed when a query reads it.\n\n\
         Keys are Int32, counts Int64, settings such as `strength` Float64, measured numbers Float32. Names of components are \
         dictionary-encoded text. Rows are sorted by the key, with a component's name after its layer and head, so that \
         layers stay together and `L10H0` does not come before `L2H0`; the files' `sorting_columns` say so. In each table \
         about ablations, `component`, `name`, `layer` and `head` are what was ablated, and `repairer…` what repairs. A \
         measured table that the configuration did not ask for is there without rows.\n\n\
         | table | kind | one row for |\n| --- | --- | --- |\n",
    );
    sections(&mut text, &all)?;
    Ok(text)
}

/// The documentation of a run's tables, its own among them. What its files say of them, and this program does not, is
/// text.
pub fn markdown_of(tables: Vec<TableDoc>) -> Result<String> {
    let known = built_in()?;
    let escaped = |table: TableDoc| {
        let known = known.iter().find(|k| k.name == table.name);
        escaped(table, known)
    };
    let mut text = String::from("# Tables\n\n| table | kind | one row for |\n| --- | --- | --- |\n");
    sections(&mut text, &tables.into_iter().map(escaped).collect::<Vec<_>>())?;
    Ok(text)
}

/// The words of a table that are not those of the program, escaped.
fn escaped(table: TableDoc, known: Option<&TableDoc>) -> TableDoc {
    let unless = |text: String, known: Option<&String>| match known {
        Some(known) if *known == text => text,
        _ => escape::text(&text),
    };
    let column = |c: ColumnDoc| {
        let known = known.and_then(|k| k.columns.iter().find(|k| k.name == c.name));
        ColumnDoc {
            data_type: unless(c.data_type, known.map(|k| &k.data_type)),
            unit: unless(c.unit, known.map(|k| &k.unit)),
            description: unless(c.description, known.map(|k| &k.description)),
            name: c.name,
        }
    };
    TableDoc {
        question: unless(table.question, known.map(|k| &k.question)),
        grain: unless(table.grain, known.map(|k| &k.grain)),
        columns: table.columns.into_iter().map(column).collect(),
        ..table
    }
}

/// Rows of the table of contents, then a section for each.
fn sections(text: &mut String, all: &[TableDoc]) -> Result<()> {
    for table in all {
        let name = code(&table.name);
        let name = if is_plain(&table.name) { format!("[{name}](#{})", table.name) } else { name };
        writeln!(text, "| {name} | {} | {} |", table.kind, cell(&table.grain))?;
    }
    all.iter().try_for_each(|table| section(text, table))
}

fn section(text: &mut String, table: &TableDoc) -> Result<()> {
    let name = if is_plain(&table.name) { table.name.clone() } else { code(&table.name) };
    writeln!(text, "\n## {name}\n")?;
    if !table.question.is_empty() {
        writeln!(text, "*{}*\n", table.question)?;
    }
    write!(text, "One row for {}.", table.grain)?;
    match table.key.is_empty() {
        true => text.push_str("\n\n"),
        false => writeln!(text, " Sorted by {}.\n", table.key.join(", "))?,
    }
    if let Some(setting) = MEASURED.iter().find(|t| t.name == table.name).and_then(|t| t.setting) {
        writeln!(text, "Empty unless measured: {}.\n", code(setting))?;
    }
    text.push_str("| column | type | unit | |\n| --- | --- | --- | --- |\n");
    for c in &table.columns {
        writeln!(text, "| {} | {} | {} | {} |", code(&c.name), c.data_type, c.unit, cell(&c.description))?;
    }
    writeln!(text, "\n{}", escape::block("sql", &table.example))?;
    Ok(())
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.chars() {
        if c == '|' && before != '\\' {
            out.push('\\');
        }
        out.push(if c == '\n' { ' ' } else { c });
        before = c;
    }
    out
}
