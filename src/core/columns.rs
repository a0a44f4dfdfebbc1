//! Columns of the types that [`tables`](crate::tables) names.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray, StringDictionaryBuilder,
};
use arrow::datatypes::Int32Type;

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
