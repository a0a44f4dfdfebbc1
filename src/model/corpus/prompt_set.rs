//! Prompt sets: one prompt per row, with the token whose logit is measured (docs/definitions.md, "Targets").

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::answers::{Answers, Before, whole};
use super::read::{Row, rows};
use super::tokenizer::TextTokenizer;
use selfrepair_core::config::CorpusConfig;
use selfrepair_core::prompts::{Answer, Corpus, Prompts};

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
    let mut answers = Answers::new(tokenizer)?;
    let (mut out, mut read) = (Vec::new(), Vec::new());
    for path in paths {
        read.push(path.display().to_string());
        for row in rows(path)? {
            let row = row?;
            let prompt = prompt(config, &row, bos, tokenizer, &mut answers).with_context(|| row.place.clone())?;
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
    Ok(Corpus { prompts, documents, warnings: answers.warnings() })
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

/// `answer`: one token of the model, with the space before it if it has one; the prompt's own next token if missing.
/// `wrong`: one token, whose logit is subtracted. `position`: the position that is read, BOS counted, negative from the
/// end; the last, or the one before the prompt's last token if that is the answer.
fn prompt(
    config: &CorpusConfig,
    row: &Row,
    bos: Option<u32>,
    tokenizer: &TextTokenizer,
    answers: &mut Answers,
) -> Result<(Vec<u32>, Answer)> {
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
    let given = |key: &str| row.json.get(key).filter(|value| !value.is_null());
    let position = position(given("position"), length, given("answer").is_some())?;
    let read = tokens.get(usize::from(bos.is_some())..=position).unwrap_or_default();
    let text = match position + 1 == length {
        true => Some(text.to_string()),
        // Of a part of the prompt, the text is known if it is made of the same tokens.
        false => Some(tokenizer.decode(read)?).filter(|text| tokenizer.encode(text).is_ok_and(|ids| ids == read)),
    };
    let before = text.as_deref().map(|text| Before { place: &row.place, text, tokens: read });
    let mut token = |key: &str, value: &Value| answers.token(key, value, before.as_ref());
    let answer = match given("answer") {
        Some(value) => token("answer", value)?,
        None => *tokens.get(position + 1).with_context(|| {
            format!("there is no `answer`, and no token after position {position} that could be one")
        })?,
    };
    let wrong = given("wrong").map(|value| token("wrong", value)).transpose()?;
    if wrong == Some(answer) {
        bail!("`answer` and `wrong` are the same token");
    }
    Ok((tokens, Answer { position, answer, wrong }))
}

fn position(given: Option<&Value>, length: usize, has_answer: bool) -> Result<usize> {
    let given = given.map(|value| whole("position", value)).transpose()?;
    let default = length as i64 - if has_answer { 1 } else { 2 };
    let from_start = match given {
        Some(given) if given < 0 => given + length as i64,
        _ => given.unwrap_or(default),
    };
    let position = usize::try_from(from_start).ok().filter(|&p| p < length);
    position.with_context(|| {
        format!("position {} is outside the prompt's {length} tokens (BOS counted)", given.unwrap_or(default))
    })
}
