//! Malicious tables, configurations and folders: their text stays text, and files stay in their folder.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use super::{compare, report, summary, test_run};
use selfrepair_core::config::AnalysisConfig;
use selfrepair_core::files::files_below;
use selfrepair_query::analyze;
use selfrepair_store::test_tables::metadata;

fn hostile() -> Vec<String> {
    let texts = [
        "\"><img src=x onerror=alert(1)></script></title></style><script>alert(1)</script>",
        "x/../../../y",
        "javascript:alert(1) '><svg/onload=alert(1)> \u{202e}lanoitceridib\u{2066} a\0b\u{1b}[2J\u{ffff}",
        "it's' or 'a' = 'a' -- $ablation {0} <!-- ]]> &lt; &#x22;",
        "",
    ];
    texts.iter().map(|t| t.to_string()).chain(["Wℵ".repeat(300)]).collect()
}

/// Gives a column of text another value where it has this one, in every table of a run.
fn replace(out: &Path, column: &str, from: &str, to: &str) {
    change(&out.join("tables"), column, |array| {
        let texts = cast(array, &DataType::Utf8).unwrap();
        let text = |value: Option<&str>| value.map(|v| if v == from { to.to_string() } else { v.to_string() });
        Arc::new(texts.as_string::<i32>().iter().map(text).collect::<StringArray>())
    });
}

/// Changes a column of every table in a folder that has it.
fn change(folder: &Path, column: &str, to: impl Fn(&ArrayRef) -> ArrayRef) {
    for path in files_below(folder).unwrap() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
        let Some((at, _)) = batches.first().and_then(|b| b.schema_ref().column_with_name(column)) else { continue };
        let changed = |batch: &RecordBatch| {
            let mut columns = batch.columns().to_vec();
            columns[at] = to(batch.column(at));
            let fields = batch.schema_ref().fields().iter().zip(&columns);
            let fields = fields.map(|(f, c)| Field::new(f.name(), c.data_type().clone(), true));
            RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns).unwrap()
        };
        let batches: Vec<RecordBatch> = batches.iter().map(changed).collect();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batches[0].schema(), None).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.close().unwrap();
    }
}

/// A run whose names of everything are hostile.
fn hostile_run(text: &str) -> tempfile::TempDir {
    let run = test_run("tiny", &["zero", "zero/erasers"]);
    for (column, from, to) in [
        ("ablation", "zero", text.to_string()),
        ("hold", "erasers", text.to_string()),
        ("name", "tiny", text.to_string()),
        ("source", "./tiny", text.to_string()),
        ("sha256", "0123456789abcdef", text.to_string()),
        ("text", "c«d»e", text.to_string()),
        ("next_text", "d", text.to_string()),
    ] {
        replace(run.path(), column, from, &to);
    }
    fs::create_dir_all(run.path().join("report")).unwrap();
    let mut config = selfrepair_core::config::Config::default();
    config.corpus.source = text.to_string();
    fs::write(run.path().join("report/config.toml"), toml::to_string(&config).unwrap()).unwrap();
    run
}

/// Names and attributes of a document's tags, after checking that it has no others than a report's.
fn assert_is_a_reports(document: &str, what: &str) {
    const TAGS: &str = "!doctype html meta title style script h1 h2 p em a nav ul li figure figcaption div details summary \
                        pre code table thead tbody tr th td button svg g path rect circle text";
    const LINKS: [&str; 5] = ["#section-", "../figures/", "figures/", "config.toml", "http://www.w3.org/2000/svg"];
    for piece in document.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap();
        let name = tag.split([' ', '\n']).next().unwrap();
        assert!(TAGS.split(' ').any(|t| t == name.trim_start_matches('/')), "{what}: <{tag}>");
        let mut parts = tag.split('"');
        let mut at = parts.next().unwrap_or_default();
        while let (Some(value), Some(next)) = (parts.next(), parts.next()) {
            let attribute = at.trim().rsplit(' ').next().unwrap_or_default();
            assert!(!attribute.starts_with("on") && attribute != "style=", "{what}: <{tag}>");
            if matches!(attribute, "href=" | "src=" | "xmlns=") {
                assert!(LINKS.iter().any(|link| value.starts_with(link)), "{what}: <{tag}>");
            }
            if attribute == "href=" || attribute == "id=" {
                assert!(!value.contains("figures/..") && value.is_ascii() && value.len() < 200, "{what}: <{tag}>");
            }
            at = next;
        }
    }
    let hidden = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!document.contains(hidden), "{what}: {:?}", document.find(hidden));
}

