//! CSV as DuckDB and PostgreSQL write it: NULL is nothing, an empty text is `""`. Arrow's writer writes both alike.

use std::io::Write;

use anyhow::{Result, bail};
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::Schema;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::cells::{for_sheet, is_text};

/// The names of the columns, as a line.
///
/// # Errors
/// If CSV cannot hold a column.
pub fn write_header(schema: &Schema, out: &mut impl Write) -> Result<()> {
    if let Some(field) = schema.fields().iter().find(|f| f.data_type().is_nested()) {
        bail!(
            "CSV cannot hold the column `{}`, a value of which is a list or has parts; use another format",
            field.name()
        );
    }
    let names = for_sheet(&RecordBatch::new_empty(schema.clone().into()))?;
    let mut line = String::new();
    for (i, field) in names.schema().fields().iter().enumerate() {
        add_field(&mut line, i, Some(field.name()));
    }
    line.push('\n');
    Ok(out.write_all(line.as_bytes())?)
}

/// A line for each row.
pub fn write_rows(batch: &RecordBatch, out: &mut impl Write) -> Result<()> {
    let batch = for_sheet(batch)?;
    let options = FormatOptions::default();
    let formatters = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
    let formatters = formatters.collect::<Result<Vec<_>, _>>()?;
    let (mut lines, mut value) = (String::new(), String::new());
    for row in 0..batch.num_rows() {
        for (i, (column, formatter)) in batch.columns().iter().zip(&formatters).enumerate() {
            value.clear();
            formatter.value(row).write(&mut value)?;
            // What is no text and has no value is NULL.
            let is_null = value.is_empty() && !(is_text(column.data_type()) && column.is_valid(row));
            add_field(&mut lines, i, (!is_null).then_some(&value));
        }
        lines.push('\n');
    }
    Ok(out.write_all(lines.as_bytes())?)
}

fn add_field(line: &mut String, place: usize, value: Option<&str>) {
    if place > 0 {
        line.push(',');
    }
    match value {
        Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
            line.push('"');
            line.push_str(&text.replace('"', "\"\""));
            line.push('"');
        }
        Some(text) => line.push_str(text),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, NullArray, StringArray};

    use super::*;

    #[test]
    fn null_is_nothing_and_an_empty_text_is_quoted() {
        let texts = StringArray::from(vec![Some(""), None, Some("a,\"b\"\nc"), Some(" ")]);
        let numbers = Float64Array::from(vec![Some(-0.5), None, Some(1e300), Some(f64::NAN)]);
        let columns: [(&str, ArrayRef); 4] = [
            ("", Arc::new(texts.clone())),
            ("x", Arc::new(numbers)),
            ("a \"b\"", Arc::new(NullArray::new(4))),
            ("last", Arc::new(texts)),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
        let mut out = Vec::new();
        write_header(&batch.schema(), &mut out).unwrap();
        write_rows(&batch, &mut out).unwrap();
        let quoted = "\"a,\"\"b\"\"\nc\"";
        let expected =
            format!("\"\",x,\"a \"\"b\"\"\",last\n\"\",-0.5,,\"\"\n,,,\n{quoted},1e300,,{quoted}\n ,NaN,, \n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
