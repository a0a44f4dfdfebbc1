//! Every error names what is wrong and says what to do.

use std::fs;
use std::path::{Path, PathBuf};

use selfrepair_core::files::sha256_of_file;

use crate::support::*;

/// The tiny model copied, so that it can be corrupted.
fn copy_of_tiny(dir: &Path) -> PathBuf {
    let folder = dir.join("model");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    folder
}

fn edit(path: &Path, from: &str, to: &str) {
    let before = fs::read_to_string(path).unwrap();
    assert!(before.contains(from), "{from}");
    fs::write(path, before.replace(from, to)).unwrap();
}

/// The error of a run of the tiny model with something set differently.
fn error_with(more: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    failed(run_tiny("ablate", dir.path(), more))
}

/// The error of a run of a corrupt copy of the tiny model.
fn error_of_corrupt(corrupt: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    corrupt(&folder);
    failed(run_tiny("ablate", &dir.path().join("out"), &[&format!("model.source={}", folder.display())]))
}

#[track_caller]
fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn models_that_do_not_exist() {
    assert_says(
        &error_with(&["model.source=no/such/model"]),
        &["no/such/model", "no such file or directory", "package:smollm2"],
    );
    assert_says(&error_with(&["model.source=package:gpt9"]), &["package:gpt9", "known: smollm2"]);
    assert_says(&error_with(&["model.source=tests/fixtures"]), &["has no config.json"]);
    assert_says(&error_with(&["model.source=tests/fixtures/corpus.txt"]), &["not a .gguf file"]);
    assert_says(&error_with(&["model.source=hf:../etc"]), &["hf:../etc is not a repository's name"]);
    assert_says(&error_with(&["model.revision=v1"]), &["model.revision is for hf: sources"]);
}

#[test]
fn corpora_that_cannot_be_used() {
    assert_says(&error_with(&["corpus.source=no.txt"]), &["no.txt", "no such file", ".parquet"]);
    assert_says(&error_with(&["corpus.source=Cargo.toml"]), &["Cargo.toml", "not a corpus"]);
    assert_says(&error_with(&["corpus.source=package:wiki"]), &["package:wiki", "known: news"]);
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, "Just one line.\n").unwrap();
    let error = error_with(&[&format!("corpus.source={}", short.display())]);
    assert_says(&error, &["short.txt", "1 document(s)", "at least 2"]);
    fs::write(&short, "").unwrap();
    assert_says(&error_with(&[&format!("corpus.source={}", short.display())]), &["0 document(s)"]);
}

#[test]
fn settings_that_do_not_fit() {
    assert_says(&error_with(&["ablation.heads=L7H0"]), &["`L7H0` names layer 7", "layers 0 to 2"]);
    assert_says(&error_with(&["ablation.heads=[\"L1H4\"]"]), &["names head 4", "heads 0 to 3"]);
    assert_says(&error_with(&["corpus.prompt_len=65"]), &["corpus.prompt_len = 65", "context of 64"]);
    assert_says(&error_with(&["corpus.prompt_length=65"]), &["unknown field `prompt_length`", "prompt_len"]);
    assert_says(&error_with(&["ablation.resample.samples=12"]), &["samples = 12", "there are 12"]);
    assert_says(&error_with(&["corpus.separator=<nope>"]), &["corpus.separator", "<nope>"]);
    assert_says(&error_with(&["runtime.device=tpu"]), &["tpu", "cpu, cuda or cuda:n"]);
    // On a machine whose library has CUDA there is nothing to refuse.
    if !succeeded(pipeline().arg("doctor").output().unwrap()).contains("CPU, CUDA") {
        assert_says(&error_with(&["runtime.device=cuda"]), &["no CUDA provider", "onnxruntime-gpu"]);
    }
    let output = pipeline().args(["run", "all", "--config", "no.toml"]).output().unwrap();
    assert_says(&failed(output), &["cannot read the configuration no.toml"]);
}

/// A device has no end, and nobody writes into a FIFO.
#[test]
fn a_query_is_read_from_a_file_or_from_a_pipe_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (path, kind) in [(fifo.as_path(), "a FIFO"), (Path::new("/dev/zero"), "a device"), (dir.path(), "a folder")] {
        let error = failed(pipeline().args(["sql", "--out"]).arg(dir.path()).arg("-f").arg(path).output().unwrap());
        assert!(error.contains(&format!("{}: it is {kind}", path.display())), "{error}");
    }
    let mut endless = pipeline();
    endless.args(["sql", "--out"]).arg(dir.path()).stdin(std::fs::File::open("/dev/zero").unwrap());
    assert_says(&failed(endless.output().unwrap()), &["from the pipe", "more than 16777216 bytes"]);
    let output = pipeline().args(["prompts", "ioi", "--count", "99999999999"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_is_no_file_is_an_error_and_no_wait() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        let path = dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    for path in [fifo("a.toml"), "/dev/zero".into()] {
        let output = pipeline().args(["run", "corpus", "--config"]).arg(&path).output().unwrap();
        assert_says(&failed(output), &[path.to_str().unwrap(), "not a regular file"]);
    }
    for (key, name, words) in [
        ("corpus.source", "a.txt", "a FIFO"),
        ("model.source", "a.gguf", "a FIFO"),
        ("corpus.source", "/dev/zero", "a device"),
        ("model.source", "/dev/zero", "a device"),
        ("model.source", "/dev", "has no config.json"),
    ] {
        let path = if name.starts_with('/') { name.into() } else { fifo(name) };
        assert_says(&error_with(&[&format!("{key}={}", path.display())]), &[path.to_str().unwrap(), words]);
    }
    for name in ["tokenizer.json", "config.json", "model.safetensors"] {
        let error = error_of_corrupt(|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            std::os::unix::fs::symlink("/dev/zero", folder.join(name)).unwrap();
        });
        assert_says(&error, &["model"]);
    }
    let queries = dir.path().join("queries");
    fs::create_dir(&queries).unwrap();
    std::os::unix::fs::symlink("/dev/zero", queries.join("mine.sql")).unwrap();
    assert_says(&error_with(&[&format!("analysis.sql={}", queries.display())]), &["mine.sql", "a device"]);
}