/// Files below a folder, under it.
fn names(folder: &Path) -> HashSet<PathBuf> {
    files_below(folder).unwrap().iter().map(|p| p.strip_prefix(folder).unwrap().to_path_buf()).collect()
}

#[test]
fn names_from_tables_are_text_in_page_figures_and_summary_and_choose_no_place() {
    for text in hostile() {
        let around = tempfile::tempdir().unwrap();
        let made = hostile_run(&text);
        let out = around.path().join("some/run");
        fs::create_dir(around.path().join("some")).unwrap();
        fs::rename(made.path(), &out).unwrap();
        // A name with a slash would need such a folder to leave its own.
        fs::create_dir_all(out.join("figures/heads_x")).unwrap();
        let before = names(around.path());
        report(&out).unwrap_or_else(|e| panic!("{text:?}: {e:#}"));
        let page = fs::read_to_string(out.join("report/index.html")).unwrap();
        assert_is_a_reports(&page, &text);
        assert_eq!((page.matches("<script").count(), page.matches("<style").count()), (1, 1), "{text:?}");
        let new: Vec<PathBuf> = names(around.path()).difference(&before).cloned().collect();
        for path in &new {
            let folder = path.parent().unwrap();
            let fits = folder == Path::new("some/run/figures") || folder == Path::new("some/run/report");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(fits && name.len() < 200 && name.is_ascii(), "{text:?} wrote {}", path.display());
        }
        // Every figure of the page has its own files, and the other way round.
        let links: Vec<&str> =
            page.split("href=\"../figures/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let drawn: HashSet<&str> = links.iter().copied().collect();
        assert_eq!(drawn.len(), links.len(), "{text:?}");
        assert_eq!(new.len(), links.len() + 1, "{text:?}");
        for name in drawn {
            let path = out.join("figures").join(name);
            if name.ends_with(".svg") {
                assert_is_a_reports(&fs::read_to_string(&path).unwrap(), &format!("{text:?} in {name}"));
            }
            assert!(path.is_file(), "{text:?}: {name}");
        }
        summary(&out).unwrap_or_else(|e| panic!("{text:?}: {e:#}"));
    }
}

/// Anything can have written a run's tables.
#[test]
fn a_column_of_another_type_is_an_error_or_read_and_no_panic() {
    let config = AnalysisConfig { top_fraction: 1.0, ..Default::default() };
    let mut errors = 0;
    for (table, column, to) in [
        ("ablations", "strength", DataType::Float32),
        ("ablations", "hold_own_mlp", DataType::Int64),
        ("ablations", "layer", DataType::Int64),
        ("ablations", "layer", DataType::Utf8),
        ("ablations", "head", DataType::Float64),
        ("ablations", "prompt", DataType::Utf8),
        ("ablations", "direct_effect", DataType::Float64),
        ("ablations", "self_repair", DataType::Boolean),
        ("ablations", "name", DataType::Int64),
        ("model", "name", DataType::Int64),
        ("model", "layers", DataType::Utf8),
        ("clean", "prompt", DataType::Utf8),
        ("top_tokens", "rank", DataType::Boolean),
    ] {
        let run = test_run("tiny", &["zero"]);
        change(&run.path().join("tables").join(table), column, |array| cast(array, &to).unwrap());
        let derive = || {
            let tables = analyze::open(run.path(), &config)?;
            analyze::derive(&tables, run.path(), &config, &metadata(), vec![], &|_: &str| {})
        };
        errors += usize::from(derive().is_err());
        report(run.path()).ok();
        summary(run.path()).ok();
    }
    assert!(errors >= 4, "{errors}");
}

#[test]
fn names_from_tables_are_text_in_a_comparison() {
    for text in hostile() {
        let (a, b) = (hostile_run(&text), test_run("tiny", &["zero"]));
        let around = tempfile::tempdir().unwrap();
        let to = around.path().join("comparison");
        for _ in 0..2 {
            compare(&[a.path().into(), b.path().into()], &to).unwrap_or_else(|e| panic!("{text:?}: {e:#}"));
        }
        assert_is_a_reports(&fs::read_to_string(to.join("index.html")).unwrap(), &text);
        for path in files_below(&to).unwrap().iter().filter(|p| p.extension().is_some_and(|e| e == "svg")) {
            assert_is_a_reports(&fs::read_to_string(path).unwrap(), &format!("{text:?} in {}", path.display()));
        }
        assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1, "{text:?}");
    }
}

