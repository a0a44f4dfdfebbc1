//! The `report` stage: a summary in the terminal, one self-contained HTML file, and figures for a paper.

mod chart;
mod compare;
mod escape;
mod figures;
mod files;
mod folder;
mod histogram;
mod html;
mod query;
mod rows;
mod settings;
mod summary;
#[cfg(test)]
mod tests;

#[cfg(test)]
use std::fs;
use std::path::Path;

use anyhow::Result;

pub use compare::compare;
pub use summary::summary;

pub use rows::Rows;

use selfrepair_query::analyze::Tables;
use selfrepair_query::older;
use selfrepair_store::checksums::Ledger;
use selfrepair_store::run_folder::{self, Stage};

/// Raised when the report would look different on the same tables.
pub const VERSION: u32 = 5;

/// Writes `<out>/report/index.html`, and its figures as files under `<out>/figures`. A run of schema 2 is read as one of
/// the present schema.
///
/// # Errors
/// If the folder has no tables of a finished run.
pub fn report(out: &Path) -> Result<String> {
    run_folder::check(out)?;
    if !Tables::open(out)?.has("head_summary")? {
        anyhow::bail!("{} has no table head_summary; run `pipeline run all` to the end first", out.display());
    }
    let older = older::as_present(out)?;
    let present = older.as_ref().map_or(out, |folder| folder.path());
    let tables = Tables::open_in_order(present)?;
    let figures = figures::all(&tables, present)?;
    let page = out.join("report").join("index.html");
    let files = figures.iter().flat_map(files::names).map(|name| out.join("figures").join(name));
    announce(out, files.chain([page.clone()]))?;
    files::write(&figures, &out.join("figures"))?;
    files::put(&page, html::run_page(&tables, &figures, present)?.as_bytes())?;
    Ok(format!("{} figures in {}", figures.len(), page.display()))
}

/// Records what is about to be written, if the folder is one of a run with records.
fn announce(out: &Path, files: impl Iterator<Item = std::path::PathBuf>) -> Result<()> {
    if !out.join("stages").is_dir() {
        return Ok(());
    }
    let ledger = Ledger::open(out, Stage::Report);
    files.into_iter().try_for_each(|file| ledger.announce(&file))
}

/// A run of two layers with one head each, two prompts of two positions, through `analyze`: the head of layer 0 has
/// direct effects 1, 1, 1, 1 and is repaired by 0.5, 0.5, 1, 1; that of layer 1 has 2, 0, 0, 0 and −0.5, 0, 0, 0. All
/// tokens count as top tokens.
/// An ablation `a/b` is one with hold b.
#[cfg(test)]
pub(crate) fn test_run(name: &str, ablations: &[&str]) -> tempfile::TempDir {
    use selfrepair_store::test_tables::{ABLATIONS, ablation, clean, metadata, model, table};
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    model(out, name, &format!("./{name}"), "llama", 2, 1, 8);
    clean(out, 2, 2);
    let text = |(i, t): (usize, &str)| format!("{} {} {i} {t} {} -", i / 3, i % 3, i + 1);
    let rows: Vec<String> = ["a", "b", "x", "c", "d", "e"].into_iter().enumerate().map(text).collect();
    table(out, "tokens", "prompt position token text next_token document", &rows);
    let tokens = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let heads = [[(1.0, 0.5), (1.0, 0.5), (1.0, 1.0), (1.0, 1.0)], [(2.0, -0.5), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]];
    let mut rows = Vec::new();
    for kind in ablations {
        let (kind, hold) = kind.split_once('/').unwrap_or((kind, "none"));
        for (layer, of_tokens) in heads.iter().enumerate() {
            for ((p, q), (effect, repair)) in tokens.iter().zip(of_tokens) {
                rows.push(ablation(&format!("{kind} {hold} head {layer} 0 {p} {q}"), *effect, *repair));
            }
        }
    }
    table(out, "ablations", ABLATIONS, &rows);
    let mut tops = Vec::new();
    for (layer, of_tokens) in heads.iter().enumerate() {
        // The tokens are in the order of their effects already.
        for (rank, ((p, q), (effect, _))) in tokens.iter().zip(of_tokens).enumerate() {
            tops.push(format!("head {layer} 0 {} {p} {q} {effect}", rank + 1));
        }
    }
    table(out, "top_tokens", "component layer head rank prompt position direct_effect", &tops);
    for derived in selfrepair_query::analyze::derived_tables() {
        fs::create_dir_all(out.join("tables").join(derived)).unwrap();
    }
    let config = selfrepair_core::config::AnalysisConfig { top_fraction: 1.0, ..Default::default() };
    let tables = selfrepair_query::analyze::open(out, &config).unwrap();
    selfrepair_query::analyze::derive(&tables, out, &config, &metadata(), vec![], &|_: &str| {}).unwrap();
    dir
}
