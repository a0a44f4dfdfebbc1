//! Rows as aligned columns: numbers to the right with six significant digits, and NULL as such.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

use super::cells::for_display;

/// How many significant digits of a number are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// At most so many.
    Most(usize),
    /// As many as tell the number from every other one.
    All,
}

impl Default for Digits {
    fn default() -> Self {
        Self::Most(6)
    }
}

impl FromStr for Digits {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(n) if (1..=17).contains(&n) => Ok(Self::Most(n)),
            _ if text == "all" => Ok(Self::All),
            _ => bail!("`{text}` is not a number of digits; expected 1 to 17, or all"),
        }
    }
}

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Most(n) => write!(f, "{n}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl Digits {
    fn show(self, number: f64) -> String {
        let Self::Most(most) = self else { return number.to_string() };
        if !number.is_finite() || number == 0.0 {
            return if number.is_finite() { "0.0".into() } else { number.to_string() };
        }
        let rounded = format!("{number:.*e}", most - 1);
        let Some((mantissa, exponent)) = rounded.split_once('e') else { return rounded };
        let (exponent, value) = (exponent.parse().unwrap_or(0), rounded.parse().unwrap_or(number));
        // A long number is written out if that says no digit that was rounded away.
        let is_plain = (-5..most as i32).contains(&exponent) || (value == number && (0..16).contains(&exponent));
        if !is_plain {
            let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0') } else { mantissa };
            return format!("{}e{exponent}", mantissa.trim_end_matches('.'));
        }
        let decimals = usize::try_from(most as i32 - 1 - exponent).unwrap_or(0).max(1);
        let text = format!("{value:.decimals$}");
        let shorter = text.trim_end_matches('0');
        match shorter.strip_suffix('.') {
            // `12.0` is 12, and `12` is what was rounded to it.
            Some(_) if value == number => format!("{shorter}0"),
            Some(whole) => whole.to_string(),
            None => shorter.to_string(),
        }
    }
}

/// The cells of a batch, column by column, safe for a terminal.
pub fn cells(batch: &RecordBatch, digits: Digits) -> Result<Vec<Vec<String>>> {
    let shown = for_display(batch)?;
    batch.columns().iter().zip(shown.columns()).map(|(column, shown)| column_cells(column, shown, digits)).collect()
}

fn column_cells(column: &ArrayRef, shown: &ArrayRef, digits: Digits) -> Result<Vec<String>> {
    let nulls = column.logical_nulls();
    let is_null = |row: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
    // A number of 32 bits is told from the others of 32 bits by fewer digits.
    let numbers = match (column.data_type(), digits) {
        (DataType::Float64, _) | (DataType::Float16 | DataType::Float32, Digits::Most(_)) => {
            Some(cast(column, &DataType::Float64)?)
        }
        _ => None,
    };
    let numbers = numbers.as_ref().map(|column| column.as_primitive::<Float64Type>());
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(shown, &options)?;
    let cell = |row: usize| match numbers {
        _ if is_null(row) => Ok("NULL".to_string()),
        Some(numbers) => Ok(digits.show(numbers.value(row))),
        None => Ok(formatter.value(row).try_to_string()?),
    };
    (0..column.len()).map(cell).collect()
}

/// Rows as aligned columns, control characters shown. All batches have the same columns.
pub fn table_text(rows: &[RecordBatch], digits: Digits) -> Result<String> {
    Ok(text(&columns(rows, digits)?))
}

/// A column: its name, its cells, and whether they stand to the right.
pub struct Column {
    pub name: String,
    pub cells: Vec<String>,
    right: bool,
}

pub fn columns(rows: &[RecordBatch], digits: Digits) -> Result<Vec<Column>> {
    let Some(first) = rows.first() else { return Ok(vec![]) };
    let schema = for_display(&first.slice(0, 0))?.schema();
    let kinds = first.schema();
    let mut columns: Vec<Column> = schema
        .fields()
        .iter()
        .zip(kinds.fields())
        .map(|(field, kind)| Column { name: field.name().clone(), cells: vec![], right: kind.data_type().is_numeric() })
        .collect();
    for batch in rows {
        for (column, cells) in columns.iter_mut().zip(cells(batch, digits)?) {
            column.cells.extend(cells);
        }
    }
    Ok(columns)
}

