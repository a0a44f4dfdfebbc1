//! The program's environment: closed streams, terminals, thread limits, environment variables.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;

const SMALL: [&str; 2] = ["ablation.heads=L0H0", "ablation.kinds=zero"];

fn run_command(stage: &str, out: &Path) -> Command {
    let mut command = pipeline();
    command.args(["run", stage, "--out"]).arg(out);
    TINY_SETTINGS.iter().chain(&SMALL).for_each(|setting| {
        command.args(["--set", setting]);
    });
    command
}

/// What a terminal is sent, without what moves the cursor.
fn without_escapes(shown: &str) -> String {
    let mut parts = shown.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_string();
    let after =
        |part: &str| part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest).to_string();
    first + &parts.map(after).collect::<String>()
}

#[test]
fn bars_fit_a_terminal_of_80_columns() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let settings = TINY_SETTINGS.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = ["run", "all", "--out", &out].into_iter().chain(settings).collect();
    // The cache, which has ONNX Runtime, lies there.
    let home = std::env::var("HOME").unwrap();
    let shown = on_a_terminal(&arguments, Path::new(&home), &[Step::Expect("report/index.html")]);
    let shown = without_escapes(&shown);
    // Bars that are drawn at once follow each other without a line break, since each fills its line.
    let drawn: Vec<&str> = shown.split(['\r', '\n']).filter(|drawn| drawn.contains(['━', '─'])).collect();
    assert!(drawn.iter().any(|drawn| drawn.contains("analyze")), "{shown}");
    for drawn in drawn {
        let bars = drawn.split(|c| !"━╸─".contains(c)).filter(|bar| !bar.is_empty()).count();
        assert_eq!(drawn.trim_end().chars().count().div_ceil(80), bars, "{drawn}");
        assert!(!drawn.contains(" 0.0 s left"), "{drawn}");
    }
}

/// Nobody needs to read what a run says of its progress.
#[test]
fn a_run_goes_on_when_nobody_reads_its_progress() {
    let dir = tempfile::tempdir().unwrap();
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let out = dir.path().join("full");
    succeeded(run_command("analyze", &out).stderr(full()).output().unwrap());
    assert!(out.join("tables/head_summary").is_dir());

    let out = dir.path().join("closed");
    let mut child = run_command("analyze", &out).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(out.join("tables/head_summary").is_dir());

    // An error still ends it, and its status says so.
    let mut failing = run_command("analyze", &out);
    assert_eq!(failing.args(["--set", "corpus.tokenz=1"]).stderr(full()).status().unwrap().code(), Some(1));
}

#[test]
fn a_result_that_nobody_reads_to_its_end_is_a_quiet_end_and_one_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[]));
    for format in ["csv", "json", "table", "parquet", "arrow"] {
        let query = "select a.* from ablations a cross join (select * from ablations limit 50) b";
        let mut command = pipeline();
        command.args(["sql", "--format", format, "--out"]).arg(dir.path()).arg(query);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{format}: {}", text(&output.stderr));

        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = pipeline();
        command.args(["sql", "--format", format, "--out"]).arg(dir.path()).arg("select 1 as one").stdout(full);
        let error = failed(command.stderr(Stdio::piped()).output().unwrap());
        assert!(error.contains("No space left on device"), "{format}: {error}");
    }
    // An error of something else is none of a reader that has gone.
    let error =
        failed(pipeline().args(["sql", "--out"]).arg(dir.path()).arg("select 'Broken pipe' + 1").output().unwrap());
    assert!(error.contains("error:"), "{error}");
}

/// `ulimit -f` sends a signal that ends a process, unless it is ignored.
#[test]
fn a_limit_on_file_sizes_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let words: Vec<String> = {
        let command = run_command("all", dir.path());
        std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|w| format!("'{}'", w.to_str().unwrap()))
            .collect()
    };
    let script = format!("ulimit -f 4; exec {}", words.join(" "));
    let error = failed(Command::new("sh").args(["-c", &script]).output().unwrap());
    assert!(error.contains("File too large") && error.contains(&dir.path().display().to_string()), "{error}");
}

