//! Pieces give the tokens of the whole text, for every known tokenizer part and every allowed cut.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::GgufFile;
use crate::corpus::gguf_tokenizer::from_gguf;

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

/// The tiny model's byte-level tokenizer with some parts exchanged.
fn byte_level(parts: Value) -> Tokenizer {
    let mut json: Value = serde_json::from_slice(
        &std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-llama/tokenizer.json")).unwrap(),
    )
    .unwrap();
    for (key, part) in parts.as_object().unwrap() {
        match key.as_str() {
            "added" => json["added_tokens"].as_array_mut().unwrap().push(part.clone()),
            _ => json[key] = part.clone(),
        }
    }
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// A BPE over characters, as SentencePiece's are: some pieces have `▁` in front, one has it behind.
fn pieces(parts: Value) -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    let mut add = |piece: String| {
        let id = vocabulary.len();
        vocabulary.entry(piece).or_insert(id.into());
    };
    add("<unk>".into());
    (0..=255u8).for_each(|b| add(format!("<0x{b:02X}>")));
    "▁abcdefghijklmnopqrstuvwxyzABéß中。,.;!?'123\n".chars().for_each(|c| add(c.into()));
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("▁", "▁"),
        ("▁▁", "▁▁"),
        ("a", "n"),
        ("an", "d"),
        (";", "▁"),
        ("▁", "a"),
    ];
    merges.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges.map(|(a, b)| [a, b]),
        },
    });
    for (key, part) in parts.as_object().unwrap() {
        match key.as_str() {
            "added" => json["added_tokens"].as_array_mut().unwrap().push(part.clone()),
            _ => json[key] = part.clone(),
        }
    }
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn added(id: usize, content: &str, flags: [bool; 4]) -> Value {
    let [single_word, lstrip, rstrip, normalized] = flags;
    json!({
        "id": id, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
        "normalized": normalized, "special": false,
    })
}

fn split(pattern: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

/// Tokenizers whose documents may be cut, by name.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut out: Vec<(String, Tokenizer)> = Vec::new();
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf-tokenizers"));
    for name in ["bpe", "spm"] {
        let gguf = GgufFile::open(&fixtures.join(format!("{name}.gguf"))).unwrap();
        out.push((name.into(), from_gguf(&gguf).unwrap()));
    }
    let mut byte = |name: &str, parts: Value| out.push((name.into(), byte_level(parts)));
    byte("plain", json!({}));
    for (name, pattern) in [("gpt2", GPT2), ("cl100k", CL100K), ("digits", CL100K_DIGITS), ("o200k", O200K)] {
        byte(name, json!({"pre_tokenizer": split(pattern)}));
        byte(&format!("{name} nfc"), json!({"pre_tokenizer": split(pattern), "normalizer": {"type": "NFC"}}));
    }
    byte("nfkd", json!({"normalizer": {"type": "NFKD"}}));
    byte("lowercase", json!({"normalizer": {"type": "Lowercase"}}));
    byte(
        "nfkc and lowercase",
        json!({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}}),
    );
    let prefix = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    byte("prefix", json!({"pre_tokenizer": prefix}));
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    byte("single digits", json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits(true), prefix]}}));
    byte("numbers", json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits(false), prefix]}}));
    byte(
        "metaspace",
        json!({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}}),
    );
    byte("strips to the left", json!({"added": added(384, "<left>", [false, true, false, false])}));
    byte("strips to the right", json!({"added": added(384, "<right>a", [false, false, true, false])}));
    byte("a mark", json!({"added": added(384, "a,", [false, false, false, true])}));
    byte("spaces", json!({"added": added(384, "   ", [false, false, false, true])}));
    out.push(("pieces".into(), pieces(json!({}))));
    out.push(("pieces with more".into(), pieces(json!({"added": added(400, "<s>", [false, true, false, false])}))));
    out.push(("pieces and a word".into(), pieces(json!({"added": added(400, "the", [false, false, false, true])}))));
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    out.push(("whole metaspace".into(), pieces(json!({"normalizer": null, "pre_tokenizer": metaspace}))));
    let gemma = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    out.push(("no prefix".into(), pieces(json!({"normalizer": gemma}))));
    out
}

/// Cuts `text` wherever it may be cut at least `length` bytes after the last place.
fn in_pieces<'a>(cuts: &Cuts, text: &'a str, length: usize) -> Vec<&'a str> {
    let (mut out, mut rest) = (vec![], text);
    while let Some(cut) = cuts.find(rest, length) {
        out.push(&rest[..cut.end]);
        rest = &rest[cut.next..];
    }
    out.push(rest);
    out
}

