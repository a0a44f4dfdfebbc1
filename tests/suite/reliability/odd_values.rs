//! Well-formed files with odd values: numbers out of range, empty lists, and parts that nest, repeat or expand. Random
//! bytes seldom produce one.

use std::fs;
use std::io::Write;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value as GgufValue, write};
use selfrepair_core::config::Config;
use selfrepair_model::GgufFile;
use selfrepair_model::corpus::TextTokenizer;
use serde_json::{Value, json};

use super::fuzz::{folder_with, read_model, read_tokenizer};
use super::mutation::{MOST_MEMORY, peak, shortened};
use super::*;

/// What no number, flag, name or list of a file should be.
fn odd_values() -> Vec<Value> {
    let mut out =
        vec![json!(null), json!([]), json!({}), json!(""), json!("1"), json!(true), json!([[]]), json!([null])];
    out.extend([-1, 0, 1, 2, 3, i64::MIN, i64::MAX].map(Value::from));
    out.extend([u64::from(u16::MAX), 1 << 16, 1 << 24, u64::from(u32::MAX), 1 << 32, u64::MAX].map(Value::from));
    out.extend([0.0, -0.0, 0.5, -1.5, 1e-320, 1e-50, 1e39, f64::MAX, 4294967296.5].map(Value::from));
    out.extend([json!("a".repeat(100_000)), json!(vec![0; 100_000]), json!([u64::MAX]), json!([-1]), json!(["x"])]);
    out
}

/// Reads the file with each value of it, one after the other, put in the place of an odd one.
fn with_odd_values(what: &str, folder: &Path, name: &str, paths: &[String], read: impl Fn() -> Result<(), String>) {
    let path = folder.join(name);
    let valid: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    read().unwrap_or_else(|e| panic!("the file as it was: {e}"));
    let before = peak();
    let (mut cases, mut refused) = (0, 0);
    for place in paths {
        for odd in odd_values() {
            let mut json = valid.clone();
            *json.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = odd.clone();
            fs::write(&path, json.to_string()).unwrap();
            cases += 1;
            if let Err(error) = read() {
                refused += 1;
                assert!(
                    error.contains(&*folder.to_string_lossy()),
                    "{place} = {odd}: names no file: {}",
                    shortened(&error)
                );
            }
            assert!(peak() < before + MOST_MEMORY, "{place} = {odd}: memory grew from {before} to {}", peak());
        }
    }
    fs::write(&path, valid.to_string()).unwrap();
    println!("{what}: {cases} odd values, {refused} refused");
}

/// Pointers to every value of a JSON file but those inside long lists.
fn pointers(json: &Value, at: String, out: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match json {
        Value::Object(fields) if fields.len() < 40 => {
            fields.iter().for_each(|(key, value)| pointers(value, format!("{at}/{}", escaped(key)), out));
        }
        Value::Array(list) if list.len() < 10 => {
            list.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{at}/{i}"), out));
        }
        _ => {}
    }
    if !at.is_empty() {
        out.push(at);
    }
}

fn result(result: anyhow::Result<()>) -> Result<(), String> {
    result.map_err(|e| format!("{e:#}"))
}

#[test]
fn configurations_of_models() {
    let families = [
        "cohere",
        "falcon-new",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "granite",
        "llama3",
        "mimo",
        "olmo",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2-yarn",
        "smollm3",
        "stablelm",
    ];
    for family in families {
        let folder = Path::new("tests/fixtures/families").join(family);
        let dir = folder_with(&[folder.join("config.json"), folder.join("model.safetensors")]);
        let json: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut paths = Vec::new();
        pointers(&json, String::new(), &mut paths);
        // Every value in the long suite; some, others each time, in the quick one.
        let mut dice = Dice::new();
        while paths.len() > cases(12, 1000) {
            paths.swap_remove(dice.below(paths.len()));
        }
        with_odd_values(family, dir.path(), "config.json", &paths, || result(read_model(dir.path())));
    }
}

