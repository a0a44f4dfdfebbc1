//! The model's tokenizer, from `tokenizer.json`, from `vocab.json` and `merges.txt`, or from inside a GGUF file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Decoder, DecoderWrapper, ModelWrapper, Tokenizer};

use crate::{GgufFile, Model, ModelSource};
use selfrepair_core::config::CorpusConfig;
use selfrepair_core::untrusted::{open_file, read_bytes, read_text, without_panic};

use super::cuts::{Cuts, check_json};
use super::gguf_tokenizer::from_gguf;
use super::pieces::MOST_AT_ONCE;

/// Text to token ids, without special tokens of the tokenizer's own.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Where it came from, for errors.
    place: String,
    cuts: Cuts,
    /// How many tokens it knows.
    tokens: usize,
    /// Rows of the model's embedding.
    vocab: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// The tokens put between documents and before prompts.
pub struct Specials {
    pub separator: u32,
    pub bos: u32,
}

impl TextTokenizer {
    /// The tokenizer that belongs to `model`.
    pub fn of(model: &Model) -> Result<Self> {
        let tokenizer = match (&model.source, model.gguf()) {
            (_, Some(gguf)) => guarded_from_gguf(gguf)?,
            (ModelSource::Directory { path, .. }, _) => from_directory(path)?,
            (ModelSource::Gguf { path, .. }, None) => bail!("{}: no tokenizer inside", path.display()),
        };
        let vocab = model.architecture.vocab;
        let place = model.source.path().display().to_string();
        let special = |key: &str| special(model.config(), key).with_context(|| place.clone());
        let (bos, eos) = (special("bos_token_id")?, special("eos_token_id")?);
        let ours = Self { bos, eos, vocab, ..Self::new(tokenizer, &place)? };
        // A token that was added beyond the embedding (a pad token) matters only if a text has it.
        let added = ours.tokenizer.get_added_tokens_decoder();
        let ids = ours.tokenizer.get_vocab(true).into_values();
        let highest = ids.filter(|id| !added.contains_key(id)).max().unwrap_or(0);
        ensure!(
            (highest as usize) < vocab,
            "{place}: the tokenizer has token ids up to {highest}, but the embedding only {vocab} rows; it belongs to \
             another model"
        );
        Ok(ours)
    }

    /// The tokenizer inside a GGUF file, whatever model there is beside it.
    pub fn of_gguf(gguf: &GgufFile) -> Result<Self> {
        Self::new(guarded_from_gguf(gguf)?, &gguf.path().display().to_string())
    }

