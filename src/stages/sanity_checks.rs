//! Checks that the model predicts the text better than a uniform guess. With another model's tokenizer it does not.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::datatypes::Float32Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Run;
use selfrepair_core::columns::numbers;
use selfrepair_core::config::Mode;
use selfrepair_core::own_files::open_own;
use selfrepair_core::untrusted::without_panic;
use selfrepair_store::run_folder::Stage;

/// A warning if the targets are less probable than under a uniform guess. Prompt sets are not checked: an answer may be
/// wrong on purpose, and a logit difference has no probability.
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
    // A model that gives every token the same probability equals a guess, up to rounding.
    (mean < guess - 0.01).then(|| {
        format!(
            "the model predicts this text worse than a uniform guess among its {vocab} tokens (mean log-probability \
             {mean:.2}, a guess has {guess:.2}): the tokenizer belongs to another model, the text is in a language that \
             the model does not know, or its weights are untrained"
        )
    })
}

fn log_probs(path: &Path) -> Result<Vec<f32>> {
    let file = open_own(path, File::options().read(true))?;
    without_panic(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["log_prob"]);
        let mut out = Vec::new();
        for batch in builder.with_projection(mask).build()? {
            out.extend_from_slice(numbers::<Float32Type>(&batch?, 0)?.values());
        }
        Ok(out)
    })
}

#[cfg(test)]
mod tests {
    use super::worse_than_a_guess;

    /// ln 50257 = 10.825.
    #[test]
    fn a_text_that_is_predicted_worse_than_a_guess_gives_a_warning() {
        for mean in [-3.3, -10.8, -10.83] {
            assert_eq!(worse_than_a_guess(mean, 50257), None, "{mean}");
        }
        let warning = worse_than_a_guess(-12.5, 50257).unwrap();
        assert!(warning.contains("-12.50, a guess has -10.82"), "{warning}");
    }
}
