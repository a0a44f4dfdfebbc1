//! `NaN` and `Infinity` in JSON, which has no such values: Python's `json` writes them all the same.

/// The JSON with something else in their place; `None` if it has none.
pub fn replaced(json: &str, with: &str) -> Option<String> {
    let (mut out, mut copied, mut in_text) = (String::new(), 0, false);
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            b'N' | b'I' | b'-' if !in_text => {
                if let Some(word) = ["NaN", "Infinity", "-Infinity"].iter().find(|w| is_word(bytes, at, w)) {
                    out.push_str(json.get(copied..at)?);
                    out.push_str(with);
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    json.get(copied..).filter(|_| copied > 0).map(|rest| out + rest)
}

fn is_word(bytes: &[u8], at: usize, word: &str) -> bool {
    let is_part = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let before = at.checked_sub(1).and_then(|i| bytes.get(i));
    let begins = bytes.get(at..).is_some_and(|rest| rest.starts_with(word.as_bytes()));
    begins && !is_part(before) && !is_part(bytes.get(at + word.len()))
}

/// What stands for such a value where it is no error: nothing that is asked of a configuration is an object of this kind.
pub const MARKED: &str = "{\"not a number\": \"NaN or Infinity\"}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_and_texts_are_not() {
        for (json, expected) in [
            (r#"{"a": NaN, "b": [Infinity,-Infinity]}"#, Some(r#"{"a": 0, "b": [0,0]}"#)),
            ("NaN", Some("0")),
            (r#"{"é": NaN}"#, Some(r#"{"é": 0}"#)),
            (r#"{"a": "NaN", "b \" NaN": "\\", "c": -1}"#, None),
            (r#"{"a": "\\", "b": NaN}"#, Some(r#"{"a": "\\", "b": 0}"#)),
            (r#"{"a": NaNa, "b": aNaN, "c": Infinity1}"#, None),
            ("{\"a", None),
            ("\"\\", None),
        ] {
            assert_eq!(replaced(json, "0").as_deref(), expected, "{json}");
        }
    }
}
