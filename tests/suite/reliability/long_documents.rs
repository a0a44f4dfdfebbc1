//! Very long documents: only the needed part is tokenized, and memory is bounded.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{DictionaryArray, Int32Array, RecordBatch, StringArray};

use super::*;

/// `pipeline run corpus` on a file, in three gigabytes of address space.
fn corpus(file: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = pipeline();
    command.args(["run", "corpus", "--out"]).arg(out);
    let source = format!("corpus.source={}", file.display());
    for setting in TINY_SETTINGS.iter().chain(&[&*source]).chain(more) {
        command.args(["--set", setting]);
    }
    let script = format!("ulimit -v 3000000; exec {}", in_shell(&command));
    let start = Instant::now();
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    output
}

fn tokens(out: &Path) -> Vec<f64> {
    numbers(&read(&out.join("tables/tokens")), "token")
}

/// As text8 is: one line without end.
#[test]
fn one_long_line_gives_the_tokens_of_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string("tests/fixtures/corpus.txt").unwrap().replace('\n', " ");
    let (long, short) = (dir.path().join("long.txt"), dir.path().join("short.txt"));
    fs::write(&long, text.repeat((400 << 20) / text.len())).unwrap();
    fs::write(&short, &text[..50_000.min(text.len())]).unwrap();
    succeeded(corpus(&long, &dir.path().join("a"), &[]));
    succeeded(corpus(&short, &dir.path().join("b"), &[]));
    assert_eq!(tokens(&dir.path().join("a")), tokens(&dir.path().join("b")));
}

#[test]
fn lines_without_a_place_to_cut_are_refused_by_their_document() {
    let dir = tempfile::tempdir().unwrap();
    let (text, json) = (dir.path().join("a.txt"), dir.path().join("a.jsonl.gz"));
    fs::write(&text, "a".repeat(300 << 20)).unwrap();
    let error = failed(corpus(&text, &dir.path().join("out"), &[]));
    assert!(error.contains("document 0") && error.contains("that cannot be split for this tokenizer"), "{error}");
    let mut gz = flate2::write::GzEncoder::new(fs::File::create(&json).unwrap(), flate2::Compression::fast());
    gz.write_all(b"{\"text\": \"").unwrap();
    (0..300).for_each(|_| gz.write_all(&[b'a'; 1 << 20]).unwrap());
    gz.finish().unwrap();
    let error = failed(corpus(&json, &dir.path().join("out"), &[]));
    assert!(error.contains("a.jsonl.gz, line 1: it has more than 268435456 bytes"), "{error}");
}

/// A value of a hundred megabytes that is beside the text is passed over.
#[test]
fn other_values_of_a_line_take_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let line = |text: &str| serde_json::json!({ "text": text }).to_string();
    let texts = fs::read_to_string("tests/fixtures/corpus.txt").unwrap();
    let long = format!("{{\"ids\": [{}1], \"text\": \"first\"}}\n", "1,".repeat(50 << 20));
    let rest: String = texts.lines().map(|l| line(l) + "\n").collect();
    fs::write(&path, long + &rest).unwrap();
    succeeded(corpus(&path, &dir.path().join("out"), &[]));
}

fn dictionary(path: &Path, value: &str, rows: usize) {
    let texts = Arc::new(StringArray::from(vec![value]));
    let column = DictionaryArray::new(Int32Array::from(vec![0; rows]), texts);
    let batch = RecordBatch::try_from_iter([("text", Arc::new(column) as _)]).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
        .set_dictionary_page_size_limit(1 << 30)
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_text_that_a_dictionary_repeats_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    dictionary(&path, &"ab cd ".repeat(2 << 20), 300);
    assert!(path.metadata().unwrap().len() < 100_000);
    succeeded(corpus(&path, &dir.path().join("out"), &[]));
    let error = failed(corpus(&path, &dir.path().join("prompts"), &["corpus.mode=prompts"]));
    assert!(error.contains("a.parquet"), "{error}");
}

