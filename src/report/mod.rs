//! The `report` stage: what a run found, in the terminal, as one self-contained HTML file, and as figures for a paper.

mod chart;
mod compare;
mod figures;
mod files;
mod histogram;
mod html;
mod rows;
mod settings;
mod summary;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub use compare::compare;
pub use summary::summary;

pub(crate) use rows::Rows;

use crate::analyze::Tables;
use crate::run_folder::write_atomically;

/// Raised when the report would look different on the same tables.
pub const VERSION: u32 = 2;

/// Writes `<out>/report/index.html`, and its figures as files under `<out>/figures`.
///
/// # Errors
/// If the folder has no tables of a finished run.
pub fn report(out: &Path) -> Result<String> {
    let tables = Tables::open(out)?;
    if !tables.has("head_summary")? {
        anyhow::bail!("{} has no table head_summary; run `pipeline run all` to the end first", out.display());
    }
    let folder = out.join("report");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let figures = figures::all(&tables, out)?;
    files::write(&figures, &out.join("figures"))?;
    let page = folder.join("index.html");
    write_atomically(&page, html::run_page(&tables, &figures, out)?.as_bytes())?;
    Ok(format!("{} figures in {}", figures.len(), page.display()))
}
