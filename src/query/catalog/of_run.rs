//! The tables of a run: their sizes, and the user's own tables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{TableDoc, built_in, columns, columns_of, unknown};
use crate::analyze::kind_and_grain;
use crate::sql::Tables;
use selfrepair_core::own_files;
use selfrepair_core::progress;
use selfrepair_core::untrusted::without_panic;

/// Every table and view of a run with its kind, rows and size.
pub fn list_of_run(tables: &Tables) -> Result<String> {
    let mut rows = Vec::new();
    for name in tables.names() {
        let (kind, grain) = kind_and_grain(&name);
        let (count, size) = match kind {
            "view" => (String::new(), String::new()),
            _ => {
                let (bytes, rows) = tables.size(&name)?;
                (thousands(rows), progress::bytes(bytes))
            }
        };
        let grain = if grain.is_empty() { grain_of_file(tables, &name) } else { grain };
        rows.push([name, kind.to_string(), format!("{count:>13}"), format!("{size:>8}"), grain]);
    }
    let rows = rows.iter().map(|row| row.iter().map(String::as_str).collect());
    Ok(columns(&[&["table", "kind", "         rows", "    size", "one row for"]], rows))
}

/// Every table and view of a session, without opening them.
pub fn list_of_session(tables: &Tables) -> String {
    let rows: Vec<_> = tables.names().into_iter().map(|name| (kind_and_grain(&name), name)).collect();
    let rows = rows.iter().map(|((kind, grain), name)| vec![name.as_str(), kind, grain.as_str()]);
    columns(&[&["table", "kind", "one row for"]], rows)
}

/// The documentation of a table or view of a session: the columns are those that are there.
pub fn table_of_session(tables: &Tables, name: &str) -> Result<String> {
    let names = tables.names();
    if !names.iter().any(|n| n == name) {
        anyhow::bail!("{}", unknown(name, &names));
    }
    let known = built_in()?.into_iter().find(|t| t.name == name);
    Ok(described(tables, name, known)?.text())
}

/// The documentation of every table of a run, but of no view.
pub fn tables_of_run(tables: &Tables) -> Result<Vec<TableDoc>> {
    let mut known: BTreeMap<String, TableDoc> = built_in()?.into_iter().map(|t| (t.name.clone(), t)).collect();
    let names = tables.names().into_iter().filter(|name| kind_and_grain(name).0 != "view");
    names.map(|name| described(tables, &name, known.remove(&name))).collect()
}

/// What is known of a table, with the columns that it has.
fn described(tables: &Tables, name: &str, known: Option<TableDoc>) -> Result<TableDoc> {
    let schema = tables.schema(name)?;
    let described = |column: &str| {
        let known = known.as_ref()?.columns.iter().find(|c| c.name == column)?;
        Some((known.description.clone(), known.unit.clone()))
    };
    let columns = columns_of(&schema, described);
    let said = |key: &str| schema.metadata().get(key).cloned().unwrap_or_default();
    Ok(match known {
        Some(known) => TableDoc { columns, ..known },
        None => TableDoc {
            name: name.to_string(),
            kind: kind_and_grain(name).0,
            question: said("question"),
            grain: said("grain"),
            key: Vec::new(),
            columns,
            example: super::builtin::example(name),
        },
    })
}

fn grain_of_file(tables: &Tables, name: &str) -> String {
    tables.schema(name).ok().and_then(|s| s.metadata().get("grain").cloned()).unwrap_or_default()
}

/// Rows of Parquet files, from their footers. Other files have none.
pub fn rows(files: &[PathBuf]) -> Result<u64> {
    let mut rows = 0_u64;
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "parquet")) {
        let file = own_files::open_regular(path).with_context(|| format!("cannot open {}", path.display()))?;
        let said = || Ok(ParquetRecordBatchReaderBuilder::try_new(file)?.metadata().file_metadata().num_rows());
        let said = without_panic(said).with_context(|| format!("{} is not a complete Parquet file", path.display()))?;
        rows = u64::try_from(said).map_or(rows, |said| rows.saturating_add(said));
    }
    Ok(rows)
}

/// `365,760`
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn numbers_are_grouped_in_thousands() {
        assert_eq!(["0", "999", "1,000", "365,760"], [0, 999, 1000, 365_760].map(thousands));
    }
}
