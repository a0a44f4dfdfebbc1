//! A finished run as a data set of the Hugging Face hub: its tables as they are, with a card from which
//! `datasets.load_dataset(name, "head_summary")` knows them, its configuration, what its columns mean, and its report.

mod card;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use selfrepair_query::catalog;
use selfrepair_model::hub::{Content, DataSet, Pushed, Upload};
use selfrepair_core::progress;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::STAGES;
use selfrepair_core::files::{files_below, sha256_of, sha256_of_file};
use selfrepair_query::sql::Tables;

/// Folders of a run that go to the hub, and are there as they are here. The rest is large and can be made again.
const FOLDERS: [&str; 2] = ["tables", "figures"];

/// Pushes the run in `out` to `hf:owner/name`; what was done, as a sentence.
///
/// # Errors
/// If the run is not finished, there is no token, or the hub refuses.
pub fn push(out: &Path, to: &str, private: bool) -> Result<String> {
    let Some(name) = to.strip_prefix("hf:") else {
        bail!("`{to}` is no place to push to; expected hf:owner/name, a data set of the hub");
    };
    finished(out)?;
    let files = files(out, name)?;
    let set = DataSet::open(name, private)?;
    let bar = progress::bar("push", 0, "kB");
    let message = format!("Tables of a run by pipeline {}", env!("CARGO_PKG_VERSION"));
    let pushed = set.push(&files, &FOLDERS, &message, &bar);
    bar.finish();
    Ok(sentence(&pushed?, name))
}

fn finished(out: &Path) -> Result<()> {
    ensure!(run_folder::is_run(out), "{} is no run of this program; name one with --out", out.display());
    let missing = STAGES.iter().filter(|&&s| !run_folder::manifest(out, s).is_some_and(|m| m.complete));
    let missing: Vec<&str> = missing.map(|s| s.name()).collect();
    ensure!(
        missing.is_empty(),
        "the run in {} is not finished ({} missing); finish it with `pipeline run all`",
        out.display(),
        missing.join(", ")
    );
    Ok(())
}

/// Everything that goes to the hub.
fn files(out: &Path, name: &str) -> Result<Vec<Upload>> {
    let tables = Tables::open(out)?;
    let config = out.join("report").join("config.toml");
    let config = std::fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let mut files = vec![
        text("README.md", card::card(&tables, &config, name)?),
        text("config.toml", config),
        text("tables.md", catalog::markdown_of_run(&tables)?),
        file("report.html", &out.join("report").join("index.html"))?,
    ];
    for folder in FOLDERS {
        for path in files_below(&out.join(folder))? {
            let relative: Vec<_> = path.strip_prefix(out)?.iter().map(|p| p.to_string_lossy()).collect();
            files.push(file(&relative.join("/"), &path)?);
        }
    }
    Ok(files)
}

fn text(path: &str, text: String) -> Upload {
    let (size, sha256) = (text.len() as u64, sha256_of(text.as_bytes()));
    Upload { path: path.into(), content: Content::Text(text), size, sha256 }
}

fn file(path: &str, from: &Path) -> Result<Upload> {
    let size = std::fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?.len();
    Ok(Upload { path: path.into(), content: Content::File(from.into()), size, sha256: sha256_of_file(from)? })
}

fn sentence(pushed: &Pushed, name: &str) -> String {
    let Pushed { committed, stored, unchanged, deleted, url } = pushed;
    let gone = if *deleted == 0 { String::new() } else { format!(", {deleted} deleted") };
    let what = match (committed, deleted) {
        (0, 0) => format!("hf:{name} has all {unchanged} files already"),
        _ => format!(
            "hf:{name}: {committed} files ({} uploaded){gone}, {unchanged} were there already",
            progress::bytes(*stored)
        ),
    };
    format!("{what}\n{url}")
}
