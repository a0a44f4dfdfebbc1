//! Rows on a terminal: as a table if it fits, else one line per value.

use std::fmt::Write;

use anyhow::Result;
use arrow::array::RecordBatch;
use rustyline::Editor;
use rustyline::history::DefaultHistory;
use unicode_width::UnicodeWidthStr;

use super::table::{Column, Digits, columns, text};

/// As a table, or, if that is wider than the terminal (or `expanded` asks for it), one line per value.
pub fn for_terminal(rows: &[RecordBatch], expanded: Option<bool>, digits: Digits) -> Result<String> {
    let mut columns = columns(rows, digits)?;
    let table = text(&columns);
    let widest = |table: &str| table.lines().map(UnicodeWidthStr::width).max().unwrap_or(0);
    let too_wide = width().map(|width| widest(&table).saturating_sub(width)).filter(|&more| more > 0);
    if expanded.is_none()
        && let (Some(more), [.., last]) = (too_wide, columns.as_mut_slice())
        && last.name == ONE_ROW_FOR
    {
        cut(last, more);
        return Ok(text(&columns));
    }
    let wide = || too_wide.is_some() && rows.iter().any(|batch| batch.num_rows() > 0);
    match expanded.unwrap_or_else(wide) {
        true => lines(&columns),
        false => Ok(table),
    }
}

/// The last column of `show tables`, which `\d` and `pipeline tables` show whole.
pub const ONE_ROW_FOR: &str = "one_row_for";

/// Makes a column so much narrower.
fn cut(column: &mut Column, by: usize) {
    let widest = column.cells.iter().map(|cell| cell.width()).max().unwrap_or(0);
    let most = widest.saturating_sub(by).max(column.name.width());
    for cell in column.cells.iter_mut().filter(|cell| cell.width() > most) {
        *cell = cell.chars().take(most.saturating_sub(1)).chain(['…']).collect();
    }
}

/// Columns of the terminal, if there is one.
fn width() -> Option<usize> {
    let mut editor = Editor::<(), DefaultHistory>::new().ok()?;
    editor.dimensions().map(|(columns, _)| usize::from(columns))
}

fn lines(columns: &[Column]) -> Result<String> {
    let mut text = String::new();
    let width = columns.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    let next_line = format!("\n{:width$} │ ", "");
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        writeln!(text, "─[ row {} ]{}", row + 1, "─".repeat(width.saturating_sub(8)))?;
        for column in columns {
            let cell = column.cells.get(row).map_or("", String::as_str);
            writeln!(text, "{:width$} │ {}", column.name, cell.replace('\n', &next_line))?;
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
        assert_eq!(for_terminal(&rows, Some(true), Digits::default()).unwrap(), expected);
        assert!(for_terminal(&rows, Some(false), Digits::default()).unwrap().contains("| layer | name |"));
    }

    #[test]
    fn no_cell_sends_the_terminal_anything_but_text() {
        let text = |t: &str| Arc::new(StringArray::from(vec![t])) as ArrayRef;
        let hostile = "\u{1b}]0;title\u{7}\u{9b}2J\r\nerror: all is lost\u{202e}";
        let rows = [RecordBatch::try_from_iter([(hostile, text(hostile)), ("plain", text("x"))]).unwrap()];
        for expanded in [true, false] {
            let shown = for_terminal(&rows, Some(expanded), Digits::default()).unwrap();
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{shown:?}");
            assert!(!shown.lines().any(|l| l.starts_with("error:")), "{shown}");
        }
    }
}
