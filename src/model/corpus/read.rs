//! Documents from text, JSON lines and Parquet, one at a time.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{BinaryViewType, DataType, Field, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::json_text::{Under, no_key, not_json, text_under};
use super::lines::Lines;
use crate::non_finite::{self, MARKED};
use selfrepair_core::memory::with_at_most;
use selfrepair_core::untrusted::{not_utf8, open_file, without_panic};

/// A document, or a part of one that is too long to be read at once.
#[derive(Debug, PartialEq)]
pub struct Part {
    pub text: String,
    /// Whether the document ends here.
    pub last: bool,
}

pub type Documents = Box<dyn Iterator<Item = Result<Part>>>;

/// Bytes of a line of text that are read at a time.
const PART: usize = 1 << 20;

/// The most bytes that a line of JSON may have: it is read whole.
const MOST_LINE: usize = 256 << 20;

/// The most bytes that a row of a prompt set may have.
const MOST_ROW: usize = 16 << 20;

/// The most memory that decoding some rows of a Parquet file may take.
const MOST_DECODED: u32 = 512 << 20;

/// Rows without a text, which are left out and counted.
#[derive(Debug, Default)]
pub struct Skipped {
    pub rows: Cell<usize>,
}

/// The documents of a file, by its extension. Empty documents are skipped; rows whose text is null are counted too.
pub fn documents(path: &Path, text_column: &str, skipped: &Rc<Skipped>) -> Result<Documents> {
    let file = open_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let json = |reader: Box<dyn Read>| whole(JsonTexts::of_lines(path, reader, text_column, skipped));
    Ok(match name.as_str() {
        n if n.ends_with(".txt") || n.ends_with(".cor") => texts(Lines::new(path, file, PART)),
        n if n.ends_with(".jsonl") => json(Box::new(file)),
        n if n.ends_with(".jsonl.gz") => json(Box::new(flate2::read::MultiGzDecoder::new(file))),
        n if n.ends_with(".jsonl.zst") => json(Box::new(zstd_reader(path, file)?)),
        n if n.ends_with(".parquet") => whole(parquet_rows(path, file, text_column, skipped)?),
        _ => bail!(
            "{}: not a corpus; expected a name that ends in .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet",
            path.display()
        ),
    })
}

/// With `zstd --long=31`, what is repeated may lie two gigabytes back; the library allows 128 megabytes unless it is told.
fn zstd_reader(path: &Path, file: File) -> Result<impl Read + use<>> {
    const LONGEST_WINDOW: u32 = 31;
    let open = || -> Result<_> {
        let mut decoder = zstd::Decoder::new(file)?;
        decoder.window_log_max(LONGEST_WINDOW)?;
        Ok(decoder)
    };
    open().with_context(|| format!("{}: cannot be read", path.display()))
}

/// Documents that were read whole.
fn whole(documents: impl Iterator<Item = Result<String>> + 'static) -> Documents {
    let documents = documents.filter(|d| !d.as_ref().is_ok_and(|t| t.trim().is_empty()));
    Box::new(documents.map(|d| d.map(|text| Part { text, last: true })))
}

/// Lines as documents. A blank part of a long line belongs to it.
fn texts(lines: impl Iterator<Item = Result<(usize, Part)>> + 'static) -> Documents {
    let mut inside = false;
    let parts = lines.filter(move |part| {
        let Ok((_, part)) = part else { return true };
        let blank = !inside && part.last && part.text.trim().is_empty();
        inside = !part.last;
        !blank
    });
    Box::new(parts.map(|part| part.map(|(_, part)| part)))
}

/// The texts of JSON lines. A row whose text is null is left out, and one without the key too, as Spark writes null; if
/// no row has the key, it is misspelt.
struct JsonTexts<L> {
    lines: L,
    name: String,
    key: String,
    skipped: Rc<Skipped>,
    /// Whether a row has the key.
    found: bool,
    /// What is wrong with the first row, if it has none, and how many have none.
    missing: Option<Error>,
    count: usize,
}

/// Rows that are read in search of the key.
const MOST_WITHOUT_KEY: usize = 1000;

impl JsonTexts<()> {
    fn of_lines<R: Read + 'static>(
        path: &Path,
        reader: R,
        key: &str,
        skipped: &Rc<Skipped>,
    ) -> JsonTexts<impl Iterator<Item = Result<(usize, String)>> + use<R>> {
        JsonTexts {
            lines: whole_lines(path, reader, MOST_LINE),
            name: path.display().to_string(),
            key: key.to_string(),
            skipped: skipped.clone(),
            found: false,
            missing: None,
            count: 0,
        }
    }
}

impl<L: Iterator<Item = Result<(usize, String)>>> JsonTexts<L> {
    fn read(&mut self, line: Result<(usize, String)>) -> Result<Option<String>> {
        let (number, line) = line?;
        let place = || format!("{}, line {number}", self.name);
        match text_under(&self.key, &line).with_context(place)? {
            Under::Text(text) => {
                self.found = true;
                return Ok(Some(text));
            }
            Under::Null => self.found = true,
            Under::Missing if !self.found => {
                self.missing.get_or_insert_with(|| no_key(&self.key).context(place()));
                self.count += 1;
                if self.count == MOST_WITHOUT_KEY {
                    self.found = true;
                    return Err(self.missing.take().unwrap_or_else(|| no_key(&self.key)));
                }
            }
            Under::Missing => {}
        }
        self.skipped.rows.update(|rows| rows + 1);
        Ok(None)
    }
}

