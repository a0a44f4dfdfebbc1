//! Untrusted run folders: links, special files, and records that name files outside the folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Output;

use serde_json::{Value, json};

use super::*;

fn command(name: &str, out: &Path) -> Output {
    pipeline().arg(name).arg("--out").arg(out).output().unwrap()
}

/// What every command says that reads or writes a run.
fn refused(out: &Path) -> [String; 3] {
    [run_tiny("all", out, &[]), command("status", out), command("report", out)].map(failed)
}

/// Every level of a run folder, its locks and its temporary names. Nothing is read, written or removed through a link.
#[test]
fn a_link_below_a_run_folder_is_refused_and_what_it_points_to_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (out, aside) = (dir.path().join("out"), dir.path().join("aside"));
    succeeded(run_tiny("all", &out, &["trace.save=[\"residual_final\"]"]));
    let (folder, file) = (dir.path().join("photos"), dir.path().join("keys"));
    fs::create_dir(&folder).unwrap();
    for name in ["a.jpg", "b.partial", "0.parquet.partial", "tokens.parquet", "index.html"] {
        fs::write(folder.join(name), "photo").unwrap();
    }
    fs::write(&file, "secret").unwrap();
    let before = files(dir.path()).len();
    let folders = ["tables", "tables/tokens", "tables/head_summary", "stages", "work", "model", "report", "figures"];
    let there = [
        ".lock",
        ".self-repair-run",
        "tables/tokens/tokens.parquet",
        "tables/ablations/00001-00000.parquet",
        "work/ablate/00001/plan.json",
        "stages/corpus.json",
        "stages/trace.sha256",
        "model/weights.bin",
        "work/sums-00000.f64",
        "report/index.html",
        "report/config.toml",
        "activations/residual_final/00000.arrow",
    ];
    let new = [
        ".lock.1-of-2",
        ".report.lock",
        "stages/corpus.json.partial",
        "stages/analyze.json.partial",
        "tables/head_summary/x",
        "tables/tokens/tokens.parquet.partial",
        "sums/x",
        "figures/x.svg.partial",
        "work/x",
    ];
    for place in folders.iter().chain(&there).chain(&new) {
        let (path, is_new) = (out.join(place), new.contains(place));
        for target in [&folder, &file, &dir.path().join("nothing")] {
            if !is_new || path.exists() {
                fs::rename(&path, &aside).unwrap();
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, &path).unwrap();
            let errors =
                if target == &folder { refused(&out).to_vec() } else { vec![failed(run_tiny("all", &out, &[]))] };
            for error in errors {
                assert!(error.contains(place) && error.contains("is a symbolic link"), "{place}: {error}");
            }
            fs::remove_file(&path).unwrap();
            if aside.exists() {
                fs::rename(&aside, &path).unwrap();
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), "secret", "{place}");
            assert!(!dir.path().join("nothing").exists(), "{place}");
        }
    }
    // The lock of the report may be new.
    fs::remove_file(out.join(".report.lock")).ok();
    assert!(files(dir.path()).len() >= before - 1);
    assert_eq!(files(&folder).len(), 5);

    let path = out.join("tables/tokens/socket");
    let _socket = UnixListener::bind(&path).unwrap();
    for error in refused(&out) {
        assert!(error.contains("tables/tokens/socket is a socket"), "{error}");
    }
    fs::remove_file(path).unwrap();
    // The folder itself may be a link.
    symlink(&out, dir.path().join("link")).unwrap();
    succeeded(run_tiny("all", &dir.path().join("link"), &["trace.save=[\"residual_final\"]"]));
}

/// In every list of every record.
#[test]
fn a_record_that_names_what_lies_elsewhere_is_refused_and_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (out, victim) = (dir.path().join("out"), dir.path().join("victim"));
    succeeded(run_tiny("all", &out, &[]));
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("photo.jpg"), "precious").unwrap();
    // A stage has to run, so that the others are compared with their records.
    fs::remove_file(out.join("report/index.html")).unwrap();
    let absolute = victim.join("photo.jpg").display().to_string();
    let names = ["../victim/photo.jpg", &absolute, "tables/../../victim/photo.jpg", "../victim", "tables/.."];
    for stage in ["corpus", "export", "trace", "ablate", "analyze", "report"] {
        let path = out.join(format!("stages/{stage}.json"));
        let text = fs::read_to_string(&path).unwrap();
        for name in names {
            for list in ["files", "folders"] {
                // As one that is complete, and as one that will be cleared.
                for fingerprint in if name == names[0] { &[None, Some("another")][..] } else { &[None] } {
                    let mut manifest: Value = serde_json::from_str(&text).unwrap();
                    let entry = if list == "files" { json!([name, 8]) } else { json!(name) };
                    manifest[list].as_array_mut().unwrap().push(entry);
                    fingerprint.inspect(|f| manifest["fingerprint"] = json!(f));
                    fs::write(&path, manifest.to_string()).unwrap();
                    let error = failed(run_tiny("all", &out, &[]));
                    assert!(error.contains(&format!("stages/{stage}.json lists `{name}`")), "{error}");
                    assert!(victim.join("photo.jpg").exists());
                }
            }
            assert!(failed(command("status", &out)).contains("is outside the run folder"));
        }
        fs::write(&path, text).unwrap();
        let path = out.join(format!("stages/{stage}.sha256"));
        let text = fs::read_to_string(&path).unwrap();
        for name in names {
            fs::write(&path, format!("{text}{:064}  {name}\n", 1)).unwrap();
            let error = failed(run_tiny("all", &out, &[]));
            assert!(error.contains(&format!("stages/{stage}.sha256 lists `{name}`")), "{error}");
        }
        fs::write(&path, text).unwrap();
    }
    assert!(victim.join("photo.jpg").exists());
    succeeded(run_tiny("all", &out, &[]));
}

#[test]
fn a_folder_that_cannot_hold_tables_is_refused_before_the_run() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"a\nb"[..], b"a\tb", b"a\x1b[31mb", b"\x7f", b"\xff\xfe"] {
        let out = dir.path().join(std::ffi::OsStr::from_bytes(name));
        let error = failed(run_tiny("corpus", &out, &[]));
        assert!(error.contains("must be UTF-8 without control characters") && !out.exists(), "{error}");
        assert!(!error.contains('\x1b'), "{error:?}");
    }
}

#[test]
fn a_folder_s_name_is_no_pattern_and_no_url() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["seed[1] *?#%41", "a:b{c,d}"] {
        let out = dir.path().join(name);
        let mut command = pipeline();
        command.args(["run", "all", "--out", name]).current_dir(dir.path());
        for setting in TINY_SETTINGS {
            let here = std::env::current_dir().unwrap();
            command.args(["--set", &setting.replace("=tests", &format!("={}/tests", here.display()))]);
        }
        succeeded(command.output().unwrap());
        let query = ["--format", "csv", "select count(*) as n from tokens"];
        let answer = pipeline().args(["sql", "--out", name]).args(query).current_dir(dir.path()).output().unwrap();
        assert_eq!(succeeded(answer), "n\n192\n", "{name}");
        let shown = succeeded(self::command("status", &out));
        assert_eq!(shown.matches(" current ").count(), 6, "{shown}");
        succeeded(self::command("report", &out));
    }
}
