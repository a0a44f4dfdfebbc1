//! The user's own analyses: a folder of `.sql` files that run after the built-in ones, under the same rules.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::datatypes::SchemaRef;

use super::{Query, derived_tables, is_built_in};
use crate::sql::check_own;
use selfrepair_core::config::AnalysisConfig;

/// The queries of the folder `analysis.sql`, by name.
///
/// # Errors
/// If the folder cannot be read, or a file has a built-in table's name or lacks its question or grain.
pub fn own_queries(config: &AnalysisConfig) -> Result<Vec<Query>> {
    let Some(folder) = &config.sql else { return Ok(Vec::new()) };
    let entries = fs::read_dir(folder)
        .with_context(|| format!("analysis.sql = {folder:?}: expected a folder of .sql files that can be read"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "sql"));
    paths.sort();
    ensure!(!paths.is_empty(), "analysis.sql = {folder:?} holds no .sql file");
    paths.iter().map(|path| read(path)).collect()
}

/// Names of the tables that the stage writes for a configuration: the built-in ones and the user's own.
pub fn tables_of(config: &AnalysisConfig) -> Result<Vec<String>> {
    let own = own_queries(config)?;
    Ok(derived_tables().into_iter().map(str::to_string).chain(own.into_iter().map(|q| q.name.into_owned())).collect())
}

fn read(path: &Path) -> Result<Query> {
    let place = path.display();
    let name = path.file_stem().and_then(|n| n.to_str()).with_context(|| format!("{place} is not Unicode"))?;
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    ensure!(is_name, "{place}: a table has the file's name, which must be of a-z, 0-9 and _ and begin with a letter");
    ensure!(!is_built_in(name), "{place}: there is a built-in table `{name}`; give the file another name");
    let text = selfrepair_core::untrusted::read_text(path, 1 << 20)?;
    check_own(&text).with_context(|| format!("in {place}"))?;
    let query =
        Query { name: Cow::Owned(name.to_string()), text: Cow::Owned(text), file: Cow::Owned(place.to_string()) };
    for (what, found) in [("Question", query.has("Question")), ("Grain", query.has("Grain"))] {
        ensure!(
            found,
            "{place} does not begin with its documentation; expected a comment line `-- {what}: …` (sql/head_summary.sql \
             in the source shows a whole header)"
        );
    }
    Ok(query)
}

/// # Errors
/// If a column of the result is not described in the query's header.
pub fn check_columns(query: &Query, schema: &SchemaRef) -> Result<()> {
    let described = query.columns();
    let missing: Vec<&str> =
        schema.fields().iter().map(|f| f.name().as_str()).filter(|name| !described.contains_key(*name)).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    bail!(
        "{}: the header does not describe {}; add a line `-- {first}: what it is [unit]`",
        query.file,
        missing.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ")
    )
}
