//! A GGUF file of every architecture gives the numbers of its source checkpoint, and every quantisation is read as
//! gguf-py reads it (`tests/reference/gguf_files.py`).

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value as GgufValue, write};
use selfrepair_model::GgufFile;
use serde_json::{Value, json};

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
    let more = ["stablelm-parallel", "phi", "olmo", "phi3", "phi3-mini", "granite", "bloom", "falcon", "falcon-new"];
    for name in families.iter().chain(&more) {
        println!("{name}");
        assert_gguf_agrees(name, &Path::new("tests/fixtures/families").join(name).join("expected"));
    }
}

/// A checkpoint in a folder, with some settings changed and without tensors whose names end in a text.
fn changed(fixture: &Path, folder: &Path, settings: &Value, without: Option<&str>) {
    fs::create_dir(folder).unwrap();
    fs::copy(Path::new(TINY).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(fixture.join("config.json")).unwrap()).unwrap();
    for (key, value) in settings.as_object().unwrap() {
        assert_ne!(config[key], *value, "{key}");
        config[key] = value.clone();
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(fixture.join("model.safetensors")).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    header.retain(|name, _| without.is_none_or(|end| !name.ends_with(end)));
    let mut kept = Vec::new();
    for (_, tensor) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let [from, to] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize);
        tensor["data_offsets"] = json!([kept.len(), kept.len() + to - from]);
        kept.extend(&data[from..to]);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &kept].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// llama.cpp has no key for some settings (`tests/reference/gguf_files.py` says which): these files are of a checkpoint
/// with others.
#[test]
fn what_gguf_cannot_say_is_as_llama_cpp_has_it() {
    let by_width_of_head = json!({"query_pre_attn_scalar": 8});
    for (name, settings, without) in [
        // Every fourth layer has no positions, of which the tiny model has none.
        ("smollm3", json!({"no_rope_layers": [1, 1, 1]}), None),
        ("gemma2", by_width_of_head.clone(), None),
        ("gemma3", by_width_of_head, None),
        ("olmo2", json!({"attention_bias": false}), Some(".bias")),
        ("starcoder2", json!({"sliding_window": null}), None),
        ("cohere", json!({"attention_bias": false}), Some(".bias")),
        ("mpt", json!({"attn_config": {"softmax_scale": null}}), None),
    ] {
        println!("{name}");
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoint");
        changed(&Path::new("tests/fixtures/families").join(name), &folder, &settings, without);
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        succeeded(run_tiny("ablate", &a, &[&format!("model.source={}", folder.display()), HEADS]));
        succeeded(run_tiny("ablate", &b, &[&format!("model.source=tests/fixtures/gguf/{name}.gguf"), HEADS]));
        let repairs = |out: &Path| numbers(&read(&out.join("tables/ablations")), "self_repair");
        let (a, b) = (repairs(&a), repairs(&b));
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{name}: {x} against {y}");
        }
    }
    let gguf = GgufFile::open(Path::new("tests/fixtures/gguf/smollm3.gguf")).unwrap();
    assert_eq!(gguf.config().unwrap()["no_rope_layers"], json!([1, 1, 1]));
}

/// The configuration of a fixture with a value of its metadata changed, or taken away.
fn config_with(name: &str, key: &str, value: Option<GgufValue>) -> Result<Value, String> {
    let mut file = fs::File::open(Path::new("tests/fixtures/gguf").join(format!("{name}.gguf"))).unwrap();
    let mut content = Content::read(&mut file).unwrap();
    let arch = content.metadata["general.architecture"].to_string().unwrap();
    let key = format!("{arch}.{key}");
    match value {
        Some(value) => content.metadata.insert(key, value),
        None => content.metadata.remove(&key),
    };
    let embedding = content.tensor(&mut file, "token_embd.weight", &candle_core::Device::Cpu).unwrap();
    let entries: Vec<(&str, &GgufValue)> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.gguf");
    write(&mut fs::File::create(&path).unwrap(), &entries, &[("token_embd.weight", &embedding)]).unwrap();
    GgufFile::open(&path).unwrap().config().map_err(|e| format!("{e:#}"))
}

#[test]
fn metadata_that_would_change_the_numbers_is_refused_by_its_key() {
    let float = |x| Some(GgufValue::F32(x));
    let list = |of: &[bool]| Some(GgufValue::Array(of.iter().map(|&b| GgufValue::Bool(b)).collect()));
    for (name, key, value) in [
        ("llama", "attention.max_alibi_bias", float(8.0)),
        ("llama", "attention.scale", float(0.1)),
        ("llama", "attn_logit_softcapping", float(30.0)),
        ("llama", "embedding_scale", float(2.0)),
        ("llama", "expert_count", Some(GgufValue::U32(8))),
        ("llama", "final_logit_softcapping", float(30.0)),
        ("llama", "logit_scale", float(2.0)),
        ("llama", "residual_scale", float(2.0)),
        ("llama", "rope.scaling.attn_factor", float(1.2)),
        ("gemma2", "attention.scale", float(0.1)),
        ("gemma2", "rope.freq_base_swa", float(100.0)),
        ("gemma3", "attention.sliding_window_pattern", list(&[true, false])),
        ("gemma3", "attn_logit_softcapping", float(30.0)),
        ("olmo2", "attention.sliding_window", Some(GgufValue::U32(5))),
        ("phi3-mini", "rope.scaling.attn_factor", float(1.2)),
        ("granite", "rope.scaling.finetuned", Some(GgufValue::Bool(false))),
        ("granite", "rope.scaling.type", Some(GgufValue::String("longrope".into()))),
        ("bloom", "feed_forward_length", Some(GgufValue::U32(44))),
        ("falcon", "attention.key_length", Some(GgufValue::U32(8))),
        ("mpt", "attention.max_alibi_bias", float(4.0)),
        ("mpt", "attention.max_alibi_bias", None),
        ("mpt", "attention.clamp_kqv", float(4.0)),
    ] {
        let error = config_with(name, key, value).unwrap_err();
        let named = if key == "rope.scaling.type" { "`longrope`".to_string() } else { format!(".{key}`") };
        assert!(error.contains(&named) && error.contains("changed.gguf"), "{name} {key}: {error}");
    }
    let types = config_with("gemma3", "attention.sliding_window_pattern", list(&[false, true, true])).unwrap();
    assert_eq!(types["layer_types"], json!(["full_attention", "sliding_attention", "sliding_attention"]));
    // llama.cpp knows Gemma's 27B by its layers.
    for (name, layers) in [("gemma2", 46), ("gemma3", 62)] {
        let config = config_with(name, "block_count", Some(GgufValue::U32(layers))).unwrap();
        assert_eq!(config["query_pre_attn_scalar"], json!(6));
    }
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
