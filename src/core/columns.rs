//! Columns of the types that [`tables`](crate::tables) names.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, PrimitiveArray, StringArray,
    StringDictionaryBuilder,
};
use arrow::datatypes::{ArrowPrimitiveType, Int32Type};
use arrow::record_batch::RecordBatch;

/// A column as numbers of the type that it is to have.
///
/// # Errors
/// If it has another type, or is not there: anybody can have written a file of a run folder.
pub fn numbers<T: ArrowPrimitiveType>(rows: &RecordBatch, column: usize) -> Result<&PrimitiveArray<T>> {
    of_type(rows, column, T::DATA_TYPE.to_string(), |array| array.as_primitive_opt())
}

/// As [`numbers`], of truth values.
pub fn truths(rows: &RecordBatch, column: usize) -> Result<&BooleanArray> {
    of_type(rows, column, "Boolean".into(), |array| array.as_boolean_opt())
}

fn of_type<'a, A: 'static>(
    rows: &'a RecordBatch,
    column: usize,
    expected: String,
    read: impl Fn(&'a ArrayRef) -> Option<&'a A>,
) -> Result<&'a A> {
    let array = rows.columns().get(column).with_context(|| format!("the column {column} is missing"))?;
    read(array).with_context(|| {
        let schema = rows.schema();
        let name = schema.fields().get(column).map_or("", |field| field.name());
        format!("the column `{name}` has the type {}; expected {expected}", array.data_type())
    })
}

pub fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    // Of an iterator whose length is not known beforehand, too.
    Arc::new(values.into_iter().map(Some).collect::<StringArray>())
}

/// Names of components, each stored once.
pub fn names<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    let mut builder = StringDictionaryBuilder::<Int32Type>::new();
    values.into_iter().for_each(|name| builder.append_value(name));
    Arc::new(builder.finish())
}

pub fn keys(values: impl IntoIterator<Item = usize>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values.into_iter().map(|v| v as i32)))
}

pub fn keys_or_null(values: impl IntoIterator<Item = Option<usize>>) -> ArrayRef {
    Arc::new(values.into_iter().map(|v| v.map(|v| v as i32)).collect::<Int32Array>())
}

pub fn counts(values: impl IntoIterator<Item = usize>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.into_iter().map(|v| v as i64)))
}

pub fn floats(values: impl IntoIterator<Item = f32>) -> ArrayRef {
    Arc::new(Float32Array::from_iter_values(values))
}

pub fn settings(values: impl IntoIterator<Item = f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values))
}

pub fn flags(values: impl IntoIterator<Item = bool>) -> ArrayRef {
    Arc::new(values.into_iter().map(Some).collect::<BooleanArray>())
}
