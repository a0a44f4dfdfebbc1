//! The `corpus` stage: documents → token ids → prompts of equal length → the `tokens` table.

mod gguf_tokenizer;
pub mod ioi;
mod pack;
mod prompt_set;
mod read;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{ArrayRef, AsArray, StringBuilder, UInt32Array};
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rayon::prelude::*;
use std::sync::Arc;

pub use pack::{Answer, Corpus, Prompts, Stream, Targets};
pub use tokenizer::TextTokenizer;

use crate::config::{CorpusConfig, Mode};
use crate::hub::{HubRepo, Kind};
use crate::interrupt;
use crate::progress;
use crate::provision;
use crate::tables::{Metadata, TARGETS, TOKENS, TableWriter};
use read::documents;

/// The files a `corpus.source` names, in order, fetching a `package:` or `hf:` one.
pub fn resolve(source: &str) -> Result<Vec<PathBuf>> {
    if let Some(name) = source.strip_prefix("package:") {
        return Ok(vec![provision::corpus_asset(name)?.provide()?]);
    }
    if let Some(name) = source.strip_prefix("hf:") {
        return fetch(name);
    }
    let path = PathBuf::from(source);
    ensure!(
        path.is_file(),
        "corpus.source = \"{source}\": no such file; use package:news, hf:owner/name or a .txt, .jsonl, .jsonl.gz, \
         .jsonl.zst or .parquet file"
    );
    Ok(vec![path])
}

/// The files of a data set of the hub: its Parquet files, else its JSON lines or texts; of several splits, `train`.
fn fetch(name: &str) -> Result<Vec<PathBuf>> {
    let repo = HubRepo::new(Kind::Dataset, name, "")?;
    let mut files = repo.files()?;
    files.sort();
    let endings: [&[&str]; 3] = [&[".parquet"], &[".jsonl", ".jsonl.gz", ".jsonl.zst"], &[".txt"]];
    for ending in endings {
        let mut found: Vec<&String> = files.iter().filter(|f| ending.iter().any(|e| f.ends_with(e))).collect();
        if found.iter().any(|f| f.contains("train")) {
            found.retain(|f| f.contains("train"));
        }
        let folders: BTreeSet<&str> =
            found.iter().map(|f| f.rsplit_once('/').map_or("", |(folder, _)| folder)).collect();
        ensure!(
            folders.len() <= 1,
            "corpus.source = \"hf:{name}\": the data set has several configurations ({}); download the one you mean and \
             name its file",
            folders.into_iter().collect::<Vec<_>>().join(", ")
        );
        if !found.is_empty() {
            return found.into_iter().map(|f| repo.get(f)).collect();
        }
    }
    bail!("corpus.source = \"hf:{name}\": the data set has no .parquet, .jsonl or .txt files")
}

/// Documents tokenized at a time: enough for all cores, few enough that a small sample of a large file stays quick.
const DOCUMENTS_AT_ONCE: usize = 256;

/// The prompts that the configuration asks for.
pub fn corpus(config: &CorpusConfig, paths: &[PathBuf], tokenizer: &TextTokenizer) -> Result<Corpus> {
    match config.mode {
        Mode::Packed => packed(config, paths, tokenizer),
        Mode::Prompts => prompt_set::prompts(config, paths.iter().map(PathBuf::as_path), tokenizer),
    }
}

/// Reads, tokenizes and packs as many documents as the run needs.
fn packed(config: &CorpusConfig, paths: &[PathBuf], tokenizer: &TextTokenizer) -> Result<Corpus> {
    let special = tokenizer.specials(config)?;
    let run = config.prompt_len - usize::from(config.bos);
    let wanted_prompts = config.tokens / config.prompt_len;
    let wanted = wanted_prompts * run;
    let bar = progress::bar("corpus", wanted as u64, "tokens");
    let mut stream = Stream::default();
    // Files are opened one after the other, and read only as far as they are needed.
    let mut documents = paths
        .iter()
        .flat_map(|path| documents(path, &config.text_column).unwrap_or_else(|e| Box::new(std::iter::once(Err(e)))));
    let mut count = 0u32;
    while stream.tokens() < wanted {
        interrupt::check()?;
        let batch: Vec<String> = documents.by_ref().take(DOCUMENTS_AT_ONCE).collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let ids: Vec<Vec<u32>> = batch.par_iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
        for ids in ids {
            if !ids.is_empty() {
                stream.push(count, &ids, special.separator);
            }
            count += 1;
        }
        bar.set_position((stream.tokens() as u64).min(wanted as u64));
    }
    bar.finish_and_clear();
    let packed = stream.pack(config.prompt_len, config.bos.then_some(special.bos), wanted_prompts);
    let prompts = &packed.prompts;
    ensure!(
        prompts.count() >= 2,
        "{}: {count} document(s) with {} tokens make {} prompt(s) of {}; at least 2 are needed (a larger corpus, or a \
         smaller corpus.prompt_len)",
        paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        stream.tokens(),
        prompts.count(),
        config.prompt_len
    );
    if prompts.count() < wanted_prompts {
        let have = prompts.count() * config.prompt_len;
        progress::line("corpus", &format!("the corpus has only {have} of the {} tokens asked for", config.tokens));
    }
    Ok(packed)
}