    pub(super) fn new(mut tokenizer: Tokenizer, place: &str) -> Result<Self> {
        // Dropout leaves out merges at random, which is for training; what a model reads must not depend on chance.
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(bpe);
        }
        let cuts = without_panic(|| Cuts::of(&tokenizer)).with_context(|| format!("{place}: the tokenizer"))?;
        let tokens = tokenizer.get_vocab_size(true);
        let vocab = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { tokenizer, place: place.to_string(), cuts, tokens, vocab, bos: None, eos: None })
    }

    /// Where a document may be cut before it is tokenized.
    pub fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// Signs that the tokenizer belongs to another model whose ids happen to fit. None is proof, so a run continues
    /// and says so.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::from_iter(too_few(self.tokens, self.vocab));
        let added = self.tokenizer.get_added_tokens_decoder();
        for (key, id) in [("bos_token_id", self.bos), ("eos_token_id", self.eos)] {
            let Some(id) = id else { continue };
            let found = match self.tokenizer.id_to_token(id) {
                None => "which the tokenizer does not have".to_string(),
                Some(text) if !added.contains_key(&id) && !is_marked(&text) => {
                    format!("which is the ordinary token `{text}` to the tokenizer")
                }
                Some(_) => continue,
            };
            warnings.push(format!(
                "the model's configuration says {key} = {id}, {found}: does the tokenizer belong to this model? \
                 (corpus.bos_token and corpus.separator name others)"
            ));
        }
        warnings
    }

    /// Token ids of a text, with no token added by a template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&self.tokenizer, text)
    }

    /// As [`TextTokenizer::encode`], with a variant of the tokenizer.
    pub(super) fn encode_with(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let place = || format!("{}: the tokenizer cannot encode the text {:?}", self.place, beginning(text));
        let most = MOST_AT_ONCE / self.cuts.growth();
        ensure!(text.len() <= most, "{}: it has {} bytes; at most {most} are encoded at a time", place(), text.len());
        let encode = || {
            let encoding = tokenizer.encode_fast(text, false).map_err(|e| anyhow!("{e}"))?;
            let ids = encoding.get_ids().to_vec();
            if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
                let token = tokenizer.id_to_token(id).unwrap_or_default();
                bail!("it has the token `{token}` ({id}), and the embedding has only {} rows", self.vocab);
            }
            Ok(ids)
        };
        without_panic(encode).with_context(place)
    }

    /// The text of these tokens, as a whole text.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        let decode = || self.tokenizer.decode(ids, false).map_err(|e| anyhow!("{e}"));
        without_panic(decode).with_context(|| format!("{}: the tokenizer cannot decode tokens", self.place))
    }

    pub(super) fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Rows of the model's embedding.
    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    /// The text of one token inside a text, with the space before it. Bytes that are no whole character show as �.
    pub fn text_of(&self, id: u32) -> Result<String> {
        let place = || format!("{}: the tokenizer cannot decode the token {id}", self.place);
        let decode = || {
            let length = self.tokenizer.id_to_token(id).map_or(0, |token| token.len());
            ensure!(length <= MOST_OF_TOKEN, "it has {length} bytes; expected at most {MOST_OF_TOKEN}");
            let text = text_inside(&self.tokenizer, id)?;
            ensure!(text.len() <= MOST_OF_TOKEN, "its text has {} bytes; expected at most {MOST_OF_TOKEN}", text.len());
            Ok(text)
        };
        without_panic(decode).with_context(place)
    }

    fn end_of_text(&self) -> Option<u32> {
        self.tokenizer.token_to_id("<|endoftext|>").filter(|&id| (id as usize) < self.vocab)
    }

    /// `<|endoftext|>` if the vocabulary has it, else EOS, between documents; the configuration's BOS, else that
    /// separator, before prompts. `corpus.separator` and `corpus.bos_token` override.
    pub fn specials(&self, config: &CorpusConfig) -> Result<Specials> {
        let named = |key: &str, token: &str| {
            let id = self.tokenizer.token_to_id(token);
            id.with_context(|| format!("corpus.{key} = \"{token}\": the tokenizer has no such token"))
        };
        let separator = match &config.separator {
            Some(token) => named("separator", token)?,
            None => self
                .end_of_text()
                .or(self.eos)
                .context("the tokenizer has neither <|endoftext|> nor an EOS token; name one with corpus.separator")?,
        };
        let bos = match &config.bos_token {
            Some(token) => named("bos_token", token)?,
            None => self.bos.unwrap_or(separator),
        };
        for (what, id) in [("separator", separator), ("BOS token", bos)] {
            ensure!((id as usize) < self.vocab, "the {what} {id} is outside the vocabulary of {}", self.vocab);
        }
        Ok(Specials { separator, bos })
    }
}

/// What stands beside a token whose text is asked for.
const BESIDE: &str = "beside";

/// Decoders take away the space at the beginning of a text (or, of GPT-1's kind, at its end), so the token is decoded
/// beside another one.
fn text_inside(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    let Some(token) = tokenizer.id_to_token(id) else { return Ok(String::new()) };
    let Some(decoder) = tokenizer.get_decoder() else { return Ok(token) };
    let decode = |tokens: &[&str]| {
        decoder.decode(tokens.iter().map(|token| token.to_string()).collect()).map_err(|e| anyhow!("{e}"))
    };
    let text = match decoder {
        DecoderWrapper::BPE(_) => decode(&[token.as_str(), BESIDE])?.strip_suffix(BESIDE).map(str::to_string),
        _ => decode(&[BESIDE, token.as_str()])?.strip_prefix(&decode(&[BESIDE])?).map(str::to_string),
    };
    text.map_or_else(|| decode(&[token.as_str()]), Ok)
}

/// The most bytes that a token may have, as the table of tokens shows it. In published vocabularies it is a few hundred.
const MOST_OF_TOKEN: usize = 4096;