#[test]
fn variables_that_say_how_many_threads_are_numbers_or_errors() {
    for name in ["TOKIO_WORKER_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"] {
        for value in ["x", "-1", "1e3", "100000000"] {
            let error = failed(pipeline().args(["sql", "select 1"]).env(name, value).output().unwrap());
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    for value in ["", "1", "4096"] {
        let mut command = pipeline();
        command
            .args(["sql", "--out"])
            .arg(dir.path())
            .arg("select count(*) from tokens")
            .env("TOKIO_WORKER_THREADS", value);
        succeeded(command.output().unwrap());
    }
    let error = failed(pipeline().args(["sql", "select 1"]).env("TOKIO_WORKER_THREADS", "0").output().unwrap());
    assert!(error.contains("TOKIO_WORKER_THREADS"), "{error}");
}

/// `RUST_MIN_STACK` says how large the stacks of threads are.
#[test]
fn threads_have_stacks_that_are_large_enough() {
    for bytes in ["1", "0", "x", "65536", "99999999999999999999"] {
        let dir = tempfile::tempdir().unwrap();
        succeeded(run_command("all", dir.path()).env("RUST_MIN_STACK", bytes).output().unwrap());
    }
}

/// A user who may start so many processes and threads, in all.
fn with_threads(limit: usize, command: &Command) -> Option<Output> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|w| format!("'{}'", w.to_str().unwrap())).collect();
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("ulimit -u {limit}; exec {}", words.join(" "))]);
    shell.current_dir(env!("CARGO_MANIFEST_DIR"));
    // Root has no such limit, and a user who has other processes has them counted.
    shell.uid(64_321).gid(64_321);
    shell.output().ok()
}

#[test]
fn too_few_threads_are_an_error_and_no_panic() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut refused = 0;
    for limit in [1, 2, 3, 5, 8, 12, 20] {
        let Some(output) = with_threads(limit, &run_command("analyze", &dir.path().join("out"))) else {
            println!("only root becomes another user; not tested");
            return;
        };
        let said = text(&output.stderr);
        assert!(!said.contains("panicked") && output.status.code().is_some(), "{limit}: {:?} {said}", output.status);
        if said.contains("Permission denied") {
            println!("another user cannot start the program here; not tested: {said}");
            return;
        }
        if !output.status.success() {
            refused += 1;
            assert!(said.contains("error: ") && said.contains("ulimit -u"), "{limit}: {said}");
        }
    }
    assert!(refused > 0);
}

/// Where the query engine got only some of its threads, it waited without end.
#[test]
fn too_little_address_space_for_threads_is_an_error_and_no_wait() {
    let mut refused = 0;
    for kilobytes in (180_000..400_000).step_by(20_000) {
        let script =
            format!("ulimit -v {kilobytes}; exec timeout 50 {} sql 'select 1 as one'", env!("CARGO_BIN_EXE_pipeline"));
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_ne!(output.status.code(), Some(124), "{kilobytes} kB: it waits");
        refused += usize::from(text(&output.stderr).contains("cannot start a thread"));
    }
    assert!(refused > 0);
}

const HOSTILE: &str = "\u{1b}]52;c;cHduZWQ=\u{7}\u{9b}2J\u{202e}";

/// No control character but the line break, and no line that only looks like one of the program's.
#[track_caller]
fn assert_plain(shown: &str) {
    let hidden = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!shown.contains(hidden), "{shown:?}");
    assert!(!shown.lines().any(|l| l.starts_with("error: forged")), "{shown}");
}

