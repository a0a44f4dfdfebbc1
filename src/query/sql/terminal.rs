//! Rows on a terminal: as a table if it fits, else one line per value.

use std::fmt::Write;

use anyhow::Result;
use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use rustyline::Editor;
use rustyline::history::DefaultHistory;

use super::cells::for_display;
use super::output::table_text;

/// As a table, or, if that is wider than the terminal (or `expanded` asks for it), one line per value.
pub fn for_terminal(rows: &[RecordBatch], expanded: Option<bool>) -> Result<String> {
    let table = table_text(rows)?;
    let wide = || {
        let widest = table.lines().map(|l| l.chars().count()).max().unwrap_or(0);
        width().is_some_and(|width| widest > width) && rows.iter().any(|batch| batch.num_rows() > 0)
    };
    match expanded.unwrap_or_else(wide) {
        true => lines(rows),
        false => Ok(table),
    }
}

/// Columns of the terminal, if there is one.
fn width() -> Option<usize> {
    let mut editor = Editor::<(), DefaultHistory>::new().ok()?;
    editor.dimensions().map(|(columns, _)| usize::from(columns))
}

fn lines(rows: &[RecordBatch]) -> Result<String> {
    let (mut text, mut number) = (String::new(), 0);
    let options = FormatOptions::default();
    for batch in rows {
        let batch = for_display(batch)?;
        let schema = batch.schema();
        let names = schema.fields().iter().map(|f| f.name().as_str());
        let width = names.clone().map(|n| n.chars().count()).max().unwrap_or(0);
        let columns: Vec<ArrayFormatter> =
            batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<_, _>>()?;
        let next_line = format!("\n{:width$} │ ", "");
        for row in 0..batch.num_rows() {
            number += 1;
            writeln!(text, "─[ row {number} ]{}", "─".repeat(width.saturating_sub(8)))?;
            for (name, column) in names.clone().zip(&columns) {
                let value = column.value(row).to_string().replace('\n', &next_line);
                writeln!(text, "{name:width$} │ {value}")?;
            }
        }
    }
    text.truncate(text.trim_end().len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray};

    use super::*;

    #[test]
    fn rows_that_are_too_wide_are_shown_a_value_a_line() {
        let batch = RecordBatch::try_from_iter([
            ("layer", Arc::new(Int32Array::from(vec![3, 4])) as ArrayRef),
            ("name", Arc::new(StringArray::from(vec!["L3", "L4"])) as ArrayRef),
        ]);
        let rows = [batch.unwrap()];
        let expected = "─[ row 1 ]\nlayer │ 3\nname  │ L3\n─[ row 2 ]\nlayer │ 4\nname  │ L4";
        assert_eq!(for_terminal(&rows, Some(true)).unwrap(), expected);
        assert!(for_terminal(&rows, Some(false)).unwrap().contains("| layer | name |"));
    }

    #[test]
    fn no_cell_sends_the_terminal_anything_but_text() {
        let text = |t: &str| Arc::new(StringArray::from(vec![t])) as ArrayRef;
        let hostile = "\u{1b}]0;title\u{7}\u{9b}2J\r\nerror: all is lost\u{202e}";
        let rows = [RecordBatch::try_from_iter([(hostile, text(hostile)), ("plain", text("x"))]).unwrap()];
        for expanded in [true, false] {
            let shown = for_terminal(&rows, Some(expanded)).unwrap();
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{shown:?}");
            assert!(!shown.lines().any(|l| l.starts_with("error:")), "{shown}");
        }
    }
}
