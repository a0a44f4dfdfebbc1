//! Functions of which one call can exhaust memory. They estimate their result first, and refuse one that is too large.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, TimeUnit};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

use selfrepair_core::progress;

/// Bytes of one text that a function makes.
const LONGEST_TEXT: u128 = 1 << 20;

/// The functions, and about how many bytes one row of their result takes.
const LARGE: [(&str, Estimate); 12] = [
    ("repeat", |row| row.length(0) * row.number(1)),
    ("lpad", |row| row.number(1)),
    ("rpad", |row| row.number(1)),
    ("replace", |row| row.length(0) + row.length(0) / row.length(1).max(1) * row.length(2)),
    ("regexp_replace", |row| row.length(0) + (row.length(0) + 1) * row.length(2)),
    ("translate", |row| row.length(0) * 4),
    ("concat", |row| row.all()),
    ("concat_ws", |row| row.all() + row.length(0) * row.count()),
    ("range", |row| row.range()),
    ("generate_series", |row| row.range()),
    ("array_repeat", |row| row.length(0).max(8) * row.number(1)),
    ("array_resize", |row| row.number(1) * 8),
];

type Estimate = fn(&Row) -> u128;

/// Puts the functions that estimate in the place of those that do not.
pub fn limit(context: &SessionContext, most: u64) {
    for (name, estimate) in LARGE {
        let Some(inner) = context.state().scalar_functions().get(name).cloned() else { continue };
        let function = Limited { name, inner, most: u128::from(most), estimate };
        context.register_udf(ScalarUDF::new_from_impl(function));
    }
}

/// The arguments of one row.
struct Row<'a> {
    arguments: &'a [Argument],
    row: usize,
}

/// One argument of all rows: of a constant, one.
struct Argument {
    values: ArrayRef,
    /// As numbers, where it is one.
    numbers: Option<ArrayRef>,
}

impl Argument {
    fn of(value: &ColumnarValue) -> Result<Self> {
        let values = match value {
            ColumnarValue::Array(array) => Arc::clone(array),
            ColumnarValue::Scalar(scalar) => scalar.to_array()?,
        };
        let is_number = |t: &DataType| {
            t.is_integer() || matches!(t, DataType::Date32 | DataType::Timestamp(TimeUnit::Nanosecond, _))
        };
        let numbers = is_number(values.data_type()).then(|| cast(&values, &DataType::Int64)).transpose()?;
        Ok(Self { values, numbers })
    }
}

impl Row<'_> {
    /// The argument, and which of its values is meant; nothing where it is null or not given.
    fn at(&self, argument: usize) -> Option<(&Argument, usize)> {
        let argument = self.arguments.get(argument)?;
        let row = self.row.min(argument.values.len().saturating_sub(1));
        (!argument.values.is_empty() && argument.values.is_valid(row)).then_some((argument, row))
    }

    /// Bytes of a text or a list.
    fn length(&self, argument: usize) -> u128 {
        let Some((argument, row)) = self.at(argument) else { return 0 };
        let values = &argument.values;
        let length = match values.data_type() {
            DataType::Utf8 => values.as_string::<i32>().value(row).len(),
            DataType::LargeUtf8 => values.as_string::<i64>().value(row).len(),
            DataType::Utf8View => values.as_string_view().value(row).len(),
            _ => values.slice(row, 1).to_data().get_slice_memory_size().unwrap_or_default(),
        };
        length as u128
    }

    fn signed(&self, argument: usize) -> Option<i128> {
        let (argument, row) = self.at(argument)?;
        Some(i128::from(argument.numbers.as_ref()?.as_primitive::<Int64Type>().value(row)))
    }

    /// How often or how long; nothing where it is negative.
    fn number(&self, argument: usize) -> u128 {
        self.signed(argument).unwrap_or(0).try_into().unwrap_or(0)
    }

    fn count(&self) -> u128 {
        self.arguments.len() as u128
    }

    /// Bytes of all arguments.
    fn all(&self) -> u128 {
        (0..self.arguments.len()).map(|i| self.length(i)).sum()
    }

    /// Bytes of a list of numbers, days or times from one to another.
    fn range(&self) -> u128 {
        let (from, to) = match self.arguments.len() {
            1 => (Some(0), self.signed(0)),
            _ => (self.signed(0), self.signed(1)),
        };
        let (Some(from), Some(to)) = (from, to) else { return 0 };
        let step = match self.at(2) {
            None => 1,
            Some((step, row)) => match step.values.as_primitive_opt::<IntervalMonthDayNanoType>() {
                None => self.signed(2).unwrap_or(1),
                Some(interval) => {
                    let interval = interval.value(row);
                    let days = 28 * i128::from(interval.months) + i128::from(interval.days);
                    let of_days = self.at(0).is_some_and(|(a, _)| a.values.data_type() == &DataType::Date32);
                    if of_days { days } else { days * 86_400_000_000_000 + i128::from(interval.nanoseconds) }
                }
            },
        };
        if step == 0 { 0 } else { 8 * ((to - from) / step + 1).max(0).unsigned_abs() }
    }
}

#[derive(Debug)]
struct Limited {
    name: &'static str,
    inner: Arc<ScalarUDF>,
    /// Bytes of one call.
    most: u128,
    estimate: Estimate,
}

impl PartialEq for Limited {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner && self.most == other.most
    }
}

impl Eq for Limited {}

impl std::hash::Hash for Limited {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl Limited {
    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let arguments = args.args.iter().map(Argument::of).collect::<Result<Vec<_>>>()?;
        let rows = arguments.iter().map(|a| a.values.len()).max().unwrap_or(0);
        let is_list = matches!(args.return_type(), DataType::List(_) | DataType::LargeList(_));
        let mut all = 0;
        for row in 0..rows {
            let bytes = (self.estimate)(&Row { arguments: &arguments, row });
            all += bytes;
            let (most, what) = if is_list { (self.most, "value") } else { (self.most.min(LONGEST_TEXT), "text") };
            if bytes > most {
                return Err(self.refused(bytes, &format!("one {what}"), most));
            }
        }
        if all > self.most {
            return Err(self.refused(all, &format!("{rows} rows"), self.most));
        }
        Ok(())
    }

    fn refused(&self, bytes: u128, what: &str, most: u128) -> DataFusionError {
        let [asked, allowed] = [bytes, most].map(|n| progress::bytes(n.min(u128::from(u64::MAX)) as u64));
        let text = format!("{}() would make {asked} for {what}; at most {allowed} are allowed", self.name);
        match most {
            // More memory does not help.
            LONGEST_TEXT => DataFusionError::Execution(text),
            _ => DataFusionError::ResourcesExhausted(text),
        }
    }
}

impl ScalarUDFImpl for Limited {
    fn name(&self) -> &str {
        self.name
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(input)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
