//! Parquet as all tables have it: sorted, zstd, byte-stream-split floats, page statistics, self-describing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::schema::{SCHEMA_VERSION, Table};
use crate::run_folder::temporary;

/// What every file of a run says of itself.
#[derive(Clone)]
pub struct Metadata {
    pub run_id: String,
    /// The fingerprint of the stage that wrote the file.
    pub fingerprint: String,
}

const FINGERPRINT: &str = "pipeline.fingerprint";
const ROWS_IN_GROUP: usize = 256 * 1024;
/// Small pages, so that a query for one head reads little more than that head.
const ROWS_IN_PAGE: usize = 8 * 1024;

/// Writes one file of a table under a temporary name, and gives it its name when it is whole.
pub struct TableWriter {
    writer: ArrowWriter<File>,
    path: PathBuf,
}

impl TableWriter {
    pub fn create(table: &Table, path: &Path, meta: &Metadata) -> Result<Self> {
        Self::with_schema(table.name, table.schema(), table.key, path, meta)
    }

    /// A table whose columns a query decides; its first `key` columns sort it.
    pub fn with_schema(name: &str, schema: SchemaRef, key: usize, path: &Path, meta: &Metadata) -> Result<Self> {
        let file = File::create(temporary(path)).with_context(|| format!("cannot create {}", path.display()))?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties(name, &schema, key, meta)?))?;
        Ok(Self { writer, path: path.to_path_buf() })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub fn finish(self) -> Result<()> {
        let place = || format!("cannot write {}", self.path.display());
        self.writer.into_inner().with_context(place)?.sync_all().with_context(place)?;
        fs::rename(temporary(&self.path), &self.path).with_context(place)
    }
}

fn properties(name: &str, schema: &SchemaRef, key: usize, meta: &Metadata) -> Result<WriterProperties> {
    let pair = |key: &str, value: &str| KeyValue::new(key.to_string(), value.to_string());
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROWS_IN_GROUP))
        .set_data_page_row_count_limit(ROWS_IN_PAGE)
        // Page limits are looked at once a batch of this many values.
        .set_write_batch_size(1024)
        .set_sorting_columns(Some(
            (0..key as i32).map(|i| SortingColumn { column_idx: i, descending: false, nulls_first: false }).collect(),
        ))
        .set_key_value_metadata(Some(vec![
            pair("pipeline.schema_version", SCHEMA_VERSION),
            pair("pipeline.table", name),
            pair("pipeline.run_id", &meta.run_id),
            pair(FINGERPRINT, &meta.fingerprint),
            pair("pipeline.code_version", env!("CARGO_PKG_VERSION")),
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

/// Whether `path` is a complete Parquet file that a stage with this fingerprint wrote.
pub fn is_whole(path: &Path, fingerprint: &str) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(reader) = ParquetRecordBatchReaderBuilder::try_new(file) else { return false };
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    metadata
        .is_some_and(|pairs| pairs.iter().any(|kv| kv.key == FINGERPRINT && kv.value.as_deref() == Some(fingerprint)))
}
