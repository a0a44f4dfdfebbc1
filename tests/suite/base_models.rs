//! Checkpoints of the base model: without what the class with a head puts before every name, and with the tied matrix
//! under either of its names or both.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::support::*;

type Weights = HashMap<String, Tensor>;

/// The logits of a family's tiny model whose weights were changed, or the error.
fn logits(family: &str, change: impl Fn(&mut Weights)) -> Result<Vec<f64>, String> {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("model"), dir.path().join("out"));
    fs::create_dir(&folder).unwrap();
    let fixture = Path::new("tests/fixtures/families").join(family);
    fs::copy(fixture.join("config.json"), folder.join("config.json")).unwrap();
    fs::copy(Path::new(TINY).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut weights = candle_core::safetensors::load(fixture.join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut weights);
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
    let output = run_tiny("trace", &out, &[&format!("model.source={}", folder.display())]);
    if !output.status.success() {
        return Err(failed(output));
    }
    Ok(numbers(&read(&out.join("tables/clean")), "logit"))
}

fn without(prefix: &str, weights: &mut Weights) {
    let inside = |name: String| name.strip_prefix(prefix).map(str::to_string).unwrap_or(name);
    *weights = weights.drain().map(|(name, tensor)| (inside(name), tensor)).collect();
}

#[test]
fn names_without_the_prefix_are_those_of_the_base_model() {
    for (family, prefix) in [
        ("gemma", "model."),
        ("llama3", "model."),
        ("opt", "model."),
        ("gpt2", "transformer."),
        ("gpt_neo", "transformer."),
        // With a head of its own, which has no prefix.
        ("gpt_neox", "gpt_neox."),
        ("qwen3", "model."),
    ] {
        let expected = logits(family, |_| {}).unwrap();
        let found = logits(family, |weights| {
            let before = weights.len();
            without(prefix, weights);
            assert!(weights.len() == before && !weights.keys().any(|name| name.starts_with(prefix)));
        });
        assert!(found.unwrap() == expected, "{family}");
    }
    // What has no head of its own and is not tied has no logits.
    let error = logits("qwen3", |weights| {
        without("model.", weights);
        weights.remove("lm_head.weight").unwrap();
    });
    let error = error.unwrap_err();
    assert!(error.contains("`lm_head.weight` is missing; the file is that of the base model"), "{error}");
}

#[test]
fn a_tied_matrix_is_stored_as_embedding_or_as_unembedding_or_as_both() {
    for (family, embedding) in [
        ("gemma", "model.embed_tokens.weight"),
        ("gpt2", "transformer.wte.weight"),
        ("opt", "model.decoder.embed_tokens.weight"),
    ] {
        let expected = logits(family, |weights| {
            weights.remove("lm_head.weight");
        });
        let expected = expected.unwrap();
        let both = logits(family, |weights| {
            weights.insert("lm_head.weight".into(), weights[embedding].clone());
        });
        // As `safetensors.torch.save_model` writes it, which keeps the first of two names.
        let head = logits(family, |weights| {
            let matrix = weights.remove(embedding).unwrap();
            weights.insert("lm_head.weight".into(), matrix);
        });
        assert!(both.unwrap() == expected && head.unwrap() == expected, "{family}");
    }
    // Without ties, one is not the other.
    let error = logits("qwen3", |weights| {
        weights.remove("model.embed_tokens.weight").unwrap();
    });
    assert!(error.unwrap_err().contains("`model.embed_tokens.weight` is missing"));
}