/// Enough of a text to find it by.
fn beginning(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

/// The id of a special token that a configuration names. Llama 3 lists several end tokens; the first is the one its
/// documents end with.
fn special(config: &serde_json::Value, key: &str) -> Result<Option<u32>> {
    let wrong = || format!("`{key}` is {}; expected a token id, or a list of them", config[key]);
    let id = |value: &serde_json::Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).with_context(wrong);
    match &config[key] {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Array(list) => {
            let ids: Vec<u32> = list.iter().map(id).collect::<Result<_>>()?;
            Ok(ids.first().copied())
        }
        value => id(value).map(Some),
    }
}

fn guarded_from_gguf(gguf: &GgufFile) -> Result<Tokenizer> {
    without_panic(|| from_gguf(gguf)).with_context(|| format!("{}: the tokenizer inside", gguf.path().display()))
}

/// A warning if a tokenizer has far fewer tokens than the embedding has rows. Embeddings are padded, by 2 % at most among
/// the families that are supported (phi's, of 51200 rows for 50295 tokens).
fn too_few(tokens: usize, vocab: usize) -> Option<String> {
    (10 * tokens < 9 * vocab).then(|| {
        format!(
            "the tokenizer has {tokens} tokens for an embedding of {vocab} rows, but a model's own tokenizer uses \
            nearly all of them: does it belong to this model?"
        )
    })
}

/// Whether a token looks like one that no text has: `<s>`, `<|endoftext|>`, `[CLS]`.
fn is_marked(token: &str) -> bool {
    token.len() > 2 && [("<", ">"), ("[", "]")].iter().any(|(a, b)| token.starts_with(a) && token.ends_with(b))
}

fn from_directory(folder: &Path) -> Result<Tokenizer> {
    let (json, vocab) = (folder.join("tokenizer.json"), folder.join("vocab.json"));
    if json.is_file() {
        let mut tokenizer = from_json(&json)?;
        // A prompt's length is ours to choose.
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        tokenizer.with_padding(None);
        return Ok(tokenizer);
    }
    let merges = folder.join("merges.txt");
    ensure!(
        vocab.is_file() && merges.is_file(),
        "{} is missing (and so is vocab.json with merges.txt); the model's folder must hold its tokenizer",
        json.display()
    );
    from_vocab(&vocab, &merges, &folder.join("special_tokens_map.json"))
}

/// Reads `tokenizer.json`. The library that knows the format panics on some files that are cut off or have a value of
/// another type, so the JSON is looked at first, and a panic is an error like any other.
fn from_json(path: &Path) -> Result<Tokenizer> {
    let bytes = read_bytes(path, MOST_FILE)?;
    let place = || format!("{} is not a tokenizer", path.display());
    check_json(&bytes).with_context(place)?;
    without_panic(|| Tokenizer::from_bytes(&bytes).map_err(|e| anyhow!("{e}"))).with_context(place)
}

/// The most bytes that a tokenizer's file may have.
const MOST_FILE: u64 = 256 << 20;

