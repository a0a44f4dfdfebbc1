//! Models and data sets of the hub, from a small hub served on loopback.

mod caches;
mod hostile;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::support::*;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// Every answer is this status.
    Status(u16),
    /// The first download of the weights stops half-way.
    CutOnce,
    /// The weights arrive with another byte than their identifier says.
    OtherBytes,
    /// The list of files has one outside the repository.
    EscapingName,
}

struct Hub {
    address: String,
    /// Path, `Range` and `Authorization` of each request.
    requests: Arc<Mutex<Vec<(String, String, String)>>>,
}

const MODEL: &str = "/me/tiny/resolve/0123456789abcdef0123456789abcdef01234567/";
const DATA: &str = "/datasets/me/texts/resolve/0123456789abcdef0123456789abcdef01234567/";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    fn start(trouble: Trouble) -> Self {
        let of_model = ["config.json", "model.safetensors", "tokenizer.json"].map(|name| Path::new(TINY).join(name));
        Self::serving(&of_model, trouble)
    }

    /// The files of the model, each under its own name.
    fn serving(of_model: &[PathBuf], trouble: Trouble) -> Self {
        let mut files = BTreeMap::new();
        for file in of_model {
            let name = file.file_name().unwrap().to_str().unwrap();
            files.insert(format!("{MODEL}{name}"), std::fs::read(file).unwrap());
        }
        let corpus = std::fs::read("tests/fixtures/corpus.txt").unwrap();
        files.insert(format!("{DATA}train.txt"), corpus);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            let mut cut = trouble == Trouble::CutOnce;
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, &files, trouble, &mut cut, &seen);
            }
        });
        Self { address, requests }
    }

    fn run(&self, home: &Path, out: &Path, environment: &[(&str, &str)]) -> Output {
        let mut command = pipeline();
        command.args(["run", "export", "--out"]).arg(out);
        for setting in TINY_SETTINGS.iter().skip(2).chain(&["model.source=hf:me/tiny", "corpus.source=hf:me/texts"]) {
            command.args(["--set", setting]);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", home).env_remove("HF_TOKEN");
        command.envs(environment.iter().copied()).output().unwrap()
    }
}

/// The path and the headers of a request, their names in small letters.
fn request(stream: &TcpStream) -> Option<(String, BTreeMap<String, String>)> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1).unwrap_or_default().to_string();
    let headers = lines
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string())))
        .collect();
    Some((path, headers))
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    trouble: Trouble,
    cut: &mut bool,
    seen: &Mutex<Vec<(String, String, String)>>,
) {
    let Some((path, headers)) = request(&stream) else { return };
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    seen.lock().unwrap().push((path.clone(), header("range"), header("authorization")));
    let mut reply = |status: &str, more: &str, body: &[u8], sent: usize| {
        let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok();
        stream.write_all(&body[..sent]).ok();
    };
    if let Trouble::Status(code) = trouble {
        return reply(&format!("{code} Trouble"), "", b"", 0);
    }
    if let Some(prefix) = path.starts_with("/api/").then_some(if path.contains("datasets") { DATA } else { MODEL }) {
        let mut names: Vec<String> = files.keys().filter_map(|k| k.strip_prefix(prefix)).map(String::from).collect();
        if trouble == Trouble::EscapingName {
            names.push("../../evil.json".into());
        }
        let siblings: Vec<_> = names.iter().map(|n| serde_json::json!({ "rfilename": n })).collect();
        let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
        return reply("200 OK", "content-type: application/json\r\n", body.as_bytes(), body.len());
    }
    let Some(bytes) = files.get(&path) else { return reply("404 Not Found", "", b"", 0) };
    let id: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    let range = header("range");
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse().map_or(bytes.len(), |e: usize| (e + 1).min(bytes.len()));
    let mut body = bytes[start..end].to_vec();
    let weights = path.ends_with(".safetensors") && body.len() > 1;
    if weights && trouble == Trouble::OtherBytes {
        *body.last_mut().unwrap() ^= 1;
    }
    let more = format!(
        "etag: \"{id}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    let sent = if weights && std::mem::take(cut) { body.len() / 2 } else { body.len() };
    reply("206 Partial Content", &more, &body, sent);
}

#[test]
fn a_model_and_a_data_set_are_fetched_once_and_then_come_from_the_cache() {
    let (hub, dir) = (Hub::start(Trouble::None), tempfile::tempdir().unwrap());
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    succeeded(hub.run(&home, &out, &[("HF_TOKEN", "hf_secret")]));
    let model = read(&out.join("tables/model"));
    assert_eq!((texts(&model, "name"), texts(&model, "revision")), (vec!["tiny".into()], vec![COMMIT.to_string()]));
    let requests = std::mem::take(&mut *hub.requests.lock().unwrap());
    assert!(requests.iter().any(|r| r.0.ends_with("model.safetensors")));
    assert!(requests.iter().all(|r| r.2 == "Bearer hf_secret"), "the token goes with every request");
    // Nothing of it is left in what was written.
    for file in files(&out) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(9).any(|w| w == b"hf_secret"), "{}", file.display());
    }

    succeeded(hub.run(&home, &dir.path().join("again"), &[]));
    let requests = std::mem::take(&mut *hub.requests.lock().unwrap());
    assert!(requests.iter().all(|r| r.0.starts_with("/api/")), "{requests:?}");

    succeeded(hub.run(&home, &dir.path().join("offline"), &[("HF_HUB_OFFLINE", "1")]));
    assert!(hub.requests.lock().unwrap().is_empty());
}

