//! Running the binary and reading what it wrote.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

pub const TINY: &str = "tests/fixtures/tiny-llama";

/// The settings behind `tests/fixtures/tiny-llama/expected`.
pub const TINY_SETTINGS: [&str; 7] = [
    "model.source=tests/fixtures/tiny-llama",
    "corpus.source=tests/fixtures/corpus.txt",
    "corpus.tokens=192",
    "corpus.prompt_len=16",
    "ablation.kinds=[\"resample\", \"mean\", \"zero\"]",
    "ablation.heads=all",
    "ablation.resample.samples=2",
];

/// With these too, a run has rows in every table but those of [`TABLES_OF_OTHER_RUNS`].
pub const EVERYTHING: [&str; 5] = [
    "ablation.mlps=all",
    "ablation.attention=all",
    "ablation.blocks=all",
    "ablation.hold=[\"erasers\"]",
    "iterative.prompts=2",
];

/// Tables of runs over a prompt set, of runs whose model the paper's authors published numbers for, and of a lower
/// precision.
pub const TABLES_OF_OTHER_RUNS: [&str; 5] =
    ["targets", "task_summary", "paper_comparison", "paper_agreement", "rounding"];

pub fn pipeline() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pipeline"))
}

/// `pipeline run STAGE --out OUT --set …`
pub fn run(stage: &str, out: &Path, settings: &[&str]) -> Output {
    let mut command = pipeline();
    command.args(["run", stage, "--out"]).arg(out);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.output().unwrap()
}

pub fn run_tiny(stage: &str, out: &Path, more: &[&str]) -> Output {
    run(stage, out, &[&TINY_SETTINGS, more].concat())
}

/// The blocks of code of a language in a page of Markdown.
pub fn code_blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_string).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The error a failed command printed, after checking that it is one and not a panic.
pub fn failed(output: Output) -> String {
    let error = text(&output.stderr);
    assert!(!output.status.success(), "it succeeded:\n{}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{error}");
    let error = error.lines().skip_while(|l| !l.starts_with("error:")).collect::<Vec<_>>().join("\n");
    assert!(!error.is_empty(), "no `error:` line");
    error
}

pub fn files(folder: &Path) -> Vec<PathBuf> {
    selfrepair_core::files::files_below(folder).unwrap()
}

/// Every row of a Parquet file, or of a folder of them.
pub fn read(path: &Path) -> RecordBatch {
    let paths = if path.is_dir() { files(path) } else { vec![path.to_path_buf()] };
    let (mut batches, mut schema) = (Vec::new(), None);
    for path in paths {
        let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        // Files may differ in metadata of their fields, which the values do not.
        schema.get_or_insert(builder.schema().clone());
        batches.extend(builder.build().unwrap().map(Result::unwrap));
    }
    let schema = schema.unwrap();
    let columns = |b: &RecordBatch| RecordBatch::try_new(schema.clone(), b.columns().to_vec()).unwrap();
    concat_batches(&schema, &batches.iter().map(columns).collect::<Vec<_>>()).unwrap()
}

pub fn numbers(batch: &RecordBatch, column: &str) -> Vec<f64> {
    let array = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}"));
    let array = cast(array, &DataType::Float64).unwrap();
    array.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)).collect()
}

pub fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let array = cast(batch.column_by_name(column).unwrap(), &DataType::Utf8).unwrap();
    (0..array.len()).map(|i| array.as_string::<i32>().value(i).to_string()).collect()
}

/// Row number by key, the key columns as text.
pub fn index(batch: &RecordBatch, key: &[&str]) -> BTreeMap<Vec<String>, usize> {
    let columns: Vec<Vec<String>> = key
        .iter()
        .map(|name| {
            let array = cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
            let column = array.as_string::<i32>();
            column.iter().map(|v| v.unwrap_or("null").to_string()).collect()
        })
        .collect();
    (0..batch.num_rows()).map(|i| (columns.iter().map(|c| c[i].clone()).collect(), i)).collect()
}

/// What a user does at a terminal.
pub enum Step<'a> {
    Type(&'a str),
    Expect(&'a str),
}

/// What the program shows on a terminal of 80 columns while the steps are taken; it must leave by itself, and well.
#[track_caller]
pub fn on_a_terminal(arguments: &[&str], home: &Path, steps: &[Step]) -> String {
    let argv: Vec<&str> = [env!("CARGO_BIN_EXE_pipeline")].into_iter().chain(arguments.iter().copied()).collect();
    let steps: Vec<_> = steps
        .iter()
        .map(|step| match step {
            Step::Type(text) => ["type", text],
            Step::Expect(text) => ["expect", text],
        })
        .collect();
    let env = serde_json::json!({ "XDG_STATE_HOME": home, "XDG_DATA_HOME": home, "HOME": home, "TERM": "xterm" });
    let task = serde_json::json!({ "argv": argv, "env": env, "steps": steps }).to_string();
    let mut python = Command::new("python3");
    let mut child = python
        .arg("tests/terminal.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(task.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}\nthe terminal showed:\n{shown}", text(&output.stderr));
    shown
}

/// A folder with Python packages, installed once through pip below the build folder.
pub fn python_with(name: &str, packages: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{name}"));
    if !folder.is_dir() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet"]).args(packages).arg("--target").arg(fresh.path());
        assert!(pip.status().unwrap().success(), "pip install {} failed", packages.join(" "));
        std::fs::rename(fresh.keep(), &folder).unwrap();
    }
    folder
}

/// What `docs/notebook.ipynb` imports.
pub fn python_for_notebooks() -> PathBuf {
    let packages = ["pandas>=2.2", "polars>=1", "duckdb>=1.1", "pyarrow>=18", "matplotlib>=3.9", "datasets>=3"];
    python_with("notebook-1", &packages)
}