#[test]
fn ablations_that_look_alike_as_files_have_each_their_own() {
    let run = test_run("tiny", &["zero", "mean", "resample", "other"]);
    let alike = ["a/b", "a b", "a_b", "A_b"];
    for (from, to) in ["zero", "mean", "resample", "other"].iter().zip(alike) {
        replace(run.path(), "ablation", from, to);
    }
    report(run.path()).unwrap();
    let names = names(&run.path().join("figures"));
    let heads = names.iter().filter(|n| n.to_str().is_some_and(|n| n.to_lowercase().starts_with("heads_a")));
    let unique: HashSet<String> = heads.map(|n| n.to_str().unwrap().to_lowercase()).collect();
    assert_eq!(unique.len(), 2 * alike.len(), "{names:?}");
    assert!(names.contains(Path::new("heads_A_b.svg")), "the first has the plain name");
}

/// The value of a directive of the page's policy.
fn directive<'a>(page: &'a str, name: &str) -> &'a str {
    let policy = page.split("<meta http-equiv=\"Content-Security-Policy\" content=\"").nth(1).unwrap();
    let policy = policy.split('"').next().unwrap();
    policy.split("; ").find_map(|d| d.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{policy}"))
}

#[test]
fn the_page_may_run_its_own_script_and_style_and_load_nothing() {
    let run = test_run("tiny", &["zero"]);
    report(run.path()).unwrap();
    let page = fs::read_to_string(run.path().join("report/index.html")).unwrap();
    assert_eq!(directive(&page, "default-src"), "'none'");
    assert_eq!((directive(&page, "base-uri"), directive(&page, "form-action")), ("'none'", "'none'"));
    for (name, tag) in [("script-src", "script"), ("style-src", "style")] {
        let text = page.split(&format!("<{tag}>")).nth(1).unwrap().split(&format!("</{tag}>")).next().unwrap();
        let hash = STANDARD.encode(Sha256::digest(text));
        assert_eq!(directive(&page, name), format!("'sha256-{hash}'"));
    }
    // The policy comes before anything that it rules.
    assert!(page.find("Content-Security-Policy").unwrap() < page.find("<style>").unwrap());
    assert!(!page.contains(" style=\"") && !page.contains("javascript:"));
}

#[test]
fn a_comparison_goes_into_no_folder_of_anything_else() {
    let (a, b) = (test_run("model-a", &["zero"]), test_run("model-b", &["zero"]));
    let runs = [a.path().to_path_buf(), b.path().to_path_buf()];
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("site");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("index.html"), "my homepage").unwrap();
    let error = format!("{:#}", compare(&runs, &to).unwrap_err());
    assert!(error.contains("holds index.html") && error.contains("name a new or an empty folder"), "{error}");
    assert_eq!(fs::read_to_string(to.join("index.html")).unwrap(), "my homepage");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    // A run's report is not a comparison's either.
    report(a.path()).unwrap();
    assert!(compare(&runs, &a.path().join("report")).is_err());
}

/// Fails where two processes write under the same temporary name.
#[test]
fn several_reports_at_once_all_succeed() {
    let (a, b) = (test_run("model-a", &["zero"]), test_run("model-b", &["zero"]));
    let (runs, to) = ([a.path().to_path_buf(), b.path().to_path_buf()], tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        let one: Vec<_> = (0..4).map(|_| scope.spawn(|| report(a.path()))).collect();
        let several: Vec<_> = (0..4).map(|_| scope.spawn(|| compare(&runs, to.path()))).collect();
        for done in one.into_iter().chain(several) {
            done.join().unwrap().unwrap();
        }
    });
    for (folder, figures) in [(a.path(), "figures"), (to.path(), "figures")] {
        let left = names(&folder.join(figures));
        assert!(left.iter().all(|n| n.extension().is_some_and(|e| e == "svg" || e == "png")), "{left:?}");
    }
}
