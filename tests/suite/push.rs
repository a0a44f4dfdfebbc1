//! `pipeline push` to a small hub served on loopback, which keeps what it receives.

mod hostile;
mod server;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::*;
use server::{File, Hub, SET, TOKEN};

/// A finished run, and a home without a token.
fn run_and_home() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (out, home) = (dir.path().join("out"), dir.path().join("home"));
    std::fs::create_dir(&home).unwrap();
    succeeded(run_tiny("all", &out, &[]));
    (dir, out, home)
}

/// Writes what the hub has to a folder.
fn checked_out(hub: &Hub, folder: &Path) {
    let state = hub.state();
    for (path, file) in &state.files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = match file {
            File::Small(bytes) => bytes,
            File::Large(oid) => &state.store[oid],
        };
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_run_becomes_a_data_set_whose_tables_load_by_name() {
    let (dir, out, home) = run_and_home();
    let hub = Hub::start();
    let said = succeeded(hub.push(&home, &out, TOKEN, &["--private"]));
    assert!(said.contains("hf:me/self-repair: ") && said.contains("/datasets/me/self-repair"), "{said}");
    assert_eq!(
        {
            let hub = hub.state();
            (hub.private, hub.commits)
        },
        (true, 1)
    );
    // The token goes to the hub, and not to where large files are stored.
    for (request, authorization) in &hub.state().requests {
        assert_eq!(authorization.is_empty(), request.contains("/store/"), "{request}");
    }
    let there = dir.path().join("there");
    checked_out(&hub, &there);
    for table in ["ablations", "head_summary", "model"] {
        assert!(read(&there.join("tables").join(table)) == read(&out.join("tables").join(table)), "{table}");
    }
    for name in ["config.toml", "report.html", "figures/repair_by_layer_resample.svg"] {
        assert!(there.join(name).is_file(), "{name}");
    }
    let docs = std::fs::read_to_string(there.join("tables.md")).unwrap();
    assert!(docs.contains("## head_summary") && docs.contains("| `self_repair` | float32 | logits |"), "{docs}");
    let card = std::fs::read_to_string(there.join("README.md")).unwrap();
    assert!(card.contains("| `ablations` | 6,480 | an ablation, a component and a position |"), "{card}");

    // Every table that has rows; the default is head_summary.
    let script = "import sys, pathlib\n\
                  import pyarrow.parquet as pq\n\
                  from datasets import get_dataset_config_names, load_dataset\n\
                  there = sys.argv[1]\n\
                  names = get_dataset_config_names(there)\n\
                  tables = {p.name for p in pathlib.Path(there, 'tables').iterdir() if pq.read_table(p).num_rows}\n\
                  assert set(names) == tables, (names, tables)\n\
                  for name in names: load_dataset(there, name, split='train')\n\
                  print(len(load_dataset(there, 'ablations', split='train')), len(load_dataset(there, split='train')))";
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", python_for_notebooks()).env("HF_HOME", &home).args(["-c", script]).arg(&there);
    assert_eq!(succeeded(python.current_dir(&home).output().unwrap()).trim(), "6480 72");
}

#[test]
fn a_second_push_sends_what_changed_and_removes_what_is_gone() {
    let (_dir, out, home) = run_and_home();
    let hub = Hub::start();
    succeeded(hub.push(&home, &out, TOKEN, &[]));
    assert!(!hub.state().private);
    hub.state().requests.clear();
    let again = succeeded(hub.push(&home, &out, TOKEN, &[]));
    assert!(again.contains("has all"), "{again}");
    let requests = std::mem::take(&mut hub.state().requests);
    assert!(requests.iter().all(|r| r.0.starts_with("GET ")), "{requests:?}");

    // A file of somebody else's stays, one of a table that is no more goes, and one table differs.
    {
        let mut hub = hub.state();
        hub.files.insert("tables/ablations/00099.parquet".into(), File::Large("00".into()));
        hub.files.insert("NOTES.md".into(), File::Small(b"mine".to_vec()));
    }
    let pairs = read(&out.join("tables/pairs"));
    let path = files(&out.join("tables/pairs")).remove(0);
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, pairs.schema(), None).unwrap();
    writer.write(&pairs.slice(0, 3)).unwrap();
    writer.close().unwrap();
    let said = succeeded(hub.push(&home, &out, TOKEN, &[]));
    assert!(said.contains("1 deleted"), "{said}");
    let state = hub.state();
    assert_eq!(state.requests.iter().filter(|r| r.0.starts_with("PUT ")).count(), 1, "one table was uploaded");
    assert!(!state.files.contains_key("tables/ablations/00099.parquet") && state.files.contains_key("NOTES.md"));
}

