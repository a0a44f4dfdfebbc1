//! The run beside the numbers that the paper's authors published, where its model is one of theirs.

use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, concat_batches, filter_record_batch};
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::queries::PAPER;
use super::{Tables, write};
use crate::tables::Metadata;

/// The authors' numbers (see `datasets/README.md`).
pub const AUTHORS: &[u8] = include_bytes!("../../datasets/authors_condensed.parquet");

/// A model that the authors published numbers for.
struct Published {
    /// As the authors call it.
    name: &'static str,
    /// Names of repositories and folders; a name alone is not enough, the shape must fit too.
    names: &'static [&'static str],
    owners: &'static [&'static str],
    architecture: &'static str,
    layers: u32,
    heads: u32,
    d_model: u32,
}

const PUBLISHED: [Published; 4] = [
    Published {
        name: "gpt2-small",
        names: &["gpt2", "gpt2-small"],
        owners: &["openai-community", "openai"],
        architecture: "gpt2",
        layers: 12,
        heads: 12,
        d_model: 768,
    },
    Published {
        name: "gpt2-medium",
        names: &["gpt2-medium"],
        owners: &["openai-community", "openai"],
        architecture: "gpt2",
        layers: 24,
        heads: 16,
        d_model: 1024,
    },
    Published {
        name: "pythia-160m",
        names: &["pythia-160m"],
        owners: &["EleutherAI"],
        architecture: "gpt_neox",
        layers: 12,
        heads: 12,
        d_model: 768,
    },
    Published {
        name: "pythia-410m",
        names: &["pythia-410m"],
        owners: &["EleutherAI"],
        architecture: "gpt_neox",
        layers: 24,
        heads: 16,
        d_model: 1024,
    },
];

/// Writes `paper_comparison` and `paper_agreement`, if the authors published numbers for the run's model.
pub fn compare(tables: &Tables, out: &Path, top_fraction: f64, meta: &Metadata) -> Result<()> {
    let Some(model) = published(tables)? else { return Ok(()) };
    tables.add_rows("authors", authors(model)?)?;
    for query in PAPER {
        let rows = tables.collect(query.text, &[("top_fraction", top_fraction)])?;
        write(query, &rows, out, meta).with_context(|| format!("writing the table {}", query.name))?;
        tables.add(query.name, out)?;
    }
    Ok(())
}

/// What the authors call the run's model.
fn published(tables: &Tables) -> Result<Option<&'static str>> {
    let rows = tables.collect(
        "select name, source, architecture, cast(layers as int) as layers, cast(heads as int) as heads, \
         cast(d_model as int) as d_model from model",
        &[],
    )?;
    let Some(row) = rows.iter().find(|r| r.num_rows() > 0) else { return Ok(None) };
    let text = |i: usize| row.column(i).as_string::<i32>().value(0);
    let number = |i: usize| row.column(i).as_primitive::<arrow::datatypes::Int32Type>().value(0) as u32;
    let shape = [number(3), number(4), number(5)];
    Ok(PUBLISHED.iter().find(|p| p.is(text(0), text(1), text(2), shape)).map(|p| p.name))
}

impl Published {
    fn is(&self, name: &str, source: &str, architecture: &str, shape: [u32; 3]) -> bool {
        let fits = architecture == self.architecture && shape == [self.layers, self.heads, self.d_model];
        // The hub's oldest repositories have no owner.
        let name = match source.strip_prefix("hf:").map(|repository| repository.rsplit_once('/')) {
            Some(Some((owner, name))) if self.owners.contains(&owner) => name,
            Some(Some(_)) => return false,
            Some(None) | None => name,
        };
        fits && self.names.iter().any(|n| n.eq_ignore_ascii_case(name))
    }
}

/// The authors' rows about one model.
fn authors(model: &str) -> Result<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(prost::bytes::Bytes::from_static(AUTHORS))?.build()?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let first = batches.first().context("the authors' table is empty")?;
    let all = concat_batches(&first.schema(), &batches)?;
    let names = cast(all.column_by_name("model").context("the authors' table has no column model")?, &DataType::Utf8)?;
    let mask: BooleanArray = names.as_string::<i32>().iter().map(|n| Some(n == Some(model))).collect();
    Ok(filter_record_batch(&all, &mask)?)
}
