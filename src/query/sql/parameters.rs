//! The values of a query's `$name` parameters.

use anyhow::{Result, anyhow};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// A value that a query names as `$name`. It is a value wherever it stands: its text is never parsed as SQL.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Whole(i64),
    Number(f64),
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_string())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Whole(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Flag(flag)
    }
}

impl Value {
    fn scalar(&self) -> ScalarValue {
        match self {
            Value::Text(text) => ScalarValue::from(text.as_str()),
            Value::Whole(number) => ScalarValue::from(*number),
            Value::Number(number) => ScalarValue::from(*number),
            Value::Flag(flag) => ScalarValue::from(*flag),
        }
    }

    /// As a person would write it in a query.
    fn literal(&self) -> String {
        match self {
            Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
            Value::Whole(number) => number.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
        }
    }
}

/// As DataFusion takes them.
pub(super) fn scalars(parameters: &[(&str, Value)]) -> ParamValues {
    ParamValues::Map(parameters.iter().map(|(name, value)| (name.to_string(), value.scalar().into())).collect())
}

/// The query as a person would ask it: each `$name` replaced by its value. This is text to be read and copied; what is
/// run is the query with parameters.
pub fn with_literals(sql: &str, parameters: &[(&str, Value)]) -> Result<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).with_unescape(false).tokenize();
    let tokens = tokens.map_err(|e| anyhow!("{e} in the query {sql}"))?;
    let shown = |token: &Token| match token {
        Token::Placeholder(name) => {
            let value = parameters.iter().find(|(of, _)| name.strip_prefix('$') == Some(*of));
            value.map_or_else(|| name.clone(), |(_, value)| value.literal())
        }
        other => other.to_string(),
    };
    Ok(tokens.iter().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_shown_with_its_values_and_otherwise_as_it_is() {
        let sql = "select 'it''s $a', \"$a\" -- $a\nfrom t\nwhere a = $a  and b >= $b and c = $c / 2.50 /* $b */";
        let shown = with_literals(sql, &[("a", "x' or 'y' = 'y".into()), ("b", 3.into())]).unwrap();
        let expected = "select 'it''s $a', \"$a\" -- $a\nfrom t\nwhere a = 'x'' or ''y'' = ''y'  and b >= 3 and c = $c \
                        / 2.50 /* $b */";
        assert_eq!(shown, expected);
        assert_eq!(with_literals("$x * $n", &[("x", 0.5.into()), ("n", (-1).into())]).unwrap(), "0.5 * -1");
    }
}
