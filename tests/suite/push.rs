//! `pipeline push` to a small hub served on loopback, which keeps what it receives.

mod hostile;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::*;

const TOKEN: &str = "hf_a_secret_token";
const SET: &str = "me/self-repair";

/// What the hub knows.
#[derive(Default)]
struct State {
    address: String,
    exists: bool,
    private: bool,
    /// Files of the last commit: small ones with their bytes, large ones with their checksum.
    files: BTreeMap<String, File>,
    /// The store of large files.
    store: BTreeMap<String, Vec<u8>>,
    commits: usize,
    /// Method and path of each request, with its `authorization`.
    requests: Vec<(String, String)>,
    /// The store takes only so many uploads, then every one is an error.
    uploads_left: Option<usize>,
    /// The store answers the first so many uploads with an error of its own.
    hiccups: usize,
    /// Large files are asked for in parts of so many bytes.
    part: Option<usize>,
    parts: BTreeMap<String, Vec<u8>>,
    /// Requests of which this is a part are answered with this status and body.
    refusal: Option<(String, u16, String)>,
    /// As it, with all bytes of the answer; and whether more seems to come.
    raw: Option<(String, Vec<u8>)>,
    silent: bool,
}

#[derive(Clone, PartialEq, Debug)]
enum File {
    Small(Vec<u8>),
    Large(String),
}

