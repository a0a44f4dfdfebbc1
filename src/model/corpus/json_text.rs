//! Reads one text from a line of JSON. The rest of the line is skipped, not kept in memory.

use std::fmt;

use anyhow::{Error, Result, anyhow, bail};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::non_finite;

/// What a line has under a key.
#[derive(Debug, PartialEq)]
pub enum Under {
    Text(String),
    Null,
    /// There is no such key.
    Missing,
}

/// What is under `key` of a JSON object; of several, the last.
pub fn text_under(key: &str, line: &str) -> Result<Under> {
    let read = |line: &str| {
        let mut reader = serde_json::Deserializer::from_str(line);
        Key(key).deserialize(&mut reader).and_then(|found| reader.end().map(|()| found))
    };
    let found = read(line).or_else(|e| non_finite::replaced(line, "null").map_or(Err(e), |line| read(&line)));
    match found.map_err(not_json)? {
        Some(Found::Text(text)) => Ok(Under::Text(text)),
        Some(Found::Null) => Ok(Under::Null),
        Some(Found::Other(other)) => bail!("`{key}` is {other}; expected a string"),
        None => Ok(Under::Missing),
    }
}

/// Why a text is no JSON, and what can be done.
pub fn not_json(error: serde_json::Error) -> Error {
    let text = error.to_string();
    let advice = match text.contains("surrogate") || text.contains("unexpected end of hex escape") {
        true => {
            "; an escape such as \\ud83d is half a character and stands alone: write the whole character, or leave the line out"
        }
        false => "",
    };
    anyhow!("not valid JSON: {text}{advice}")
}

/// That a line has no such key.
pub fn no_key(key: &str) -> Error {
    anyhow!("no key `{key}` (name another with corpus.text_column)")
}

enum Found {
    Text(String),
    Null,
    /// How an error calls it.
    Other(String),
}

struct Key<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<Found>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Option<Found>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with the key `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Text(text.to_string()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Found, E> {
        Ok(Found::Other(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Found, E> {
        Ok(Found::Other(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Found, E> {
        Ok(Found::Other(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Found, E> {
        Ok(Found::Other(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("a list".into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_found_among_other_keys_and_anything_else_is_named() {
        let of = |line: &str| text_under("text", line).map_err(|e| format!("{e:#}"));
        let text = |line: &str| match of(line) {
            Ok(Under::Text(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(text("{\"id\": [1, {\"text\": 2}], \"text\": \"zwei \\u00e9\", \"x\": null}"), "zwei é");
        assert_eq!(text("{\"text\": \"a\", \"text\": \"b\"}"), "b");
        for (value, said) in [("5", "5"), ("-1.5", "-1.5"), ("[1]", "a list"), ("{}", "an object")] {
            assert!(of(&format!("{{\"text\": {value}}}")).unwrap_err().contains(&format!("`text` is {said}")));
        }
        assert_eq!(of("{\"text\": null}").unwrap(), Under::Null);
        assert_eq!(of("{\"body\": \"x\"}").unwrap(), Under::Missing);
        for line in ["{oops", "[]", "{\"text\": \"a\"} x", "{\"text\": \"a\"", "5", &"[".repeat(100_000)] {
            assert!(of(line).unwrap_err().contains("not valid JSON"), "{line}");
        }
        let deep = format!("{{\"x\": {}", "[".repeat(100_000));
        assert!(of(&deep).unwrap_err().contains("not valid JSON"));
    }

    #[test]
    fn values_that_are_not_read_need_not_be_numbers_nor_whole_characters() {
        let of = |line: &str| text_under("text", line).map_err(|e| format!("{e:#}"));
        let a = || Under::Text("a".into());
        for line in [
            r#"{"score": NaN, "text": "a"}"#,
            r#"{"text": "a", "scores": [1.0, -Infinity, {"x": Infinity}]}"#,
            r#"{"emoji": "\ud83d", "text": "a"}"#,
        ] {
            assert_eq!(of(line), Ok(a()), "{line}");
        }
        assert_eq!(of(r#"{"text": NaN}"#), Ok(Under::Null));
        for line in [r#"{"text": "a \ud83d"}"#, r#"{"text": "a \ud83d b"}"#, r#"{"text": "\udc00"}"#] {
            let said = of(line).unwrap_err();
            assert!(said.contains("not valid JSON") && said.contains("half a character"), "{said}");
        }
        assert_eq!(of(r#"{"text": "\ud83d\ude00"}"#), Ok(Under::Text("😀".into())));
    }
}
