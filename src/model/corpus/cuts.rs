//! Where a long document may be cut, so that its pieces, tokenized one by one, give the tokens of the whole.
//!
//! No token may cross a cut, and neither side may depend on the other. Whether that holds depends on the tokenizer. The
//! parts below are known; if a tokenizer has any other part, documents are tokenized whole:
//!
//! - Pre-tokenizers that match a pattern from left to right (GPT-2's, cl100k and its variants, o200k). None of their
//!   alternatives matches across the boundary from non-whitespace to a space, or from a letter or digit to one of
//!   [`AFTER_WORD`], so a match always ends there. The text after the boundary does not affect matches before it: the
//!   only lookahead, `\s+(?!\S)`, follows whitespace, and the text before a cut does not end in whitespace. The text
//!   before it does not affect matches after it: the patterns have no lookbehind, and a match begins there.
//! - `Digits` and `Punctuation` split by single characters, `Whitespace` and `WhitespaceSplit` by whether a character
//!   is part of a word, `Metaspace` at every space. For all of them, a space after anything else is a boundary.
//! - A BPE without a pre-tokenizer (SentencePiece's, where a space is `▁`) merges only into tokens of its vocabulary.
//!   If no token has a given character before a `▁`, no merge crosses from that character to a space.
//! - Normalizers must treat each side independently. For Unicode normalization, a space or a mark of [`AFTER_WORD`] is
//!   a boundary, because it composes with nothing before it. `Prepend` writes `▁` at the beginning of every piece, in
//!   place of the space, so the space is left out of the piece.
//! - Added tokens are found before everything else. A cut is never where an added token could cross it or look across
//!   it.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use super::gguf_tokenizer::{CL100K, CL100K_DIGITS, O200K};

/// GPT-2's pattern as `Split` names it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// What may follow a letter or digit at a cut, besides a space: no pattern that is known joins it to a word before it.
const AFTER_WORD: [char; 18] =
    ['\n', ',', '.', ';', ':', '!', '?', '"', '(', ')', '，', '。', '、', '；', '：', '！', '？', '」'];

/// Times a text may grow while it is tokenized or decoded.
const MOST_GROWTH: usize = 4096;

/// Where documents may be cut for one tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Cuts {
    /// `None` if nowhere.
    rule: Option<Rule>,
    /// How many times as long a text may become before it is split into tokens.
    growth: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    /// Those of [`AFTER_WORD`] that may follow a word at a cut.
    after_word: Vec<char>,
    /// What may not stand before a cut.
    not_before: HashSet<char>,
    /// What may not follow the space at a cut; then the space is left out. Only for `Prepend`.
    drop_space: Option<HashSet<char>>,
}

/// A piece ends at `end`, and the next begins at `next`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    pub end: usize,
    pub next: usize,
}

impl Cuts {
    /// # Errors
    /// If texts could grow without measure.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer())?;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
        let decoder = serde_json::to_value(tokenizer.get_decoder())?;
        let before = growth(&normalizer).saturating_mul(growth(&pre_tokenizer));
        for (what, growth) in [("normalizer and pre-tokenizer", before), ("decoder", growth(&decoder))] {
            ensure!(
                growth <= MOST_GROWTH,
                "its {what} can make a text {growth} times as long; expected at most \
                {MOST_GROWTH}"
            );
        }
        let rule = rule(tokenizer, &parts(&normalizer, "normalizers"), &parts(&pre_tokenizer, "pretokenizers"));
        Ok(Self { rule, growth: before })
    }

    /// How many times as long a text may become before it is split into tokens.
    pub fn growth(&self) -> usize {
        self.growth
    }

    /// The first cut of `text` from the byte `from` on.
    pub fn find(&self, text: &str, from: usize) -> Option<Cut> {
        let rule = self.rule.as_ref()?;
        let from = (from..text.len()).find(|&i| text.is_char_boundary(i))?;
        let (already, rest) = text.split_at_checked(from)?;
        let mut before = already.chars().next_back()?;
        let mut chars = rest.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let end = from + at;
            let next = end + c.len_utf8();
            if rule.allows(before, c, chars.peek().map(|&(_, after)| after)) {
                return Some(Cut { end, next: if rule.drop_space.is_some() { next } else { end } });
            }
            before = c;
        }
        None
    }
}

impl Rule {
    fn allows(&self, before: char, at: char, after: Option<char>) -> bool {
        if self.not_before.contains(&before) {
            return false;
        }
        if at == ' ' {
            let may_follow = |not: &HashSet<char>| after.is_some_and(|c| is_of_word(c) && !not.contains(&c));
            return (is_of_word(before) || before.is_ascii_graphic())
                && self.drop_space.as_ref().is_none_or(may_follow);
        }
        is_of_word(before) && self.after_word.contains(&at)
    }
}