#[test]
fn text_from_outside_reaches_a_terminal_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeeded(run_tiny("corpus", &out, &[]));
    let hostile = format!("{HOSTILE}\nerror: forged");
    let query = format!("select '{hostile}' as \"{hostile}\", ['{hostile}'] as list");
    let table = succeeded(pipeline().args(["sql", "--out"]).arg(&out).arg(&query).output().unwrap());
    assert!(table.contains("\\u{1b}]52;c;cHduZWQ=\\u{7}\\u{9b}2J\\u{202e}\\nerror: forged"), "{table}");
    assert_plain(&table);
    let file = dir.path().join("rows.txt");
    succeeded(pipeline().args(["sql", "--out"]).arg(&out).arg("--output").arg(&file).arg(&query).output().unwrap());
    assert_plain(&fs::read_to_string(file).unwrap());
    // Data is data.
    let json = succeeded(pipeline().args(["sql", "--format", "json", "--out"]).arg(&out).arg(&query).output().unwrap());
    let row: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(row[&hostile], hostile);

    let both = |command: &mut Command| {
        let output = command.output().unwrap();
        format!("{}{}", text(&output.stdout), text(&output.stderr))
    };
    assert_plain(&both(pipeline().args(["sql", "--out"]).arg(&out).arg(format!("select \"{hostile}\""))));
    assert_plain(&both(pipeline().args(["sql", "--out"]).arg(&out).arg(format!("select * from \"{hostile}\""))));
    assert_plain(&both(pipeline().args(["tables", &hostile])));
    assert_plain(&both(pipeline().args(["run", "all", "--bad", &hostile])));
    assert_plain(&both(pipeline().arg(&hostile)));
    for key in ["model.source", "corpus.source", "runtime.device", "corpus.separator", "ablation.heads", "corpus.x"] {
        let other = dir.path().join("other");
        assert_plain(&both(pipeline().args(["run", "all", "--set", &format!("{key}={hostile}"), "--out"]).arg(other)));
    }
    // A configuration's own text, a checkpoint's, and the names of tensors.
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(TINY).join(name), model.join(name)).unwrap();
    }
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let escaped = serde_json::to_string(&hostile).unwrap();
    fs::write(
        model.join("config.json"),
        config.replace("\"model_type\": \"llama\"", &format!("\"model_type\": {escaped}")),
    )
    .unwrap();
    let shown = both(pipeline().arg("model").arg(&model));
    assert!(shown.contains("\\u{1b}]52"), "{shown}");
    assert_plain(&shown);
    // A warning that a manifest holds.
    let manifest = out.join("stages/corpus.json");
    let mut of_stage: serde_json::Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    of_stage["warnings"] = serde_json::json!([hostile]);
    fs::write(&manifest, of_stage.to_string()).unwrap();
    let shown = both(pipeline().args(["status", "--out"]).arg(&out));
    assert!(shown.contains("warning: \\u{1b}]52"), "{shown}");
    assert_plain(&shown);
    // A table's folder may have any name.
    fs::create_dir(out.join("tables").join(&hostile)).unwrap();
    fs::copy(files(&out.join("tables/tokens"))[0].clone(), out.join("tables").join(&hostile).join("a.parquet"))
        .unwrap();
    assert_plain(&both(pipeline().args(["tables", "--out"]).arg(&out)));
    assert_plain(&both(pipeline().args(["sql", "show tables", "--out"]).arg(&out)));
}

#[test]
fn a_spreadsheet_gets_no_formula_from_a_text_and_every_number() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("corpus", dir.path(), &[]));
    let query = "select '=cmd()' as a, '+1' as b, '-1' as c, '@x' as d, 'a=1' as e, -1.5 as f, -2 as g";
    let rows =
        succeeded(pipeline().args(["sql", "--format", "csv", "--out"]).arg(dir.path()).arg(query).output().unwrap());
    assert_eq!(rows, "a,b,c,d,e,f,g\n'=cmd(),'+1,'-1,'@x,a=1,-1.5,-2\n");
    let json =
        succeeded(pipeline().args(["sql", "--format", "json", "--out"]).arg(dir.path()).arg(query).output().unwrap());
    assert!(json.contains("\"=cmd()\""), "{json}");
}
