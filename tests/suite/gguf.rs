//! A GGUF file of every architecture gives the numbers of its source checkpoint, and every quantisation is read as
//! gguf-py reads it (`tests/reference/gguf_files.py`).

use std::fs;
use std::path::Path;

use selfrepair_model::GgufFile;

use crate::parity::{assert_agrees, assert_same_inputs};
use crate::support::*;

const HEADS: &str = "ablation.heads=[\"L0H1\", \"L1H0\", \"L1H3\", \"L2H2\"]";

fn assert_gguf_agrees(name: &str, expected: &Path) {
    let out = tempfile::tempdir().unwrap();
    let source = format!("model.source=tests/fixtures/gguf/{name}.gguf");
    succeeded(run_tiny("analyze", out.path(), &[&source, HEADS]));
    assert_same_inputs(out.path(), &Path::new(TINY).join("expected"));
    assert_agrees(out.path(), expected, "clean", &["prompt", "position"]);
    if !expected.starts_with(TINY) {
        assert_agrees(out.path(), expected, "ablations", &["ablation", "layer", "head", "prompt", "position"]);
    }
}

#[test]
fn every_architecture_gives_what_its_checkpoint_gives() {
    assert_gguf_agrees("llama", &Path::new(TINY).join("expected"));
    let families = ["llama3", "qwen2", "qwen3", "gpt2", "gpt_neox", "gpt_neox-serial", "gemma", "stablelm"];
    for name in families.iter().chain(&["stablelm-parallel", "phi", "olmo"]) {
        println!("{name}");
        assert_gguf_agrees(name, &Path::new("tests/fixtures/families").join(name).join("expected"));
    }
}

/// GGUF cannot say which layers of SmolLM3 have no positions; llama.cpp leaves out every fourth, of which the tiny model
/// has none.
#[test]
fn smollm3_has_positions_in_three_layers_of_four() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("smollm3");
    fs::create_dir(&folder).unwrap();
    let fixture = Path::new("tests/fixtures/families/smollm3");
    fs::copy(fixture.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    fs::copy(Path::new(TINY).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(fixture.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["no_rope_layers"], serde_json::json!([1, 0, 1]));
    config["no_rope_layers"] = serde_json::json!([1, 1, 1]);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    succeeded(run_tiny("ablate", &a, &[&format!("model.source={}", folder.display()), HEADS]));
    succeeded(run_tiny("ablate", &b, &["model.source=tests/fixtures/gguf/smollm3.gguf", HEADS]));
    let repairs = |out: &Path| numbers(&read(&out.join("tables/ablations")), "self_repair");
    for (x, y) in repairs(&a).iter().zip(repairs(&b)) {
        assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{x} against {y}");
    }
    let gguf = GgufFile::open(Path::new("tests/fixtures/gguf/smollm3.gguf")).unwrap();
    assert_eq!(gguf.config().unwrap()["no_rope_layers"], serde_json::json!([1, 1, 1]));
}

#[derive(serde::Deserialize)]
struct Quantised {
    r#type: String,
    tensor: String,
    first: Vec<f32>,
    last: Vec<f32>,
}

#[test]
fn every_quantisation_is_read_as_gguf_py_reads_it() {
    let cases: Vec<Quantised> =
        serde_json::from_str(&fs::read_to_string("tests/fixtures/gguf/quants.json").unwrap()).unwrap();
    assert_eq!(cases.len(), 13);
    let file = GgufFile::open(Path::new("tests/fixtures/gguf/quants.gguf")).unwrap();
    for case in cases {
        let layer = case.tensor.split('.').nth(1).unwrap();
        let name = format!("model.layers.{layer}.mlp.up_proj.weight");
        let values = file.tensor(&name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let ours = values[..64].iter().chain(&values[values.len() - 64..]);
        for (i, (a, b)) in ours.zip(case.first.iter().chain(&case.last)).enumerate() {
            assert!((a - b).abs() <= 4e-7 * b.abs().max(1e-3), "{} value {i}: {a} against {b}", case.r#type);
        }
    }
}
