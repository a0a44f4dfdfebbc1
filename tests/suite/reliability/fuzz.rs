//! Untrusted bytes always give a value or an error that names the file; never a panic, and never more memory than the
//! file could need.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proptest::prelude::*;
use selfrepair_core::config::{Config, CorpusConfig, Mode, ModelConfig};
use selfrepair_model::corpus;
use selfrepair_model::corpus::TextTokenizer;
use selfrepair_model::{GgufFile, Model, ModelSource};
use selfrepair_query::sql::{Rights, Tables};
use selfrepair_store::run_folder::{self, STAGES};
use selfrepair_store::{locks, pieces, prompt_tables, records, test_tables};

use super::mutation::{MOST_MEMORY, executions, fuzz, peak, runner, shortened};
use super::*;

/// Everything that a run reads of a model.
pub fn read_model(source: &Path) -> Result<()> {
    let config = ModelConfig { source: source.display().to_string(), ..Default::default() };
    let model = Model::open(ModelSource::resolve(&config)?)?;
    for layer in 0..model.architecture.layers {
        model.layer(layer)?;
    }
    model.ends()?;
    model.check_nothing_was_left_out()
}

pub fn read_tokenizer(source: &Path) -> Result<()> {
    let config = ModelConfig { source: source.display().to_string(), ..Default::default() };
    let model = Model::open(ModelSource::resolve(&config)?)?;
    let tokenizer = TextTokenizer::of(&model)?;
    let ids = tokenizer.encode("Hello wörld, it's 2024 and 1/2.\n\n  <|endoftext|> ok")?;
    ids.iter().try_for_each(|&id| tokenizer.text_of(id).map(drop))
}

/// A folder with some files, to be corrupted.
pub fn folder_with(files: &[PathBuf]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn gguf_files() {
    for name in ["llama", "gpt2", "phi", "quants"] {
        let dir = folder_with(&[Path::new("tests/fixtures/gguf").join(format!("{name}.gguf"))]);
        let complete = read_model(&dir.path().join(format!("{name}.gguf"))).is_ok();
        if complete {
            fuzz(&format!("GGUF {name}"), dir.path(), &format!("{name}.gguf"), read_model);
        }
        assert!(complete || name == "quants", "{name}");
    }
}

#[test]
fn tokenizers_inside_gguf_files() {
    for name in ["bpe", "spm"] {
        let dir = folder_with(&[Path::new("tests/fixtures/gguf-tokenizers").join(format!("{name}.gguf"))]);
        let read = |path: &Path| {
            let tokenizer = TextTokenizer::of_gguf(&GgufFile::open(path)?)?;
            tokenizer.encode("Hello wörld, it's 2024").map(drop)
        };
        fuzz(&format!("tokenizer {name}"), dir.path(), &format!("{name}.gguf"), read);
    }
}

#[test]
fn safetensors_configurations_and_tokenizers() {
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let dir = folder_with(&names.map(|n| Path::new(TINY).join(n)));
    fuzz("safetensors", dir.path(), "model.safetensors", |p| read_model(p.parent().unwrap()));
    fuzz("config.json", dir.path(), "config.json", |p| read_model(p.parent().unwrap()));
    fuzz("tokenizer.json", dir.path(), "tokenizer.json", |p| read_tokenizer(p.parent().unwrap()));
}

#[test]
fn pytorch_files_and_their_index() {
    let config = Path::new("tests/fixtures/families/opt/config.json").to_path_buf();
    let pickles = Path::new("tests/fixtures/pickles");
    let dir = folder_with(&[config.clone(), pickles.join("single/pytorch_model.bin")]);
    fuzz("PyTorch", dir.path(), "pytorch_model.bin", |p| read_model(p.parent().unwrap()));
    let dir = folder_with(&[vec![config], files(&pickles.join("sharded"))].concat());
    fuzz("index of shards", dir.path(), "pytorch_model.bin.index.json", |p| read_model(p.parent().unwrap()));
}

/// The pickle itself, which a zip's checksum would else protect.
#[test]
fn pickles() {
    let dir = folder_with(&[
        Path::new("tests/fixtures/families/opt/config.json").to_path_buf(),
        Path::new("tests/fixtures/pickles/single/pytorch_model.bin").to_path_buf(),
    ]);
    let model = dir.path().join("pytorch_model.bin");
    let mut archive = zip::ZipArchive::new(fs::File::open(&model).unwrap()).unwrap();
    let mut entries = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let mut bytes = Vec::new();
        std::io::copy(&mut entry, &mut bytes).unwrap();
        entries.push((entry.name().unwrap().to_string(), bytes));
    }
    let pickle = entries.iter().position(|e| e.0.ends_with("data.pkl")).unwrap();
    fs::write(dir.path().join("data.pkl"), &entries[pickle].1).unwrap();
    fuzz("pickle", dir.path(), "data.pkl", |path| {
        let mut zip = zip::ZipWriter::new(fs::File::create(&model).unwrap());
        for (i, (name, bytes)) in entries.iter().enumerate() {
            let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file(name.as_str(), stored).unwrap();
            zip.write_all(if i == pickle { fs::read(path).unwrap() } else { bytes.clone() }.as_slice()).unwrap();
        }
        zip.finish().unwrap();
        read_model(dir.path())
    });
}

