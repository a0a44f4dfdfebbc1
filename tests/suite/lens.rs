//! Checkpoints in TransformerLens's own format agree with `tests/reference/lens.py`.

use std::fs;
use std::path::Path;

use selfrepair_core::config::ModelConfig;

use crate::parity::{assert_agrees, assert_logits_agree, assert_same_inputs};
use crate::support::*;

const FIXTURES: &str = "tests/fixtures/transformer_lens";

/// A checkpoint beside a tokenizer.
fn checkpoint(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model_final.pth"] {
        fs::copy(Path::new(FIXTURES).join(name).join(file), dir.path().join(file)).unwrap();
    }
    fs::copy(Path::new(TINY).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    dir
}

fn assert_checkpoint_agrees(name: &str) {
    let (model, out) = (checkpoint(name), tempfile::tempdir().unwrap());
    let source = format!("model.source={}", model.path().display());
    let heads = "ablation.heads=[\"L0H1\", \"L1H0\", \"L1H3\", \"L2H2\"]";
    // The configuration has no id of BOS.
    succeeded(run_tiny("all", out.path(), &[&source, heads, "corpus.bos_token=<s>"]));
    let expected = Path::new(FIXTURES).join(name).join("expected");
    assert_same_inputs(out.path(), &Path::new(TINY).join("expected"));
    assert_agrees(out.path(), &expected, "clean", &["prompt", "position"]);
    assert_agrees(out.path(), &expected, "direct_effects", &["component", "layer", "head", "prompt", "position"]);
    assert_agrees(out.path(), &expected, "ablations", &["ablation", "layer", "head", "prompt", "position"]);
    let config = ModelConfig { source: model.path().display().to_string(), ..Default::default() };
    let tokens = Path::new(TINY).join("expected/tokens.parquet");
    assert_logits_agree(&config, out.path(), &tokens, &expected, 2e-4);
}

#[test]
fn blocks_without_an_mlp() {
    assert_checkpoint_agrees("attn-only");
}

#[test]
fn blocks_with_an_mlp() {
    assert_checkpoint_agrees("gelu");
}

#[test]
fn solu_with_its_norm() {
    assert_checkpoint_agrees("solu");
}

#[test]
fn what_is_not_supported_is_named() {
    for (from, to, key) in [
        ("\"act_fn\": \"gelu\"", "\"act_fn\": \"solu\"", "`act_fn`"),
        ("\"act_fn\": \"gelu\"", "\"act_fn\": \"solu_ln\"", "mlp.ln.w"),
        ("\"normalization\": \"LN\"", "\"normalization\": \"LNPre\"", "`normalization`"),
        ("\"shortformer_pos\": false", "\"shortformer_pos\": true", "`shortformer_pos`"),
        ("\"n_heads\": 4", "\"n_heads\": 4, \"architecture\": \"neel-solu-old\"", "`architecture`"),
        ("\"n_heads\": 4", "\"n_heads\": 5", "`n_heads` = 5"),
        ("\"d_mlp\": 44", "\"d_mlp\": null", "`d_mlp`"),
        ("\"n_layers\": 3", "\"n_layers\": 2", "blocks.2."),
    ] {
        let model = checkpoint("gelu");
        let config = fs::read_to_string(model.path().join("config.json")).unwrap();
        assert!(config.contains(from));
        fs::write(model.path().join("config.json"), config.replace(from, to)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let error = failed(run_tiny("export", out.path(), &[&format!("model.source={}", model.path().display())]));
        assert!(error.contains(key), "{to}: {error}");
    }
    // Two files that could be the weights.
    let model = checkpoint("gelu");
    fs::copy(model.path().join("model_final.pth"), model.path().join("other_final.pth")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("export", out.path(), &[&format!("model.source={}", model.path().display())]));
    assert!(error.contains("found no weights"), "{error}");
}