pub fn text(columns: &[Column]) -> String {
    let widest = |column: &Column| column.cells.iter().flat_map(|c| c.lines()).map(UnicodeWidthStr::width).max();
    let widths: Vec<usize> = columns.iter().map(|c| widest(c).unwrap_or(0).max(c.name.width())).collect();
    let rule = widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("+");
    let mut out = format!("+{rule}+\n");
    add_row(&mut out, columns, &widths, |column| &column.name);
    out.push_str(&format!("+{rule}+\n"));
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        add_row(&mut out, columns, &widths, |column| column.cells.get(row).map_or("", String::as_str));
    }
    out.push_str(&format!("+{rule}+"));
    out
}

/// A row of as many lines as its longest cell has.
fn add_row<'a>(out: &mut String, columns: &'a [Column], widths: &[usize], cell: impl Fn(&'a Column) -> &'a str) {
    let cells: Vec<Vec<&str>> = columns.iter().map(|column| cell(column).split('\n').collect()).collect();
    for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
        for ((column, cell), width) in columns.iter().zip(&cells).zip(widths) {
            let text = cell.get(line).copied().unwrap_or_default();
            let space = " ".repeat(width.saturating_sub(text.width()));
            match column.right {
                true => out.push_str(&format!("| {space}{text} ")),
                false => out.push_str(&format!("| {text}{space} ")),
            }
        }
        out.push_str("|\n");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float32Array, Float64Array, Int32Array, NullArray, StringArray};

    use super::*;

    #[test]
    fn numbers_have_six_significant_digits() {
        for (number, expected) in [
            (0.24005382375735657, "0.240054"),
            (8.446357, "8.44636"),
            (-71.34094274316249, "-71.3409"),
            (0.5, "0.5"),
            (3.0, "3.0"),
            (0.0, "0.0"),
            (-0.0, "0.0"),
            (999999.6, "1e6"),
            (123456.7, "123457"),
            (12.00000001, "12"),
            (1234567.0, "1.23457e6"),
            (2160000.0, "2160000.0"),
            (1e15, "1000000000000000.0"),
            (1e22, "1e22"),
            (0.000012345678, "0.0000123457"),
            (0.0000012345678, "1.23457e-6"),
            (1e-300, "1e-300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(Digits::default().show(number), expected, "{number}");
        }
        assert_eq!(Digits::All.show(0.24005382375735657), "0.24005382375735657");
        assert_eq!(Digits::Most(2).show(0.2499), "0.25");
        assert_eq!(Digits::Most(1).show(26.0), "3e1");
        for wrong in ["0", "18", "-1", "some", ""] {
            assert!(wrong.parse::<Digits>().is_err(), "{wrong}");
        }
        assert_eq!(("all".parse::<Digits>().unwrap(), "3".parse::<Digits>().unwrap()), (Digits::All, Digits::Most(3)));
    }

    #[test]
    fn numbers_stand_to_the_right_and_null_is_no_empty_text() {
        let rows = RecordBatch::try_from_iter([
            ("layer", Arc::new(Int32Array::from(vec![Some(3), None, Some(12)])) as ArrayRef),
            ("repair", Arc::new(Float64Array::from(vec![Some(0.24005382375735657), Some(-12.0), None])) as ArrayRef),
            ("x", Arc::new(Float32Array::from(vec![0.1, 1.0, 100.25])) as ArrayRef),
            ("text", Arc::new(StringArray::from(vec![Some(""), None, Some("é\n漢")])) as ArrayRef),
            ("none", Arc::new(NullArray::new(3)) as ArrayRef),
        ]);
        let rows = [rows.unwrap()];
        let expected = "\
+-------+----------+--------+-------+------+
| layer |   repair |      x | text  | none |
+-------+----------+--------+-------+------+
|     3 | 0.240054 |    0.1 |       | NULL |
|  NULL |    -12.0 |    1.0 | NULL  | NULL |
|    12 |     NULL | 100.25 | é\\n漢 | NULL |
+-------+----------+--------+-------+------+";
        assert_eq!(table_text(&rows, Digits::default()).unwrap(), expected);
        let all = table_text(&rows, Digits::All).unwrap();
        assert!(all.contains("| 0.24005382375735657 |") && all.contains("|    0.1 |"), "{all}");
        let none = table_text(&[rows[0].slice(0, 0)], Digits::default()).unwrap();
        assert!(none.starts_with("+-------+--------+---+------+------+\n| layer | repair | x |"), "{none}");
    }
}