fn check(name: &str, tokenizer: &Tokenizer, cuts: &Cuts, text: &str, length: usize) -> usize {
    let pieces = in_pieces(cuts, text, length);
    let joined: Vec<u32> = pieces.iter().flat_map(|piece| ids(tokenizer, piece)).collect();
    assert!(joined == ids(tokenizer, text), "{name}: {text:?} in {pieces:?}");
    pieces.len()
}

#[test]
fn pieces_of_real_text_give_the_tokens_of_the_whole() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let texts = [
        read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/corpus.txt")),
        read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")),
        read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/model/corpus/gguf_tokenizer.rs")),
    ];
    for (name, tokenizer) in tokenizers() {
        let cuts = Cuts::of(&tokenizer).unwrap();
        for text in &texts {
            for length in [1, 7, 1000] {
                let count = check(&name, &tokenizer, &cuts, text, length);
                assert!(count > text.len() / (length + 250), "{name}: {count} pieces of {length}");
            }
        }
    }
}

#[test]
fn any_text_at_any_place_that_is_allowed() {
    let tokenizers: Vec<(String, Cuts, Tokenizer)> =
        tokenizers().into_iter().map(|(name, t)| (name, Cuts::of(&t).unwrap(), t)).collect();
    let words = [
        "the",
        "and",
        "a",
        "Ab",
        "é",
        "e\u{301}",
        "ß",
        "\u{e31}",
        "中",
        "。",
        "，",
        "'s",
        "'",
        "’",
        " ",
        " ",
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{200b}",
        "\u{180e}",
        "1",
        "123",
        "४",
        ",",
        ".",
        ";",
        "!",
        "!!",
        "\"",
        "(",
        "/",
        "▁",
        "<s>",
        "<left>",
        "<right>a",
        "a,",
        "<|endoftext|>",
        "\u{307}",
        "İ",
        "ŀ",
        "ŉ",
        "가",
        "が",
        "か\u{3099}",
        "\0",
        "🙂",
        "🇩🇪",
        "ﬁ",
        "…",
        "¨",
        "\u{85}",
        "Ġ",
    ];
    // Found by chance: `<s>` begins a text of its own, before which `▁` is written.
    for (name, cuts, tokenizer) in &tokenizers {
        if let Some(cut) = cuts.find("<s> İ", 3) {
            let joined = [ids(tokenizer, "<s>"), ids(tokenizer, &"<s> İ"[cut.next..])].concat();
            assert_eq!(joined, ids(tokenizer, "<s> İ"), "{name}");
        }
    }
    let text = prop::collection::vec(prop::sample::select(words.to_vec()), 1..12).prop_map(|words| words.concat());
    proptest!(ProptestConfig::with_cases(400), |(text in text)| {
        for (name, cuts, tokenizer) in &tokenizers {
            for length in 0..text.len() {
                if let Some(cut) = cuts.find(&text, length) {
                    let joined = [ids(tokenizer, &text[..cut.end]), ids(tokenizer, &text[cut.next..])].concat();
                    prop_assert!(joined == ids(tokenizer, &text), "{name}: {text:?} at {cut:?}");
                }
            }
        }
    });
}

#[test]
fn nothing_is_cut_where_a_part_is_not_known() {
    let nowhere =
        |tokenizer: Tokenizer| assert_eq!(Cuts::of(&tokenizer).unwrap().find("word, word word.\nword 1", 0), None);
    nowhere(byte_level(json!({"normalizer": {"type": "Strip", "strip_left": true, "strip_right": false}})));
    nowhere(byte_level(json!({"normalizer": {"type": "Prepend", "prepend": "x"}})));
    nowhere(byte_level(json!({"pre_tokenizer": split(r"\w+ \w+|.")})));
    nowhere(byte_level(json!({"pre_tokenizer": {"type": "FixedLength", "length": 5}})));
    nowhere(byte_level(json!({"pre_tokenizer": null})));
    let no_pattern = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    nowhere(byte_level(json!({"pre_tokenizer": no_pattern})));
    let behind = json!({"type": "Sequence", "pretokenizers": [no_pattern, split(CL100K)]});
    nowhere(byte_level(json!({"pre_tokenizer": behind})));
    nowhere(byte_level(json!({"added": added(384, "a b", [false; 4])})));
    nowhere(byte_level(json!({"added": added(384, "word", [true, false, false, false])})));
    nowhere(pieces(json!({"added": added(400, " the", [false; 4])})));
}