#[test]
fn keys_of_a_prompt_that_are_not_known_are_named_with_the_row_and_the_nearest_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.jsonl");
    let error = |row: &str| {
        fs::write(&path, format!("{{\"text\": \"Anna gave a map to\", \"answer\": \" Boris\"}}\n{row}\n")).unwrap();
        error_with(&[&format!("corpus.source={}", path.display()), "corpus.mode=prompts", "corpus.prompt_len=64"])
    };
    for (key, nearest) in [("anwser", "answer"), ("wron", "wrong"), ("Position", "position"), ("ansewr", "answer")] {
        let said = error(&format!("{{\"text\": \"Anna gave a map to\", \"{key}\": \" Boris\"}}"));
        assert_says(&said, &["prompts.jsonl, row 2", &format!("\"{key}\" is not known"), &format!("`{nearest}`")]);
    }
    assert_says(&error("[1]"), &["row 2", "expected an object"]);
}

#[test]
fn a_misspelt_key_in_a_file_is_shown_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    fs::write(&path, "[corpus]\ntokenz = 5\n").unwrap();
    let output = pipeline().args(["run", "all", "--config"]).arg(&path).output().unwrap();
    assert_says(&failed(output), &["mine.toml", "line 2", "tokenz"]);
}

#[test]
fn architectures_that_are_not_supported() {
    let error =
        error_of_corrupt(|f| edit(&f.join("config.json"), "\"model_type\": \"llama\"", "\"model_type\": \"mamba\""));
    assert_says(&error, &["`mamba` is not supported", "recurrent", "Supported: ", "llama"]);
    let swap = |from: &str, to: &str| error_of_corrupt(|f| edit(&f.join("config.json"), from, to));
    let error = swap("\"model_type\": \"llama\"", "\"model_type\": \"unheard_of\"");
    assert_says(&error, &["`unheard_of` is not supported yet", "supported: ", "llama"]);
    let error = swap("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"");
    assert_says(&error, &["`rope_parameters` is of type `yarn`", "no `factor`"]);
    let error = swap("\"rope_type\": \"default\"", "\"rope_type\": \"proportional\"");
    assert_says(&error, &["rope scaling `proportional`", "not supported"]);
    // What the configuration promises must be there, and nothing else.
    let error = swap("\"attention_bias\": false", "\"attention_bias\": true");
    assert_says(&error, &["self_attn.q_proj.bias", "is missing"]);
    let error = swap("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    assert_says(&error, &["model.layers.2.", "configuration does not explain"]);
}

#[test]
fn corrupt_checkpoints() {
    let truncate = |f: &Path| {
        let file = fs::OpenOptions::new().write(true).open(f.join("model.safetensors")).unwrap();
        file.set_len(100_000).unwrap();
    };
    assert_says(&error_of_corrupt(truncate), &["model.safetensors", "not a complete safetensors file"]);
    let error =
        error_of_corrupt(|f| edit(&f.join("config.json"), "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"));
    assert_says(&error, &["model.layers.3.", "is missing"]);
    let error =
        error_of_corrupt(|f| edit(&f.join("config.json"), "\"intermediate_size\": 56", "\"intermediate_size\": 64"));
    assert_says(&error, &["model.layers.0.mlp", "[56, 32]", "[64, 32]"]);
    let error = error_of_corrupt(|f| edit(&f.join("config.json"), "\"hidden_size\": 32,", ""));
    assert_says(&error, &["no `hidden_size`"]);
    let error = error_of_corrupt(|f| fs::remove_file(f.join("tokenizer.json")).unwrap());
    assert_says(&error, &["tokenizer.json is missing"]);
    let error = error_of_corrupt(|f| fs::write(f.join("config.json"), "{").unwrap());
    assert_says(&error, &["config.json is not valid JSON"]);
    let error = error_of_corrupt(|f| fs::remove_file(f.join("model.safetensors")).unwrap());
    assert_says(&error, &["found no weights", "model.safetensors"]);
}

#[test]
fn weights_that_are_not_numbers() {
    let error = error_of_corrupt(|f| {
        let path = f.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    });
    assert_says(&error, &["the tensor `", "NaN", "must be finite"]);
}

#[test]
fn shards_that_lie_elsewhere() {
    let error = error_of_corrupt(|f| {
        fs::remove_file(f.join("model.safetensors")).unwrap();
        fs::write(f.join("model.safetensors.index.json"), "{\"weight_map\": {\"a\": \"../secret.safetensors\"}}")
            .unwrap();
    });
    assert_says(&error, &["../secret.safetensors", "not a plain file name"]);
    for name in ["/etc/passwd", "a/b.safetensors", "..", "", "a.safetensors/"] {
        let error = error_of_corrupt(|f| {
            fs::remove_file(f.join("model.safetensors")).unwrap();
            let index = serde_json::json!({ "weight_map": { "a": name } });
            fs::write(f.join("model.safetensors.index.json"), index.to_string()).unwrap();
        });
        assert_says(&error, &["not a plain file name"]);
    }
}

#[test]
fn models_that_are_too_wide_are_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let describe = |sizes: [u64; 3]| {
        let path = folder.join("config.json");
        let text = fs::read_to_string(Path::new(TINY).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, size) in ["hidden_size", "intermediate_size", "num_attention_heads"].into_iter().zip(sizes) {
            config[key] = size.into();
        }
        fs::write(path, config.to_string()).unwrap();
        let script = format!("ulimit -v 6000000; exec {} model {}", env!("CARGO_BIN_EXE_pipeline"), folder.display());
        std::process::Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    // A description needs no memory for what it describes.
    let shown = succeeded(describe([131_072, 65_535, 4]));
    assert!(shown.contains("131072, heads of 12, 65535 neurons"), "{shown}");
    let describe = |sizes| failed(describe(sizes));
    assert_says(&describe([1 << 24, 56, 4]), &["the stream is 16777216 wide", "at most 131072"]);
    assert_says(&describe([32, 65_536, 4]), &["65536 neurons", "at most 65535"]);
    assert_says(&describe([32, 56, 1 << 32]), &["num_attention_heads"]);
    assert_says(&describe([32, 56, 70_000]), &["70000 heads", "at most 65535"]);
}

#[test]
fn gguf_files_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let source = selfrepair_model::provision::model_asset("smollm2").unwrap().provide().unwrap();
    let bytes = fs::read(source).unwrap();
    for (keep, words) in
        [(3, "not a complete GGUF file"), (100_000, "not a complete GGUF file"), (40_000_000, "cannot be read")]
    {
        let path = dir.path().join("cut.gguf");
        fs::write(&path, &bytes[..keep]).unwrap();
        let out = dir.path().join("out");
        let error = failed(run_tiny("export", &out, &[&format!("model.source={}", path.display())]));
        assert_says(&error, &["cut.gguf", words]);
    }
}

#[test]
fn sql_that_cannot_be_answered() {
    let dir = tempfile::tempdir().unwrap();
    let sql = |query: &str| failed(pipeline().args(["sql", query, "--out"]).arg(dir.path()).output().unwrap());
    assert_says(&sql("select 1"), &["has no tables", "pipeline run all"]);
    succeeded(run_tiny("corpus", dir.path(), &[]));
    assert_says(&sql("select * from nowhere"), &["nowhere"]);
    assert_says(&sql("selekt"), &["selekt"]);
}

/// A table changed behind the program's back must not reach a summary.
#[test]
fn a_check_that_fails_stops_the_run_and_shows_the_rows() {
    use arrow::array::{ArrayRef, Float32Array};
    use std::sync::Arc;

    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    let path = files(&dir.path().join("tables/ablations"))[0].clone();
    let (size, sum) = (fs::metadata(&path).unwrap().len(), sha256_of_file(&path).unwrap());
    let batch = read(&path);
    let at = batch.schema().index_of("repair_mlp").unwrap();
    let mut columns = batch.columns().to_vec();
    let corrupt: Vec<f32> =
        numbers(&batch, "repair_mlp").iter().enumerate().map(|(i, &v)| if i == 7 { 99.0 } else { v as f32 }).collect();
    columns[at] = Arc::new(Float32Array::from(corrupt)) as ArrayRef;
    let batch = arrow::array::RecordBatch::try_new(batch.schema(), columns).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    // Tell the records the new size and checksum: the run must not notice by them.
    edit(&dir.path().join("stages/ablate.sha256"), &sum, &sha256_of_file(&path).unwrap());
    let manifest = dir.path().join("stages/ablate.json");
    edit(&manifest, &size.to_string(), &fs::metadata(&path).unwrap().len().to_string());
    let mut told: serde_json::Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    assert!(told.as_object_mut().unwrap().remove("checksum").is_some());
    fs::write(&manifest, told.to_string()).unwrap();

    let error = failed(run_tiny("analyze", dir.path(), &[]));
    assert_says(&error, &["causes_sum_to_self_repair failed on 1 row", "99.0"]);
    assert!(files(&dir.path().join("tables/head_summary")).is_empty());
}
