//! Documents from text, JSON lines and Parquet, one at a time.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::json_text::text_under;
use super::lines::Lines;
use selfrepair_core::untrusted::{open_file, without_panic};

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

/// The documents of a file, by its extension. Empty documents are skipped.
pub fn documents(path: &Path, text_column: &str) -> Result<Documents> {
    let file = open_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    Ok(match name.as_str() {
        n if n.ends_with(".txt") || n.ends_with(".cor") => texts(Lines::new(path, file, PART)),
        n if n.ends_with(".jsonl") => json_lines(path, file, text_column),
        n if n.ends_with(".jsonl.gz") => json_lines(path, flate2::read::MultiGzDecoder::new(file), text_column),
        n if n.ends_with(".jsonl.zst") => json_lines(path, zstd::Decoder::new(file)?, text_column),
        n if n.ends_with(".parquet") => whole(parquet_rows(path, file, text_column)?),
        _ => bail!(
            "{}: not a corpus; expected a name that ends in .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet",
            path.display()
        ),
    })
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

fn json_lines(path: &Path, reader: impl Read + 'static, key: &str) -> Documents {
    let (name, key) = (path.display().to_string(), key.to_string());
    whole(whole_lines(path, reader, MOST_LINE).map(move |line| {
        let (number, line) = line?;
        text_under(&key, &line).with_context(|| format!("{name}, line {number}"))
    }))
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

fn is_text(t: &DataType) -> bool {
    matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A Parquet file whose texts are read as views: a text that a dictionary has once is there once in memory too, however
/// many rows repeat it.
fn open_parquet(path: &Path, file: File) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let open = || {
        let plain = ArrowReaderMetadata::load(&file, by_parquet_types())?;
        let view = |field: &Arc<Field>| match is_text(field.data_type()) {
            true => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
            false => field.clone(),
        };
        let views = Schema::new(plain.schema().fields().iter().map(view).collect::<Vec<_>>());
        let options = by_parquet_types().with_schema(Arc::new(views));
        let metadata = ArrowReaderMetadata::try_new(plain.metadata().clone(), options)?;
        Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, metadata))
    };
    without_panic(open).with_context(|| format!("{} is not a complete Parquet file", path.display()))
}

fn parquet_rows(path: &Path, file: File, column: &str) -> Result<impl Iterator<Item = Result<String>> + use<>> {
    let name = path.display().to_string();
    let builder = open_parquet(path, file)?;
    let schema = builder.schema().clone();
    let texts: Vec<&str> =
        schema.fields().iter().filter(|f| is_text(f.data_type())).map(|f| f.name().as_str()).collect();
    let Some(index) = schema.fields().iter().position(|f| f.name() == column && is_text(f.data_type())) else {
        bail!(
            "{name} has no text column `{column}`; its text columns are: {} (name one with corpus.text_column)",
            if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
        );
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let builder = builder.with_projection(mask).with_batch_size(ROWS_AT_ONCE);
    let mut batches = without_panic(|| Ok(builder.build()?)).with_context(|| format!("{name}: cannot be read"))?;
    let batches = std::iter::from_fn(move || without_panic(|| Ok(batches.next().transpose()?)).transpose());
    Ok(batches.flat_map(move |batch| {
        let rows = match batch.with_context(|| format!("{name}: cannot be read")) {
            Ok(batch) => (Some(batch.column(0).clone()), batch.num_rows(), None),
            Err(e) => (None, 0, Some(Err(e))),
        };
        let (texts, count, error) = rows;
        let name = name.clone();
        // One row at a time is made a text of its own.
        let row = move |i: usize| {
            let texts = texts.as_ref().and_then(|t| t.as_string_view_opt());
            let texts = texts.with_context(|| format!("{name}: its texts do not have the declared type"))?;
            Ok(if texts.is_valid(i) { texts.value(i).to_string() } else { String::new() })
        };
        (0..count).map(row).chain(error)
    }))
}

/// Rows of a Parquet file that are read at a time. Texts are not copied, so that it says nothing about bytes.
const ROWS_AT_ONCE: usize = 256;

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
            None => bail!("no key `{key}` (name another with corpus.text_column)"),
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
        n if n.ends_with(".jsonl.zst") => Box::new(whole_lines(path, zstd::Decoder::new(file)?, MOST_ROW)),
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
        let json = serde_json::from_str(&line).with_context(|| format!("{place}: not valid JSON"))?;
        Ok(Row { place, json })
    })))
}

/// Prompt sets are small: a whole Parquet file as JSON lines.
fn parquet_as_json(path: &Path, file: File) -> Result<Vec<u8>> {
    let builder = open_parquet(path, file)?;
    let read = || {
        let mut writer = arrow::json::LineDelimitedWriter::new(Limited(Vec::new()));
        // One row at a time: a text of a dictionary is written again for each.
        for batch in builder.with_batch_size(1).build()? {
            writer.write(&batch?)?;
        }
        writer.finish()?;
        Ok(writer.into_inner().0)
    };
    without_panic(read).with_context(|| format!("{} cannot be read as a prompt set", path.display()))
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
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;

    fn read(path: &Path) -> Result<Vec<String>> {
        documents(path, "text")?.map(|part| part.map(|p| p.text)).collect()
    }

    fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    const JSON: &str = "{\"text\": \"one\"}\n\n{\"text\": \"zwei é\", \"id\": 2}\n{\"text\": \"\"}\n";

    #[test]
    fn every_format_gives_the_same_documents() {
        let dir = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(JSON.as_bytes()).unwrap();
        let column = Arc::new(arrow::array::StringArray::from(vec!["one", "zwei é", ""])) as _;
        let ids = Arc::new(arrow::array::Int32Array::from(vec![1, 2, 3])) as _;
        let batch = arrow::record_batch::RecordBatch::try_from_iter([("id", ids), ("text", column)]).unwrap();
        let mut parquet = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        parquet.write(&batch).unwrap();
        let files = [
            file(dir.path(), "a.txt", "one\nzwei é\n\n".as_bytes()),
            file(dir.path(), "a.jsonl", JSON.as_bytes()),
            file(dir.path(), "a.jsonl.gz", &gz.finish().unwrap()),
            file(dir.path(), "a.jsonl.zst", &zstd::encode_all(JSON.as_bytes(), 1).unwrap()),
            file(dir.path(), "a.parquet", &parquet.into_inner().unwrap()),
        ];
        for path in files {
            assert_eq!(read(&path).unwrap(), ["one", "zwei é"], "{}", path.display());
        }
    }

    #[test]
    fn bad_files_are_named_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str, bytes: &[u8]| format!("{:#}", read(&file(dir.path(), name, bytes)).unwrap_err());
        assert!(error("a.jsonl", b"{\"text\": \"x\"}\n{oops").contains("a.jsonl, line 2: not valid JSON"));
        assert!(error("b.jsonl", b"{\"body\": \"x\"}").contains("line 1: no key `text`"));
        assert!(error("c.parquet", b"PAR1").contains("c.parquet is not a complete Parquet file"));
        assert!(error("d.docx", b"").contains("not a corpus"));
        assert!(error("e.txt", &[b'a', b'\n', 0xff, b'\n']).contains("e.txt, line 2"));
        assert!(error("f.jsonl.zst", b"nonsense").contains("f.jsonl.zst, line 1"));
    }
}
