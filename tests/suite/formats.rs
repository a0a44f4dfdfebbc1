//! The same weights in every format give the same numbers, and malicious files are refused.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::*;

const OPT: &str = "tests/fixtures/families/opt";

/// A model's folder with the tiny OPT's configuration and the weights of `weights`.
fn opt_with(dir: &Path, weights: &Path) -> PathBuf {
    let folder = dir.join(format!("model-{}", weights.file_name().unwrap().to_string_lossy()));
    fs::create_dir(&folder).unwrap();
    fs::copy(Path::new(OPT).join("config.json"), folder.join("config.json")).unwrap();
    fs::copy(Path::new(TINY).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    for file in files(weights).iter().filter(|f| {
        f.extension().is_some_and(|e| e == "bin" || e == "safetensors") || f.ends_with("pytorch_model.bin.index.json")
    }) {
        fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
    }
    folder
}

fn ablations_of(folder: &Path) -> Vec<Vec<f64>> {
    let out = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", out.path(), &[&format!("model.source={}", folder.display())]));
    let rows = read(&out.path().join("tables/ablations"));
    ["direct_effect", "self_repair", "repair_norm"].map(|c| numbers(&rows, c)).to_vec()
}

#[test]
fn pytorch_files_whole_and_in_shards_give_what_safetensors_give() {
    let dir = tempfile::tempdir().unwrap();
    let expected = ablations_of(&opt_with(dir.path(), Path::new(OPT)));
    for name in ["single", "sharded"] {
        let folder = opt_with(dir.path(), &Path::new("tests/fixtures/pickles").join(name));
        assert!(ablations_of(&folder) == expected, "{name}");
    }
}

/// The tiny OPT's weights in two files with an index, and what the index is made to say.
fn two_shards(dir: &Path, change: impl FnOnce(&Path, &mut serde_json::Value)) -> PathBuf {
    let folder = opt_with(dir, Path::new(OPT));
    let device = candle_core::Device::Cpu;
    let all = candle_core::safetensors::load(folder.join("model.safetensors"), &device).unwrap();
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, first) in [("one.safetensors", true), ("two.safetensors", false)] {
        let part: std::collections::HashMap<_, _> = all
            .iter()
            .filter(|(name, _)| name.contains("layers.0") == first)
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        part.keys().for_each(|name| drop(map.insert(name.clone(), shard.into())));
        candle_core::safetensors::save(&part, folder.join(shard)).unwrap();
    }
    let mut index = serde_json::json!({ "weight_map": map });
    change(&folder, &mut index);
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn a_tensor_is_read_from_the_file_that_the_index_names_and_must_be_there_once() {
    const NAME: &str = "model.decoder.layers.0.fc1.weight";
    let export = |change: &dyn Fn(&Path, &mut serde_json::Value)| {
        let dir = tempfile::tempdir().unwrap();
        let folder = two_shards(dir.path(), change);
        run_tiny("export", &dir.path().join("out"), &[&format!("model.source={}", folder.display())])
    };
    succeeded(export(&|_, _| {}));
    let error = failed(export(&|_, index| index["weight_map"][NAME] = "two.safetensors".into()));
    assert!(error.contains(&format!("`{NAME}` is in two.safetensors, where it is not")), "{error}");
    let error = failed(export(&|folder, _| {
        let device = candle_core::Device::Cpu;
        let mut two = candle_core::safetensors::load(folder.join("two.safetensors"), &device).unwrap();
        two.insert(NAME.into(), candle_core::Tensor::zeros((2, 2), candle_core::DType::F32, &device).unwrap());
        candle_core::safetensors::save(&two, folder.join("two.safetensors")).unwrap();
    }));
    for words in [NAME, "there twice", "one.safetensors", "two.safetensors"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
    let error = failed(export(&|_, index| index["weight_map"][NAME] = 5.into()));
    assert!(error.contains("index.json: expected an object `weight_map` of file names"), "{error}");
}

#[test]
fn a_pickle_that_would_run_code_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let folder = opt_with(dir.path(), Path::new("tests/fixtures/pickles/evil"));
    let mut command = pipeline();
    command.current_dir(dir.path()).args(["run", "export", "--out", "out", "--set"]);
    let corpus = fs::canonicalize("tests/fixtures/corpus.txt").unwrap();
    command.arg(format!("model.source={}", folder.display())).args(["--set", "ablation.heads=all", "--set"]);
    let error = failed(
        command
            .arg(format!("corpus.source={}", corpus.display()))
            .args(["--set", "corpus.prompt_len=16"])
            .output()
            .unwrap(),
    );
    assert!(error.contains("pytorch_model.bin: its pickle would call `posix.system`"), "{error}");
    assert!(!dir.path().join("executed").exists(), "the pickle's code ran");
}

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = opt_with(dir.path(), Path::new(OPT));
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let rewrite = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut header = header.clone();
        change(&mut header["model.decoder.layers.0.fc1.weight"]);
        let mut text = serde_json::to_vec(&header).unwrap();
        text.resize(text.len().next_multiple_of(8), b' ');
        let file = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + length..]].concat();
        fs::write(&path, file).unwrap();
        let out = tempfile::tempdir().unwrap();
        failed(run_tiny("export", out.path(), &[&format!("model.source={}", folder.display())]))
    };
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut serde_json::Value));
    let lies: [Lie; 3] = [
        ("a size that is not its data's", &|t| t["shape"] = serde_json::json!([1000, 24])),
        ("an offset beyond the file", &|t| t["data_offsets"] = serde_json::json!([0, 999_999_999])),
        ("absurd dimensions", &|t| t["shape"] = serde_json::json!([u64::MAX, u64::MAX])),
    ];
    for (what, lie) in lies {
        let error = rewrite(lie);
        assert!(error.contains("model.safetensors") && error.contains("not a complete"), "{what}: {error}");
    }
    // A header said to be longer than any file.
    fs::write(&path, [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("export", out.path(), &[&format!("model.source={}", folder.display())]));
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_gguf_with_absurd_counts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absurd.gguf");
    for (tensors, entries) in [(u64::MAX, 1), (1, u64::MAX), (1 << 40, 1 << 40)] {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes.extend([0; 64]);
        fs::write(&path, bytes).unwrap();
        let error = failed(run_tiny("export", &dir.path().join("out"), &[&format!("model.source={}", path.display())]));
        assert!(error.contains("absurd.gguf is not a complete GGUF file"), "{error}");
    }
}

