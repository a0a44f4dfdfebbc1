//! `docs/tables.md`.

use std::fmt::Write;

use anyhow::Result;

use super::{TableDoc, built_in, tables_of_run};
use crate::sql::Tables;

/// The documentation of every built-in table and view as Markdown.
pub fn markdown() -> Result<String> {
    let all = built_in()?;
    let mut text = String::from(
        "# Tables\n\n\
         Written by `pipeline tables --markdown` from `src/tables/schema.rs` and the headers of `sql/`; a test keeps it \
         current.\n\n\
         Measured and derived tables are Parquet files below `<out>/tables/NAME/`. Views are computed when \
         `pipeline sql` is asked for them.\n\n\
         | table | kind | one row for |\n| --- | --- | --- |\n",
    );
    sections(&mut text, &all)?;
    Ok(text)
}

/// The documentation of a run's tables, its own among them.
pub fn markdown_of_run(tables: &Tables) -> Result<String> {
    let mut text = String::from("# Tables\n\n| table | kind | one row for |\n| --- | --- | --- |\n");
    sections(&mut text, &tables_of_run(tables)?)?;
    Ok(text)
}

/// Rows of the table of contents, then a section for each.
fn sections(text: &mut String, all: &[TableDoc]) -> Result<()> {
    for table in all {
        writeln!(text, "| [`{0}`](#{0}) | {1} | {2} |", table.name, table.kind, cell(&table.grain))?;
    }
    all.iter().try_for_each(|table| section(text, table))
}

fn section(text: &mut String, table: &TableDoc) -> Result<()> {
    writeln!(text, "\n## {}\n", table.name)?;
    if !table.question.is_empty() {
        writeln!(text, "*{}*\n", table.question)?;
    }
    write!(text, "One row for {}.", table.grain)?;
    match table.key.is_empty() {
        true => text.push_str("\n\n"),
        false => writeln!(text, " Sorted by {}.\n", table.key.join(", "))?,
    }
    text.push_str("| column | type | unit | |\n| --- | --- | --- | --- |\n");
    for c in &table.columns {
        writeln!(text, "| `{}` | {} | {} | {} |", c.name, c.data_type, c.unit, cell(&c.description))?;
    }
    writeln!(text, "\n```sql\n{}\n```", table.example)?;
    Ok(())
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
