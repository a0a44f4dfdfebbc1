//! Output formats of query results.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::csv;
use super::table::{Digits, table_text};
use super::terminal::for_terminal;
use selfrepair_core::own_files::create_beside;
use selfrepair_core::plain::{Stdout, VisibleWriter};

/// How long a FIFO that nobody reads is waited for.
const READER: Duration = Duration::from_secs(30);

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
    /// What the name of a file asks for; a name without an ending asks for a table.
    ///
    /// # Errors
    /// If it has an ending that is not known.
    pub fn of_file(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        Ok(match ending.as_deref() {
            Some("csv") => Format::Csv,
            Some("json" | "jsonl" | "ndjson") => Format::Json,
            Some("parquet") => Format::Parquet,
            Some("arrow" | "ipc" | "feather") => Format::Arrow,
            Some("txt") | None => Format::Table,
            Some(other) => bail!(
                "--output {}: the ending .{other} is not known; expected .csv, .json, .jsonl, .ndjson, .parquet, .arrow, \
                 .ipc, .feather or .txt, or name the format with --format",
                path.display()
            ),
        })
    }

    fn is_binary(self) -> bool {
        matches!(self, Format::Parquet | Format::Arrow)
    }
}

/// Where rows go. A file has its name only when it is whole. What is there and is no file, such as a FIFO or a device, is
/// written to; a link is followed and stays.
pub struct Target {
    format: Format,
    file: Option<PathBuf>,
    digits: Digits,
}

impl Target {
    /// # Errors
    /// If the format is binary and a terminal would have to show it.
    pub fn new(format: Format, file: Option<PathBuf>, digits: Digits) -> Result<Self> {
        if format.is_binary() && file.is_none() && std::io::stdout().is_terminal() {
            bail!(
                "{} is not for a terminal; name a file with --output, or send it through a pipe",
                if format == Format::Parquet { "Parquet" } else { "Arrow" }
            );
        }
        Ok(Self { format, file, digits })
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
            let rows = self.write_all(false, schema, &mut stdout, next)?;
            stdout.flush().context("cannot write to standard output")?;
            return Ok(rows);
        };
        let place = || format!("cannot write {}", path.display());
        match Existing::of(path).with_context(place)? {
            Existing::File(path) => {
                let mut file = BufWriter::new(create_beside(&path).with_context(place)?);
                let rows = self.write_all(true, schema, &mut file, next)?;
                let file = file.into_inner().map_err(|e| e.into_error()).with_context(place)?;
                file.as_file().sync_all().with_context(place)?;
                file.persist(&path).map_err(|e| e.error).with_context(place)?;
                Ok(rows)
            }
            Existing::Opened(file) => {
                let mut file = BufWriter::new(file);
                let rows = self.write_all(true, schema, &mut file, next)?;
                file.flush().with_context(place)?;
                Ok(rows)
            }
        }
    }

    fn write_all(
        &self,
        in_a_file: bool,
        schema: &SchemaRef,
        mut out: &mut (impl Write + Send),
        mut next: impl FnMut() -> Result<Option<RecordBatch>>,
    ) -> Result<u64> {
        let rows;
        let on_a_terminal = !in_a_file && self.is_a_terminal();
        match self.format {
            Format::Table => {
                let empty = || vec![RecordBatch::new_empty(schema.clone())];
                let (mut part, mut cells) = (empty(), 0);
                let text = |part: &[RecordBatch]| match on_a_terminal {
                    true => for_terminal(part, None, self.digits),
                    false => table_text(part, self.digits),
                };
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
                // No rows are still a header.
                csv::write_header(schema, &mut out)?;
                rows = drain(&mut next, |batch| csv::write_rows(batch, &mut out))?;
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
}

/// What rows are written to.
enum Existing {
    /// A file, or the place of one. Not a link.
    File(PathBuf),
    /// Something else, which is never replaced.
    Opened(File),
}

impl Existing {
    fn of(path: &Path) -> io::Result<Self> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
        match fs::metadata(path) {
            Ok(there) if there.is_file() && is_link => Ok(Self::File(path.canonicalize()?)),
            Ok(there) if there.is_file() => Ok(Self::File(path.to_path_buf())),
            Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(there) if there.file_type().is_fifo() => Ok(Self::Opened(open_fifo(path)?)),
            Ok(_) => Ok(Self::Opened(OpenOptions::new().write(true).open(path)?)),
            // A link to what is not there yet: the file comes to be where it points to.
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_link => Ok(Self::Opened(File::create(path)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::File(path.to_path_buf())),
            Err(e) => Err(e),
        }
    }
}

/// Opens a FIFO once something reads it.
fn open_fifo(path: &Path) -> io::Result<File> {
    let started = Instant::now();
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            // It has a reader, so that this one does not wait; and writing to it waits for the reader to keep up.
            Ok(_has_reader) => return OpenOptions::new().write(true).open(path),
            Err(e) if e.raw_os_error() != Some(libc::ENXIO) => return Err(e),
            Err(_) if started.elapsed() > READER => {
                let seconds = READER.as_secs();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing has read the FIFO for {seconds} s"),
                ));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn write(path: &Path) -> Result<u64> {
        let schema = std::sync::Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
        Target { format: Format::Csv, file: Some(path.to_path_buf()), digits: Digits::All }.write(&schema, || Ok(None))
    }

    #[test]
    fn a_file_is_replaced_and_a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["new.csv", "old.csv"] {
            fs::write(path("old.csv"), "old").unwrap();
            write(&path(name)).unwrap();
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "a\n", "{name}");
        }
        fs::create_dir(path("elsewhere")).unwrap();
        fs::write(path("elsewhere/file.csv"), "old").unwrap();
        for (target, link) in [("elsewhere/file.csv", "link.csv"), ("elsewhere/none.csv", "dangling.csv")] {
            symlink(target, path(link)).unwrap();
            write(&path(link)).unwrap();
            assert!(path(link).symlink_metadata().unwrap().is_symlink());
            assert_eq!(fs::read_to_string(path(target)).unwrap(), "a\n", "{link}");
        }
        assert!(format!("{:#}", write(&path("elsewhere")).unwrap_err()).contains("directory"));
        assert!(write(&path("no/such/file.csv")).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    }

    #[test]
    fn devices_and_fifos_are_written_to_and_stay() {
        write(Path::new("/dev/null")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo.csv");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        write(&fifo).unwrap();
        assert_eq!(reader.join().unwrap(), "a\n");
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write(&socket).is_err() && socket.exists());
    }
}
