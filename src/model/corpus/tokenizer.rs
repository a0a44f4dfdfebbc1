//! The model's tokenizer, from `tokenizer.json`, from `vocab.json` and `merges.txt`, or from inside a GGUF file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use selfrepair_core::config::CorpusConfig;
use crate::{GgufFile, Model, ModelSource};
use selfrepair_core::outside::without_panic;

use super::gguf_tokenizer::from_gguf;

/// Text to token ids, without special tokens of the tokenizer's own.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
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
            (_, Some(gguf)) => from_gguf(gguf)?,
            (ModelSource::Directory { path, .. }, _) => from_directory(path)?,
            (ModelSource::Gguf { path, .. }, None) => bail!("{}: no tokenizer inside", path.display()),
        };
        let vocab = model.architecture.vocab;
        let tokens = tokenizer.get_vocab(true);
        let highest = tokens.values().max().copied().unwrap_or(0);
        ensure!(
            (highest as usize) < vocab,
            "{}: the tokenizer has token ids up to {highest}, but the embedding only {vocab} rows; it belongs to \
             another model",
            model.source.path().display()
        );
        let id = |key: &str| -> Option<u32> {
            let value = &model.config()[key];
            // Llama 3 lists several end tokens; the first is the one its documents end with.
            value.as_array().map_or(value, |list| &list[0]).as_u64().map(|n| n as u32)
        };
        Ok(Self { tokenizer, tokens: tokens.len(), vocab, bos: id("bos_token_id"), eos: id("eos_token_id") })
    }

    /// The tokenizer inside a GGUF file, whatever model there is beside it.
    pub fn of_gguf(gguf: &GgufFile) -> Result<Self> {
        let tokenizer = from_gguf(gguf)?;
        let tokens = tokenizer.get_vocab_size(true);
        Ok(Self { tokenizer, tokens, vocab: tokens, bos: None, eos: None })
    }

    /// Signs that the tokenizer is another model's whose ids happen to fit. None of them is proof, so that a run goes on
    /// and says so.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::from_iter(too_few(self.tokens, self.vocab));
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
            doubts.push(format!(
                "the model's configuration says {key} = {id}, {found}: does the tokenizer belong to this model? \
                 (corpus.bos_token and corpus.separator name others)"
            ));
        }
        doubts
    }

    /// Token ids of a text, with no token added by a template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| anyhow!("cannot tokenize: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of one token. Bytes that are no whole character show as �.
    pub fn text_of(&self, id: u32) -> Result<String> {
        self.tokenizer.decode(&[id], false).map_err(|e| anyhow!("cannot decode token {id}: {e}"))
    }

    /// `<|endoftext|>` if the vocabulary has it, else EOS, between documents; the configuration's BOS, else that
    /// separator, before prompts. `corpus.separator` and `corpus.bos_token` override.
    pub fn specials(&self, config: &CorpusConfig) -> Result<Specials> {
        let named = |key: &str, token: &str| {
            let id = self.tokenizer.token_to_id(token);
            id.with_context(|| format!("corpus.{key} = \"{token}\": the tokenizer has no such token"))
        };
        let separator =
            match &config.separator {
                Some(token) => named("separator", token)?,
                None => self.tokenizer.token_to_id("<|endoftext|>").or(self.eos).context(
                    "the tokenizer has neither <|endoftext|> nor an EOS token; name one with corpus.separator",
                )?,
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

/// A doubt if a tokenizer knows of much less than the embedding has rows for. Embeddings are padded, by 2 % at most among
/// the families that are supported (phi's, of 51200 rows for 50295 tokens).
fn too_few(tokens: usize, vocab: usize) -> Option<String> {
    (10 * tokens < 9 * vocab).then(|| {
        format!(
            "the tokenizer has {tokens} tokens for an embedding of {vocab} rows, of which a model's own tokenizer uses \
             nearly all: does it belong to this model?"
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
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let place = || format!("{} is not a tokenizer", path.display());
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).with_context(place)?;
    without_panic(|| Tokenizer::from_bytes(&bytes).map_err(|e| anyhow!("{e}"))).with_context(place)
}

/// GPT-2's byte-level BPE, which is what a model with these two files has (GPT-2, GPT-Neo, OPT).
fn from_vocab(vocab: &Path, merges: &Path, special: &Path) -> Result<Tokenizer> {
    let text =
        |path: &Path| path.to_str().map(str::to_string).with_context(|| format!("{} is not Unicode", path.display()));
    let bpe = BPE::from_file(&text(vocab)?, &text(merges)?).build();
    let bpe = bpe.map_err(|e| anyhow!("{} and {} are not a tokenizer: {e}", vocab.display(), merges.display()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let mut names = vec!["<|endoftext|>".to_string()];
    if let Ok(json) = std::fs::read_to_string(special) {
        let json: serde_json::Value =
            serde_json::from_str(&json).with_context(|| format!("{} is not valid JSON", special.display()))?;
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
}