struct Hub(Arc<Mutex<State>>);

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { address, ..Default::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, &mut shared.lock().unwrap());
            }
        });
        Self(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn push(&self, home: &Path, out: &Path, token: &str, more: &[&str]) -> Output {
        let mut command = pipeline();
        command.args(["push", &format!("hf:{SET}"), "--out"]).arg(out).args(more);
        command.env("HF_ENDPOINT", &self.state().address).env("HF_HOME", home).env_remove("HF_HUB_OFFLINE");
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
        match token {
            "" => command.env_remove("HF_TOKEN"),
            token => command.env("HF_TOKEN", token),
        };
        let output = command.output().unwrap();
        for shown in [&output.stdout, &output.stderr] {
            assert!(token.is_empty() || !text(shown).contains(token), "{}", text(shown));
        }
        output
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn decoded(base64: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = base64.bytes().filter(|&c| c != b'=').map(digit).collect();
    let bits = digits.chunks(4).flat_map(|four| {
        let value = (0..4).fold(0u32, |v, i| v << 6 | u32::from(four.get(i).copied().unwrap_or(0)));
        value.to_be_bytes()[1..four.len()].to_vec()
    });
    bits.collect()
}

fn answer(mut stream: TcpStream, hub: &mut State) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).ok();
    let mut headers = BTreeMap::new();
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let authorization = headers.get("authorization").cloned().unwrap_or_default();
    hub.requests.push((format!("{method} {path}"), authorization.clone()));
    if let Some((_, bytes)) = hub.raw.as_ref().filter(|(part, _)| format!("{method} {path}").contains(part.as_str())) {
        stream.write_all(bytes).ok();
        if hub.silent {
            // The connection stays open.
            std::mem::forget(stream);
        }
        return;
    }
    let (status, more, body) = match &hub.refusal {
        Some((part, status, said)) if format!("{method} {path}").contains(part.as_str()) => {
            (*status, String::new(), said.clone().into())
        }
        _ => reply(hub, method, path, &authorization, &body),
    };
    let head = format!("HTTP/1.1 {status} x\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).ok();
    stream.write_all(&body).ok();
}

/// Status, headers and body.
fn reply(hub: &mut State, method: &str, path: &str, authorization: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let ok = |value: Value| (200, String::new(), value.to_string().into_bytes());
    let status = |code: u16| (code, String::new(), b"{}".to_vec());
    let api = format!("/api/datasets/{SET}");
    // Where large files go has no token; the address itself is the permission.
    if let Some(oid) = path.strip_prefix("/store/") {
        return stored(hub, oid, body);
    }
    match authorization {
        a if a == format!("Bearer {TOKEN}") => {}
        // A hub that is careless enough to say it back.
        a => return (401, String::new(), json!({ "error": format!("Invalid credentials: {a}") }).to_string().into()),
    }
    let asked = || serde_json::from_slice::<Value>(body).unwrap();
    match (method, path) {
        ("GET", p) if p == api => status(if hub.exists { 200 } else { 404 }),
        ("POST", "/api/repos/create") => {
            let asked = asked();
            assert_eq!((&asked["organization"], &asked["name"]), (&json!("me"), &json!("self-repair")));
            assert_eq!(asked["type"], "dataset");
            hub.private = asked["visibility"] == "private";
            hub.exists = true;
            ok(json!({}))
        }
        ("GET", p) if p.starts_with(&format!("{api}/tree/main?recursive=true")) => tree(hub, p),
        ("GET", p) if p.starts_with(&format!("/datasets/{SET}/resolve/main/")) => {
            match hub.files.get(p.split_once("/main/").unwrap().1) {
                Some(File::Small(bytes)) => (200, String::new(), bytes.clone()),
                _ => status(404),
            }
        }
        ("POST", p) if p == format!("{api}/preupload/main") => {
            let mode = |f: &Value| {
                let large = [".parquet", ".png"].iter().any(|e| f["path"].as_str().unwrap().ends_with(e));
                assert!(!decoded(f["sample"].as_str().unwrap()).is_empty(), "{f}");
                json!({ "path": f["path"], "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false })
            };
            ok(json!({ "files": asked()["files"].as_array().unwrap().iter().map(mode).collect::<Vec<_>>() }))
        }
        ("POST", p) if p == format!("/datasets/{SET}.git/info/lfs/objects/batch") => {
            let objects = asked()["objects"].as_array().unwrap().iter().map(|o| object(hub, o)).collect::<Vec<_>>();
            ok(json!({ "transfer": "basic", "objects": objects }))
        }
        ("POST", p) if p == format!("/datasets/{SET}.git/info/lfs/verify") => {
            let (oid, size) = (asked()["oid"].as_str().unwrap().to_string(), asked()["size"].as_u64().unwrap());
            status(if hub.store.get(&oid).is_some_and(|b| b.len() as u64 == size) { 200 } else { 422 })
        }
        ("POST", p) if p == format!("{api}/commit/main") => commit(hub, body),
        _ => status(404),
    }
}

/// Pages of ten.
fn tree(hub: &State, path: &str) -> (u16, String, Vec<u8>) {
    if hub.commits == 0 {
        return (404, String::new(), b"{}".to_vec());
    }
    let start: usize = path.split_once("cursor=").map_or(0, |(_, c)| c.parse().unwrap());
    let entry = |(path, file): (&String, &File)| match file {
        File::Small(bytes) => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": "1234" }),
        File::Large(oid) => json!({ "type": "file", "path": path, "oid": "1234", "lfs": { "oid": oid } }),
    };
    let page: Vec<Value> = hub.files.iter().skip(start).take(10).map(entry).collect();
    let next = format!("{}/api/datasets/{SET}/tree/main?recursive=true&cursor={}", hub.address, start + 10);
    let more = start + 10 < hub.files.len();
    let link = if more { format!("link: <{next}>; rel=\"next\"\r\n") } else { String::new() };
    (200, link, json!(page).to_string().into_bytes())
}

fn object(hub: &State, o: &Value) -> Value {
    let (oid, size) = (o["oid"].as_str().unwrap(), o["size"].as_u64().unwrap() as usize);
    if hub.store.contains_key(oid) {
        return json!({ "oid": oid, "size": size });
    }
    let place = |more: &str| format!("{}/store/{oid}{more}", hub.address);
    let upload = match hub.part {
        None => json!({ "href": place("") }),
        Some(part) => {
            let mut header = json!({ "chunk_size": part.to_string() });
            for i in 1..=size.div_ceil(part) {
                header[format!("{i:05}")] = place(&format!("/{i:05}")).into();
            }
            json!({ "href": place("/complete"), "header": header })
        }
    };
    let verify = json!({ "href": format!("{}/datasets/{SET}.git/info/lfs/verify", hub.address) });
    json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
}

fn stored(hub: &mut State, oid: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    if hub.hiccups > 0 {
        hub.hiccups -= 1;
        return (503, String::new(), vec![]);
    }
    if hub.uploads_left == Some(0) {
        return (403, String::new(), json!({ "error": "the disk is full" }).to_string().into());
    }
    hub.uploads_left = hub.uploads_left.map(|n| n - 1);
    match oid.split_once('/') {
        None => {
            assert_eq!(sha256(body), oid, "other bytes than announced");
            hub.store.insert(oid.into(), body.to_vec());
        }
        Some((oid, "complete")) => {
            let asked: Value = serde_json::from_slice(body).unwrap();
            let names = asked["parts"].as_array().unwrap().iter().map(|p| {
                assert_eq!(p["etag"], format!("\"etag of {:05}\"", p["partNumber"].as_u64().unwrap()));
                format!("{oid}/{:05}", p["partNumber"].as_u64().unwrap())
            });
            let whole: Vec<u8> = names.collect::<Vec<_>>().iter().flat_map(|n| hub.parts[n].clone()).collect();
            assert_eq!(sha256(&whole), oid, "parts in another order than announced");
            hub.store.insert(oid.into(), whole);
        }
        Some((_, number)) => {
            hub.parts.insert(oid.into(), body.to_vec());
            return (200, format!("etag: \"etag of {number}\"\r\n"), vec![]);
        }
    }
    (200, String::new(), vec![])
}

fn commit(hub: &mut State, body: &[u8]) -> (u16, String, Vec<u8>) {
    let lines: Vec<Value> = text(body).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines[0]["key"] == "header" && lines[0]["value"]["summary"].is_string());
    for line in &lines[1..] {
        let value = &line["value"];
        let path = value["path"].as_str().unwrap().to_string();
        match line["key"].as_str().unwrap() {
            "file" => {
                assert_eq!(value["encoding"], "base64");
                hub.files.insert(path, File::Small(decoded(value["content"].as_str().unwrap())));
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap();
                assert!(value["algo"] == "sha256" && hub.store.contains_key(oid), "{path} was not uploaded");
                hub.files.insert(path, File::Large(oid.into()));
            }
            "deletedFile" => assert!(hub.files.remove(&path).is_some(), "{path}"),
            other => panic!("{other}"),
        }
    }
    hub.commits += 1;
    (200, String::new(), json!({ "commitOid": "1234" }).to_string().into_bytes())
}

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
