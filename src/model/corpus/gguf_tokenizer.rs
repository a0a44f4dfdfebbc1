//! The tokenizer inside a GGUF file, rebuilt to give the ids of the model's own `tokenizer.json`.
//!
//! A GGUF file holds the vocabulary and the merges (or scores), but only the name of the pre-tokenizer. This file has
//! the pre-tokenizer for each name. `tests/reference/gguf_tokenizers.py` computes the expected ids.

use ahash::AHashMap;
use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NFC, Prepend, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use crate::{GgufFile, GgufValue};

/// Kinds of token in `tokenizer.ggml.token_type`.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

pub fn from_gguf(gguf: &GgufFile) -> Result<Tokenizer> {
    let place = || gguf.path().display().to_string();
    match gguf.metadata("tokenizer.ggml.model")?.to_string()?.as_str() {
        "gpt2" => byte_level_bpe(gguf),
        "llama" if gguf.architecture()?.starts_with("gemma") => bail!(
            "{}: Gemma's tokenizer cannot be rebuilt from a GGUF file yet; use the model's folder with tokenizer.json",
            place()
        ),
        "llama" => sentence_piece(gguf),
        other => bail!("{}: the tokenizer model `{other}` is not supported yet; supported: gpt2, llama", place()),
    }
    .with_context(place)
}

/// What comes before the merges: normalizer, pre-tokenizer, and whether a word that is a token is taken as it is.
struct Before {
    compose: bool,
    split: SplitBy,
    ignore_merges: bool,
}

enum SplitBy {
    /// GPT-2's pattern, which is built into `ByteLevel`.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    Digits,
    Pattern(&'static str),
}

/// GPT-4's pattern (cl100k) with numbers of up to three digits, and with single digits.
pub const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const CL100K_DIGITS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's pattern.
pub const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

fn before(pre: &str) -> Option<Before> {
    let (compose, split, ignore_merges) = match pre {
        "gpt-2" | "phi-2" | "jais" => (false, SplitBy::Gpt2, false),
        "olmo" | "mpt" => (true, SplitBy::Gpt2, false),
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva" => (false, SplitBy::Digits, false),
        "command-r" => (true, SplitBy::Digits, false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" => (true, SplitBy::Pattern(CL100K_DIGITS), false),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => (false, SplitBy::Pattern(CL100K), true),
        "dbrx" | "smaug-bpe" => (false, SplitBy::Pattern(CL100K), false),
        "gpt-4o" | "llama4" => (false, SplitBy::Pattern(O200K), false),
        _ => return None,
    };
    Some(Before { compose, split, ignore_merges })
}

/// The pre-tokenizer. Files of 2024 have `default` for whatever their converter did not know, and earlier ones have none;
/// then it is that of the architecture, if all its models have the same.
fn pre_tokenizer(gguf: &GgufFile) -> Result<&str> {
    let named = match gguf.optional("tokenizer.ggml.pre") {
        Some(value) => Some(value.to_string().context("`tokenizer.ggml.pre` is not a text")?.as_str()),
        None => None,
    };
    let said = match named {
        Some("default") => "`default`, which names no pre-tokenizer",
        Some(name) => return Ok(name),
        None => "missing",
    };
    Ok(match gguf.architecture()? {
        "gpt2" | "phi2" => "gpt-2",
        "gptneox" | "olmo" => "olmo",
        "qwen2" | "qwen3" => "qwen2",
        arch => bail!(
            "`tokenizer.ggml.pre` is {said}, and models of the architecture {arch} have different ones; use the model's \
             folder with tokenizer.json, or a newer file"
        ),
    })
}

fn byte_level_bpe(gguf: &GgufFile) -> Result<Tokenizer> {
    let pre = pre_tokenizer(gguf)?;
    let before = before(pre).with_context(|| {
        format!("the pre-tokenizer `{pre}` is not supported yet; use the model's folder with tokenizer.json")
    })?;
    let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
    let merges: Vec<(String, String)> = strings(gguf, "tokenizer.ggml.merges")?
        .iter()
        .map(|m| m.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())))
        .collect::<Option<_>>()
        .context("a merge is not two tokens")?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary(&tokens), merges).ignore_merges(before.ignore_merges).build();
    let mut tokenizer = Tokenizer::new(bpe.map_err(|e| anyhow!("the tokenizer's merges do not fit: {e}"))?);
    if before.compose {
        tokenizer.with_normalizer(Some(NFC)).map_err(|e| anyhow!("{e}"))?;
    }
    let with_pattern = ByteLevel::new(false, true, true);
    let pre_tokenizer: PreTokenizerWrapper = match before.split {
        SplitBy::Gpt2 => with_pattern.into(),
        SplitBy::Digits => Sequence::new(vec![Digits::new(true).into(), with_pattern.into()]).into(),
        SplitBy::Pattern(pattern) => {
            let pattern = SplitPattern::Regex(pattern.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| anyhow!("{e}"))?;
            Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into()
        }
    };
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer)).with_decoder(Some(with_pattern));
    let added = tokens.iter().zip(kinds(gguf)?).filter(|(_, kind)| [CONTROL, USER_DEFINED].contains(kind));
    let added = added.map(|(text, kind)| AddedToken::from(text.as_str(), kind == CONTROL));
    tokenizer.add_tokens(added).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
}

