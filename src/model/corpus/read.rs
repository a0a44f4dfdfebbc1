//! Documents from text, JSON lines and Parquet, one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use selfrepair_core::outside::without_panic;

pub type Documents = Box<dyn Iterator<Item = Result<String>>>;

/// The documents of a file, by its extension. Empty documents are skipped.
pub fn documents(path: &Path, text_column: &str) -> Result<Documents> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let documents: Documents = match name.as_str() {
        n if n.ends_with(".txt") || n.ends_with(".cor") => lines(path, file),
        n if n.ends_with(".jsonl") => json_lines(path, file, text_column),
        n if n.ends_with(".jsonl.gz") => json_lines(path, flate2::read::MultiGzDecoder::new(file), text_column),
        n if n.ends_with(".jsonl.zst") => json_lines(path, zstd::Decoder::new(file)?, text_column),
        n if n.ends_with(".parquet") => parquet_rows(path, file, text_column)?,
        _ => bail!(
            "{}: not a corpus; expected a name that ends in .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet",
            path.display()
        ),
    };
    Ok(Box::new(documents.filter(|d| !d.as_ref().is_ok_and(|t| t.trim().is_empty()))))
}

fn lines(path: &Path, reader: impl Read + 'static) -> Documents {
    let name = path.display().to_string();
    let lines = BufReader::new(reader).lines().enumerate();
    Box::new(lines.map(move |(i, line)| line.with_context(|| format!("{name}, line {}: cannot be read", i + 1))))
}

fn json_lines(path: &Path, reader: impl Read + 'static, key: &str) -> Documents {
    let (name, key) = (path.display().to_string(), key.to_string());
    let documents = lines(path, reader).enumerate().filter(|(_, l)| !l.as_ref().is_ok_and(|l| l.trim().is_empty()));
    Box::new(documents.map(move |(i, line)| {
        let place = || format!("{name}, line {}", i + 1);
        let mut json: serde_json::Value =
            serde_json::from_str(&line?).with_context(|| format!("{}: not valid JSON", place()))?;
        match json.get_mut(&key).map(serde_json::Value::take) {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(other) => bail!("{}: `{key}` is {other}; expected a string", place()),
            None => bail!("{}: no key `{key}` (name another with corpus.text_column)", place()),
        }
    }))
}

/// Columns have the types that Parquet itself says: the Arrow types that a writer may have put beside them are read by
/// code that panics on spoilt bytes, and texts need none.
fn by_parquet_types() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

fn parquet_rows(path: &Path, file: File, column: &str) -> Result<Documents> {
    let name = path.display().to_string();
    let open = || Ok(ParquetRecordBatchReaderBuilder::try_new_with_options(file, by_parquet_types())?);
    let builder = without_panic(open).with_context(|| format!("{name} is not a complete Parquet file"))?;
    let schema = builder.schema().clone();
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let texts: Vec<&str> =
        schema.fields().iter().filter(|f| is_text(f.data_type())).map(|f| f.name().as_str()).collect();
    let Some(index) = schema.fields().iter().position(|f| f.name() == column && is_text(f.data_type())) else {
        bail!(
            "{name} has no text column `{column}`; its text columns are: {} (name one with corpus.text_column)",
            if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
        );
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let mut batches = builder.with_projection(mask).build().with_context(|| format!("{name}: cannot be read"))?;
    let batches = std::iter::from_fn(move || without_panic(|| Ok(batches.next().transpose()?)).transpose());
    let rows = batches.flat_map(move |batch| -> Box<dyn Iterator<Item = Result<String>>> {
        let texts = batch.and_then(|b| without_panic(|| Ok(cast(b.column(0), &DataType::LargeUtf8)?)));
        match texts.with_context(|| format!("{name}: cannot be read")) {
            Ok(texts) => {
                let owned: Vec<_> =
                    texts.as_string::<i64>().iter().map(|t| Ok(t.unwrap_or_default().to_string())).collect();
                debug_assert_eq!(owned.len(), texts.len());
                Box::new(owned.into_iter())
            }
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    });
    Ok(Box::new(rows))
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
            None => bail!("no key `{key}` (name another with corpus.text_column)"),
        }
    }
}

/// The rows of a prompt set, which has several columns: JSON lines (also compressed) or Parquet.
pub fn rows(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Row>>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let lines = match name.as_str() {
        n if n.ends_with(".jsonl") => lines(path, file),
        n if n.ends_with(".jsonl.gz") => lines(path, flate2::read::MultiGzDecoder::new(file)),
        n if n.ends_with(".jsonl.zst") => lines(path, zstd::Decoder::new(file)?),
        n if n.ends_with(".parquet") => lines(path, std::io::Cursor::new(parquet_as_json(path, file)?)),
        _ => bail!(
            "{}: not a prompt set; expected a name that ends in .jsonl, .jsonl.gz, .jsonl.zst or .parquet",
            path.display()
        ),
    };
    let file = path.display().to_string();
    let numbered = lines.enumerate().filter(|(_, l)| !l.as_ref().is_ok_and(|l| l.trim().is_empty()));
    Ok(Box::new(numbered.map(move |(i, line)| {
        let place = format!("{file}, row {}", i + 1);
        let json = serde_json::from_str(&line?).with_context(|| format!("{place}: not valid JSON"))?;
        Ok(Row { place, json })
    })))
}

/// Prompt sets are small: a whole Parquet file as JSON lines.
fn parquet_as_json(path: &Path, file: File) -> Result<Vec<u8>> {
    let read = || {
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        for batch in ParquetRecordBatchReaderBuilder::try_new_with_options(file, by_parquet_types())?.build()? {
            writer.write(&batch?)?;
        }
        writer.finish()?;
        Ok(writer.into_inner())
    };
    without_panic(read).with_context(|| format!("{} is not a complete Parquet file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::Arc;

    fn read(path: &Path) -> Result<Vec<String>> {
        documents(path, "text")?.collect()
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
