//! The `corpus` stage: documents → token ids → prompts of equal length → the `tokens` table.

mod gguf_tokenizer;
mod pack;
mod read;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{ArrayRef, StringBuilder, UInt32Array};
use arrow::record_batch::RecordBatch;
use rayon::prelude::*;
use std::sync::Arc;

pub use pack::{Prompts, pack};
pub use tokenizer::TextTokenizer;

use crate::config::CorpusConfig;
use crate::hub::{HubRepo, Kind};
use crate::progress;
use crate::provision;
use crate::tables::{Metadata, TOKENS, TableWriter};
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

/// Reads, tokenizes and packs as many documents as the run needs.
pub fn prompts(config: &CorpusConfig, paths: &[PathBuf], tokenizer: &TextTokenizer) -> Result<Prompts> {
    let special = tokenizer.specials(config)?;
    let run = config.prompt_len - usize::from(config.bos);
    let wanted_prompts = config.tokens / config.prompt_len;
    let wanted = wanted_prompts * run;
    let bar = progress::bar("corpus", wanted as u64, "tokens");
    let mut stream: Vec<u32> = Vec::new();
    // Files are opened one after the other, and read only as far as they are needed.
    let mut documents = paths
        .iter()
        .flat_map(|path| documents(path, &config.text_column).unwrap_or_else(|e| Box::new(std::iter::once(Err(e)))));
    let mut count = 0usize;
    while stream.len() < wanted {
        let batch: Vec<String> = documents.by_ref().take(DOCUMENTS_AT_ONCE).collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let ids: Vec<Vec<u32>> = batch.par_iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
        for ids in ids.into_iter().filter(|ids| !ids.is_empty()) {
            if count > 0 {
                stream.push(special.separator);
            }
            stream.extend(ids);
            count += 1;
        }
        bar.set_position((stream.len() as u64).min(wanted as u64));
    }
    bar.finish_and_clear();
    let prompts = pack(&stream, config.prompt_len, config.bos.then_some(special.bos), wanted_prompts);
    ensure!(
        prompts.count() >= 2,
        "{}: {count} document(s) with {} tokens make {} prompt(s) of {}; at least 2 are needed (a larger corpus, or a \
         smaller corpus.prompt_len)",
        paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        stream.len(),
        prompts.count(),
        config.prompt_len
    );
    if prompts.count() < wanted_prompts {
        let have = prompts.count() * config.prompt_len;
        progress::line("corpus", &format!("the corpus has only {have} of the {} tokens asked for", config.tokens));
    }
    Ok(prompts)
}

/// Writes the `tokens` table.
pub fn write(prompts: &Prompts, tokenizer: &TextTokenizer, folder: &std::path::Path, meta: &Metadata) -> Result<()> {
    let mut writer = TableWriter::create(&TOKENS, &folder.join("tokens.parquet"), meta)?;
    for (p, prompt) in prompts.iter().enumerate() {
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
        ];
        writer.write(&RecordBatch::try_new(TOKENS.schema(), columns).context("building the tokens table")?)?;
    }
    writer.finish()
}
