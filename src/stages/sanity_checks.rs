//! Whether the model knows the text at all: one whose tokenizer is another model's does not.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Run;
use selfrepair_core::config::Mode;
use selfrepair_store::run_folder::Stage;

/// A doubt if the targets are less probable than by a guess. Of a prompt set nothing is said: an answer may be wrong on
/// purpose, and with `wrong` there is no probability.
pub fn about_predictions(run: &Run) -> Result<Option<String>> {
    if run.config.corpus.mode == Mode::Prompts {
        return Ok(None);
    }
    let (mut sum, mut count) = (0.0, 0);
    for path in run.folder.files_in(Stage::Trace, &run.folder.table("clean"))? {
        let values = log_probs(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        sum += values.iter().map(|&v| f64::from(v)).sum::<f64>();
        count += values.len();
    }
    Ok(worse_than_a_guess(sum / count as f64, run.model.architecture.vocab))
}

/// `mean` is of the targets' log-probabilities, in nats.
fn worse_than_a_guess(mean: f64, vocab: usize) -> Option<String> {
    let guess = -(vocab as f64).ln();
    // Weights that say the same of every token guess, to rounding.
    (mean < guess - 0.01).then(|| {
        format!(
            "the model predicts this text worse than a guess among its {vocab} tokens would (mean log-probability \
             {mean:.2}, a guess has {guess:.2}): the tokenizer belongs to another model, the text is in a language that \
             it does not know, or its weights are untrained"
        )
    })
}

fn log_probs(path: &Path) -> Result<Vec<f32>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["log_prob"]);
    let mut out = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        out.extend_from_slice(batch?.column(0).as_primitive::<Float32Type>().values());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::worse_than_a_guess;

    /// ln 50257 = 10.825.
    #[test]
    fn what_a_model_knows_is_no_doubt_and_what_it_does_not_is_one() {
        for mean in [-3.3, -10.8, -10.83] {
            assert_eq!(worse_than_a_guess(mean, 50257), None, "{mean}");
        }
        let doubt = worse_than_a_guess(-12.5, 50257).unwrap();
        assert!(doubt.contains("-12.50, a guess has -10.82"), "{doubt}");
    }
}
