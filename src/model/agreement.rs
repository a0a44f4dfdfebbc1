//! How near the program came to transformers on a tiny checkpoint of every family. The tests write the numbers
//! (`tests/suite/families.rs`).

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What was found on one checkpoint of `tests/fixtures/families`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// Its folder.
    pub checkpoint: String,
    pub model_type: String,
    /// What this family or variant has that others have not.
    pub special: String,
    /// The version that the expected values are of.
    pub transformers: String,
    /// The largest difference of a logit.
    pub logits: f64,
    /// The largest difference of a direct effect, or of a column of `ablations`, over its scale: the largest value of the
    /// column, or 1.
    pub effects: f64,
}

const FOUND: &str = include_str!("agreement.json");

/// Of every checkpoint, in the order of their names.
///
/// # Errors
/// If the program was built from a damaged file.
pub fn agreements() -> Result<Vec<Agreement>> {
    parse(FOUND)
}

/// As [`agreements`], from the text of such a file.
///
/// # Errors
/// If the text is none.
pub fn parse(text: &str) -> Result<Vec<Agreement>> {
    serde_json::from_str(text).context("agreement.json")
}
