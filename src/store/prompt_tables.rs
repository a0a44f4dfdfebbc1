//! The tables `tokens` and `targets`: written by the corpus stage, and read as prompts by later stages.

use std::iter::repeat_n;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, AsArray, StringBuilder};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use selfrepair_core::columns;
use selfrepair_core::prompts::{Answer, Corpus, Prompts, Targets};
use selfrepair_core::tables::{TARGETS, TOKENS};
use selfrepair_core::untrusted::{open_file, without_panic};

use crate::table_writer::{Metadata, TableWriter};

/// Writes the `tokens` table.
pub fn write_tokens(
    corpus: &Corpus,
    text_of: impl Fn(u32) -> Result<String>,
    folder: &Path,
    meta: &Metadata,
) -> Result<()> {
    let mut writer = TableWriter::create(&TOKENS, &folder.join("tokens.parquet"), meta)?;
    let mut documents = corpus.documents.iter().copied();
    for (p, prompt) in corpus.prompts.iter().enumerate() {
        let n = prompt.len();
        let mut text = StringBuilder::new();
        for &id in prompt {
            text.append_value(text_of(id)?);
        }
        let columns: Vec<ArrayRef> = vec![
            columns::keys(repeat_n(p, n)),
            columns::keys(0..n),
            columns::keys(prompt.iter().map(|&token| token as usize)),
            Arc::new(text.finish()),
            columns::keys_or_null((0..n).map(|i| prompt.get(i + 1).map(|&token| token as usize))),
            columns::keys_or_null(documents.by_ref().take(n).map(|d| d.map(|d| d as usize))),
        ];
        writer.write(&RecordBatch::try_new(TOKENS.schema(), columns).context("building the tokens table")?)?;
    }
    writer.finish()
}

/// Writes the `targets` table of a prompt set; other prompts have none.
pub fn write_targets(prompts: &Prompts, folder: &Path, meta: &Metadata) -> Result<()> {
    let Targets::Answers(answers) = prompts.targets() else { return Ok(()) };
    let columns: Vec<ArrayRef> = vec![
        columns::keys(0..answers.len()),
        columns::keys(answers.iter().map(|a| a.position)),
        columns::keys(answers.iter().map(|a| a.answer as usize)),
        columns::keys_or_null(answers.iter().map(|a| a.wrong.map(|wrong| wrong as usize))),
    ];
    let mut writer = TableWriter::create(&TARGETS, &folder.join("targets.parquet"), meta)?;
    writer.write(&RecordBatch::try_new(TARGETS.schema(), columns).context("building the targets table")?)?;
    writer.finish()
}

/// The prompts as the `tokens` and `targets` tables have them: what was measured is what is written there.
pub fn read(tokens: &Path, targets: &Path) -> Result<Prompts> {
    let [prompt, token] = int_columns(&tokens.join("tokens.parquet"), ["prompt", "token"])?;
    let place = || format!("{} is not as the corpus stage writes it", tokens.display());
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for (p, token) in prompt.into_iter().zip(token) {
        let p = p.with_context(place)? as usize;
        // Prompts come one after the other.
        if p == prompts.len() {
            prompts.push(vec![]);
        }
        ensure!(p + 1 == prompts.len(), place());
        prompts.last_mut().with_context(place)?.push(token.with_context(place)?);
    }
    let path = targets.join("targets.parquet");
    if !path.exists() {
        let length = prompts.first().map_or(1, Vec::len);
        ensure!(prompts.iter().all(|p| p.len() == length), place());
        return Ok(Prompts::packed(length, prompts.concat()));
    }
    let [position, answer, wrong] = int_columns(&path, ["position", "answer", "wrong"])?;
    ensure!(
        position.len() == prompts.len(),
        "{} and the table tokens have different numbers of prompts",
        path.display()
    );
    let mut answers = Vec::new();
    for (((position, answer), wrong), prompt) in position.into_iter().zip(answer).zip(wrong).zip(&prompts) {
        let position = position.map(|p| p as usize).filter(|&p| p < prompt.len());
        let place = || format!("{} is not as the corpus stage writes it", path.display());
        answers.push(Answer { position: position.with_context(place)?, answer: answer.with_context(place)?, wrong });
    }
    Ok(Prompts::with_answers(prompts.into_iter().zip(answers)))
}

/// Int32 columns of a Parquet file, none of whose numbers is negative.
fn int_columns<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Vec<Option<u32>>; N]> {
    let file = open_file(path)?;
    let read = || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), names);
        let mut out = [const { Vec::new() }; N];
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            for (out, name) in out.iter_mut().zip(names) {
                let column = batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int32Type>());
                for value in column.with_context(|| format!("it has no {name} of 32 bits"))? {
                    out.push(value.map(u32::try_from).transpose()?);
                }
            }
        }
        Ok(out)
    };
    without_panic(read).with_context(|| format!("{} is not a complete Parquet file of a run", path.display()))
}