#[test]
fn a_push_that_was_interrupted_goes_on_where_it_stopped() {
    let (_dir, out, home) = run_and_home();
    let hub = Hub::start();
    hub.state().uploads_left = Some(5);
    let error = failed(hub.push(&home, &out, TOKEN, &[]));
    assert!(error.contains("the store answers 403; push again") && error.contains("the disk is full"), "{error}");
    assert!(hub.state().files.is_empty(), "a commit names whole runs only");
    let kept: BTreeSet<String> = hub.state().store.keys().cloned().collect();
    assert_eq!(kept.len(), 5);

    {
        let mut hub = hub.state();
        hub.requests.clear();
        (hub.uploads_left, hub.hiccups) = (None, 2);
    }
    succeeded(hub.push(&home, &out, TOKEN, &[]));
    let state = hub.state();
    for oid in kept {
        assert!(state.requests.iter().all(|r| r.0 != format!("PUT /store/{oid}")), "{oid} was sent twice");
    }
    assert_eq!(state.commits, 1);
}

#[test]
fn large_files_go_in_parts_where_the_hub_wants_them_so() {
    let (dir, out, home) = run_and_home();
    let hub = Hub::start();
    hub.state().part = Some(10_000);
    succeeded(hub.push(&home, &out, TOKEN, &[]));
    let there = dir.path().join("there");
    checked_out(&hub, &there);
    assert!(read(&there.join("tables/ablations")) == read(&out.join("tables/ablations")));
    let hub = hub.state();
    assert!(hub.parts.len() > hub.store.len(), "{} parts of {} files", hub.parts.len(), hub.store.len());
}

#[test]
fn tokens_are_found_and_a_wrong_one_is_refused_without_being_shown() {
    let (_dir, out, home) = run_and_home();
    let hub = Hub::start();
    let error = failed(hub.push(&home, &out, "", &[]));
    assert!(error.contains("no token") && error.contains("HF_TOKEN"), "{error}");
    assert!(hub.state().requests.is_empty());
    // `push` itself asserts that the token is in no output, though this hub says it back.
    let error = failed(hub.push(&home, &out, "hf_another_token", &[]));
    assert!(error.contains("does not accept the token") && error.contains("Invalid credentials"), "{error}");
    assert!(!hub.state().exists);

    std::fs::write(home.join("token"), format!("{TOKEN}\n")).unwrap();
    let said = hub.push(&home, &out, "", &[]);
    assert!(!text(&said.stdout).contains(TOKEN) && !text(&said.stderr).contains(TOKEN));
    succeeded(said);
    let all: Vec<u8> = hub.state().store.values().flatten().copied().collect();
    assert!(!all.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()), "the token is in a file");
}

/// `push` itself asserts that the token is in no output.
#[test]
fn a_hub_that_says_the_token_back_whatever_it_refuses_is_not_repeated() {
    let (_dir, out, home) = run_and_home();
    let steps = [
        &format!("GET /api/datasets/{SET}/tree")[..],
        "POST /api/repos/create",
        "/preupload/main",
        "/info/lfs/objects/batch",
        "PUT /store/",
        "/info/lfs/verify",
        "/commit/main",
    ];
    let refusals = [
        (403, json!({ "error": format!("Bearer {TOKEN} may not") })),
        (401, json!({ "message": TOKEN })),
        (422, json!(TOKEN)),
        (200, json!({ "files": TOKEN, "objects": [{ "oid": TOKEN, "error": { "message": TOKEN } }] })),
    ];
    for step in steps {
        for (status, said) in &refusals {
            let hub = Hub::start();
            hub.state().refusal = Some((step.to_string(), *status, said.to_string()));
            let output = hub.push(&home, &out, TOKEN, &[]);
            let asked = hub.state().requests.iter().filter(|r| r.0.contains(step)).count();
            assert!(asked > 0, "{step} was never asked");
            assert!(*status == 200 || failed(output).contains(&format!("hf:{SET}")), "{step} {status}");
        }
    }
}

#[test]
fn what_cannot_be_pushed_is_said_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start();
    let error = failed(hub.push(dir.path(), dir.path(), TOKEN, &[]));
    assert!(error.contains("is not a run of this program"), "{error}");
    let out = dir.path().join("out");
    succeeded(run_tiny("ablate", &out, &[]));
    let error = failed(hub.push(dir.path(), &out, TOKEN, &[]));
    assert!(error.contains("not finished (analyze, report missing)"), "{error}");
    let to = |to: &str, environment: &[(&str, &str)]| {
        succeeded(run_tiny("all", &out, &[]));
        let mut command = pipeline();
        command.args(["push", to, "--out"]).arg(&out).env("HF_ENDPOINT", &hub.state().address);
        failed(
            command
                .env("HF_HOME", dir.path())
                .env("HF_TOKEN", TOKEN)
                .envs(environment.iter().copied())
                .output()
                .unwrap(),
        )
    };
    assert!(to("me/self-repair", &[]).contains("expected hf:owner/name"));
    assert!(to("hf:self-repair", &[]).contains("names no owner"));
    assert!(to("hf:me/../x", &[]).contains("is not a repository's name"));
    assert!(to("hf:me/self-repair", &[("HF_HUB_OFFLINE", "1")]).contains("HF_HUB_OFFLINE"));
    assert!(hub.state().requests.is_empty());
}
