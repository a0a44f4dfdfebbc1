//! The files of one stage as a sink for measured rows.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::{RecordBatch, RecordBatchReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use selfrepair_core::files::{sha256_of, write_atomically};
use selfrepair_core::own_files::{open_own, read_own};
use selfrepair_core::sink::{Part, RowSink, RowWriter, Rows};
use selfrepair_core::tables::Table;
use selfrepair_core::untrusted::without_panic;

use crate::checksums::{Hashed, Ledger};
use crate::run_folder::{RunFolder, STAGES, Stage};
use crate::table_writer::{Metadata, TableWriter, is_whole};

/// A stage of a run folder. Tables are Parquet below `tables/`, arrays Arrow IPC files below `activations/`; every file's
/// checksum is recorded.
pub struct StageFiles<'a> {
    folder: &'a RunFolder,
    stage: Stage,
    ledger: Arc<Ledger>,
    meta: Metadata,
}

impl<'a> StageFiles<'a> {
    /// `fingerprint` is that of the stage.
    pub fn new(folder: &'a RunFolder, stage: Stage, fingerprint: &str) -> Self {
        let ledger = folder.ledger(stage).clone();
        let meta = Metadata {
            run_id: folder.run_id.clone(),
            fingerprint: fingerprint.to_string(),
            ledger: Some(ledger.clone()),
        };
        Self { folder, stage, ledger, meta }
    }

    /// What every file of the stage says of itself.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    fn path(&self, table: &Table, part: Part) -> PathBuf {
        let folder = self.folder.table(table.name);
        match part {
            Part::Shard(number) => folder.join(format!("{number:05}.parquet")),
            Part::Whole => folder.join(format!("{}.parquet", table.name)),
        }
    }

    fn arrays(&self, name: &str, shard: usize) -> PathBuf {
        self.folder.activations().join(name).join(format!("{shard:05}.arrow"))
    }

    fn kept_path(&self, name: &str) -> PathBuf {
        self.folder.root().join(name)
    }

    /// The files in a folder that this stage or one before it has recorded. Nobody else's are read.
    fn recorded_in(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for stage in STAGES.into_iter().filter(|&stage| stage <= self.stage) {
            paths.extend(self.folder.files_in(stage, folder)?);
        }
        paths.sort();
        paths.dedup();
        Ok(paths)
    }
}

impl RowSink for StageFiles<'_> {
    fn fingerprint(&self) -> &str {
        &self.meta.fingerprint
    }

    fn has(&self, table: &Table, part: Part) -> bool {
        is_whole(&self.path(table, part), &self.meta)
    }

    fn open(&self, table: &Table, part: Part, schema: SchemaRef, block: usize) -> Result<Box<dyn RowWriter>> {
        let path = self.path(table, part);
        create_folder_of(&path)?;
        Ok(Box::new(TableWriter::of_blocks(table.name, schema, table.key, block, &path, &self.meta)?))
    }

    fn read(&self, table: &Table, part: Option<Part>, columns: &[&str], rows: usize) -> Result<Rows> {
        let paths = match part {
            Some(part) => vec![self.path(table, part)],
            None => self.recorded_in(&self.folder.table(table.name))?,
        };
        let columns: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
        let batches = move |path: PathBuf| -> Rows {
            match parquet_batches(&path, &columns, rows) {
                Ok(batches) => batches,
                Err(e) => Box::new(std::iter::once(Err(e))),
            }
        };
        Ok(Box::new(paths.into_iter().flat_map(batches)))
    }

    fn has_arrays(&self, name: &str, shard: usize) -> bool {
        self.ledger.holds(&self.arrays(name, shard))
    }

    fn open_arrays(&self, name: &str, shard: usize, schema: SchemaRef) -> Result<Box<dyn RowWriter>> {
        Ok(Box::new(ArrayWriter::create(self.arrays(name, shard), &schema, self.ledger.clone())?))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.kept_path(name);
        create_folder_of(&path)?;
        self.ledger.announce(&path)?;
        self.ledger.record(&path, sha256_of(bytes))?;
        write_atomically(&path, bytes)
    }

    fn has_kept(&self, name: &str) -> bool {
        self.ledger.holds(&self.kept_path(name))
    }

    fn kept(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.kept_path(name);
        read_own(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn kept_names(&self, folder: &str) -> Result<Vec<String>> {
        let root = self.folder.root();
        let relative = |path: PathBuf| path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        Ok(self.recorded_in(&root.join(folder))?.into_iter().map(relative).collect())
    }

    fn remove_kept(&self, name: &str) -> Result<()> {
        let path = self.kept_path(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn warn(&self, warning: String) {
        self.folder.warn(warning);
    }
}

pub(crate) fn create_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

pub(crate) fn parquet_batches(path: &Path, columns: &[String], rows: usize) -> Result<Rows> {
    let file = open_own(path, OpenOptions::new().read(true));
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let damaged = format!("{} is not a complete Parquet file", path.display());
    let open = || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().map(String::as_str));
        Ok(builder.with_projection(mask).with_batch_size(rows).build()?)
    };
    let mut reader = without_panic(open).with_context(|| damaged.clone())?;
    let there = reader.schema();
    if let Some(missing) = columns.iter().find(|name| there.index_of(name).is_err()) {
        bail!("{} has no column `{missing}`", path.display());
    }
    let next = move || without_panic(|| Ok(reader.next().transpose()?)).with_context(|| damaged.clone()).transpose();
    Ok(Box::new(std::iter::from_fn(next)))
}

impl RowWriter for TableWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        TableWriter::write(self, rows)
    }

    fn end_of_block(&mut self) -> Result<()> {
        TableWriter::end_of_block(self)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        TableWriter::finish(*self)
    }
}

/// One Arrow IPC file, written under a temporary name.
struct ArrayWriter {
    writer: FileWriter<Hashed>,
    path: PathBuf,
    ledger: Arc<Ledger>,
}

impl ArrayWriter {
    fn create(path: PathBuf, schema: &SchemaRef, ledger: Arc<Ledger>) -> Result<Self> {
        create_folder_of(&path)?;
        let file = Hashed::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { writer: FileWriter::try_new(file, schema)?, path, ledger })
    }
}

impl RowWriter for ArrayWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.writer.write(rows).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let file = self.writer.into_inner().with_context(|| format!("cannot write {}", self.path.display()))?;
        file.finish(Some(&self.ledger)).map(|_| ())
    }
}
