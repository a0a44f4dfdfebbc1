//! Answers of a prompt set: a token id, or a text that is one token where it goes on with another text.

use std::borrow::Cow;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::tokenizer::TextTokenizer;

/// Finds the tokens of answers, and counts those that the text would not go on with.
pub struct Answers<'a> {
    tokenizer: &'a TextTokenizer,
    /// Puts nothing in front of a text.
    inside: Cow<'a, Tokenizer>,
    without_space: Doubt,
    other_tokens: Doubt,
}

/// Answers that may not be what was meant.
#[derive(Default)]
struct Doubt {
    count: usize,
    /// The first of them.
    example: String,
}

impl Doubt {
    fn add(&mut self, example: impl FnOnce() -> String) {
        if self.count == 0 {
            self.example = example();
        }
        self.count += 1;
    }

    fn text(&self) -> Option<String> {
        let more = match self.count {
            0 => return None,
            1 => String::new(),
            n => format!(" ({} more of this kind)", n - 1),
        };
        Some(format!("{}{more}", self.example))
    }
}

/// The text that an answer follows, and its tokens without a BOS.
pub struct Before<'a> {
    /// File and row.
    pub place: &'a str,
    pub text: &'a str,
    pub tokens: &'a [u32],
}

impl<'a> Answers<'a> {
    pub fn new(tokenizer: &'a TextTokenizer) -> Result<Self> {
        let inside = inside(tokenizer.inner())?;
        Ok(Self { tokenizer, inside, without_space: Doubt::default(), other_tokens: Doubt::default() })
    }

    /// The token of an answer. `before` is the text it follows, if that is known.
    pub fn token(&mut self, key: &str, value: &Value, before: Option<&Before>) -> Result<u32> {
        if let Value::String(text) = value {
            let id = self.one_token(key, text)?;
            if let Some(before) = before {
                self.doubt(key, text, id, before)?;
            }
            return Ok(id);
        }
        let id = whole(key, value).with_context(|| format!("`{key}` is a text of one token, or a token id"))?;
        let vocab = self.tokenizer.vocab();
        let id = u32::try_from(id).ok().filter(|&id| (id as usize) < vocab);
        id.with_context(|| format!("`{key}` is {value}; the model's token ids go from 0 to {}", vocab - 1))
    }

    /// What to warn of.
    pub fn warnings(&self) -> Vec<String> {
        [&self.without_space, &self.other_tokens].into_iter().filter_map(Doubt::text).collect()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_with(&self.inside, text)
    }

    fn one_token(&self, key: &str, text: &str) -> Result<u32> {
        let ids = self.encode(text)?;
        if let &[one] = ids.as_slice() {
            return Ok(one);
        }
        let pieces: Vec<String> = ids.iter().map(|&id| self.tokenizer.text_of(id)).collect::<Result<_>>()?;
        let other = match text.strip_prefix(' ') {
            Some(rest) => rest.to_string(),
            None => format!(" {text}"),
        };
        let advice = match self.encode(&other)?.as_slice() {
            [id] => format!("; \"{other}\" is one ({id})"),
            _ => String::new(),
        };
        bail!("`{key}` must be one token, but \"{text}\" is {} of this model: {pieces:?}{advice}", ids.len())
    }

    /// Whether the text goes on with the answer as the tokenizer splits the two together.
    fn doubt(&mut self, key: &str, answer: &str, id: u32, before: &Before) -> Result<()> {
        let Before { place, text, tokens } = *before;
        let joined = self.tokenizer.encode(&format!("{text}{answer}"))?;
        let goes_on = |joined: &[u32]| joined.len() == tokens.len() + 1 && joined.starts_with(tokens);
        let last: String = text.chars().rev().take_while(|c| !c.is_whitespace()).take(20).collect();
        let last: String = last.chars().rev().collect();
        if ends_a_word(text) && answer.chars().next().is_some_and(is_of_spaced_word) {
            let spaced = self.tokenizer.encode(&format!("{text} {answer}"))?;
            if goes_on(&spaced) {
                self.without_space.add(|| {
                    format!(
                        "{place}: `{key}` is \"{answer}\", which has no space in front, so that the text goes on with \
                         \"{last}{answer}\"; if another word is meant, write \" {answer}\""
                    )
                });
                return Ok(());
            }
        }
        if !(goes_on(&joined) && joined.last() == Some(&id)) {
            let advice = match text.ends_with(char::is_whitespace) {
                true => "; leave out the space at the end of the text and put it before the answer",
                false => "",
            };
            self.other_tokens.add(|| {
                format!(
                    "{place}: `{key}` is \"{answer}\", and the text and the answer together are other tokens than the \
                     one after the other, so that the model never reads the answer there{advice}"
                )
            });
        }
        Ok(())
    }
}

