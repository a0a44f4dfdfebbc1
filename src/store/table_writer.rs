//! Writes Parquet in the layout of all tables: sorted, zstd, byte-stream-split floats, page statistics,
//! self-describing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use selfrepair_core::fail_check;
use selfrepair_core::own_files;
use selfrepair_core::provenance::{self, MEASUREMENT_VERSION};
use selfrepair_core::tables::{MEASURED, SCHEMA_VERSION, Table, sort_order};
use selfrepair_core::untrusted::without_panic;

use crate::checksums::{Hashed, Ledger};

/// What every file of a run says of itself.
#[derive(Clone)]
pub struct Metadata {
    pub run_id: String,
    /// The fingerprint of the stage that wrote the file.
    pub fingerprint: String,
    /// Where the checksums of the stage's files are kept; hand-made tables have none.
    pub ledger: Option<Arc<Ledger>>,
}

/// The file of a table that was not measured. No part of a table has this name.
pub const EMPTY_FILE: &str = "empty.parquet";

const SCHEMA: &str = "pipeline.schema_version";
const MEASUREMENT: &str = "pipeline.measurement_version";
const FINGERPRINT: &str = "pipeline.fingerprint";
const TABLE: &str = "pipeline.table";
const ROWS_IN_GROUP: usize = 512 * 1024;
/// Small pages, so that a query for one head reads little more than that head. Smaller ones compress worse.
const ROWS_IN_PAGE: usize = 8 * 1024;
/// A row group does not end early before it has so many: of smaller ones, what the footer says of them costs more than a
/// query saves.
const FEWEST_ROWS_IN_GROUP: usize = 16_000;

/// Writes one file of a table under a temporary name, and gives it its name when it is whole.
pub struct TableWriter {
    writer: ArrowWriter<Hashed>,
    path: PathBuf,
    ledger: Option<Arc<Ledger>>,
    /// Whether every number must be one.
    finite: bool,
}

impl TableWriter {
    pub fn create(table: &Table, path: &Path, meta: &Metadata) -> Result<Self> {
        Self::with_schema(table.name, table.schema(), table.key, path, meta)
    }

    /// A table whose columns a query decides; its first `key` columns sort it, as [`sort_order`] says.
    pub fn with_schema(name: &str, schema: SchemaRef, key: usize, path: &Path, meta: &Metadata) -> Result<Self> {
        Self::of_blocks(name, schema, key, 1, path, meta)
    }

