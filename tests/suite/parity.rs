//! Agreement with `tests/reference/reference.py`, which hooks the Hugging Face model and recomputes everything.

use std::path::Path;

use arrow::array::RecordBatch;
use selfrepair_core::config::{Config, ModelConfig, RuntimeConfig};
use selfrepair_engine::{Engine, Needs};
use selfrepair_model::{Model, ModelSource};

use crate::support::*;

/// |difference| ≤ 1e-4 · max(1, largest absolute value in the column), on every row that is expected. Returns the largest
/// difference over that scale.
pub fn assert_agrees(run: &Path, expected: &Path, table: &str, key: &[&str]) -> f64 {
    let ours = read(&run.join("tables").join(table));
    assert_batches_agree(table, &ours, &read(&expected.join(format!("{table}.parquet"))), key)
}

/// As [`assert_agrees`]; every column of `theirs` that is not in the key is compared.
pub fn assert_batches_agree(table: &str, ours: &RecordBatch, theirs: &RecordBatch, key: &[&str]) -> f64 {
    let mut worst_of_all = 0f64;
    assert!(theirs.num_rows() > 0, "{table}: nothing is expected");
    let (our_rows, their_rows) = (index(ours, key), index(theirs, key));
    let columns: Vec<String> =
        theirs.schema().fields().iter().map(|f| f.name().clone()).filter(|n| !key.contains(&n.as_str())).collect();
    for column in columns {
        let (a, b) = (numbers(ours, &column), numbers(theirs, &column));
        let largest = b.iter().fold(1f64, |m, v| m.max(v.abs()));
        let mut worst = (0.0, None);
        for (key, &j) in &their_rows {
            let i = *our_rows.get(key).unwrap_or_else(|| panic!("{table} has no row {key:?}"));
            if a[i].is_nan() && b[j].is_nan() {
                // Null in both.
                continue;
            }
            let gap = (a[i] - b[j]).abs();
            assert!(gap.is_finite(), "{table}.{column} {key:?}: {} against {}", a[i], b[j]);
            if gap > worst.0 {
                worst = (gap, Some(key));
            }
        }
        println!("{table}.{column}: largest difference {:.1e} of {largest:.3}", worst.0);
        assert!(
            worst.0 <= 1e-4 * largest,
            "{table}.{column} differs by {} at {:?} (largest {largest})",
            worst.0,
            worst.1
        );
        worst_of_all = worst_of_all.max(worst.0 / largest);
    }
    worst_of_all
}

/// The expected values were made for these prompts and partners; otherwise a comparison would mean nothing.
pub fn assert_same_inputs(run: &Path, expected: &Path) {
    for (table, columns) in [("tokens", ["prompt", "position", "token"]), ("pairs", ["sample", "prompt", "partner"])] {
        let (ours, theirs) = (read(&run.join("tables").join(table)), read(&expected.join(format!("{table}.parquet"))));
        for column in columns {
            assert_eq!(numbers(&ours, column), numbers(&theirs, column), "{table}.{column}: regenerate the fixture");
        }
    }
}

fn assert_everything_agrees(run: &Path, expected: &Path) {
    assert_same_inputs(run, expected);
    assert_agrees(run, expected, "clean", &["prompt", "position"]);
    assert_agrees(run, expected, "direct_effects", &["component", "layer", "head", "prompt", "position"]);
    assert_agrees(run, expected, "ablations", &["ablation", "layer", "head", "prompt", "position"]);
}

/// Logits of the exported graphs within `tolerance` of transformers'. Returns the largest difference.
pub fn assert_logits_agree(source: &ModelConfig, run: &Path, tokens: &Path, expected: &Path, tolerance: f64) -> f64 {
    let model = Model::open(ModelSource::resolve(source).unwrap()).unwrap();
    let config = RuntimeConfig::default();
    let mut engine = Engine::load(&model.architecture, &run.join("model"), &config, &Needs::trace(0, 0)).unwrap();
    let tokens = read(tokens);
    let (prompt, token) = (numbers(&tokens, "prompt"), numbers(&tokens, "token"));
    let logits = read(&expected.join("logits.parquet"));
    let column = |name: &str| numbers(&logits, name);
    let (p, s, id, value) = (column("prompt"), column("position"), column("token"), column("logit"));
    let (mut compared, mut worst) = (0, 0f64);
    for which in [0.0, 1.0] {
        let ids: Vec<u32> = prompt.iter().zip(&token).filter(|(p, _)| **p == which).map(|(_, t)| *t as u32).collect();
        let ours = engine.logits(&ids).unwrap();
        for i in (0..p.len()).filter(|&i| p[i] == which) {
            let ours = f64::from(ours[s[i] as usize * model.architecture.vocab + id[i] as usize]);
            assert!(
                (ours - value[i]).abs() <= tolerance,
                "prompt {which}, position {}, token {}: {ours} against {}",
                s[i],
                id[i],
                value[i]
            );
            worst = worst.max((ours - value[i]).abs());
            compared += 1;
        }
    }
    assert!(compared > 1000, "only {compared} logits compared");
    worst
}

#[test]
fn a_tiny_llama_agrees_with_a_plain_implementation() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    let expected = Path::new(TINY).join("expected");
    assert_everything_agrees(dir.path(), &expected);
    let model = ModelConfig { source: TINY.into(), ..Default::default() };
    assert_logits_agree(&model, dir.path(), &expected.join("tokens.parquet"), &expected, 1e-3);
}

#[test]
fn smollm2_agrees_with_a_plain_implementation() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        "corpus.tokens=120",
        "corpus.prompt_len=24",
        "ablation.kinds=[\"resample\", \"mean\", \"zero\"]",
        "ablation.heads=[\"L2H4\", \"L14H1\", \"L27H8\", \"L29H3\"]",
    ];
    succeeded(run("analyze", dir.path(), &settings));
    let expected = Path::new("tests/fixtures/smollm2/expected");
    assert_everything_agrees(dir.path(), expected);
    let model = Config::load(None, &[]).unwrap().model;
    assert_logits_agree(&model, dir.path(), &expected.join("tokens.parquet"), expected, 1e-3);
}