/// A whole number, also as pandas writes one in a column with missing values: `5.0`.
pub fn whole(key: &str, value: &Value) -> Result<i64> {
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15).map(|x| x as i64);
    let number = value.as_i64().or_else(float);
    number.with_context(|| format!("`{key}` is {}; expected a whole number", shown(value)))
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80).and_then(|(end, _)| text.get(..end)) {
        Some(beginning) => format!("{beginning}…"),
        None => text,
    }
}

/// Whether a word follows with a space, unless it is part of the same word.
fn ends_a_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(|c| is_of_spaced_word(c) || c.is_numeric() || ",;:.!?".contains(c))
}

/// Letters of the scripts that separate words by spaces.
fn is_of_spaced_word(c: char) -> bool {
    let without_spaces = matches!(c,
        '\u{e00}'..='\u{eff}' | '\u{f00}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
    c.is_alphabetic() && !without_spaces
}

/// The tokenizer for what stands inside a text: without the space that some put in front of every text.
fn inside(tokenizer: &Tokenizer) -> Result<Cow<'_, Tokenizer>> {
    let parts =
        [serde_json::to_value(tokenizer.get_normalizer())?, serde_json::to_value(tokenizer.get_pre_tokenizer())?];
    let changed = parts.clone().map(without_prefix);
    if changed == parts {
        return Ok(Cow::Borrowed(tokenizer));
    }
    let [normalizer, pre_tokenizer] = changed;
    let mut inside = tokenizer.clone();
    let normalizer: Option<NormalizerWrapper> = serde_json::from_value(normalizer)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> = serde_json::from_value(pre_tokenizer)?;
    inside.with_normalizer(normalizer).map_err(|e| anyhow!("{e}"))?;
    inside.with_pre_tokenizer(pre_tokenizer);
    Ok(Cow::Owned(inside))
}