/// Letters and digits to every pattern and normalizer. There are more; these are those of which it is certain.
fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c,
            'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ɏ' | 'Α'..='Ρ' | 'Σ'..='Ω' | 'α'..='ω' | 'А'..='я'
            | 'ぁ'..='ゖ' | 'ァ'..='ヺ' | '一'..='龥' | '가'..='힣')
}

/// The parts of a sequence, or the one part there is.
fn parts<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => vec![],
        _ if value["type"] == "Sequence" => {
            value[key].as_array().into_iter().flatten().flat_map(|part| parts(part, key)).collect()
        }
        _ => vec![value],
    }
}

fn rule(tokenizer: &Tokenizer, normalizers: &[&Value], pre_tokenizers: &[&Value]) -> Option<Rule> {
    let prepends = prepends(normalizers)?;
    let spaces = normalizers.iter().any(|n| n["type"] == "Replace");
    let mut rule = Rule { after_word: vec![], not_before: HashSet::new(), drop_space: None };
    if spaces || pre_tokenizers.is_empty() || is_whole_metaspace(pre_tokenizers) {
        // Spaces are `▁` when the model sees them, and nothing splits.
        let splits = pre_tokenizers.iter().any(|p| !is_split_at_space(p));
        if splits || !(spaces || is_whole_metaspace(pre_tokenizers)) {
            return None;
        }
        rule.not_before = merges_with_space(tokenizer)?;
    } else {
        let matches = pre_tokenizers.iter().any(|p| splits_at_words(p));
        // Behind a part that writes `Ġ` for a space, no other sees one.
        let splitter = pre_tokenizers.iter().position(|p| splits_at_words(p) || splits_at_spaces(p))?;
        let writes = pre_tokenizers.iter().take(splitter).any(|p| p["type"] == "ByteLevel");
        if writes || !pre_tokenizers.iter().all(|p| is_known(p)) {
            return None;
        }
        let adds_spaces = pre_tokenizers.iter().any(|p| p["add_prefix_space"] == true || p["type"] == "Metaspace");
        // Some letters have a mark or a point at their end in Unicode's other forms, which a pattern joins to what follows.
        if matches && !adds_spaces && normalizers.iter().all(|n| n["type"] == "NFC") {
            rule.after_word = AFTER_WORD.to_vec();
        }
    }
    allow_for_added_tokens(&mut rule, tokenizer, prepends)?;
    Some(rule)
}

/// Whether a `▁` is put before every piece; `None` if a normalizer is not known to see each side of a cut by itself.
fn prepends(normalizers: &[&Value]) -> Option<bool> {
    let mut prepends = false;
    for (i, normalizer) in normalizers.iter().enumerate() {
        match normalizer["type"].as_str()? {
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => {}
            "Replace" if pattern(normalizer, "String") == " " && normalizer["content"] == "▁" => {}
            "Prepend" if i == 0 && normalizer["prepend"] == "▁" => prepends = true,
            _ => return None,
        }
    }
    let replaces = normalizers.iter().any(|n| n["type"] == "Replace");
    (!prepends || replaces).then_some(prepends)
}

/// `Metaspace` that does not split.
fn is_whole_metaspace(pre_tokenizers: &[&Value]) -> bool {
    matches!(pre_tokenizers, [one] if one["type"] == "Metaspace" && one["split"] == false && one["replacement"] == "▁")
}

/// Gemma's, after its normalizer left no spaces; and `Metaspace` that does not split.
fn is_split_at_space(pre_tokenizer: &Value) -> bool {
    is_whole_metaspace(&[pre_tokenizer])
        || (pre_tokenizer["type"] == "Split" && pattern(pre_tokenizer, "String") == " ")
}

/// The pattern of a part, if it is of that kind.
fn pattern<'a>(part: &'a Value, kind: &str) -> &'a Value {
    part["pattern"].get(kind).unwrap_or(&Value::Null)
}

/// Whether it matches one of the patterns.
fn splits_at_words(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel") => pre_tokenizer["use_regex"] != false,
        Some("Split") => {
            let pattern = pattern(pre_tokenizer, "Regex").as_str();
            let behavior = (pre_tokenizer["behavior"].as_str(), pre_tokenizer["invert"].as_bool());
            pattern.is_some_and(|p| [GPT2, CL100K, CL100K_DIGITS, O200K].contains(&p))
                && matches!(behavior, (Some("Isolated"), Some(false)) | (Some("Removed"), Some(true)))
        }
        _ => false,
    }
}

fn splits_at_spaces(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("Whitespace" | "WhitespaceSplit") => true,
        Some("Metaspace") => pre_tokenizer["split"] != false,
        _ => false,
    }
}

/// Whether a part leaves the places alone that another splits at.
fn is_known(pre_tokenizer: &Value) -> bool {
    splits_at_words(pre_tokenizer)
        || splits_at_spaces(pre_tokenizer)
        || matches!(pre_tokenizer["type"].as_str(), Some("ByteLevel" | "Digits" | "Punctuation"))
}