#[test]
fn corpora_and_prompt_sets() {
    let tiny = ModelConfig { source: TINY.into(), ..Default::default() };
    let model = Model::open(ModelSource::resolve(&tiny).unwrap()).unwrap();
    let tokenizer = TextTokenizer::of(&model).unwrap();
    let read = |mode: Mode| {
        let config = CorpusConfig { tokens: 200, prompt_len: 32, mode, ..Default::default() };
        let tokenizer = &tokenizer;
        move |path: &Path| corpus::corpus(&config, &[path.to_path_buf()], tokenizer).map(drop)
    };
    let texts = fs::read_to_string("tests/fixtures/corpus.txt").unwrap();
    let json: String = texts.lines().take(30).map(|l| serde_json::json!({ "text": l }).to_string() + "\n").collect();
    let prompts = fs::read_to_string("tests/fixtures/prompts.jsonl").unwrap();
    for (mode, jsonl) in [(Mode::Packed, json), (Mode::Prompts, prompts)] {
        let dir = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(jsonl.as_bytes()).unwrap();
        let column = |key: &str| -> arrow::array::ArrayRef {
            let rows = jsonl.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
            std::sync::Arc::new(rows.map(|r| r[key].as_str().map(String::from)).collect::<arrow::array::StringArray>())
        };
        let columns = [("text", column("text")), ("answer", column("answer"))];
        let batch = arrow::record_batch::RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().take(if mode == Mode::Packed { 1 } else { 2 }).map(|(k, c)| (k, c, true)),
        )
        .unwrap();
        let mut parquet = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        parquet.write(&batch).unwrap();
        let files = [
            ("a.jsonl", jsonl.clone().into_bytes()),
            ("a.jsonl.gz", gz.finish().unwrap()),
            ("a.jsonl.zst", zstd::encode_all(jsonl.as_bytes(), 1).unwrap()),
            ("a.parquet", parquet.into_inner().unwrap()),
        ];
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
            fuzz(&format!("{mode:?} {name}"), dir.path(), name, read(mode));
        }
        if mode == Mode::Packed {
            fs::write(dir.path().join("a.txt"), &texts).unwrap();
            fuzz("text", dir.path(), "a.txt", read(mode));
        }
    }
}

#[test]
fn configurations_and_settings() {
    let dir = folder_with(&[Path::new("pipeline/quick.toml").to_path_buf()]);
    // Values out of range name their key, which a file's name would not make clearer.
    fuzz("configuration", dir.path(), "quick.toml", |path| {
        Config::load(Some(path), &[]).map(drop).map_err(|e| e.context(path.display().to_string()))
    });
    let keys =
        ["corpus.tokens", "corpus.prompt_len", "ablation.heads", "neurons.layers", "runtime.batch", "x", "a.b.c", ""];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| x.to_string()),
        "[-\\[\\]\"LH0-9, .=a-z{}#]{0,30}",
        any::<String>(),
    ];
    let setting = (prop::sample::select(keys.to_vec()), value, any::<bool>());
    let count = executions(300, 100_000);
    let result = runner(Dice::new().0, count as u32).run(&setting, |(key, value, whole)| {
        let setting = if whole { format!("{key}={value}") } else { value };
        if let Ok(config) = Config::load(None, &[setting]) {
            // What follows from it is worked out, or refused, too.
            config.ablation.components(3, 4).ok();
            config.ablation.holds(3, 4).ok();
            config.neurons.layers.layers("neurons.layers", 3).ok();
        }
        Ok(())
    });
    assert!(result.is_ok(), "{:?}", result.map_err(|e| shortened(&e.to_string())));
    println!("settings: {count} cases");
}

