//! Every format, and what is wrong with files.

use super::*;
use std::io::Write;
use std::path::PathBuf;

use arrow::array::{BinaryArray, Decimal128Array, Int32Array, StringArray};
use parquet::arrow::ArrowWriter;

fn read(path: &Path) -> Result<Vec<String>> {
    documents(path, "text", &Rc::default())?.map(|part| part.map(|p| p.text)).collect()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

const JSON: &str = "{\"text\": \"one\"}\n\n{\"text\": \"zwei é\", \"id\": 2}\n{\"text\": \"\"}\n";

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn every_format_gives_the_same_documents() {
    let dir = tempfile::tempdir().unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(JSON.as_bytes()).unwrap();
    let column = Arc::new(StringArray::from(vec!["one", "zwei é", ""])) as ArrayRef;
    let ids = Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef;
    let bytes = Arc::new(BinaryArray::from(vec![b"one".as_slice(), "zwei é".as_bytes(), b""])) as ArrayRef;
    let files = [
        file(dir.path(), "a.txt", "one\nzwei é\n\n".as_bytes()),
        file(dir.path(), "a.jsonl", JSON.as_bytes()),
        file(dir.path(), "a.jsonl.gz", &gz.finish().unwrap()),
        file(dir.path(), "a.jsonl.zst", &zstd::encode_all(JSON.as_bytes(), 1).unwrap()),
        file(dir.path(), "a.parquet", &parquet(vec![("id", ids), ("text", column)])),
        // As Spark and old writers have it: a column of bytes that is not said to be text.
        file(dir.path(), "bytes.parquet", &parquet(vec![("text", bytes)])),
        file(dir.path(), "mark.txt", "\u{feff}one\nzwei é\n\n".as_bytes()),
        file(dir.path(), "mark.jsonl", format!("\u{feff}{JSON}").as_bytes()),
        file(dir.path(), "mark.jsonl.zst", &zstd::encode_all(format!("\u{feff}{JSON}").as_bytes(), 1).unwrap()),
    ];
    for path in files {
        assert_eq!(read(&path).unwrap(), ["one", "zwei é"], "{}", path.display());
    }
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Arc::new(BinaryArray::from(vec![b"one".as_slice(), b"\xff\xfeone", b"two"])) as ArrayRef;
    let path = file(dir.path(), "bytes.parquet", &parquet(vec![("text", bytes)]));
    let mut found = documents(&path, "text", &Rc::default()).unwrap();
    assert_eq!(found.next().unwrap().unwrap().text, "one");
    let error = format!("{:#}", found.next().unwrap().unwrap_err());
    assert!(error.contains("bytes.parquet") && error.contains("UTF-16"), "{error}");
}

/// What `zstd --long=28`, `pzstd` and `cat a.zst b.zst` write.
#[test]
fn zstd_with_long_windows_and_several_frames_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut long = zstd::Encoder::new(Vec::new(), 1).unwrap();
    long.window_log(28).unwrap();
    long.long_distance_matching(true).unwrap();
    long.write_all(JSON.as_bytes()).unwrap();
    let skippable = [&0x184D_2A50u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
    let first = zstd::encode_all(&JSON.as_bytes()[..20], 1).unwrap();
    let second = zstd::encode_all(&JSON.as_bytes()[20..], 1).unwrap();
    for bytes in [long.finish().unwrap(), [skippable, first, second].concat()] {
        assert_eq!(read(&file(dir.path(), "a.jsonl.zst", &bytes)).unwrap(), ["one", "zwei é"]);
    }
}

#[test]
fn rows_without_a_text_are_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let column = Arc::new(StringArray::from(vec![None, Some("one"), None, None, Some("two")])) as ArrayRef;
    let json = "{\"id\": 1}\n{\"text\": \"one\"}\n{\"text\": null}\n{\"text\": NaN}\n{\"text\": \"two\"}\n";
    for path in
        [file(dir.path(), "a.parquet", &parquet(vec![("text", column)])), file(dir.path(), "a.jsonl", json.as_bytes())]
    {
        let skipped = Rc::<Skipped>::default();
        let texts = documents(&path, "text", &skipped).unwrap().map(|part| part.unwrap().text);
        assert_eq!(texts.collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(skipped.rows.get(), 3, "{}", path.display());
    }
    // A key that no row has is an error, of whatever row it is.
    let misspelt = file(dir.path(), "b.jsonl", "{\"body\": \"x\"}\n".repeat(5000).as_bytes());
    let mut found = documents(&misspelt, "text", &Rc::default()).unwrap();
    let error = format!("{:#}", found.next().unwrap().unwrap_err());
    assert!(error.contains("b.jsonl, line 1: no key `text`"), "{error}");
}

#[test]
fn bytes_of_a_prompt_set_are_texts_and_other_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |t: &[u8]| Arc::new(BinaryArray::from(vec![t])) as ArrayRef;
    let path =
        file(dir.path(), "a.parquet", &parquet(vec![("text", bytes(b"a b")), ("answer", bytes("é".as_bytes()))]));
    let row = rows(&path).unwrap().next().unwrap().unwrap();
    assert_eq!(row.json, serde_json::json!({"text": "a b", "answer": "é"}));
    let error = |name: &str, columns| format!("{:#}", rows(&file(dir.path(), name, &parquet(columns))).err().unwrap());
    let said = error("b.parquet", vec![("text", bytes(b"\xff\xfe"))]);
    assert!(said.contains("b.parquet") && said.to_lowercase().contains("utf-8"), "{said}");
    let decimal = Decimal128Array::from(vec![5]).with_precision_and_scale(10, 0).unwrap();
    let said = error("c.parquet", vec![("answer", Arc::new(decimal) as ArrayRef)]);
    assert!(said.contains("the column `answer` has the type Decimal128(10, 0)"), "{said}");
}

#[test]
fn bad_files_are_named_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str, bytes: &[u8]| format!("{:#}", read(&file(dir.path(), name, bytes)).unwrap_err());
    assert!(error("a.jsonl", b"{\"text\": \"x\"}\n{oops").contains("a.jsonl, line 2: not valid JSON"));
    assert!(error("b.jsonl", b"{\"body\": \"x\"}").contains("line 1: no key `text`"));
    assert!(error("c.parquet", b"PAR1").contains("c.parquet is not a complete Parquet file"));
    assert!(error("d.docx", b"").contains("not a corpus"));
    assert!(error("e.txt", &[b'a', b'\n', 0xff, b'\n']).contains("e.txt, line 2"));
    assert!(error("f.jsonl.zst", b"nonsense").contains("f.jsonl.zst, line 1"));
}
