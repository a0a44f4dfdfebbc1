//! Where measured rows go. The measurement gives the rows of every table to a [`RowSink`], and asks it which shards
//! earlier runs finished. It does not depend on folders or file formats.
//!
//! `selfrepair-store` implements the trait over a run folder. [`MemorySink`] keeps everything in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::tables::Table;

/// A part of a table. It is written, and becomes valid, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The rows of one shard of prompts.
    Shard(usize),
    /// The whole table.
    Whole,
}

/// Some columns of a table, batch by batch.
pub type Rows = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// Receives the rows of measured tables, and stores the data that a resumed measurement needs.
pub trait RowSink: Sync {
    /// Identifies the measurement. Data stored under another fingerprint is not reused.
    fn fingerprint(&self) -> &str;

    /// Whether this part of a table exists, complete and unchanged.
    fn has(&self, table: &Table, part: Part) -> bool;

    /// Opens a part of a table for rows in the order of the table's key. The part becomes valid when
    /// [`RowWriter::finish`] returns. `block` is the number of rows that a query reads together.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn open(&self, table: &Table, part: Part, schema: SchemaRef, block: usize) -> Result<Box<dyn RowWriter>>;

    /// Reads the named columns of one part, or of all parts in their order, at most `rows` rows in a batch.
    ///
    /// # Errors
    /// If the table is missing or damaged.
    fn read(&self, table: &Table, part: Option<Part>, columns: &[&str], rows: usize) -> Result<Rows>;

    /// Called once everything of a shard is written.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn finish_shard(&self, _number: usize) -> Result<()> {
        Ok(())
    }

    /// Whether the arrays `name` of a shard exist, unchanged.
    fn has_arrays(&self, name: &str, shard: usize) -> bool;

    /// Opens arrays (raw activations) of a shard.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn open_arrays(&self, name: &str, shard: usize, schema: SchemaRef) -> Result<Box<dyn RowWriter>>;

    /// Stores bytes under a name such as `sums/1-of-1.sums`, atomically.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Whether bytes are stored under that name, unchanged.
    fn has_kept(&self, name: &str) -> bool;

    /// # Errors
    /// If nothing is stored under that name.
    fn kept(&self, name: &str) -> Result<Vec<u8>>;

    /// The names under `folder`, in order.
    ///
    /// # Errors
    /// If the sink cannot be read.
    fn kept_names(&self, folder: &str) -> Result<Vec<String>>;

    /// Removes the bytes stored under that name.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove_kept(&self, name: &str) -> Result<()>;

    /// Shows the user a warning, and stores it with the results.
    fn warn(&self, warning: String);
}

/// A part of a table that is being written.
pub trait RowWriter: Send {
    /// # Errors
    /// If a float is not finite, or the sink cannot be written.
    fn write(&mut self, rows: &RecordBatch) -> Result<()>;

    /// Ends a group of rows that queries read together, such as those of a layer.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn end_of_block(&mut self) -> Result<()> {
        Ok(())
    }

    /// Completes the part, which then becomes valid.
    ///
    /// # Errors
    /// If the sink cannot be written.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Keeps all rows in memory.
#[derive(Default, Clone)]
pub struct MemorySink(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    tables: BTreeMap<(String, Part), Vec<RecordBatch>>,
    bytes: BTreeMap<String, Vec<u8>>,
    warnings: Vec<String>,
}

impl MemorySink {
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All rows of a table, in the order of its parts. Empty if nothing was written.
    pub fn rows(&self, table: &Table) -> Vec<RecordBatch> {
        let kept = MemorySink::kept(self);
        let parts = kept.tables.iter().filter(|((name, _), _)| name == table.name);
        parts.flat_map(|(_, rows)| rows.iter().cloned()).collect()
    }

    /// The warnings of the measurement.
    pub fn warnings(&self) -> Vec<String> {
        MemorySink::kept(self).warnings.clone()
    }
}

struct MemoryWriter {
    sink: MemorySink,
    key: (String, Part),
    rows: Vec<RecordBatch>,
}

impl RowWriter for MemoryWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows.push(rows.clone());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { sink, key, rows } = *self;
        MemorySink::kept(&sink).tables.insert(key, rows);
        Ok(())
    }
}

impl RowSink for MemorySink {
    fn fingerprint(&self) -> &str {
        "memory"
    }

    fn has(&self, table: &Table, part: Part) -> bool {
        MemorySink::kept(self).tables.contains_key(&(table.name.to_string(), part))
    }

    fn open(&self, table: &Table, part: Part, _: SchemaRef, _: usize) -> Result<Box<dyn RowWriter>> {
        Ok(Box::new(MemoryWriter { sink: self.clone(), key: (table.name.to_string(), part), rows: vec![] }))
    }

    fn read(&self, table: &Table, part: Option<Part>, columns: &[&str], _: usize) -> Result<Rows> {
        let kept = MemorySink::kept(self);
        let parts = kept.tables.iter().filter(|((name, of), _)| name == table.name && part.is_none_or(|p| p == *of));
        let columns: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
        let batches: Vec<RecordBatch> = parts.flat_map(|(_, rows)| rows.iter().cloned()).collect();
        Ok(Box::new(batches.into_iter().map(move |batch| {
            let indices: Vec<usize> = columns.iter().map(|c| batch.schema().index_of(c)).collect::<Result<_, _>>()?;
            Ok(batch.project(&indices)?)
        })))
    }

    fn has_arrays(&self, name: &str, shard: usize) -> bool {
        MemorySink::kept(self).tables.contains_key(&(format!("arrays/{name}"), Part::Shard(shard)))
    }

    fn open_arrays(&self, name: &str, shard: usize, _: SchemaRef) -> Result<Box<dyn RowWriter>> {
        let key = (format!("arrays/{name}"), Part::Shard(shard));
        Ok(Box::new(MemoryWriter { sink: self.clone(), key, rows: vec![] }))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        MemorySink::kept(self).bytes.insert(name.to_string(), bytes.to_vec());
        Ok(())
    }

    fn has_kept(&self, name: &str) -> bool {
        MemorySink::kept(self).bytes.contains_key(name)
    }

    fn kept(&self, name: &str) -> Result<Vec<u8>> {
        MemorySink::kept(self).bytes.get(name).cloned().with_context(|| format!("{name} is not kept"))
    }

    fn kept_names(&self, folder: &str) -> Result<Vec<String>> {
        let within = |name: &&String| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        Ok(MemorySink::kept(self).bytes.keys().filter(within).cloned().collect())
    }

    fn remove_kept(&self, name: &str) -> Result<()> {
        MemorySink::kept(self).bytes.remove(name);
        Ok(())
    }

    fn warn(&self, warning: String) {
        MemorySink::kept(self).warnings.push(warning);
    }
}
