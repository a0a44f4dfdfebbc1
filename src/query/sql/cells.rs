//! Cells as text: escaped for a terminal, and safe for a spreadsheet that evaluates formulas.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use selfrepair_core::plain::{visible, visible_lines};

/// The rows as a terminal may be sent them: control characters in texts, lists and names of columns are shown. Only a plan
/// (`explain`) goes over several lines.
pub fn for_display(batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    let is_plan = schema.fields().iter().map(|f| f.name().as_str()).eq(["plan_type", "plan"]);
    let shown: fn(&str) -> Cow<str> = if is_plan { visible_lines } else { visible };
    let options = FormatOptions::default();
    let column = |column: &ArrayRef| -> Result<ArrayRef> {
        if !has_text(column.data_type()) {
            return Ok(Arc::clone(column));
        }
        let formatter = ArrayFormatter::try_new(column, &options)?;
        let cell = |row: usize| match column.is_valid(row) {
            true => Ok(Some(shown(&formatter.value(row).try_to_string()?).into_owned())),
            false => Ok(None),
        };
        Ok(Arc::new((0..column.len()).map(cell).collect::<Result<StringArray>>()?))
    };
    with_columns(batch, visible, column)
}

/// The rows as a spreadsheet may be given them: a text that begins as a formula does has a `'` before it, which says that
/// it is text. Numbers are what they are.
pub fn for_sheet(batch: &RecordBatch) -> Result<RecordBatch> {
    let column = |column: &ArrayRef| -> Result<ArrayRef> {
        if !is_text(column.data_type()) {
            return Ok(Arc::clone(column));
        }
        let texts = cast(column, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        match texts.iter().flatten().any(begins_a_formula) {
            true => Ok(Arc::new(texts.iter().map(|text| text.map(unformulated)).collect::<StringArray>())),
            false => Ok(Arc::new(texts.clone())),
        }
    };
    with_columns(batch, unformulated, column)
}

/// Texts as plain strings, however they were read.
pub fn with_plain_texts(batch: RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    if schema.fields().iter().all(|f| f.data_type() != &DataType::Utf8View) {
        return Ok(batch);
    }
    let plain = |f: &FieldRef| match f.data_type() {
        DataType::Utf8View => Arc::new(f.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => f.clone(),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(plain).collect();
    let columns = batch.columns().iter().zip(&fields).map(|(column, f)| cast(column, f.data_type()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    Ok(RecordBatch::try_new(schema, columns)?)
}

fn with_columns(
    batch: &RecordBatch,
    name: impl Fn(&str) -> Cow<str>,
    column: impl Fn(&ArrayRef) -> Result<ArrayRef>,
) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>>>()?;
    let schema = batch.schema();
    let field = |(field, column): (&Arc<Field>, &ArrayRef)| {
        Field::new(name(field.name()), column.data_type().clone(), field.is_nullable())
    };
    let fields: Vec<Field> = schema.fields().iter().zip(&columns).map(field).collect();
    let rows = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)?)
}

pub fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn has_text(data_type: &DataType) -> bool {
    is_text(data_type) || data_type.is_nested()
}

fn begins_a_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'])
}

fn unformulated(text: &str) -> Cow<'_, str> {
    if begins_a_formula(text) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, ListArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn batch(name: &str, column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter([(name, column)]).unwrap()
    }

    fn texts(batch: &RecordBatch) -> Vec<Option<String>> {
        batch.column(0).as_string::<i32>().iter().map(|t| t.map(str::to_string)).collect()
    }

    #[test]
    fn control_characters_of_cells_and_names_are_shown() {
        let column = Arc::new(StringArray::from(vec![Some("\u{1b}[2J\n"), None, Some("é")])) as ArrayRef;
        let shown = for_display(&batch("a\u{1b}", column.clone())).unwrap();
        assert_eq!(shown.schema().field(0).name(), "a\\u{1b}");
        assert_eq!(texts(&shown), [Some("\\u{1b}[2J\\n".into()), None, Some("é".into())]);
        let of_dictionary =
            cast(&column, &DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into())).unwrap();
        for other in [cast(&column, &DataType::Utf8View).unwrap(), of_dictionary] {
            assert_eq!(texts(&for_display(&batch("a", other)).unwrap())[0], Some("\\u{1b}[2J\\n".into()));
        }
        // Numbers stay numbers, and lists are text.
        let numbers = Arc::new(Float32Array::from(vec![-1.5])) as ArrayRef;
        assert_eq!(for_display(&batch("x", numbers.clone())).unwrap().column(0), &numbers);
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), Some(2)])]);
        assert_eq!(texts(&for_display(&batch("x", Arc::new(list))).unwrap()), [Some("[1, 2]".into())]);
    }

    #[test]
    fn a_plan_keeps_its_lines() {
        let text = |t: &str| Arc::new(StringArray::from(vec![t])) as ArrayRef;
        let plan = RecordBatch::try_from_iter([("plan_type", text("logical_plan")), ("plan", text("a\n  b\u{1b}"))]);
        let shown = for_display(&plan.unwrap()).unwrap();
        assert_eq!(shown.column(1).as_string::<i32>().value(0), "a\n  b\\u{1b}");
    }

    #[test]
    fn texts_that_begin_as_formulas_do_are_marked_and_numbers_are_not() {
        let column =
            StringArray::from(vec![Some("=1+1"), Some("-"), Some("a=1"), None, Some(" +"), Some("@x"), Some("\tx")]);
        let marked = for_sheet(&batch("=name", Arc::new(column))).unwrap();
        let expected = [Some("'=1+1"), Some("'-"), Some("a=1"), None, Some(" +"), Some("'@x"), Some("'\tx")];
        assert_eq!(texts(&marked), expected.map(|t| t.map(str::to_string)));
        assert_eq!(marked.schema().field(0).name(), "'=name");
        let numbers = Arc::new(Float32Array::from(vec![-1.5])) as ArrayRef;
        assert_eq!(for_sheet(&batch("x", numbers.clone())).unwrap().column(0), &numbers);
    }
}