/// Libraries put one into the text of their errors where `RUST_BACKTRACE` asks for those of panics.
#[test]
fn an_error_is_one_line_without_a_backtrace() {
    let dir = tempfile::tempdir().unwrap();
    let cut = |from: &str, to: &Path| {
        let bytes = fs::read(from).unwrap();
        fs::write(to, &bytes[..bytes.len() / 2]).unwrap();
    };
    let [pickle, safetensors] = ["pickle", "safetensors"].map(|name| dir.path().join(name));
    for folder in [&pickle, &safetensors] {
        fs::create_dir(folder).unwrap();
        fs::copy(Path::new(TINY).join("config.json"), folder.join("config.json")).unwrap();
        fs::copy(Path::new(TINY).join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    }
    let gguf = dir.path().join("a.gguf");
    cut("tests/fixtures/gguf/llama3.gguf", &gguf);
    cut("tests/fixtures/pickles/single/pytorch_model.bin", &pickle.join("pytorch_model.bin"));
    cut("tests/fixtures/tiny-llama/model.safetensors", &safetensors.join("model.safetensors"));
    for source in [gguf, pickle, safetensors] {
        let mut command = pipeline();
        command.args(["run", "export", "--out"]).arg(dir.path().join("out"));
        let source = format!("model.source={}", source.display());
        for setting in TINY_SETTINGS.iter().copied().chain([source.as_str()]) {
            command.args(["--set", setting]);
        }
        let error = failed(command.env("RUST_BACKTRACE", "1").output().unwrap());
        assert!(error.lines().count() == 1 && !error.contains("backtrace"), "{error}");
    }
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = opt_with(dir.path(), Path::new(OPT));
    let path = folder.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    json["model"]["vocab"]["far"] = serde_json::json!(9999);
    fs::write(&path, json.to_string()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("corpus", out.path(), &[&format!("model.source={}", folder.display())]));
    assert!(error.contains("token ids up to 9999") && error.contains("384 rows"), "{error}");
}

#[test]
fn vocab_and_merges_give_the_ids_of_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    let folder = opt_with(dir.path(), Path::new(OPT));
    let expected = tempfile::tempdir().unwrap();
    let source = format!("model.source={}", folder.display());
    succeeded(run_tiny("corpus", expected.path(), &[&source]));
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("tokenizer.json")).unwrap()).unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fs::write(folder.join("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|m| match m.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => m.as_str().unwrap().to_string(),
    });
    fs::write(folder.join("merges.txt"), merges.collect::<Vec<_>>().join("\n")).unwrap();
    let out = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", out.path(), &[&source]));
    let ids = |dir: &Path| numbers(&read(&dir.join("tables/tokens")), "token");
    assert_eq!(ids(out.path()), ids(expected.path()));
}

