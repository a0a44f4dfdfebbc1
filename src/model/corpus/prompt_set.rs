//! Prompt sets: one prompt per row, with the token whose logit is measured (docs/definitions.md, "Targets").

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::read::{Row, rows};
use super::tokenizer::TextTokenizer;
use selfrepair_core::config::CorpusConfig;
use selfrepair_core::prompts::{Answer, Corpus, Prompts};

/// A row of the file, besides its text.
#[derive(Debug, Deserialize)]
struct PromptRow {
    /// One token of the model, with the space before it if it has one; the prompt's own next token if missing.
    answer: Option<String>,
    /// One token, whose logit is subtracted.
    wrong: Option<String>,
    /// The position that is read, BOS counted; negative from the end. The last, or the one before the prompt's last
    /// token if that is the answer.
    position: Option<i64>,
}

/// Every prompt of the files, each a document.
pub fn prompts<'a>(
    config: &CorpusConfig,
    paths: impl IntoIterator<Item = &'a Path>,
    tokenizer: &TextTokenizer,
) -> Result<Corpus> {
    let bos = match config.bos {
        true => Some(tokenizer.specials(config)?.bos),
        false => None,
    };
    let (mut out, mut read) = (Vec::new(), Vec::new());
    for path in paths {
        read.push(path.display().to_string());
        for row in rows(path)? {
            let row = row?;
            let prompt = prompt(config, &row, bos, tokenizer).with_context(|| row.place.clone())?;
            out.push(prompt);
        }
    }
    ensure!(!out.is_empty(), "{}: the prompt set has no rows; at least one is needed", read.join(", "));
    let prompts = Prompts::with_answers(out);
    let numbers = |(p, prompt): (usize, &[u32])| {
        let is_bos = |s: usize| s == 0 && bos.is_some();
        (0..prompt.len()).map(move |s| (!is_bos(s)).then_some(p as u32)).collect::<Vec<_>>()
    };
    let documents = prompts.iter().enumerate().flat_map(numbers).collect();
    Ok(Corpus { prompts, documents })
}

/// Keys that a row may have besides its text; the last two are what `pipeline prompts` says of its own.
const KEYS: [&str; 5] = ["answer", "wrong", "position", "answer_first", "template"];

/// A misspelt key would be passed over, and another token measured.
fn check_keys(config: &CorpusConfig, row: &Row) -> Result<()> {
    let known = || std::iter::once(config.text_column.as_str()).chain(KEYS);
    let keys = row.json.as_object().context("expected an object of `text`, `answer`, `wrong` and `position`")?;
    let Some(key) = keys.keys().find(|key| !known().any(|k| k == *key)) else { return Ok(()) };
    let key: String = key.chars().take(80).collect();
    let nearest = known().min_by_key(|k| strsim::damerau_levenshtein(k, &key)).unwrap_or_default();
    bail!(
        "the key {key:?} is not known; did you mean `{nearest}`? A row has `{}`, `answer`, `wrong` and `position`, and nothing \
         else",
        config.text_column
    )
}

fn prompt(config: &CorpusConfig, row: &Row, bos: Option<u32>, tokenizer: &TextTokenizer) -> Result<(Vec<u32>, Answer)> {
    check_keys(config, row)?;
    let text = row.text(&config.text_column)?;
    let mut tokens = Vec::from_iter(bos);
    tokens.extend(tokenizer.encode(text)?);
    let length = tokens.len();
    ensure!(length >= 1, "the prompt has no tokens");
    ensure!(
        length <= config.prompt_len,
        "the prompt has {length} tokens, more than corpus.prompt_len = {}; raise it",
        config.prompt_len
    );
    let PromptRow { answer, wrong, position } =
        PromptRow::deserialize(&row.json).context("`answer` and `wrong` are strings, `position` is a whole number")?;
    let default = length as i64 - if answer.is_some() { 1 } else { 2 };
    let given = position.unwrap_or(default);
    let from_start = if given < 0 && position.is_some() { given + length as i64 } else { given };
    let position = usize::try_from(from_start).ok().filter(|&p| p < length);
    let position =
        position.with_context(|| format!("position {given} is outside the prompt's {length} tokens (BOS counted)"))?;
    let answer = match answer {
        Some(text) => one_token("answer", &text, tokenizer)?,
        None => *tokens.get(position + 1).with_context(|| {
            format!("there is no `answer`, and no token after position {position} that could be one")
        })?,
    };
    let wrong = wrong.map(|text| one_token("wrong", &text, tokenizer)).transpose()?;
    if wrong == Some(answer) {
        bail!("`answer` and `wrong` are the same token");
    }
    Ok((tokens, Answer { position, answer, wrong }))
}

fn one_token(key: &str, text: &str, tokenizer: &TextTokenizer) -> Result<u32> {
    match tokenizer.encode(text)?.as_slice() {
        &[one] => Ok(one),
        many => {
            let pieces: Vec<String> = many.iter().map(|&id| tokenizer.text_of(id)).collect::<Result<_>>()?;
            bail!("`{key}` must be one token, but \"{text}\" is {} of this model: {pieces:?}", many.len())
        }
    }
}
