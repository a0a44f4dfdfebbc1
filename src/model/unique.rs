//! JSON objects without duplicate keys. Readers disagree on which of two values counts.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A JSON object by key.
pub struct Unique<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = BTreeMap<String, V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if let Some((key, _)) = out.get_key_value(&key) {
                        return Err(A::Error::custom(format!("`{key}` is there twice")));
                    }
                    out.insert(key, value);
                }
                Ok(out)
            }
        }
        deserializer.deserialize_map(Keys(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        let parse = |text: &str| serde_json::from_str::<Unique<u8>>(text);
        assert_eq!(parse("{\"a\": 1, \"b\": 2}").unwrap().0.len(), 2);
        assert!(parse("{\"a\": 1, \"a\": 1}").err().unwrap().to_string().contains("`a` is there twice"));
        assert!(parse("[]").is_err());
    }
}