/// Writes the `tokens` table.
pub fn write(corpus: &Corpus, tokenizer: &TextTokenizer, folder: &std::path::Path, meta: &Metadata) -> Result<()> {
    let mut writer = TableWriter::create(&TOKENS, &folder.join("tokens.parquet"), meta)?;
    let mut documents = corpus.documents.iter().copied();
    for (p, prompt) in corpus.prompts.iter().enumerate() {
        let n = prompt.len();
        let mut text = StringBuilder::new();
        for &id in prompt {
            text.append_value(tokenizer.text_of(id)?);
        }
        let next: UInt32Array = (0..n).map(|i| prompt.get(i + 1).copied()).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![p as u32; n])),
            Arc::new((0..n as u32).map(Some).collect::<UInt32Array>()),
            Arc::new(UInt32Array::from(prompt.to_vec())),
            Arc::new(text.finish()),
            Arc::new(next),
            Arc::new(documents.by_ref().take(n).collect::<UInt32Array>()),
        ];
        writer.write(&RecordBatch::try_new(TOKENS.schema(), columns).context("building the tokens table")?)?;
    }
    writer.finish()
}

/// Writes the `targets` table of a prompt set; other prompts have none.
pub fn write_targets(prompts: &Prompts, folder: &std::path::Path, meta: &Metadata) -> Result<()> {
    let Targets::Answers(answers) = prompts.targets() else { return Ok(()) };
    let ints =
        |f: &dyn Fn(&Answer) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(answers.iter().map(f))) };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(0..answers.len() as u32)),
        ints(&|a| a.position as u32),
        ints(&|a| a.answer),
        Arc::new(answers.iter().map(|a| a.wrong).collect::<UInt32Array>()),
    ];
    let mut writer = TableWriter::create(&TARGETS, &folder.join("targets.parquet"), meta)?;
    writer.write(&RecordBatch::try_new(TARGETS.schema(), columns).context("building the targets table")?)?;
    writer.finish()
}

/// The prompts as the `tokens` and `targets` tables have them: what was measured is what is written there.
pub fn read(tokens: &std::path::Path, targets: &std::path::Path) -> Result<Prompts> {
    let [prompt, token] = int_columns(&tokens.join("tokens.parquet"), ["prompt", "token"])?;
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for (p, token) in prompt.iter().zip(token) {
        let p = p.unwrap_or_default() as usize;
        prompts.resize(prompts.len().max(p + 1), vec![]);
        prompts[p].extend(token);
    }
    let path = targets.join("targets.parquet");
    if !path.exists() {
        let length = prompts.first().map_or(1, Vec::len);
        return Ok(Prompts::packed(length, prompts.concat()));
    }
    let [position, answer, wrong] = int_columns(&path, ["position", "answer", "wrong"])?;
    ensure!(position.len() == prompts.len(), "{} has another number of prompts than the tokens", path.display());
    let answers = position.iter().zip(answer).zip(wrong).map(|((position, answer), wrong)| Answer {
        position: position.unwrap_or_default() as usize,
        answer: answer.unwrap_or_default(),
        wrong,
    });
    Ok(Prompts::with_answers(prompts.into_iter().zip(answers)))
}

/// UInt32 columns of a Parquet file.
fn int_columns<const N: usize>(path: &std::path::Path, names: [&str; N]) -> Result<[Vec<Option<u32>>; N]> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .with_context(|| format!("{} is not a complete Parquet file", path.display()))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), names);
    let mut out = [const { Vec::new() }; N];
    for batch in builder.with_projection(mask).build()? {
        let batch = batch.with_context(|| format!("{} cannot be read", path.display()))?;
        for (out, name) in out.iter_mut().zip(names) {
            let column = batch.column_by_name(name).with_context(|| format!("{} has no {name}", path.display()))?;
            out.extend(column.as_primitive::<UInt32Type>().iter());
        }
    }
    Ok(out)
}