/// A normalizer or pre-tokenizer without what it does at the beginning of a text.
fn without_prefix(mut part: Value) -> Value {
    let sets = match part.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            for key in ["normalizers", "pretokenizers"] {
                if let Some(parts) = part.get_mut(key).and_then(Value::as_array_mut) {
                    let changed = std::mem::take(parts).into_iter().map(without_prefix).filter(|part| !part.is_null());
                    *parts = changed.collect();
                }
            }
            None
        }
        Some("Prepend") => return Value::Null,
        Some("Metaspace") => Some(("prepend_scheme", "never".into())),
        Some("ByteLevel") => Some(("add_prefix_space", false.into())),
        Some("Strip") => Some(("strip_left", false.into())),
        _ => None,
    };
    if let (Some((key, value)), Some(part)) = (sets, part.as_object_mut()) {
        part.insert(key.into(), value);
    }
    part
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Pieces as SentencePiece has them, with what puts `▁` in front of a text.
    fn tokenizer(normalizer: Value, pre_tokenizer: Value) -> TextTokenizer {
        let merges = [
            ["T", "h"],
            ["Th", "e"],
            ["▁", "The"],
            ["c", "a"],
            ["▁", "ca"],
            ["▁ca", "t"],
            ["▁", "t"],
            ["▁", "s"],
            ["M", "a"],
            ["r", "y"],
            ["Ma", "ry"],
            ["▁", "Mary"],
        ];
        let pieces = ["<unk>", "<s>", "</s>", "▁", "T", "h", "e", "c", "a", "t", "s", "M", "r", "y"].map(String::from);
        let pieces = pieces.into_iter().chain(merges.iter().map(|merge| merge.concat()));
        let vocab: serde_json::Map<String, Value> =
            pieces.zip(0..).map(|(piece, id)| (piece, Value::from(id))).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
            "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": merges},
        });
        TextTokenizer::new(Tokenizer::from_bytes(json.to_string()).unwrap(), "here").unwrap()
    }

    fn legacy() -> TextTokenizer {
        let normalizers = [
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        ];
        tokenizer(json!({"type": "Sequence", "normalizers": normalizers}), Value::Null)
    }

    fn metaspace(scheme: &str, split: bool) -> TextTokenizer {
        let part = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        tokenizer(Value::Null, part)
    }

    #[test]
    fn answers_with_a_space_and_without_reach_the_tokens_with_it_and_without() {
        for tokenizer in [legacy(), metaspace("first", false), metaspace("always", true), metaspace("never", false)] {
            let mut answers = Answers::new(&tokenizer).unwrap();
            for (answer, id) in [
                (json!("t"), 9),
                (json!(" t"), 20),
                (json!("s"), 10),
                (json!("Mary"), 24),
                (json!(" Mary"), 25),
                (json!("▁Mary"), 25),
                (json!(24), 24),
                (json!(25.0), 25),
            ] {
                assert_eq!(answers.token("answer", &answer, None).unwrap(), id, "{answer}");
            }
            // A whole text is what it was.
            let in_front = if tokenizer.encode("Mary").unwrap() == [24] { 24 } else { 25 };
            assert_eq!(tokenizer.encode("Mary The").unwrap(), [in_front, 16]);
        }
        // With `add_prefix_space`.
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-llama/tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        json["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let vocab = json["model"]["vocab"].clone();
        let tokenizer = TextTokenizer::new(Tokenizer::from_bytes(json.to_string()).unwrap(), "here").unwrap();
        let mut answers = Answers::new(&tokenizer).unwrap();
        for (answer, piece) in [("a", "a"), (" a", "Ġa"), (" library", "Ġlibrary")] {
            assert_eq!(
                u64::from(answers.token("answer", &json!(answer), None).unwrap()),
                vocab[piece].as_u64().unwrap()
            );
        }
    }

    #[test]
    fn the_text_of_a_token_has_its_space() {
        for tokenizer in [legacy(), metaspace("first", false)] {
            let texts = [1, 16, 18, 9, 25, 24, 3].map(|id| tokenizer.text_of(id).unwrap());
            assert_eq!(texts, ["<s>", " The", " ca", "t", " Mary", "Mary", " "]);
            assert_eq!(tokenizer.decode(&[16, 25]).unwrap(), "The Mary");
        }
        let kinds = [
            // Token, decoder, text.
            (
                "▁Mary",
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
                " Mary",
            ),
            ("Mary", json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), " Mary"),
            ("ry", json!({"type": "WordPiece", "prefix": "r", "cleanup": true}), "y"),
            ("Mary", json!({"type": "BPEDecoder", "suffix": "ry"}), "Ma "),
        ];
        for (token, decoder, text) in kinds {
            let plain = legacy();
            let mut inner = plain.inner().clone();
            let decoder: tokenizers::DecoderWrapper = serde_json::from_value(decoder).unwrap();
            inner.with_decoder(Some(decoder));
            let id = inner.token_to_id(token).unwrap();
            assert_eq!(TextTokenizer::new(inner, "here").unwrap().text_of(id).unwrap(), text, "{token}");
        }
    }

    #[test]
    fn answers_that_a_text_would_not_go_on_with_are_warned_of_and_others_are_not() {
        let tokenizer = legacy();
        let warnings = |text: &str, given: &[Value]| {
            let tokens = tokenizer.encode(text).unwrap();
            let mut answers = Answers::new(&tokenizer).unwrap();
            let before = Before { place: "a.jsonl, row 1", text, tokens: &tokens };
            for answer in given {
                answers.token("answer", answer, Some(&before)).unwrap();
            }
            answers.warnings()
        };
        assert_eq!(warnings("The ca", &[json!(" t"), json!(" Mary"), json!(9)]), [""; 0]);
        let [said] = &warnings("The ca", &[json!("t"), json!("s")])[..] else { panic!() };
        assert!(said.starts_with("a.jsonl, row 1: `answer` is \"t\", which has no space in front"), "{said}");
        assert!(said.contains("goes on with \"cat\"") && said.contains("write \" t\" (1 more of this kind)"), "{said}");
        // Also where it is the token that would follow.
        assert_eq!(tokenizer.encode("TheMary").unwrap(), [16, 24]);
        assert!(warnings("The", &[json!("Mary")])[0].contains("\"TheMary\""));
        // The space is a token already.
        let [said] = &warnings("The ", &[json!("Mary")])[..] else { panic!() };
        assert!(said.contains("other tokens") && said.contains("leave out the space at the end"), "{said}");
    }

    #[test]
    fn answers_that_are_no_token_are_refused_with_what_is_one() {
        let tokenizer = legacy();
        let mut answers = Answers::new(&tokenizer).unwrap();
        let mut error = |answer: Value| format!("{:#}", answers.token("wrong", &answer, None).unwrap_err());
        let said = error(json!("cat"));
        assert!(said.contains("\"cat\" is 2 of this model: [\"ca\", \"t\"]; \" cat\" is one (19)"), "{said}");
        assert!(error(json!("  Mary")).contains("\"  Mary\" is 2 of this model"));
        for outside in [json!(26), json!(-1), json!(1u64 << 40)] {
            assert!(error(outside).contains("token ids go from 0 to 25"));
        }
        for other in [json!(true), json!(1.5), json!([1]), json!({})] {
            let said = error(other.clone());
            assert!(said.contains("a token id") && said.contains(&other.to_string()), "{said}");
        }
    }
}