/// GPT-2's byte-level BPE, which is what a model with these two files has (GPT-2, GPT-Neo, OPT).
fn from_vocab(vocab: &Path, merges: &Path, special: &Path) -> Result<Tokenizer> {
    let text =
        |path: &Path| path.to_str().map(str::to_string).with_context(|| format!("{} is not Unicode", path.display()));
    let names = (text(vocab)?, text(merges)?);
    let files = || format!("{} and {} are not a tokenizer", vocab.display(), merges.display());
    for file in [vocab, merges] {
        ensure!(open_file(file)?.metadata()?.len() <= MOST_FILE, "{} is larger than that of any model", file.display());
    }
    let bpe = without_panic(|| BPE::from_file(&names.0, &names.1).build().map_err(|e| anyhow!("{e}")));
    let bpe = bpe.with_context(files)?;
    let mut tokenizer = Tokenizer::new(bpe);
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let mut names = vec!["<|endoftext|>".to_string()];
    if special.exists() {
        let json: serde_json::Value = serde_json::from_str(&read_text(special, 1 << 20)?)
            .with_context(|| format!("{} is not valid JSON", special.display()))?;
        let values = json.as_object().into_iter().flat_map(|o| o.values());
        names.extend(values.filter_map(|v| v.as_str().or(v["content"].as_str())).map(str::to_string));
    }
    // Only tokens the vocabulary has: a new one would have no row in the embedding.
    names.retain(|name| tokenizer.token_to_id(name).is_some());
    names.sort();
    names.dedup();
    let tokens = names.into_iter().map(|name| AddedToken::from(name, true));
    tokenizer.add_special_tokens(tokens).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_no_doubt_and_another_vocabulary_is_one() {
        // (tokens, rows) of Pythia, Pythia-12B, Phi-2, Qwen2-7B and GPT-2.
        for (tokens, rows) in [(50277, 50304), (50277, 50688), (50295, 51200), (151646, 152064), (50257, 50257)] {
            assert_eq!(too_few(tokens, rows), None, "{tokens} of {rows}");
        }
        // Llama's tokenizer with GPT-2, GPT-2's with Qwen2.
        for (tokens, rows) in [(32000, 50257), (50257, 151936)] {
            assert!(too_few(tokens, rows).unwrap().contains(&format!("{tokens} tokens for an embedding of {rows}")));
        }
        assert!(is_marked("<s>") && is_marked("<|endoftext|>") && !is_marked("<>") && !is_marked("Ġthe"));
    }

    #[test]
    fn ids_of_special_tokens_that_are_none_are_refused() {
        let of = |value: serde_json::Value| special(&serde_json::json!({ "eos_token_id": value }), "eos_token_id");
        use serde_json::json;
        assert_eq!(of(json!(null)).unwrap(), None);
        assert_eq!(of(json!([])).unwrap(), None);
        assert_eq!(of(json!([7, 8])).unwrap(), Some(7));
        for wrong in
            [json!(-1), json!(1.0), json!("2"), json!(1u64 << 32), json!([1, -1]), json!([[1]]), json!({}), json!(true)]
        {
            let error = of(wrong.clone()).unwrap_err().to_string();
            assert!(error.contains(&format!("`eos_token_id` is {wrong}")), "{error}");
        }
    }

    fn tiny() -> serde_json::Value {
        serde_json::from_slice(
            &std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-llama/tokenizer.json"))
                .unwrap(),
        )
        .unwrap()
    }

    /// A tokenizer of the tiny model with some parts exchanged.
    fn with(parts: serde_json::Value) -> Result<TextTokenizer> {
        let mut json = tiny();
        for (key, part) in parts.as_object().unwrap() {
            json[key] = part.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        TextTokenizer::new(from_json(&path)?, "here")
    }

    #[test]
    fn tokenizers_that_panic_when_they_are_used_give_an_error_that_names_them() {
        use serde_json::json;
        for parts in [
            json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
            json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}}),
            json!({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}),
            json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}}),
        ] {
            let text = format!("{}!", "a".repeat(60));
            match with(parts.clone()).and_then(|t| t.encode(&text)) {
                Ok(_) => {}
                Err(error) => assert!(format!("{error:#}").contains("tokenizer"), "{error:#}"),
            }
        }
    }

    #[test]
    fn texts_that_would_grow_without_end_are_refused() {
        use serde_json::json;
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let many = |key: &str| json!({"type": "Sequence", key: vec![double.clone(); 40]});
        let long = json!({"type": "Prepend", "prepend": "a".repeat(1 << 20)});
        let map = json!({"type": "Precompiled", "precompiled_charsmap": "////fwAA"});
        let spaces = json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true});
        for parts in [
            json!({"normalizer": many("normalizers")}),
            json!({"normalizer": long}),
            json!({"normalizer": map}),
            json!({"decoder": many("decoders")}),
            json!({"decoder": {"type": "Sequence", "decoders": vec![spaces; 30]}}),
        ] {
            let error = format!("{:#}", with(parts).err().unwrap());
            assert!(error.contains("times as long") || error.contains("character map"), "{error}");
        }
        // A long token.
        let mut model = tiny()["model"].clone();
        let id = model["vocab"].as_object().unwrap().len();
        model["vocab"]["a".repeat(1 << 20)] = json!(id);
        let error = format!("{:#}", with(json!({ "model": model })).unwrap().text_of(id as u32).unwrap_err());
        assert!(error.contains(&format!("the token {id}")) && error.contains("bytes"), "{error}");
    }

    #[test]
    fn dropout_is_taken_away() {
        let mut model = tiny()["model"].clone();
        model["dropout"] = serde_json::json!(0.5);
        let text = "When Anna and Boris met, Anna gave a map to the library at the station.";
        let expected = with(serde_json::json!({})).unwrap().encode(text).unwrap();
        let dropping = with(serde_json::json!({ "model": model })).unwrap();
        for _ in 0..20 {
            assert_eq!(dropping.encode(text).unwrap(), expected);
        }
    }
}