#[test]
fn constants_that_do_not_fit_are_refused() {
    let dir = folder_with(&["config.json", "model.safetensors", "tokenizer.json"].map(|n| Path::new(TINY).join(n)));
    let path = dir.path().join("config.json");
    let valid: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let read = |key: &str, value: &Value| {
        let mut json = valid.clone();
        json[key] = value.clone();
        fs::write(&path, json.to_string()).unwrap();
        result(read_model(dir.path())).and_then(|()| result(read_tokenizer(dir.path())))
    };
    let rope = |key: &str, value: Value| json!({"rope_type": "linear", "factor": 2.0, key: value});
    for (key, value) in [
        ("num_attention_heads", json!(4_294_967_294u64)),
        ("num_attention_heads", json!(4.0)),
        ("num_key_value_heads", json!(-2)),
        ("num_key_value_heads", json!(0)),
        ("hidden_size", json!(1 << 24)),
        ("intermediate_size", json!(65_536)),
        ("intermediate_size", json!("56")),
        ("vocab_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(1 << 20)),
        ("rms_norm_eps", json!("1e-5")),
        ("rms_norm_eps", json!(1e-50)),
        ("rms_norm_eps", json!(1e39)),
        ("rms_norm_eps", json!(-1e-5)),
        ("tie_word_embeddings", json!(0)),
        ("rope_parameters", json!("linear")),
        ("rope_parameters", rope("factor", json!("2"))),
        ("rope_parameters", rope("factor", json!(0))),
        ("rope_parameters", rope("factor", json!(-2.0))),
        ("rope_parameters", rope("rope_theta", json!("10000"))),
        ("rope_parameters", rope("rope_theta", json!(0.0))),
        ("rope_parameters", rope("partial_rotary_factor", json!(1.5))),
        ("rope_parameters", rope("rope_type", json!(1))),
        ("bos_token_id", json!(-1)),
        ("eos_token_id", json!(1u64 << 32)),
        ("eos_token_id", json!([0.5])),
        ("eos_token_id", json!("0")),
    ] {
        let error = read(key, &value).expect_err(&format!("{key} = {value}"));
        assert!(error.contains(&*dir.path().to_string_lossy()), "{key} = {value}: {error}");
    }
    read("eos_token_id", &json!([])).unwrap();
    read("eos_token_id", &json!([0, 1])).unwrap();
}

#[test]
fn tokenizers() {
    let dir = folder_with(&["config.json", "model.safetensors", "tokenizer.json"].map(|n| Path::new(TINY).join(n)));
    let path = dir.path().join("tokenizer.json");
    let valid: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut paths = Vec::new();
    pointers(&valid, String::new(), &mut paths);
    paths.retain(|p| !p.starts_with("/model/merges") && !p.starts_with("/version"));
    let mut dice = Dice::new();
    while paths.len() > cases(12, 1000) {
        paths.swap_remove(dice.below(paths.len()));
    }
    with_odd_values("tokenizer.json", dir.path(), "tokenizer.json", &paths, || result(read_tokenizer(dir.path())));

    let before = peak();
    let text = |parts: &str| -> Value { serde_json::from_str(parts).unwrap() };
    let parts = [
        text(r#"{"type": "FixedLength", "length": 0}"#),
        text(r#"{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}"#),
        text(r#"{"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": true}"#),
        text(r#"{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}"#),
        text(r#"{"type": "Replace", "pattern": {"String": ""}, "content": "x"}"#),
        text(r#"{"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "é"}"#),
        text(r#"{"type": "Replace", "pattern": {"String": "o"}, "content": "oooooooo"}"#),
        text(r#"{"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}"#),
        text(r#"{"type": "Precompiled", "precompiled_charsmap": "/////w=="}"#),
        text(r#"{"type": "Precompiled", "precompiled_charsmap": ""}"#),
        text(r#"{"type": "Precompiled", "precompiled_charsmap": "not Base64"}"#),
        text(r#"{"type": "Prepend", "prepend": ""}"#),
        text(r#"{"type": "Strip", "strip_left": true, "strip_right": true}"#),
        text(r#"{"type": "StripAccents"}"#),
        text(r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}"#),
        text(r#"{"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}"#),
        text(r#"{"type": "ByteFallback"}"#),
        json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)}),
    ];
    let mut refused = 0;
    for key in ["normalizer", "pre_tokenizer", "decoder"] {
        let inside = ["normalizers", "pretokenizers", "decoders"];
        for part in &parts {
            let many = inside.map(|list| (list.to_string(), json!(vec![part.clone(); 30])));
            let sequence = Value::Object(many.into_iter().chain([("type".to_string(), json!("Sequence"))]).collect());
            for part in [part.clone(), sequence] {
                let mut json = valid.clone();
                json[key] = part;
                fs::write(&path, json.to_string()).unwrap();
                if let Err(error) = result(read_tokenizer(dir.path())) {
                    refused += 1;
                    assert!(error.contains(&*dir.path().to_string_lossy()), "{}", shortened(&error));
                }
                assert!(peak() < before + MOST_MEMORY, "{}: memory grew", json[key]);
            }
        }
    }
    println!("parts of tokenizers: {} cases, {refused} refused", 6 * parts.len());
}

fn odd_metadata() -> Vec<GgufValue> {
    let text = |n: usize| GgufValue::String("a".repeat(n));
    vec![
        GgufValue::U8(0),
        GgufValue::I8(-1),
        GgufValue::U16(u16::MAX),
        GgufValue::U32(0),
        GgufValue::U32(3),
        GgufValue::U32(u32::MAX),
        GgufValue::I32(-1),
        GgufValue::I32(1),
        GgufValue::U64(1 << 32),
        GgufValue::U64(u64::MAX),
        GgufValue::I64(i64::MIN),
        GgufValue::F32(f32::NAN),
        GgufValue::F32(f32::INFINITY),
        GgufValue::F32(-1.0),
        GgufValue::F32(0.0),
        GgufValue::F64(1e300),
        GgufValue::Bool(true),
        text(0),
        text(100_000),
        GgufValue::Array(vec![]),
        GgufValue::Array(vec![GgufValue::U32(1); 100_000]),
        GgufValue::Array(vec![GgufValue::F32(f32::NAN); 300]),
        GgufValue::Array(vec![text(1); 400]),
        GgufValue::Array(vec![GgufValue::Array(vec![GgufValue::U8(1)])]),
    ]
}

/// Every value of the metadata of a GGUF file, and an alignment, put in the place of odd ones.
#[test]
fn metadata_of_gguf_files() {
    let before = peak();
    let (mut cases, mut refused) = (0, 0);
    for (path, whole) in [
        ("gguf/gpt2", true),
        ("gguf/llama", true),
        ("gguf/gemma3", true),
        ("gguf/granite", true),
        ("gguf/phi3", true),
        ("gguf-tokenizers/bpe", false),
        ("gguf-tokenizers/spm", false),
    ] {
        let mut file = fs::File::open(Path::new("tests/fixtures").join(format!("{path}.gguf"))).unwrap();
        let content = Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let device = candle_core::Device::Cpu;
        let tensors: Vec<_> =
            names.iter().map(|n| (n.as_str(), content.tensor(&mut file, n, &device).unwrap())).collect();
        let tensors: Vec<_> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("odd.gguf");
        let keys: Vec<String> = content.metadata.keys().cloned().chain(["general.alignment".to_string()]).collect();
        for key in keys {
            for value in odd_metadata() {
                let mut metadata = content.metadata.clone();
                metadata.insert(key.clone(), value.clone());
                let entries: Vec<(&str, &GgufValue)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
                write(&mut fs::File::create(&odd).unwrap(), &entries, &tensors).unwrap();
                cases += 1;
                let read = || {
                    if whole {
                        read_model(&odd)?;
                        return read_tokenizer(&odd);
                    }
                    let tokenizer = TextTokenizer::of_gguf(&GgufFile::open(&odd)?)?;
                    tokenizer.encode("Hello wörld, it's 2024").map(drop)
                };
                if let Err(error) = result(read()) {
                    refused += 1;
                    assert!(error.contains("odd.gguf"), "{path} {key}: names no file: {}", shortened(&error));
                }
                assert!(peak() < before + MOST_MEMORY, "{path} {key}: memory grew");
            }
        }
    }
    println!("metadata of GGUF files: {cases} odd values, {refused} refused");
}

/// Pickles made of whole operations, so that they get far: what nests, what is remembered and recalled.
#[test]
fn pickles_of_whole_operations() {
    let dir = folder_with(&[Path::new("tests/fixtures/families/opt/config.json").to_path_buf()]);
    let operations: [&[u8]; 30] = [
        b"N",
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"G\x7f\xf0\0\0\0\0\0\0",
        b"\x8a\x01\xff",
        b"\x8a\xff",
        b"\x88",
        b")",
        b"]",
        b"}",
        b"(",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"a",
        b"e",
        b"s",
        b"u",
        b"b",
        b"Q",
        b"R",
        b"\x81",
        b"q\0",
        b"h\0",
        b"q\x01",
        b"h\x01",
        b"X\x04\0\0\0name",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    ];
    let mut dice = Dice::new();
    let before = peak();
    let count = cases(150, 20_000);
    for case in 0..count {
        let mut pickle = b"\x80\x02".to_vec();
        for _ in 0..dice.below(12) + 1 {
            let parts: Vec<&[u8]> = (0..dice.below(4) + 1).map(|_| operations[dice.below(operations.len())]).collect();
            // Mostly a few times, sometimes without measure.
            let times = [1, 1, 1, 3, 5000, 200_000][dice.below(6)];
            pickle.extend(parts.concat().repeat(times));
        }
        pickle.push(b'.');
        let file = fs::File::create(dir.path().join("pytorch_model.bin")).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        zip.start_file("archive/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&pickle).unwrap();
        zip.finish().unwrap();
        let error = result(read_model(dir.path())).expect_err("it has no tensors");
        assert!(error.contains(&*dir.path().to_string_lossy()), "case {case}: {}", shortened(&error));
        assert!(peak() < before + MOST_MEMORY, "case {case}: memory grew from {before} to {}", peak());
    }
    println!("pickles of whole operations: {count} cases");
}

/// Every key of a configuration with odd values.
#[test]
fn settings() {
    let default = toml::Table::try_from(Config::default()).unwrap();
    let mut values: Vec<String> = odd_values().iter().filter(|v| !v.is_null()).map(Value::to_string).collect();
    values.extend(
        ["nan", "inf", "-inf", "[nan]", "1979-05-27", "[[1]]", "{a = 1}", "'''", "a.b.c", "0x7fffffffffffffff"]
            .map(String::from),
    );
    let before = peak();
    let (mut cases, mut refused) = (0, 0);
    for (section, keys) in &default {
        for key in keys.as_table().unwrap().keys() {
            for value in &values {
                cases += 1;
                match Config::load(None, &[format!("{section}.{key}={value}")]) {
                    Err(_) => refused += 1,
                    Ok(config) => {
                        config.ablation.components(3, 4).ok();
                        config.ablation.holds(3, 4).ok();
                        config.neurons.layers.layers("neurons.layers", 3).ok();
                        let samples = config.ablation.resample.samples;
                        selfrepair_core::pairing::pairings_within(&[vec![0, 1], vec![2, 3, 4]], samples, 0).ok();
                        config.runtime.thread_count();
                    }
                }
            }
        }
    }
    assert!(peak() < before + MOST_MEMORY, "memory grew from {before} to {}", peak());
    println!("settings: {cases} odd values, {refused} refused");
}
