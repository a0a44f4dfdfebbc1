//! A hub that keeps what is pushed to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::*;

pub(super) const TOKEN: &str = "hf_a_secret_token";
pub(super) const SET: &str = "me/self-repair";

/// What the hub knows.
#[derive(Default)]
pub(super) struct State {
    pub(super) address: String,
    pub(super) exists: bool,
    pub(super) private: bool,
    /// Files of the last commit: small ones with their bytes, large ones with their checksum.
    pub(super) files: BTreeMap<String, File>,
    /// The store of large files.
    pub(super) store: BTreeMap<String, Vec<u8>>,
    pub(super) commits: usize,
    /// Method and path of each request, with its `authorization`.
    pub(super) requests: Vec<(String, String)>,
    /// The store takes only so many uploads, then every one is an error.
    pub(super) uploads_left: Option<usize>,
    /// The store answers the first so many uploads with an error of its own.
    pub(super) hiccups: usize,
    /// Large files are asked for in parts of so many bytes.
    pub(super) part: Option<usize>,
    pub(super) parts: BTreeMap<String, Vec<u8>>,
    /// Requests of which this is a part are answered with this status and body.
    pub(super) refusal: Option<(String, u16, String)>,
    /// As it, with all bytes of the answer; and whether more seems to come.
    pub(super) raw: Option<(String, Vec<u8>)>,
    pub(super) silent: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum File {
    Small(Vec<u8>),
    Large(String),
}

pub(super) struct Hub(Arc<Mutex<State>>);

impl Hub {
    pub(super) fn start() -> Self {
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn push(&self, home: &Path, out: &Path, token: &str, more: &[&str]) -> Output {
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
                assert!(!STANDARD.decode(f["sample"].as_str().unwrap()).unwrap().is_empty(), "{f}");
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
                hub.files.insert(path, File::Small(STANDARD.decode(value["content"].as_str().unwrap()).unwrap()));
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