    /// A table to which so many rows are written at a time, all of one head. Its pages end where those do: a query for one
    /// head reads the pages of that head only, if its rows are as many as a page has.
    pub fn of_blocks(
        name: &str,
        schema: SchemaRef,
        key: usize,
        block: usize,
        path: &Path,
        meta: &Metadata,
    ) -> Result<Self> {
        let file = Hashed::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let properties = properties(name, &schema, key, rows_in_page(block), meta)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        let finite = MEASURED.iter().any(|t| t.name == name);
        Ok(Self { writer, path: path.to_path_buf(), ledger: meta.ledger.clone(), finite })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if self.finite {
            reject_non_finite(batch).with_context(|| format!("{} is not written", self.path.display()))?;
        }
        self.writer.write(batch).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Rows that queries ask for together, such as those of a layer, end here: what follows them gets a row group of its
    /// own, so that the statistics of a group are those of its layer and a query reads no other.
    pub fn end_of_block(&mut self) -> Result<()> {
        if self.writer.in_progress_rows() >= FEWEST_ROWS_IN_GROUP {
            self.writer.flush().with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        self.finish_with_checksum().map(|_| ())
    }

    /// As [`TableWriter::finish`]. Returns the SHA-256 of the file.
    pub fn finish_with_checksum(self) -> Result<String> {
        let place = || format!("cannot write {}", self.path.display());
        self.writer.into_inner().with_context(place)?.finish(self.ledger.as_deref())
    }
}

/// As many whole blocks as a page takes.
fn rows_in_page(block: usize) -> usize {
    match ROWS_IN_PAGE / block.max(1) {
        0 => ROWS_IN_PAGE,
        blocks => blocks * block.max(1),
    }
}

fn properties(
    name: &str,
    schema: &SchemaRef,
    key: usize,
    rows_in_page: usize,
    meta: &Metadata,
) -> Result<WriterProperties> {
    let pair = |key: &str, value: &str| KeyValue::new(key.to_string(), value.to_string());
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROWS_IN_GROUP))
        .set_data_page_row_count_limit(rows_in_page)
        // Page limits are looked at once a batch of this many values.
        .set_write_batch_size(1024)
        .set_sorting_columns(Some(
            sort_order(schema, key)
                .into_iter()
                .map(|i| SortingColumn { column_idx: i as i32, descending: false, nulls_first: false })
                .collect(),
        ))
        .set_key_value_metadata(Some(vec![
            pair(SCHEMA, SCHEMA_VERSION),
            pair(TABLE, name),
            pair("pipeline.run_id", &meta.run_id),
            pair(FINGERPRINT, &meta.fingerprint),
            pair(MEASUREMENT, &MEASUREMENT_VERSION.to_string()),
            pair("pipeline.commit", provenance::commit()),
        ]));
    for field in schema.fields() {
        if field.data_type() == &DataType::Float32 {
            let column = ColumnPath::from(field.name().as_str());
            builder = builder
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    Ok(builder.build())
}

/// # Errors
/// If a float is infinite or not a number; says which, and what the row is about.
fn reject_non_finite(batch: &RecordBatch) -> Result<()> {
    let schema = batch.schema();
    for (column, field) in batch.columns().iter().zip(schema.fields()) {
        let Some(values) = column.as_primitive_opt::<Float32Type>() else { continue };
        let Some(row) = values.iter().position(|v| v.is_some_and(|v| !v.is_finite())) else { continue };
        let keys = batch.columns().iter().zip(schema.fields()).filter(|(_, f)| f.data_type() != &DataType::Float32);
        let about: Vec<String> = keys
            .filter(|(column, _)| column.is_valid(row))
            .map(|(column, f)| Ok(format!("{} {}", f.name(), array_value_to_string(column, row)?)))
            .collect::<Result<_>>()?;
        fail_check!(
            "{} is {} at {}; the model's numbers overflow here",
            field.name(),
            values.value(row),
            about.join(", ")
        );
    }
    Ok(())
}

/// Whether `path` is the complete Parquet file that the stage of `meta` wrote, byte for byte.
pub fn is_whole(path: &Path, meta: &Metadata) -> bool {
    says(path, FINGERPRINT, &meta.fingerprint) && meta.ledger.as_ref().is_none_or(|ledger| ledger.holds(path))
}

/// Whether `path` is a complete Parquet file of that table, as [`TableWriter`] writes it.
pub fn is_of_table(path: &Path, table: &str) -> bool {
    says(path, TABLE, table)
}

/// The version of the schema that a Parquet file was written with. `None` if it cannot be read, or says nothing of it.
pub fn schema_version(path: &Path) -> Option<String> {
    said(path, SCHEMA)
}

/// The measurement version of the program that wrote a Parquet file, as [`schema_version`].
pub fn measurement_version(path: &Path) -> Option<u32> {
    said(path, MEASUREMENT)?.parse().ok()
}

/// Whether a Parquet file has that in its metadata.
fn says(path: &Path, key: &str, value: &str) -> bool {
    said(path, key).as_deref() == Some(value)
}

/// What a Parquet file has in its metadata under a key.
fn said(path: &Path, key: &str) -> Option<String> {
    let file = own_files::open_own(path, File::options().read(true)).ok()?;
    let reader = without_panic(|| Ok(ParquetRecordBatchReaderBuilder::try_new(file)?)).ok()?;
    let pairs = reader.metadata().file_metadata().key_value_metadata()?;
    pairs.iter().find(|kv| kv.key == key)?.value.clone()
}
