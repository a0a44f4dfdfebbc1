//! Reads one text from a line of JSON. The rest of the line is skipped, not kept in memory.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The text under `key` of a JSON object; of several, the last.
pub fn text_under(key: &str, line: &str) -> Result<String> {
    let mut reader = serde_json::Deserializer::from_str(line);
    let found = Key(key).deserialize(&mut reader).and_then(|found| reader.end().map(|()| found));
    match found.context("not valid JSON")? {
        Some(Found::Text(text)) => Ok(text),
        Some(Found::Other(other)) => bail!("`{key}` is {other}; expected a string"),
        None => bail!("no key `{key}` (name another with corpus.text_column)"),
    }
}

enum Found {
    Text(String),
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
        Ok(Found::Other("null".into()))
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
        assert_eq!(of("{\"id\": [1, {\"text\": 2}], \"text\": \"zwei \\u00e9\", \"x\": null}").unwrap(), "zwei é");
        assert_eq!(of("{\"text\": \"a\", \"text\": \"b\"}").unwrap(), "b");
        for (value, said) in [("5", "5"), ("-1.5", "-1.5"), ("null", "null"), ("[1]", "a list"), ("{}", "an object")] {
            assert!(of(&format!("{{\"text\": {value}}}")).unwrap_err().contains(&format!("`text` is {said}")));
        }
        assert!(of("{\"body\": \"x\"}").unwrap_err().contains("no key `text`"));
        for line in ["{oops", "[]", "{\"text\": \"a\"} x", "{\"text\": \"a\"", "5", &"[".repeat(100_000)] {
            assert!(of(line).unwrap_err().contains("not valid JSON"), "{line}");
        }
        let deep = format!("{{\"x\": {}", "[".repeat(100_000));
        assert!(of(&deep).unwrap_err().contains("not valid JSON"));
    }
}
