//! The formats in which rows leave.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::util::pretty::pretty_format_batches;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::cells::{for_display, for_sheet};
use super::terminal::for_terminal;
use selfrepair_core::plain::{Stdout, VisibleWriter};
use selfrepair_core::files::temporary;

/// Columns are aligned over so many cells at once, which must be in memory; what is longer goes on as another table.
const CELLS: usize = 1_000_000;

/// How `pipeline sql` prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns for reading; control characters in texts are shown as \u{1b}.
    Table,
    /// For spreadsheets: a text that begins with = + - @, a tab or a return has a ' before it, so that it is no formula.
    Csv,
    /// One JSON object a line.
    Json,
    Parquet,
    /// Arrow IPC: the file format in a file, the stream format in a pipe.
    Arrow,
}

impl Format {
    /// What the name of a file asks for.
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Format::Csv),
            "json" | "jsonl" | "ndjson" => Some(Format::Json),
            "parquet" => Some(Format::Parquet),
            "arrow" | "ipc" | "feather" => Some(Format::Arrow),
            "txt" => Some(Format::Table),
            _ => None,
        }
    }

    fn is_binary(self) -> bool {
        matches!(self, Format::Parquet | Format::Arrow)
    }
}

/// Where rows go. A file has its name only when it is whole.
pub struct Target {
    format: Format,
    file: Option<PathBuf>,
}

impl Target {
    /// # Errors
    /// If the format is binary and a terminal would have to show it.
    pub fn new(format: Format, file: Option<PathBuf>) -> Result<Self> {
        if format.is_binary() && file.is_none() && std::io::stdout().is_terminal() {
            bail!(
                "{} is not for a terminal; name a file with --output, or send it through a pipe",
                if format == Format::Parquet { "Parquet" } else { "Arrow" }
            );
        }
        Ok(Self { format, file })
    }

    /// Whether a person will read the rows.
    pub fn is_a_terminal(&self) -> bool {
        self.format == Format::Table && self.file.is_none() && std::io::stdout().is_terminal()
    }

    /// Whether one result is all it can hold.
    pub fn holds_one_result(&self) -> bool {
        self.file.is_some() || self.format.is_binary()
    }

    /// Writes all rows that `next` gives, and returns how many they were.
    pub fn write(&self, schema: &SchemaRef, next: impl FnMut() -> Result<Option<RecordBatch>>) -> Result<u64> {
        let Some(path) = &self.file else {
            // A terminal is sent text and no control characters, of every format.
            let to: Box<dyn Write + Send> = match std::io::stdout().is_terminal() {
                true => Box::new(VisibleWriter::new(Stdout)),
                false => Box::new(Stdout),
            };
            let mut stdout = std::io::BufWriter::new(to);
            let rows = write_all(self.format, false, self.is_a_terminal(), schema, &mut stdout, next)?;
            stdout.flush().context("cannot write to standard output")?;
            return Ok(rows);
        };
        let partial = temporary(path);
        let file = File::create(&partial).with_context(|| format!("cannot create {}", path.display()))?;
        let mut file = std::io::BufWriter::new(file);
        let written = write_all(self.format, true, false, schema, &mut file, next).and_then(|rows| {
            file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
            fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(rows)
        });
        if written.is_err() {
            fs::remove_file(&partial).ok();
        }
        written
    }
}

fn write_all(
    format: Format,
    in_a_file: bool,
    on_a_terminal: bool,
    schema: &SchemaRef,
    mut out: &mut (impl Write + Send),
    mut next: impl FnMut() -> Result<Option<RecordBatch>>,
) -> Result<u64> {
    let rows;
    match format {
        Format::Table => {
            let empty = || vec![RecordBatch::new_empty(schema.clone())];
            let (mut part, mut cells) = (empty(), 0);
            let text = |part: &[RecordBatch]| if on_a_terminal { for_terminal(part, None) } else { table_text(part) };
            rows = drain(&mut next, |batch| {
                part.push(batch.clone());
                cells += batch.num_rows() * batch.num_columns();
                if cells > CELLS {
                    writeln!(out, "{}", text(&part)?)?;
                    (part, cells) = (empty(), 0);
                }
                Ok(())
            })?;
            // No rows are still a header.
            if part.len() > 1 || rows == 0 {
                writeln!(out, "{}", text(&part)?)?;
            }
        }
        Format::Csv => {
            let mut writer = arrow::csv::Writer::new(&mut out);
            // No rows are still a header.
            writer.write(&for_sheet(&RecordBatch::new_empty(schema.clone()))?)?;
            rows = drain(&mut next, |batch| Ok(writer.write(&for_sheet(batch)?)?))?;
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(&mut out);
            rows = drain(&mut next, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
        }
        Format::Parquet => {
            let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?));
            let mut writer = ArrowWriter::try_new(&mut out, schema.clone(), Some(properties.build()))?;
            rows = drain(&mut next, |batch| Ok(writer.write(batch)?))?;
            writer.close()?;
        }
        Format::Arrow if in_a_file => {
            let mut writer = FileWriter::try_new(&mut out, schema)?;
            rows = drain(&mut next, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
        }
        Format::Arrow => {
            let mut writer = StreamWriter::try_new(&mut out, schema)?;
            rows = drain(&mut next, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
        }
    }
    Ok(rows)
}

/// Hands every batch to `write`, and returns how many rows they had.
fn drain(
    next: &mut impl FnMut() -> Result<Option<RecordBatch>>,
    mut write: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<u64> {
    let mut rows = 0;
    while let Some(batch) = next()? {
        rows += batch.num_rows() as u64;
        write(&batch)?;
    }
    Ok(rows)
}

/// Rows as aligned columns, control characters shown.
pub fn table_text(rows: &[RecordBatch]) -> Result<String> {
    let shown = rows.iter().map(for_display).collect::<Result<Vec<_>>>()?;
    Ok(pretty_format_batches(&shown)?.to_string())
}

/// The first `n` rows.
pub fn head(rows: &[RecordBatch], n: usize) -> Vec<RecordBatch> {
    let mut left = n;
    let mut out = Vec::new();
    for batch in rows {
        let take = left.min(batch.num_rows());
        out.push(batch.slice(0, take));
        left -= take;
    }
    out
}
