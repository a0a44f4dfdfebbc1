//! Compares the run with the numbers that the paper's authors published, if they measured its model.

use std::path::Path;

use anyhow::{Context, Error, Result};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Int32Type, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::queries::PAPER;
use super::{Tables, write};
use selfrepair_core::columns::numbers;
use selfrepair_core::config::AnalysisConfig;
use selfrepair_store::Metadata;

/// The authors' numbers (see `datasets/README.md`).
pub const AUTHORS: &[u8] = include_bytes!("../../../datasets/authors_condensed.parquet");

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

/// Writes `paper_comparison` and `paper_agreement`, if the authors published numbers for the run's model; how many
/// tables were written.
pub fn compare(tables: &Tables, out: &Path, config: &AnalysisConfig, meta: &Metadata) -> Result<usize> {
    let Some(model) = published(tables)? else { return Ok(0) };
    tables.add_rows("authors", authors(model)?)?;
    for query in PAPER {
        write(query, tables, out, config, meta)?;
    }
    Ok(PAPER.len())
}

/// The columns of the authors' table, which the queries know as `authors`.
pub fn authors_schema() -> Result<SchemaRef> {
    Ok(ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from_static(AUTHORS))?.schema().clone())
}

/// What the authors call the run's model.
fn published(tables: &Tables) -> Result<Option<&'static str>> {
    let rows = tables.collect(
        "select name, source, architecture, cast(layers as int) as layers, cast(heads as int) as heads, \
         cast(d_model as int) as d_model from model",
        &[],
    )?;
    let Some(row) = rows.iter().find(|r| r.num_rows() > 0) else { return Ok(None) };
    let text = |i: usize| Ok::<_, Error>(cast(row.column(i), &DataType::Utf8)?.as_string::<i32>().value(0).to_string());
    let number = |i: usize| Ok::<_, Error>(numbers::<Int32Type>(row, i)?.value(0) as u32);
    let (name, source, architecture) = (text(0)?, text(1)?, text(2)?);
    let shape = [number(3)?, number(4)?, number(5)?];
    Ok(PUBLISHED.iter().find(|p| p.is(&name, &source, &architecture, shape)).map(|p| p.name))
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
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from_static(AUTHORS))?.build()?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let first = batches.first().context("the authors' table is empty")?;
    let all = concat_batches(&first.schema(), &batches)?;
    let names = cast(all.column_by_name("model").context("the authors' table has no column model")?, &DataType::Utf8)?;
    let mask: BooleanArray = names.as_string::<i32>().iter().map(|n| Some(n == Some(model))).collect();
    Ok(filter_record_batch(&all, &mask)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Float64Type, Int64Type};
    use selfrepair_store::test_tables::{metadata, model, table};

    #[test]
    fn a_model_is_known_by_its_name_owner_and_shape() {
        let known = |name: &str, source: &str, architecture: &str, shape: [u32; 3]| {
            PUBLISHED.iter().find(|p| p.is(name, source, architecture, shape)).map(|p| p.name)
        };
        let (small, medium) = ([12, 12, 768], [24, 16, 1024]);
        assert_eq!(known("gpt2", "hf:gpt2", "gpt2", small), Some("gpt2-small"));
        assert_eq!(known("gpt2", "hf:openai-community/gpt2", "gpt2", small), Some("gpt2-small"));
        assert_eq!(known("gpt2-medium", "hf:openai-community/gpt2-medium", "gpt2", medium), Some("gpt2-medium"));
        assert_eq!(known("pythia-160m", "hf:EleutherAI/pythia-160m", "gpt_neox", small), Some("pythia-160m"));
        assert_eq!(known("Pythia-410M", "/models/Pythia-410M", "gpt_neox", medium), Some("pythia-410m"));
        // The same shape is not the same model.
        assert_eq!(known("alias-gpt2-small-x21", "hf:stanford-crfm/alias-gpt2-small-x21", "gpt2", small), None);
        assert_eq!(known("gpt2", "hf:someone/gpt2", "gpt2", small), None);
        assert_eq!(known("pythia-160m-deduped", "hf:EleutherAI/pythia-160m-deduped", "gpt_neox", small), None);
        assert_eq!(known("gpt2", "./gpt2", "gpt2", medium), None);
        assert_eq!(known("gpt2", "./gpt2", "llama", small), None);
    }

    const SUMMARY: &str = "ablation hold component layer head subset direct_effect ablated_direct_effect logit_change \
         repair_attention repair_mlp repair_norm attention_clipped mlp_clipped norm_clipped";

    /// The authors' top-2 % values of one metric of gpt2-small, by layer and head.
    fn published_values(metric: &str) -> Vec<(i64, i64, f64)> {
        let rows = authors("gpt2-small").unwrap();
        let column = |name: &str| rows.column_by_name(name).unwrap();
        let metrics = cast(column("metric"), &DataType::Utf8).unwrap();
        let number = |name: &str, i: usize| column(name).as_primitive::<Float64Type>().value(i);
        let key = |name: &str, i: usize| column(name).as_primitive::<Int64Type>().value(i);
        (0..rows.num_rows())
            .filter(|&i| metrics.as_string::<i32>().value(i) == metric && number("top_fraction", i) == 0.02)
            .map(|i| (key("layer", i), key("head", i), number("value", i)))
            .collect()
    }

    fn compared(top_fraction: f64) -> (tempfile::TempDir, Tables) {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), "gpt2", "hf:gpt2", "gpt2", 12, 12, 768);
        // Direct effects a tenth above the authors', logit changes of the other sign, everything else 0.
        let changes = published_values("logit_diff");
        let rows: Vec<String> = published_values("direct_effects")
            .iter()
            .zip(&changes)
            .flat_map(|((l, h, effect), (_, _, change))| {
                let top = format!("resample none head {l} {h} top {} 0 {} 0 0 0 0 0 0", 1.1 * effect, -change);
                // Neither a held run nor an MLP is what the authors measured.
                [top, format!("resample erasers head {l} {h} top 9 9 9 9 9 9 9 9 9")]
            })
            .collect();
        table(dir.path(), "head_summary", SUMMARY, &rows);
        for name in ["paper_comparison", "paper_agreement"] {
            std::fs::create_dir_all(dir.path().join("tables").join(name)).unwrap();
        }
        let tables = Tables::open(dir.path()).unwrap();
        compare(&tables, dir.path(), &AnalysisConfig { top_fraction, ..Default::default() }, &metadata()).unwrap();
        (dir, tables)
    }

    #[test]
    fn agreement_with_made_up_numbers_is_what_they_were_made_of() {
        let (_dir, tables) = compared(0.02);
        let agreement = |metric: &str| {
            let sql = format!(
                "select cast(heads as double), cast(rank_correlation as double), cast(median_relative_difference as double) \
                 from paper_agreement where metric = '{metric}' and subset = 'top' and model = 'gpt2-small'"
            );
            let rows = tables.collect(&sql, &[]).unwrap();
            assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "{metric}");
            [0, 1, 2].map(|i| rows[0].column(i).as_primitive::<Float64Type>().value(0))
        };
        let [heads, ranks, difference] = agreement("direct_effects");
        assert_eq!(heads, 144.0);
        assert!((ranks - 1.0).abs() < 1e-6 && (difference - 0.1).abs() < 1e-5, "{ranks} {difference}");
        let [_, ranks, difference] = agreement("logit_diff");
        assert!((ranks + 1.0).abs() < 1e-6 && (difference - 2.0).abs() < 1e-5, "{ranks} {difference}");
        let [_, _, difference] = agreement("self_repair_from_LN");
        assert_eq!(difference, 1.0);
    }

    #[test]
    fn other_shares_of_tokens_are_not_compared() {
        let (_dir, tables) = compared(0.1);
        let rows = tables.collect("select * from paper_comparison", &[]).unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    }

    #[test]
    fn a_model_of_nobody_gets_no_table() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), "tiny", "./tiny", "llama", 2, 2, 8);
        let tables = Tables::open(dir.path()).unwrap();
        compare(&tables, dir.path(), &AnalysisConfig::default(), &metadata()).unwrap();
        assert!(!dir.path().join("tables/paper_comparison").exists());
    }
}
