//! The files of one piece as a sink for measured rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use selfrepair_core::files::{sha256_of, sha256_of_file, write_atomically};
use selfrepair_core::own_files::read_own;
use selfrepair_core::sink::{Part, RowSink, RowWriter, Rows};
use selfrepair_core::tables::Table;

use crate::pieces::{DoneRecord, FileRecord, OpenPiece};
use crate::run_folder::{RunFolder, Stage};
use crate::stage_files::{StageFiles, create_folder_of, parquet_batches};
use crate::store::{Folder, Store};
use crate::table_writer::{Metadata, TableWriter, is_whole};

/// A piece of `ablate`. Its files are written in its own folder; those that are among the run's tables already, because the
/// piece was finished before, are taken as they are. What other stages wrote can be read through it.
pub struct PieceFiles<'a> {
    folder: &'a RunFolder,
    earlier: StageFiles<'a>,
    number: usize,
    meta: Metadata,
    written: Arc<Written>,
}

/// What is written of a piece, and its records.
struct Written {
    store: Folder,
    /// Folder of the records.
    done: String,
    /// By name of the record: a shard's number or a table.
    records: Mutex<BTreeMap<String, DoneRecord>>,
    /// Of shards that are not finished.
    pending: Mutex<BTreeMap<usize, DoneRecord>>,
}

impl<'a> PieceFiles<'a> {
    /// `identity` is the fingerprint of the run.
    ///
    /// # Errors
    /// If the records of the piece cannot be read.
    pub fn new(folder: &'a RunFolder, identity: &str, piece: &OpenPiece) -> Result<Self> {
        // Its own records have the checksums.
        let meta = Metadata { run_id: folder.run_id.clone(), fingerprint: piece.fingerprint()?, ledger: None };
        let earlier = StageFiles::new(folder, Stage::Trace, identity);
        let written = Arc::new(Written::read(folder.root(), &piece.folder())?);
        Ok(Self { folder, earlier, number: piece.number, meta, written })
    }

    /// Every file that is finished.
    pub fn records(&self) -> Vec<FileRecord> {
        let records = self.written.records();
        let mut files: Vec<FileRecord> = records.values().flat_map(|record| record.files.clone()).collect();
        files.sort_by(|a, b| (&a.table, a.shard).cmp(&(&b.table, b.shard)));
        files
    }

    /// What every file of the piece says of itself.
    pub(crate) fn meta(&self) -> &Metadata {
        &self.meta
    }

    fn work(&self) -> PathBuf {
        self.folder.root().join(crate::pieces::folder(self.number))
    }

    /// Where a finished file is: in the piece's folder, or among the tables.
    fn found(&self, table: &Table, part: Part) -> Option<PathBuf> {
        let file = self.written.file(&record(table, part))?;
        let paths = [self.work().join(file.work_name()), self.folder.root().join(file.name(self.number))];
        let is_same =
            |path: &PathBuf| sha256_of_file(path).is_ok_and(|sum| sum == file.sha256) && is_whole(path, &self.meta);
        paths.into_iter().find(is_same)
    }

    /// Replaces the record of a file whose rows another piece has in part.
    pub(crate) fn replace(&self, file: FileRecord) -> Result<()> {
        self.written.replace(file)
    }

    /// Records a file that was written otherwise than through [`RowSink::open`].
    pub(crate) fn add(&self, file: FileRecord) -> Result<()> {
        self.written.add(file)
    }

    /// Every shard that has files is finished.
    pub(crate) fn finish_shards(&self) -> Result<()> {
        let shards: Vec<usize> = self.written.pending().keys().copied().collect();
        shards.into_iter().try_for_each(|shard| self.finish_shard(shard))
    }

    /// What belongs to the piece, and not to an earlier stage.
    fn is_own(name: &str) -> bool {
        name.starts_with("sums/")
    }
}

fn record(table: &Table, part: Part) -> FileRecord {
    let shard = match part {
        Part::Shard(number) => Some(number),
        Part::Whole => None,
    };
    FileRecord { table: table.name.to_string(), shard, size: 0, sha256: String::new() }
}