/// SentencePiece's BPE as Llama's published `tokenizer.json` has it: a space is `▁`, one is put in front, and what is
/// not in the vocabulary is spelt in bytes.
fn sentence_piece(gguf: &GgufFile) -> Result<Tokenizer> {
    let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
    let kinds = kinds(gguf)?;
    let scores: Vec<f32> = array(gguf, "tokenizer.ggml.scores")?
        .iter()
        .map(|v| v.to_f32())
        .collect::<candle_core::Result<_>>()
        .context("`tokenizer.ggml.scores` is not a list of numbers")?;
    ensure!(scores.iter().all(|s| !s.is_nan()), "`tokenizer.ggml.scores` has a NaN");
    let vocab = vocabulary(&tokens);
    let merges = merges_by_score(&tokens, &scores, &vocab);
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = tokens.iter().zip(&kinds).find(|(_, kind)| **kind == UNKNOWN) {
        builder = builder.unk_token(unknown.0.clone());
    }
    let bpe = builder.build().map_err(|e| anyhow!("the tokenizer's pieces do not fit: {e}"))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix", true)?;
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|e| anyhow!("{e}"));
    let mut normalizers: Vec<NormalizerWrapper> = vec![replace(" ", "▁")?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace("▁", " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.insert(0, Prepend::new("▁".into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(|e| anyhow!("{e}"))?;
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    let added = tokens.iter().zip(kinds).filter(|(_, kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
    // Not normalized: with a `▁` put in front, they would not be found inside a text.
    let added = added.map(|(text, kind)| AddedToken::from(text.as_str(), kind != USER_DEFINED).normalized(false));
    tokenizer.add_tokens(added).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
}

/// Every way to split a piece into two pieces is a merge; a piece with a higher score is merged first (transformers:
/// `generate_merges`).
fn merges_by_score(tokens: &[String], scores: &[f32], vocab: &AHashMap<String, u32>) -> Vec<(String, String)> {
    let mut found: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let boundaries = token.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
        for (count, at) in boundaries.enumerate() {
            let (left, right) = token.split_at(at);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                found.push((score, count, left, right));
            }
        }
    }
    // Stable: pieces of equal score stay in the order of their ids.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    found.into_iter().map(|(_, _, left, right)| (left.to_string(), right.to_string())).collect()
}

fn vocabulary(tokens: &[String]) -> AHashMap<String, u32> {
    tokens.iter().enumerate().map(|(i, t)| (t.clone(), i as u32)).collect()
}

fn kinds(gguf: &GgufFile) -> Result<Vec<i32>> {
    let values = array(gguf, "tokenizer.ggml.token_type")?.iter().map(|v| v.to_i32());
    values.collect::<candle_core::Result<_>>().context("`tokenizer.ggml.token_type` is not a list of numbers")
}

fn array<'a>(gguf: &'a GgufFile, key: &str) -> Result<&'a Vec<GgufValue>> {
    gguf.metadata(key)?.to_vec().with_context(|| format!("`{key}` is not a list"))
}

/// The most bytes that a token or a merge may have: SentencePiece's pieces are cut in every way there is.
const MOST_BYTES: usize = 1024;