/// Files that once were not refused as they should be, each in a folder with what belongs to it.
#[test]
fn files_that_once_did_harm() {
    let before = peak();
    let mut seen = 0;
    for path in files(Path::new("tests/fixtures/bad")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let result = match name.rsplit('.').next().unwrap() {
            "gguf" => read_model(&path),
            "bin" => {
                let dir = folder_with(&[Path::new("tests/fixtures/families/opt/config.json").to_path_buf()]);
                fs::copy(&path, dir.path().join("pytorch_model.bin")).unwrap();
                read_model(dir.path())
            }
            "json" => {
                let dir = folder_with(&[Path::new(TINY).join("model.safetensors")]);
                fs::copy(&path, dir.path().join("config.json")).unwrap();
                read_model(dir.path())
            }
            _ => continue,
        };
        let error = format!("{:#}", result.expect_err(&name));
        let folder = std::env::temp_dir().display().to_string();
        assert!(error.contains(&name) || error.contains(&folder), "{error}");
        seen += 1;
    }
    assert!(seen > 0, "no such files are there");
    assert!(peak() < before + MOST_MEMORY, "memory grew from {before} to {} bytes", peak());
}

/// What commands read of a run folder before they read its tables.
fn read_records(out: &Path) -> Result<()> {
    let identity = run_folder::manifest(out, run_folder::Stage::Corpus).map(|m| m.fingerprint).unwrap_or_default();
    let read = || -> Result<()> {
        records::check(out)?;
        for stage in STAGES {
            records::sound_manifest(out, stage)?;
            records::ledger(out, stage)?;
        }
        records::foreign_in(out, STAGES[0], &[out.join("tables")])?;
        pieces::coverage(out)?.lines();
        pieces::numbers(out)?;
        pieces::open(out, &identity)?;
        locks::holders(out)?;
        run_folder::warnings(out);
        Ok(())
    };
    read().with_context(|| out.display().to_string())
}

#[test]
fn records_of_a_run_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeeded(run_tiny("all", &out, &["ablation.heads=[\"L0H1\"]"]));
    let of_pieces =
        files(&out.join("work/ablate")).into_iter().map(|p| p.strip_prefix(&out).unwrap().display().to_string());
    let (plans, others): (Vec<_>, Vec<_>) = of_pieces.partition(|name| name.ends_with("plan.json"));
    let names = ["stages/corpus.json", "stages/ablate.json", "stages/trace.sha256"].map(String::from);
    assert!(!plans.is_empty() && !others.is_empty());
    // What the records list is looked at each time; without most of it, each case takes less.
    for folder in ["figures", "model", "report", "tables/ablations", "tables/component_repairs"] {
        std::fs::remove_dir_all(out.join(folder)).unwrap();
    }
    for name in names.into_iter().chain(plans.into_iter().take(1)).chain(others.into_iter().take(1)) {
        let file = Path::new(&name).file_name().unwrap().to_string_lossy().into_owned();
        fuzz(&format!("record {file}"), &out, &name, |_| read_records(&out));
    }
}

#[test]
fn tables_of_a_run_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let row = |i: usize| format!("{} {} {i} w{i} {} 0", i / 16, i % 16, i + 1);
    test_tables::table(
        out,
        "tokens",
        "prompt position token text next_token document",
        &(0..64).map(row).collect::<Vec<_>>(),
    );
    let (tokens, targets) = (out.join("tables/tokens"), out.join("tables/targets"));
    fuzz("table tokens as prompts", out, "tables/tokens/tokens.parquet", |_| {
        prompt_tables::read(&tokens, &targets).map(drop).with_context(|| tokens.display().to_string())
    });
    fuzz("table tokens in SQL", out, "tables/tokens/tokens.parquet", |path| {
        let tables = Tables::open(out).with_context(|| path.display().to_string())?;
        let rows = tables.collect("select count(text), max(token), min(document) from tokens", &[]);
        rows.map(drop).with_context(|| path.display().to_string())
    });
}

