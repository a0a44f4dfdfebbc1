//! A tokenizer of another model whose ids fit.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

/// A model that knows nothing but which tokens the text has: its stream is the same everywhere, and the unembedding
/// gives the tokens of `known` five logits more than the others.
fn make_it_know(weights: &Path, known: &BTreeSet<usize>) {
    let mut bytes = fs::read(weights).unwrap();
    for (name, shape, offset) in tensors(&bytes) {
        for i in 0..shape.iter().product() {
            let at = offset + 4 * i;
            let old = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let new = match name.as_str() {
                "model.embed_tokens.weight" | "model.norm.weight" => 1.0,
                "lm_head.weight" if known.contains(&(i / shape[1])) => 5.0 / shape[1] as f32,
                "lm_head.weight" => 0.0,
                n if n.ends_with("o_proj.weight") || n.ends_with("down_proj.weight") => old * 1e-3,
                _ => old,
            };
            bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
    }
    fs::write(weights, bytes).unwrap();
}

/// Every ordinary token gets the id of another one.
fn exchange_ids(tokenizer: &Path) {
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(tokenizer).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let ordinary = vocab.len() as u64 - 2;
    for id in vocab.values_mut().filter(|id| id.as_u64().unwrap() >= 2) {
        *id = (2 + (id.as_u64().unwrap() - 2 + ordinary / 2) % ordinary).into();
    }
    fs::write(tokenizer, json.to_string()).unwrap();
}

#[test]
fn a_model_that_predicts_its_text_worse_than_a_guess_is_warned_of_and_one_that_does_not_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let (source, out) = (format!("model.source={}", folder.display()), dir.path().join("out"));
    let first = dir.path().join("first");
    succeeded(run_tiny("corpus", &first, &[&source]));
    let tokens = numbers(&read(&first.join("tables/tokens")), "token");
    make_it_know(&folder.join("model.safetensors"), &tokens.iter().map(|&t| t as usize).collect());
    let warning = "the model predicts this text worse than a uniform guess among its 384 tokens";
    let status = |out: &Path| succeeded(pipeline().arg("status").arg("--out").arg(out).output().unwrap());

    let output = run_tiny("all", &out, &[&source]);
    assert!(!text(&output.stderr).contains("warning"), "{}", text(&output.stderr));
    assert!(!succeeded(output).contains("WARNING") && !status(&out).contains("warning"));

    exchange_ids(&folder.join("tokenizer.json"));
    let out = dir.path().join("exchanged");
    let output = run_tiny("all", &out, &[&source]);
    assert!(text(&output.stderr).contains(&format!("warning {warning}")), "{}", text(&output.stderr));
    assert!(succeeded(output).contains(&format!("WARNING: {warning}")));
    assert!(status(&out).contains(&format!("warning: {warning}")), "{}", status(&out));
    // It is said again by a run that has nothing to do.
    assert!(succeeded(run_tiny("all", &out, &[&source])).contains(&format!("WARNING: {warning}")));
}

#[test]
fn a_special_token_of_the_model_that_is_an_ordinary_one_of_the_tokenizer_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let (source, out) = (format!("model.source={}", folder.display()), dir.path().join("out"));
    let said = |out: &Path| {
        let output = run_tiny("corpus", out, &[&source]);
        assert!(output.status.success());
        text(&output.stderr)
    };
    assert!(!said(&out).contains("warning"));
    let config = folder.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"bos_token_id\": 1", "\"bos_token_id\": 36")).unwrap();
    // 36 is `C` in the fixture.
    let out = dir.path().join("other");
    let said = said(&out);
    assert!(said.contains("bos_token_id = 36, which is the ordinary token `C`"), "{said}");
    let status = succeeded(pipeline().arg("status").arg("--out").arg(&out).output().unwrap());
    assert!(status.contains("warning: the model's configuration says bos_token_id = 36"), "{status}");
}