/// Characters that a token of the vocabulary has before `▁`; `None` if merges could cross from others.
fn merges_with_space(tokenizer: &Tokenizer) -> Option<HashSet<char>> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
    let plain = bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none() && !bpe.ignore_merges;
    let vocabulary = tokenizer.get_vocab(false);
    if !plain || !vocabulary.contains_key("▁") {
        return None;
    }
    let mut before = HashSet::new();
    for token in vocabulary.keys() {
        // A byte's token stands for what is not in its text.
        if token.contains('▁') && token.contains("<0x") {
            return None;
        }
        let followed = token.chars().zip(token.chars().skip(1)).filter(|(_, next)| *next == '▁');
        before.extend(followed.map(|(c, _)| c));
    }
    Some(before)
}

/// Takes away what an added token could make different; `None` if that is everything.
fn allow_for_added_tokens(rule: &mut Rule, tokenizer: &Tokenizer, prepends: bool) -> Option<()> {
    let is_space = |c: char| c.is_whitespace() || c == '▁';
    let mut first = HashSet::new();
    for token in tokenizer.get_added_tokens_decoder().values() {
        let content = &token.content;
        let crosses = content.chars().zip(content.chars().skip(1)).any(|(a, b)| !is_space(a) && is_space(b));
        // One that must stand alone looks at what is beside it, which a cut takes away.
        if crosses || token.single_word || (prepends && content.starts_with(is_space)) {
            return None;
        }
        rule.after_word.retain(|c| !content.contains(*c));
        // `Prepend` writes `▁` before the space behind an added token too, where a text begins again.
        if token.rstrip || prepends {
            rule.not_before.extend(content.chars().next_back());
        }
        first.extend(content.chars().next());
    }
    if prepends {
        rule.drop_space = Some(first);
    }
    Some(())
}

/// How many times as long a part can make a text, or more.
fn growth(part: &Value) -> usize {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    match part["type"].as_str() {
        Some("Sequence") => {
            let keys = ["normalizers", "pretokenizers", "decoders"];
            let inside = keys.iter().filter_map(|key| part[*key].as_array()).flatten();
            inside.fold(1, |product, part| product.saturating_mul(growth(part)))
        }
        Some("Replace") => match length(pattern(part, "String")) {
            0 => 1 + length(&part["content"]),
            n => length(&part["content"]).div_ceil(n).max(1),
        },
        Some("Prepend") => 1 + length(&part["prepend"]),
        Some("Metaspace") => 2 * length(&part["replacement"]).max(1),
        Some("ByteLevel") => 2 + usize::from(part["add_prefix_space"] == true),
        Some("NFC" | "NFD" | "Lowercase" | "BertNormalizer") => 3,
        Some("NFKC" | "NFKD") => 11,
        // Decoders that replace a text, which may be empty, by a space.
        Some("CTC" | "BPEDecoder" | "WordPiece") => 2,
        Some("Precompiled") => longest_replacement(part["precompiled_charsmap"].as_str().unwrap_or_default()),
        _ => 1,
    }
}

/// The parts of a `tokenizer.json` that are checked before the library builds them.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Refuses a `tokenizer.json` that is no JSON, or one whose parts take or make more than can be.
pub fn check_json(bytes: &[u8]) -> Result<()> {
    let Parts { normalizer, pre_tokenizer, decoder } = serde_json::from_slice(bytes)?;
    for part in [&normalizer, &pre_tokenizer, &decoder] {
        ensure!(
            growth(part) <= MOST_GROWTH,
            "its {} can make a text {} times as long; at most {MOST_GROWTH}",
            part["type"].as_str().unwrap_or_default(),
            growth(part)
        );
        check_maps(part)?;
    }
    Ok(())
}

/// The library makes room for as many entries as a map of characters says it has.
fn check_maps(part: &Value) -> Result<()> {
    match part {
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| match value.as_str() {
            Some(text) if key == "precompiled_charsmap" => {
                let map = BASE64.decode(text).context("its character map is not Base64")?;
                let said = map.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
                ensure!(said <= map.len(), "its character map declares {said} bytes, but has {}", map.len());
                Ok(())
            }
            _ => check_maps(value),
        }),
        Value::Array(list) => list.iter().try_for_each(check_maps),
        _ => Ok(()),
    }
}

/// Bytes of the longest text that a map of characters puts in a character's place. A table comes first, then the texts,
/// each ended by 0.
fn longest_replacement(map: &str) -> usize {
    // `check_maps` refuses what is not Base64.
    let map = BASE64.decode(map).unwrap_or_default();
    let table = map.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
    let texts = map.get(4usize.saturating_add(table)..).unwrap_or_default();
    texts.split(|&b| b == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests;
