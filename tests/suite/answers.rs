//! Answers and texts with tokenizers that put `▁` in front of a text (Llama 1 and 2, Mistral).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

fn added_token(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

/// The tiny model with SentencePiece's pieces: `t` is 9 and `▁t` is 20, `Mary` is 24 and `▁Mary` is 25.
fn model(dir: &Path) -> PathBuf {
    let folder = dir.join("model");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    let merges = [
        ["T", "h"],
        ["Th", "e"],
        ["▁", "The"],
        ["c", "a"],
        ["▁", "ca"],
        ["▁ca", "t"],
        ["▁", "t"],
        ["▁", "s"],
        ["M", "a"],
        ["r", "y"],
        ["Ma", "ry"],
        ["▁", "Mary"],
    ];
    let pieces = ["<unk>", "<s>", "</s>", "▁", "T", "h", "e", "c", "a", "t", "s", "M", "r", "y"].map(String::from);
    let pieces = pieces.into_iter().chain(merges.iter().map(|merge| merge.concat()));
    let vocab: serde_json::Map<String, Value> = pieces.zip(0..).map(|(piece, id)| (piece, Value::from(id))).collect();
    let added = [(0, "<unk>"), (1, "<s>"), (2, "</s>")].map(|(id, content)| added_token(id, content));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "pre_tokenizer": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": merges},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

#[test]
fn answers_reach_tokens_with_a_space_and_without_and_texts_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set.jsonl");
    let rows = [
        r#"{"text": "The ca", "answer": "t", "wrong": "s"}"#,
        r#"{"text": "The ca", "answer": " t", "wrong": 21}"#,
        r#"{"text": "The cat", "answer": " Mary", "position": 1}"#,
    ];
    fs::write(&set, rows.join("\n")).unwrap();
    let out = dir.path().join("out");
    let model = format!("model.source={}", model(dir.path()).display());
    let source = format!("corpus.source={}", set.display());
    let settings = [&model, &source, "corpus.mode=prompts", "corpus.prompt_len=16", "ablation.heads=all"];
    let output = run("corpus", &out, &settings);
    let said = text(&output.stderr);
    succeeded(output);
    assert!(said.contains("row 1: `answer` is \"t\", which has no space in front"), "{said}");
    assert!(said.contains("(1 more of this kind)"), "{said}");
    let targets = read(&out.join("tables/targets"));
    assert_eq!(numbers(&targets, "answer"), [9.0, 20.0, 25.0]);
    assert_eq!(numbers(&targets, "wrong")[..2], [10.0, 21.0]);
    let tokens = read(&out.join("tables/tokens"));
    assert_eq!(texts(&tokens, "text"), ["<s>", " The", " ca", "<s>", " The", " ca", "<s>", " The", " cat"]);
    let sql = |query: &str| {
        succeeded(pipeline().args(["sql", "--format", "csv", "--out"]).arg(&out).arg(query).output().unwrap())
    };
    let context = sql("select context from contexts where prompt = 0 and position = 1");
    assert!(context.contains("<s> The« ca»"), "{context}");
}

#[test]
fn a_token_that_was_added_beyond_the_embedding_matters_only_in_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    // The embedding has a row for each of the tokenizer's 384 tokens, and none for this one.
    let path = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    json["added_tokens"].as_array_mut().unwrap().push(added_token(384, "<pad>"));
    fs::write(&path, json.to_string()).unwrap();
    let model = format!("model.source={}", folder.display());
    let corpus = dir.path().join("corpus.txt");
    let source = format!("corpus.source={}", corpus.display());
    let settings = [&model, &source, "corpus.tokens=64", "corpus.prompt_len=16", "ablation.heads=all"];
    fs::write(&corpus, "The rain at the library\n".repeat(30)).unwrap();
    let output = run("corpus", &dir.path().join("out"), &settings);
    assert!(!text(&output.stderr).contains("warning"), "{}", text(&output.stderr));
    succeeded(output);
    fs::write(&corpus, "The rain <pad> at the library\n".repeat(30)).unwrap();
    let error = failed(run("corpus", &dir.path().join("out-2"), &settings));
    assert!(error.contains("the token `<pad>` (384)") && error.contains("only 384 rows"), "{error}");
}