fn strings(gguf: &GgufFile, key: &str) -> Result<Vec<String>> {
    let texts = array(gguf, key)?.iter().map(|v| v.to_string().cloned()).collect::<candle_core::Result<Vec<String>>>();
    let texts = texts.with_context(|| format!("`{key}` is not a list of texts"))?;
    ensure!(texts.iter().all(|t| t.len() <= MOST_BYTES), "`{key}` has a text of more than {MOST_BYTES} bytes");
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::gguf_file::{Content, write};
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::path::Path;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf-tokenizers");

    #[derive(serde::Deserialize)]
    struct Cases {
        texts: Vec<String>,
        ids: BTreeMap<String, Vec<Vec<u32>>>,
    }

    #[derive(serde::Deserialize)]
    struct SpmCases {
        texts: Vec<String>,
        legacy: Vec<Vec<u32>>,
    }

    fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
        serde_json::from_str(&std::fs::read_to_string(Path::new(FIXTURES).join(name)).unwrap()).unwrap()
    }

    fn assert_ids(tokenizer: &Tokenizer, texts: &[String], expected: &[Vec<u32>], name: &str) {
        assert!(texts.len() > 20 && texts.len() == expected.len());
        for (text, ids) in texts.iter().zip(expected) {
            let ours = tokenizer.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.get_ids(), ids, "{name}: {text:?}");
        }
    }

    /// The byte-level tokenizer of the fixtures with other metadata.
    fn with_metadata(changes: &[(&str, Option<&str>)]) -> Result<Tokenizer> {
        let mut file = File::open(Path::new(FIXTURES).join("bpe.gguf")).unwrap();
        let mut metadata = Content::read(&mut file).unwrap().metadata;
        for (key, value) in changes {
            match value {
                Some(value) => metadata.insert((*key).into(), GgufValue::String((*value).into())),
                None => metadata.remove(*key),
            };
        }
        let entries: Vec<(&str, &GgufValue)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("renamed.gguf");
        write(&mut File::create(&path).unwrap(), &entries, &[]).unwrap();
        from_gguf(&GgufFile::open(&path).unwrap())
    }

    #[test]
    fn every_pre_tokenizer_gives_the_ids_of_hugging_face() {
        let cases: Cases = read("cases.json");
        assert!(cases.ids.len() > 10);
        for (pre, expected) in &cases.ids {
            let tokenizer = with_metadata(&[("tokenizer.ggml.pre", Some(pre))]).unwrap();
            assert_ids(&tokenizer, &cases.texts, expected, pre);
        }
    }

    #[test]
    fn a_default_or_missing_pre_tokenizer_is_that_of_the_architecture_or_refused() {
        let cases: Cases = read("cases.json");
        for pre in [Some("default"), None] {
            let of = |arch: &str| with_metadata(&[("tokenizer.ggml.pre", pre), ("general.architecture", Some(arch))]);
            for (arch, name) in
                [("gpt2", "gpt-2"), ("phi2", "phi-2"), ("gptneox", "olmo"), ("qwen2", "qwen2"), ("qwen3", "qwen2")]
            {
                assert_ids(&of(arch).unwrap(), &cases.texts, &cases.ids[name], arch);
            }
            // Llama 3, SmolLM and DeepSeek are one architecture, and StableLM had GPT-NeoX's tokenizer before its own.
            for arch in ["llama", "stablelm", "smollm3"] {
                let error = format!("{:#}", of(arch).unwrap_err());
                assert!(error.contains(arch) && error.contains("`tokenizer.ggml.pre` is"), "{error}");
                assert!(error.contains("tokenizer.json"), "{error}");
            }
        }
    }

    #[test]
    fn gemma_s_tokenizer_is_refused() {
        for arch in ["gemma", "gemma2", "gemma3"] {
            let changes = [("tokenizer.ggml.model", Some("llama")), ("general.architecture", Some(arch))];
            let error = format!("{:#}", with_metadata(&changes).unwrap_err());
            assert!(error.contains("Gemma's tokenizer") && error.contains("tokenizer.json"), "{error}");
        }
    }

    #[test]
    fn sentence_piece_gives_the_ids_of_hugging_face() {
        let cases: SpmCases = read("spm_cases.json");
        let tokenizer = from_gguf(&GgufFile::open(&Path::new(FIXTURES).join("spm.gguf")).unwrap()).unwrap();
        assert_ids(&tokenizer, &cases.texts, &cases.legacy, "spm");
        // One token alone, as the `tokens` table shows it, and a whole text.
        let ids = tokenizer.encode_fast("Hello world", false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), "Hello world");
    }
}