#[test]
fn weights_in_transformer_lens_s_own_format_are_fetched() {
    let fixture = Path::new("tests/fixtures/transformer_lens/gelu");
    let mut of_model = ["config.json", "model_final.pth"].map(|name| fixture.join(name)).to_vec();
    of_model.push(Path::new(TINY).join("tokenizer.json"));
    let (hub, dir) = (Hub::serving(&of_model, Trouble::None), tempfile::tempdir().unwrap());
    let out = dir.path().join("out");
    succeeded(hub.run(&dir.path().join("home"), &out, &[]));
    assert_eq!(texts(&read(&out.join("tables/model")), "revision"), [COMMIT]);
}

#[test]
fn offline_with_an_empty_cache_says_so() {
    let (hub, dir) = (Hub::start(Trouble::None), tempfile::tempdir().unwrap());
    let error = failed(hub.run(dir.path(), &dir.path().join("out"), &[("HF_HUB_OFFLINE", "1")]));
    assert!(error.contains("hf:me/tiny is not in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(hub.requests.lock().unwrap().is_empty());
}

#[test]
fn refusals_say_what_to_do_and_never_show_the_token() {
    for (status, words) in [(401, "HF_TOKEN"), (403, "licence"), (404, "no such repository"), (500, "500")] {
        let (hub, dir) = (Hub::start(Trouble::Status(status)), tempfile::tempdir().unwrap());
        let output = hub.run(dir.path(), &dir.path().join("out"), &[("HF_TOKEN", "hf_secret")]);
        assert!(!text(&output.stderr).contains("hf_secret") && !text(&output.stdout).contains("hf_secret"));
        let error = failed(output);
        assert!(error.contains("hf:me/tiny") && error.contains(words), "{status}: {error}");
    }
}

#[test]
fn a_connection_cut_half_way_goes_on_where_it_stopped() {
    let (hub, dir) = (Hub::start(Trouble::CutOnce), tempfile::tempdir().unwrap());
    succeeded(hub.run(dir.path(), &dir.path().join("out"), &[]));
    let half = std::fs::metadata(Path::new(TINY).join("model.safetensors")).unwrap().len() / 2;
    let requests = hub.requests.lock().unwrap();
    assert!(requests.iter().any(|r| r.1 == format!("bytes={half}-")), "{requests:?}");
}

#[test]
fn other_bytes_than_announced_are_refused_and_not_kept() {
    let (hub, dir) = (Hub::start(Trouble::OtherBytes), tempfile::tempdir().unwrap());
    let error = failed(hub.run(dir.path(), &dir.path().join("out"), &[]));
    assert!(error.contains("model.safetensors") && error.contains("not kept"), "{error}");
    let size = std::fs::metadata(Path::new(TINY).join("model.safetensors")).unwrap().len();
    let kept: Vec<_> = files(dir.path()).into_iter().filter(|p| p.metadata().is_ok_and(|m| m.len() == size)).collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn a_file_name_that_leads_elsewhere_is_refused() {
    let (hub, dir) = (Hub::start(Trouble::EscapingName), tempfile::tempdir().unwrap());
    let error = failed(hub.run(dir.path(), &dir.path().join("out"), &[]));
    assert!(error.contains("../../evil.json"), "{error}");
}

#[test]
fn a_model_is_described_without_its_weights() {
    let (hub, dir) = (Hub::start(Trouble::None), tempfile::tempdir().unwrap());
    let mut command = pipeline();
    command.args(["model", "hf:me/tiny"]).env("HF_ENDPOINT", &hub.address).env("HF_HOME", dir.path());
    let shown = succeeded(command.env_remove("HF_TOKEN").output().unwrap());
    for words in ["llama, RMS norms", "3 of 4 heads (2 for keys and values)", "64 positions", "PFLOP", "GFLOP/s"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let requests = hub.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.0.ends_with("config.json") || r.0.starts_with("/api/")), "{requests:?}");
}