impl<L: Iterator<Item = Result<(usize, String)>>> Iterator for JsonTexts<L> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(line) = self.lines.next() {
            if let Some(text) = self.read(line).transpose() {
                return Some(text);
            }
        }
        self.missing.take().filter(|_| !self.found).map(Err)
    }
}

/// Numbered lines of at most `most` bytes, without blank ones.
fn whole_lines<R: Read>(path: &Path, reader: R, most: usize) -> impl Iterator<Item = Result<(usize, String)>> + use<R> {
    let name = path.display().to_string();
    let lines = Lines::new(path, reader, most).map(move |line| {
        let (number, part) = line?;
        ensure!(part.last, "{name}, line {number}: it has more than {most} bytes; split it into several lines");
        Ok((number, part.text))
    });
    lines.filter(|line| !line.as_ref().is_ok_and(|(_, text)| text.trim().is_empty()))
}

/// Columns have the types that Parquet itself says: the Arrow types that a writer may have put beside them are read by
/// code that panics on corrupt bytes, and texts need none.
fn by_parquet_types() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

/// Texts, also as bytes that are not said to be text, as Spark, Hive and old writers have them.
fn is_text(t: &DataType) -> bool {
    view_of(t).is_some()
}

/// What a text is read as. Bytes stay bytes, because the reader would not look whether they are UTF-8.
fn view_of(t: &DataType) -> Option<DataType> {
    match t {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::Utf8View),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Some(DataType::BinaryView),
        _ => None,
    }
}

/// The text of a row, if it has one.
fn text_of_row(column: &ArrayRef, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    if let Some(texts) = column.as_string_view_opt() {
        return Ok(Some(texts.value(row).to_string()));
    }
    let bytes = column.as_byte_view_opt::<BinaryViewType>().context("its texts do not have the declared type")?;
    let bytes = bytes.value(row);
    let text =
        str::from_utf8(bytes).ok().with_context(|| format!("a text of {} bytes: {}", bytes.len(), not_utf8(bytes)))?;
    Ok(Some(text.to_string()))
}

/// A Parquet file whose texts are read as views: a text that a dictionary has once is there once in memory too, however
/// many rows repeat it.
fn open_parquet(path: &Path, file: File) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let open = || {
        let plain = ArrowReaderMetadata::load(&file, by_parquet_types())?;
        let view = |field: &Arc<Field>| match view_of(field.data_type()) {
            Some(view) => Arc::new(field.as_ref().clone().with_data_type(view)),
            None => field.clone(),
        };
        let views = Schema::new(plain.schema().fields().iter().map(view).collect::<Vec<_>>());
        let options = by_parquet_types().with_schema(Arc::new(views));
        let metadata = ArrowReaderMetadata::try_new(plain.metadata().clone(), options)?;
        Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, metadata))
    };
    decoding(path, open).with_context(|| format!("{} is not a complete Parquet file", path.display()))
}

/// Calls the Parquet library, which decodes a page as a whole: its header may speak of gigabytes, and a few bytes may
/// decompress to as many.
fn decoding<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    with_at_most(MOST_DECODED, &path.display().to_string(), || without_panic(read))
}