/// The machine's rate is measured on narrower products: those of such a model would take minutes.
#[test]
fn a_large_model_is_described_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "hidden_act": "silu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256, "torch_dtype": "bfloat16",
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    // Of processor time, on all cores together.
    let script = format!("ulimit -t 20; exec {} model {}", env!("CARGO_BIN_EXE_pipeline"), dir.path().display());
    let shown = succeeded(std::process::Command::new("sh").args(["-c", &script]).output().unwrap());
    assert!(shown.contains("8030.") && shown.contains("GFLOP/s"), "{shown}");
}

/// Every configuration of the paper loads, and names a hub model and the paper's settings.
#[test]
fn the_papers_configurations_load() {
    let configs = files(Path::new("pipeline/paper"));
    assert!(configs.len() >= 15, "{}", configs.len());
    for path in configs {
        let config = selfrepair_core::config::Config::load(Some(&path), &[]).unwrap();
        assert!(config.model.source.starts_with("hf:"), "{}", path.display());
        assert_eq!((config.corpus.prompt_len, config.analysis.top_fraction), (128, 0.02), "{}", path.display());
        assert!(fs::read_to_string(&path).unwrap().starts_with("# "), "{}", path.display());
    }
}

/// The default model's weights as a safetensors directory give the tables that the GGUF file gives.
#[test]
fn smollm2_from_gguf_and_from_safetensors_gives_the_same_tables() {
    use selfrepair_model::GgufFile;

    let dir = tempfile::tempdir().unwrap();
    let source = selfrepair_model::provision::model_asset("smollm2").unwrap().provide().unwrap();
    let gguf = GgufFile::open(&source).unwrap();
    let folder = dir.path().join("smollm2");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), gguf.config().unwrap().to_string()).unwrap();

    let part = |l: usize, part: &str| format!("model.layers.{l}.{part}.weight");
    let parts = [
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let mut names: Vec<String> = (0..30).flat_map(|l| parts.map(|p| part(l, p))).collect();
    names.extend(["model.embed_tokens.weight".to_string(), "model.norm.weight".to_string()]);
    let tensors = names.into_iter().map(|n| (n.clone(), gguf.tensor(&n).unwrap())).collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();

    let list = |key: &str| -> Vec<String> {
        let values = gguf.metadata(key).unwrap().to_vec().unwrap();
        values.iter().map(|v| v.to_string().unwrap().clone()).collect()
    };
    let vocab: serde_json::Map<String, serde_json::Value> =
        list("tokenizer.ggml.tokens").into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
    fs::write(folder.join("vocab.json"), serde_json::Value::Object(vocab).to_string()).unwrap();
    fs::write(folder.join("merges.txt"), list("tokenizer.ggml.merges").join("\n")).unwrap();

    let settings = ["corpus.tokens=96", "corpus.prompt_len=24", "ablation.heads=[\"L28H3\", \"L29H3\"]"];
    let table = |out: &Path, name: &str, column: &str| numbers(&read(&out.join("tables").join(name)), column);
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    succeeded(run("ablate", &a, &settings));
    let from_folder = format!("model.source={}", folder.display());
    succeeded(run("ablate", &b, &[&settings[..], &[&from_folder]].concat()));
    for (name, column) in [
        ("tokens", "token"),
        ("clean", "logit"),
        ("clean", "log_prob"),
        ("direct_effects", "direct_effect"),
        ("ablations", "self_repair"),
        ("ablations", "repair_norm"),
    ] {
        // NaN where a key has no layer or head does not occur in these columns.
        assert_eq!(table(&a, name, column), table(&b, name, column), "{name}.{column}");
    }
}