impl Written {
    fn read(root: &Path, piece: &str) -> Result<Self> {
        let (store, done) = (Folder::new(root), format!("{piece}/done"));
        let mut records = BTreeMap::new();
        for name in store.list(&done)? {
            let of = name.rsplit('/').next().and_then(|file| file.strip_suffix(".json"));
            let read = store.get(&name)?.and_then(|bytes| serde_json::from_slice::<DoneRecord>(&bytes).ok());
            // A record that cannot be read counts as none: its files are written again.
            records.extend(of.map(str::to_string).zip(read));
        }
        Ok(Self { store, done, records: Mutex::new(records), pending: Mutex::default() })
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, DoneRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<usize, DoneRecord>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is finished. A table that is one file is on record at once; a shard, when all of it is there.
    fn add(&self, file: FileRecord) -> Result<()> {
        match file.shard {
            Some(shard) => {
                self.pending().entry(shard).or_default().files.push(file);
                Ok(())
            }
            None => self.save(file.table.clone(), DoneRecord { files: vec![file], ..Default::default() }),
        }
    }

    fn save(&self, name: String, record: DoneRecord) -> Result<()> {
        let object = format!("{}/{name}.json", self.done);
        let bytes = serde_json::to_vec_pretty(&record)?;
        // It is there if a file of it was lost, and was written again.
        if !self.store.create(&object, &bytes)? {
            self.store.put(&object, &bytes)?;
        }
        self.records().insert(name, record);
        Ok(())
    }

    fn file(&self, wanted: &FileRecord) -> Option<FileRecord> {
        let name = wanted.shard.map_or(wanted.table.clone(), shard_name);
        let records = self.records();
        records.get(&name)?.files.iter().find(|file| file.table == wanted.table).cloned()
    }

    fn replace(&self, file: FileRecord) -> Result<()> {
        let name = file.shard.map_or(file.table.clone(), shard_name);
        let Some(mut record) = self.records().get(&name).cloned() else { return Ok(()) };
        record.files.retain(|other| other.table != file.table);
        record.files.push(file);
        self.save(name, record)
    }

    fn kept(&self, name: &str) -> Option<String> {
        self.records().values().find_map(|record| record.kept.get(name).cloned())
    }
}

fn shard_name(shard: usize) -> String {
    format!("{shard:05}")
}

/// The shard of what is kept under a name such as `sums/samples-00003.arrow`.
fn shard_of(name: &str) -> Option<usize> {
    name.strip_suffix(".arrow")?.rsplit('-').next()?.parse().ok()
}

impl RowSink for PieceFiles<'_> {
    fn fingerprint(&self) -> &str {
        &self.meta.fingerprint
    }

    fn has(&self, table: &Table, part: Part) -> bool {
        self.found(table, part).is_some()
    }

    fn open(&self, table: &Table, part: Part, schema: SchemaRef, block: usize) -> Result<Box<dyn RowWriter>> {
        let record = record(table, part);
        let path = self.work().join(record.work_name());
        create_folder_of(&path)?;
        let writer = TableWriter::of_blocks(table.name, schema, table.key, block, &path, &self.meta)?;
        Ok(Box::new(PieceWriter { writer, record, path, written: self.written.clone() }))
    }

    fn read(&self, table: &Table, part: Option<Part>, columns: &[&str], rows: usize) -> Result<Rows> {
        let Some(part) = part else { return self.earlier.read(table, None, columns, rows) };
        let columns: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
        let path = self.found(table, part).with_context(|| format!("a part of {} is lost", table.name))?;
        parquet_batches(&path, &columns, rows)
    }

    fn has_arrays(&self, name: &str, shard: usize) -> bool {
        self.earlier.has_arrays(name, shard)
    }

    fn open_arrays(&self, name: &str, shard: usize, schema: SchemaRef) -> Result<Box<dyn RowWriter>> {
        self.earlier.open_arrays(name, shard, schema)
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.work().join(name);
        create_folder_of(&path)?;
        if let Some(shard) = shard_of(name) {
            self.written.pending().entry(shard).or_default().kept.insert(name.to_string(), sha256_of(bytes));
        }
        write_atomically(&path, bytes)
    }

    fn has_kept(&self, name: &str) -> bool {
        match Self::is_own(name) {
            true => {
                self.written.kept(name).is_some_and(|sum| sha256_of_file(&self.work().join(name)).ok() == Some(sum))
            }
            false => self.earlier.has_kept(name),
        }
    }

    fn kept(&self, name: &str) -> Result<Vec<u8>> {
        if !Self::is_own(name) {
            return self.earlier.kept(name);
        }
        let path = self.work().join(name);
        read_own(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn kept_names(&self, folder: &str) -> Result<Vec<String>> {
        let below = format!("{}/", crate::pieces::folder(self.number));
        let names = self.written.store.list(&format!("{below}{folder}"))?.into_iter();
        Ok(names.filter_map(|name| Some(name.strip_prefix(&below)?.to_string())).collect())
    }

    fn remove_kept(&self, name: &str) -> Result<()> {
        let path = self.work().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn finish_shard(&self, number: usize) -> Result<()> {
        let Some(record) = self.written.pending().remove(&number) else { return Ok(()) };
        self.written.save(shard_name(number), record)
    }

    fn warn(&self, warning: String) {
        self.folder.warn(warning);
    }
}

struct PieceWriter {
    writer: TableWriter,
    record: FileRecord,
    path: PathBuf,
    written: Arc<Written>,
}

impl RowWriter for PieceWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.writer.write(rows)
    }

    fn end_of_block(&mut self) -> Result<()> {
        self.writer.end_of_block()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { writer, record, path, written } = *self;
        let sha256 = writer.finish_with_checksum()?;
        let size = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
        written.add(FileRecord { size, sha256, ..record })
    }
}