/// An expression of SQL, of values that are far from each other in size and type.
fn expression() -> impl Strategy<Value = String> {
    let leaves = "token prompt position text 0 1 -1 9223372036854775807 -9223372036854775808 1e308 'a' '' 'é' null true \
                  now() [1,2] [] {} '1970-01-01' '-1' 'x%_' $1 @ ;";
    let leaves: Vec<String> = leaves.split_whitespace().map(String::from).collect();
    let names = "abs lpad rpad repeat substr split_part replace reverse chr ascii round power sqrt ln factorial gcd lcm \
                 to_timestamp date_trunc date_bin date_part array_repeat array_slice array_resize array_concat range \
                 generate_series cardinality nullif coalesce greatest concat concat_ws regexp_replace regexp_match md5 \
                 encode translate overlay strpos to_hex initcap count sum avg min max array_agg string_agg stddev \
                 approx_distinct nth_value ntile lag row_number unnest list_sort flatten struct make_array";
    let names: Vec<String> = names.split_whitespace().map(String::from).collect();
    let operators = ["+", "-", "*", "/", "%", "||", "=", "<", "and", "or", "like", "~", "&", "<<", "is distinct from"];
    let types =
        ["int", "bigint", "double", "varchar", "boolean", "date", "timestamp", "decimal(38,10)", "interval", "int[]"];
    prop::sample::select(leaves).prop_recursive(4, 20, 3, move |inner| {
        let (operator, kind) = (prop::sample::select(operators.to_vec()), prop::sample::select(types.to_vec()));
        let arguments = prop::collection::vec(inner.clone(), 0..4).prop_map(|list| list.join(", "));
        prop_oneof![
            4 => (prop::sample::select(names.clone()), arguments).prop_map(|(name, list)| format!("{name}({list})")),
            4 => (inner.clone(), operator, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            2 => (inner.clone(), kind).prop_map(|(a, kind)| format!("cast({a} as {kind})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("case when {a} then {b} end")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} in ({b}, 1))")),
            1 => inner.clone().prop_map(|a| format!("sum({a}) over (partition by prompt order by {a})")),
            1 => inner.prop_map(|a| format!("(select max({a}) from tokens)")),
        ]
    })
}

#[test]
fn statements() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    let tables = Tables::of_runs_with(&[dir.path().to_path_buf()], Rights::Tables, 200 << 20).unwrap();
    let (count, before) = (executions(200, 20_000), peak());
    let (answered, slowest) = (std::cell::Cell::new(0), std::cell::Cell::new(std::time::Duration::ZERO));
    let result = runner(Dice::new().0, count as u32).run(&(expression(), expression()), |(a, b)| {
        for sql in [
            format!("select {a} from tokens where {b}"),
            format!("select {a}, count(*) from tokens group by 1 order by {b}"),
        ] {
            let start = std::time::Instant::now();
            match tables.collect(&sql, &[]) {
                Ok(_) => answered.set(answered.get() + 1),
                Err(error) => {
                    let said = format!("{error:#}");
                    prop_assert!(!said.contains("panicked"), "{sql}: {said}");
                }
            }
            slowest.set(slowest.get().max(start.elapsed()));
            prop_assert!(start.elapsed().as_secs() < 60, "{sql}: {:?}", start.elapsed());
            prop_assert!(peak() < before + MOST_MEMORY, "{sql}: memory grew from {before} to {} bytes", peak());
        }
        Ok(())
    });
    assert!(result.is_ok(), "{:?}", result.map_err(|e| shortened(&e.to_string())));
    println!(
        "statements: {} cases, {} answered, {:.1} s at most",
        2 * count,
        answered.get(),
        slowest.get().as_secs_f64()
    );
}