/// Where the header of the first page says how large the page is decompressed, in a varint of five bytes.
fn page_size(path: &Path, bytes: &[u8]) -> usize {
    let file = fs::File::open(path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let start = reader.metadata().row_group(0).column(0).data_page_offset() as usize;
    // Field 1 is the kind of page, and field 2 that size, in Thrift's compact form.
    assert_eq!(bytes[start..start + 3], [0x15, 0, 0x15]);
    assert!(bytes[start + 3..start + 7].iter().all(|b| b & 0x80 != 0) && bytes[start + 7] & 0x80 == 0);
    start + 3
}

/// One page of `pieces` texts of 16 MiB each.
fn page_of(path: &Path, compression: parquet::basic::Compression, pieces: usize) {
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .set_data_page_size_limit(1 << 30)
        .build();
    let text = Arc::new(StringArray::from(vec!["a".repeat(16 << 20)]));
    let batch = RecordBatch::try_from_iter([("text", text as _)]).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    (0..pieces).for_each(|_| writer.write(&batch).unwrap());
    writer.close().unwrap();
}

/// Whatever the header of a page says of its size, and whatever its bytes decompress to.
#[test]
fn a_page_that_would_take_gigabytes_is_refused() {
    use parquet::basic::Compression;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let refused = || {
        for mode in ["packed", "prompts"] {
            let error = failed(corpus(&path, &dir.path().join("out"), &[&format!("corpus.mode={mode}")]));
            assert!(error.contains("a.parquet: reading it takes more memory than any file of its kind"), "{error}");
        }
    };
    // 700 MB in one page.
    page_of(&path, Compression::GZIP(Default::default()), 42);
    assert!(path.metadata().unwrap().len() < 1_000_000);
    refused();
    // Each codec takes memory in another way. Two gigabytes less one byte is the most that a header can say.
    for compression in [Compression::ZSTD(Default::default()), Compression::SNAPPY, Compression::UNCOMPRESSED] {
        page_of(&path, compression, 9);
        let mut bytes = fs::read(&path).unwrap();
        let at = page_size(&path, &bytes);
        bytes[at..at + 5].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0x0f]);
        fs::write(&path, bytes).unwrap();
        match compression {
            // Nothing is decompressed, so that the size does not matter.
            Compression::UNCOMPRESSED => {
                let output = corpus(&path, &dir.path().join("out"), &[]);
                assert!(output.status.code().is_some(), "{output:?}");
            }
            _ => refused(),
        }
    }
}

/// Forty texts of 64 megabytes: more than one array of texts can hold.
#[test]
fn parquet_with_more_than_two_gigabytes_of_text_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let batch = {
        let text = Arc::new(StringArray::from(vec!["The grandmother walked to the old library. ".repeat(1_500_000)]));
        RecordBatch::try_from_iter([("text", text as _)]).unwrap()
    };
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let file = fs::File::create(&path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    for _ in 0..40 {
        writer.write(&batch).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    succeeded(corpus(&path, &dir.path().join("out"), &[]));
}

/// What is cut into pieces is what the whole documents give: the same tokens in the same documents.
#[test]
fn books_give_the_tokens_of_whole_documents() {
    use selfrepair_core::config::CorpusConfig;
    use selfrepair_model::corpus;
    use selfrepair_model::corpus::TextTokenizer;
    use selfrepair_model::{Model, ModelSource};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.txt");
    let texts = fs::read_to_string("tests/fixtures/corpus.txt").unwrap();
    let lines: Vec<&str> = texts.lines().collect();
    // Seven books of 40 to 400 kB, between short documents.
    let book = |i: usize| (0..40 * i).map(|j| lines[(i + 7 * j) % lines.len()]).collect::<Vec<_>>().join(" ");
    let documents: Vec<String> = (1..8).flat_map(|i| [book(i * i), lines[i].to_string()]).collect();
    fs::write(&path, documents.join("\n")).unwrap();
    assert!(documents.iter().any(|d| d.len() > 200_000));

    let source = selfrepair_core::config::ModelConfig { source: TINY.into(), ..Default::default() };
    let tokenizer = TextTokenizer::of(&Model::open(ModelSource::resolve(&source).unwrap()).unwrap()).unwrap();
    let config = CorpusConfig { tokens: 10_000_000, prompt_len: 16, bos: false, ..Default::default() };
    let corpus = corpus::corpus(&config, &[path], &tokenizer).unwrap();
    let separator = tokenizer.encode("<|endoftext|>").unwrap()[0];
    let (mut ids, mut of) = (Vec::new(), Vec::new());
    for (i, document) in documents.iter().enumerate() {
        if i > 0 {
            ids.push(separator);
        }
        ids.extend(tokenizer.encode(document).unwrap());
        of.resize(ids.len(), Some(i as u32));
        // The separator belongs to the document before it.
        if i > 0 {
            let first = of.iter().position(|d| *d == Some(i as u32)).unwrap();
            of[first] = Some(i as u32 - 1);
        }
    }
    let whole = ids.len() / 16 * 16;
    assert!(corpus.prompts.iter().flatten().copied().eq(ids[..whole].iter().copied()));
    assert!(corpus.documents == of[..whole]);
}