fn parquet_rows(
    path: &Path,
    file: File,
    column: &str,
    skipped: &Rc<Skipped>,
) -> Result<impl Iterator<Item = Result<String>> + use<>> {
    let (name, skipped) = (path.display().to_string(), skipped.clone());
    let builder = open_parquet(path, file)?;
    let schema = builder.schema().clone();
    let texts: Vec<&str> =
        schema.fields().iter().filter(|f| is_text(f.data_type())).map(|f| f.name().as_str()).collect();
    let Some(index) = schema.fields().iter().position(|f| f.name() == column && is_text(f.data_type())) else {
        let other = schema.fields().iter().find(|f| f.name() == column);
        bail!(
            "{name} has no text column `{column}`{}; its text columns are: {} (name one with corpus.text_column)",
            other.map_or(String::new(), |f| format!(" (that column has the type {})", f.data_type())),
            if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
        );
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let rows = rows_at_once(builder.metadata(), column);
    let builder = builder.with_projection(mask).with_batch_size(rows);
    let mut batches = decoding(path, || Ok(builder.build()?)).with_context(|| format!("{name}: cannot be read"))?;
    let file = path.to_path_buf();
    let batches = std::iter::from_fn(move || decoding(&file, || Ok(batches.next().transpose()?)).transpose());
    Ok(batches.flat_map(move |batch| {
        let rows = match batch.with_context(|| format!("{name}: cannot be read")) {
            Ok(batch) => (Some(batch.column(0).clone()), batch.num_rows(), None),
            Err(e) => (None, 0, Some(Err(e))),
        };
        let (texts, count, error) = rows;
        let (name, skipped) = (name.clone(), skipped.clone());
        // One row at a time is made a text of its own.
        let row = move |i: usize| {
            let texts = texts.as_ref().context("no rows")?;
            let text = text_of_row(texts, i).with_context(|| format!("{name}: cannot be read"))?;
            if text.is_none() {
                skipped.rows.update(|rows| rows + 1);
            }
            Ok(text.unwrap_or_default())
        };
        (0..count).map(row).chain(error)
    }))
}

/// Rows of a Parquet file that are read at a time: up to 256, and fewer of long texts.
fn rows_at_once(metadata: &ParquetMetaData, column: &str) -> usize {
    const MOST_ROWS: usize = 256;
    const BYTES: i64 = 16 << 20;
    let of_group = |group: &RowGroupMetaData| {
        let sizes = group.columns().iter().filter(|c| c.column_path().parts().first().is_some_and(|p| p == column));
        sizes.map(|c| c.uncompressed_size()).max().unwrap_or(0) / group.num_rows().max(1)
    };
    let longest = metadata.row_groups().iter().map(of_group).max().unwrap_or(0);
    usize::try_from(BYTES / longest.max(1)).unwrap_or(1).clamp(1, MOST_ROWS)
}

/// A row of a prompt set and where it came from.
pub struct Row {
    /// File and row, for errors.
    pub place: String,
    pub json: serde_json::Value,
}

impl Row {
    /// The text under `key`.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.json.get(key) {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(other) => bail!("`{key}` is {other}; expected a string"),
            None => Err(no_key(key)),
        }
    }
}

/// The rows of a prompt set, which has several columns: JSON lines (also compressed) or Parquet.
pub fn rows(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Row>>>> {
    let file = open_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    type Numbered = Box<dyn Iterator<Item = Result<(usize, String)>>>;
    let lines: Numbered = match name.as_str() {
        n if n.ends_with(".jsonl") => Box::new(whole_lines(path, file, MOST_ROW)),
        n if n.ends_with(".jsonl.gz") => Box::new(whole_lines(path, flate2::read::MultiGzDecoder::new(file), MOST_ROW)),
        n if n.ends_with(".jsonl.zst") => Box::new(whole_lines(path, zstd_reader(path, file)?, MOST_ROW)),
        n if n.ends_with(".parquet") => {
            Box::new(whole_lines(path, std::io::Cursor::new(parquet_as_json(path, file)?), MOST_ROW))
        }
        _ => bail!(
            "{}: not a prompt set; expected a name that ends in .jsonl, .jsonl.gz, .jsonl.zst or .parquet",
            path.display()
        ),
    };
    let file = path.display().to_string();
    Ok(Box::new(lines.map(move |line| {
        let (number, line) = line?;
        let place = format!("{file}, row {number}");
        let json = serde_json::from_str(&line)
            .or_else(|e| non_finite::replaced(&line, MARKED).map_or(Err(e), |line| serde_json::from_str(&line)));
        let json = json.map_err(not_json).with_context(|| place.clone())?;
        Ok(Row { place, json })
    })))
}

/// Prompt sets are small: a whole Parquet file as JSON lines.
fn parquet_as_json(path: &Path, file: File) -> Result<Vec<u8>> {
    let builder = open_parquet(path, file)?;
    for field in builder.schema().fields() {
        let kind = field.data_type();
        ensure!(
            is_text(kind)
                || kind.is_integer()
                || kind.is_floating()
                || matches!(kind, DataType::Boolean | DataType::Null),
            "{}: the column `{}` has the type {kind}; expected texts and whole numbers",
            path.display(),
            field.name()
        );
    }
    let read = || {
        let mut writer = arrow::json::LineDelimitedWriter::new(Limited(Vec::new()));
        // One row at a time: a text of a dictionary is written again for each.
        for batch in builder.with_batch_size(1).build()? {
            writer.write(&with_texts(&batch?)?)?;
        }
        writer.finish()?;
        Ok(writer.into_inner().0)
    };
    decoding(path, read).with_context(|| format!("{} cannot be read as a prompt set", path.display()))
}

/// Bytes as texts. Those that are none are an error.
fn with_texts(batch: &RecordBatch) -> Result<RecordBatch> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let texts = |(field, column): (&Arc<Field>, &ArrayRef)| match column.data_type() {
        DataType::BinaryView => {
            let texts = cast_with_options(column, &DataType::Utf8View, &options)?;
            Ok((field.name().clone(), texts, true))
        }
        _ => Ok((field.name().clone(), column.clone(), field.is_nullable())),
    };
    let schema = batch.schema();
    let columns: Result<Vec<_>> = schema.fields().iter().zip(batch.columns()).map(texts).collect();
    Ok(RecordBatch::try_from_iter_with_nullable(columns?)?)
}

/// Memory for so many bytes of JSON.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_LINE {
            return Err(std::io::Error::other(format!("it has more than {MOST_LINE} bytes of prompts")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
