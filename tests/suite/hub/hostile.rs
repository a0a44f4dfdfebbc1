//! Hubs that redirect elsewhere, contradict themselves about a file, or never end.

use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use super::*;

/// A request to one of the servers.
struct Asked {
    path: String,
    headers: BTreeMap<String, String>,
    stream: TcpStream,
    /// How many came before it.
    number: usize,
}

type Seen = Arc<Mutex<Vec<(String, String)>>>;

impl Asked {
    fn say(&mut self, status: &str, headers: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        self.stream.write_all(head.as_bytes()).ok();
        self.stream.write_all(body).ok();
    }

    fn is_for_weights(&self) -> bool {
        self.path.ends_with("model.safetensors")
    }

    fn asks_for_size(&self) -> bool {
        self.headers.get("range").is_some_and(|r| r == "bytes=0-0")
    }

    /// Answers as a good hub does.
    fn well(self) {
        self.with(None, COMMIT);
    }

    /// Answers with another identifier or commit.
    fn with(mut self, id: Option<&str>, commit: &str) {
        if self.path.starts_with("/api/") {
            let names = ["config.json", "model.safetensors", "tokenizer.json"];
            let siblings: Vec<_> = names.iter().map(|n| serde_json::json!({ "rfilename": n })).collect();
            let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
            return self.say("200 OK", "content-type: application/json\r\n", body.as_bytes());
        }
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let bytes = std::fs::read(Path::new(TINY).join(name)).unwrap();
        let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let range = self.headers.get("range").cloned().unwrap_or_else(|| "bytes=0-".into());
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |e: usize| e + 1);
        let headers = format!(
            "etag: \"{}\"\r\nx-repo-commit: {commit}\r\ncontent-range: bytes {start}-{}/{}\r\n",
            id.unwrap_or(&sha256),
            end - 1,
            bytes.len()
        );
        self.say("206 Partial Content", &headers, &bytes[start..end]);
    }
}

/// Serves on loopback; the address, and path and `authorization` of each request.
fn server(answer: impl Fn(Asked) + Send + Sync + 'static) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Seen = Arc::default();
    let (requests, answer) = (seen.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (requests, answer) = (requests.clone(), answer.clone());
            std::thread::spawn(move || {
                let Some((path, headers)) = request(&stream) else { return };
                let number = {
                    let mut requests = requests.lock().unwrap();
                    requests.push((path.clone(), headers.get("authorization").cloned().unwrap_or_default()));
                    requests.len() - 1
                };
                answer(Asked { path, headers, stream, number });
            });
        }
    });
    (address, seen)
}

/// Has the program fetch the model; waits a second for what is silent.
fn fetch(endpoint: &str, home: &Path) -> Output {
    let mut command = pipeline();
    command.args(["run", "corpus", "--out"]).arg(home.join("out"));
    for setting in TINY_SETTINGS.iter().skip(1).chain(&["model.source=hf:me/tiny"]) {
        command.args(["--set", setting]);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home.join("hf")).env("HF_TOKEN", "hf_secret");
    for variable in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"] {
        command.env_remove(variable);
    }
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap()
}

/// Fetches from a hub that answers so; the error.
fn error_of(answer: impl Fn(Asked) + Send + Sync + 'static) -> String {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let error = failed(fetch(&format!("http://{}", server(answer).0), dir.path()));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}: {error}", began.elapsed());
    let kept: u64 = files(&dir.path().join("hf")).iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
    assert!(kept < 2 << 20, "{kept} bytes in the cache: {error}");
    error
}

#[test]
fn the_token_goes_to_no_other_host_port_or_scheme_and_not_back() {
    // From the hub to another port, from there to another name of the hub, and back to the hub itself.
    for away in ["127.0.0.1", "localhost"] {
        let hub_port = Arc::new(Mutex::new(0));
        let port = hub_port.clone();
        let (other, seen_by_other) = server(move |mut asked| {
            let back = format!("location: http://127.0.0.1:{}/back{}\r\n", port.lock().unwrap(), asked.path);
            asked.say("302 Found", &back, b"");
        });
        let (hub, seen_by_hub) = server(move |mut asked| {
            if !asked.is_for_weights() || asked.path.starts_with("/back") {
                return asked.well();
            }
            let bytes = std::fs::read(Path::new(TINY).join("model.safetensors")).unwrap();
            let id: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            let to = format!("location: http://user:hf_secret@{away}:{}{}\r\n", other.port(), asked.path);
            let headers = format!("{to}x-linked-etag: \"{id}\"\r\nx-repo-commit: {COMMIT}\r\n");
            asked.say("302 Found", &headers, b"a page");
        });
        *hub_port.lock().unwrap() = hub.port();
        let dir = tempfile::tempdir().unwrap();
        succeeded(fetch(&format!("http://{hub}"), dir.path()));
        let seen_by_other = seen_by_other.lock().unwrap();
        assert!(!seen_by_other.is_empty() && seen_by_other.iter().all(|r| r.1.is_empty()), "{seen_by_other:?}");
        for (path, authorization) in seen_by_hub.lock().unwrap().iter() {
            let expected = if path.starts_with("/back") { "" } else { "Bearer hf_secret" };
            assert_eq!(authorization, expected, "{path}");
        }
    }
}

#[test]
fn a_redirect_that_stays_at_the_hub_keeps_the_token() {
    let (hub, seen) = server(|mut asked| match asked.path.strip_prefix("/moved") {
        Some(path) => Asked { path: path.to_string(), ..asked }.well(),
        None => {
            let to = format!("location: /moved{}\r\n", asked.path);
            asked.say("307 Temporary Redirect", &to, b"");
        }
    });
    let dir = tempfile::tempdir().unwrap();
    succeeded(fetch(&format!("http://{hub}"), dir.path()));
    assert!(seen.lock().unwrap().iter().all(|r| r.1 == "Bearer hf_secret"));
}

#[test]
fn what_a_hub_says_of_a_file_is_checked_and_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let mine = dir.path().join("mine");
    std::fs::write(&mine, "mine").unwrap();
    let evil = format!("{}{}", "../".repeat(14), mine.display().to_string().trim_start_matches('/'));
    let other = "f".repeat(40);
    // In the first answer, and in the second only.
    for second_only in [false, true] {
        let (id, commit) = (evil.clone(), other.clone());
        let is_it = move |asked: &Asked| asked.is_for_weights() && asked.asks_for_size() != second_only;
        let by_id = error_of(move |asked| if is_it(&asked) { asked.with(Some(&id), COMMIT) } else { asked.well() });
        assert!(by_id.contains("identifier"), "{by_id}");
        let id = other.clone();
        let by_commit = error_of(move |asked| if is_it(&asked) { asked.with(None, &commit) } else { asked.well() });
        assert!(by_commit.contains("commit") || by_commit.contains("identifiers"), "{by_commit}");
        if second_only {
            let of_other =
                error_of(move |asked| if is_it(&asked) { asked.with(Some(&id), COMMIT) } else { asked.well() });
            assert!(of_other.contains("different identifiers"), "{of_other}");
        }
    }
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), "mine");
    // More than any disk has.
    let error = error_of(|mut asked| match asked.is_for_weights() {
        true => {
            let range = "content-range: bytes 0-0/9000000000000000000\r\n";
            asked.say("206 x", &format!("{range}etag: \"abc\"\r\nx-repo-commit: {COMMIT}\r\n"), b"x");
        }
        false => asked.well(),
    });
    assert!(error.contains("free; make room") && error.contains("HF_HUB_CACHE"), "{error}");
    for sha in ["../../x", "", "a/b", &"a".repeat(300)] {
        let body = serde_json::json!({ "sha": sha, "siblings": [] }).to_string();
        let error = error_of(move |mut asked| asked.say("200 OK", "", body.as_bytes()));
        assert!(error.contains("the hub names the commit"), "{error}");
    }
    for name in ["/etc/x", "a/../../x", "a//x", "./x", ""] {
        let body = serde_json::json!({ "sha": COMMIT, "siblings": [{ "rfilename": name }] }).to_string();
        let error = error_of(move |mut asked| asked.say("200 OK", "", body.as_bytes()));
        assert!(error.contains("the hub lists a file"), "{error}");
    }
}

#[test]
fn redirects_without_a_place_and_odd_statuses_are_errors() {
    for status in [300, 301, 302, 303, 304, 307, 308, 205, 204, 101] {
        for of_api in [true, false] {
            let error = error_of(move |mut asked| match asked.path.starts_with("/api/") == of_api {
                true => asked.say(&format!("{status} x"), "etag: \"abc\"\r\n", b""),
                false => asked.well(),
            });
            assert!(error.contains("hf:me/tiny"), "{status}: {error}");
        }
    }
    for location in ["", "ftp://host/x", "http://", "//", "javascript:x", "http://[", "\u{1}"] {
        let headers = format!("location: {location}\r\n");
        error_of(move |mut asked| asked.say("302 Found", &headers, b""));
    }
}

#[test]
fn every_wait_for_a_hub_has_a_limit() {
    let wait = || std::thread::sleep(Duration::from_secs(60));
    let head = "HTTP/1.1 206 x\r\ncontent-range: bytes 0-99/100\r\netag: \"abc\"\r\n";
    let drip = move |mut stream: TcpStream, head: &str| {
        stream.write_all(head.as_bytes()).ok();
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let of_file = |asked: &Asked| asked.is_for_weights() && !asked.asks_for_size();
    // Silent, from the first, after the head, and for one file only.
    error_of(move |_| wait());
    error_of(move |mut asked| {
        asked.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").ok();
        wait();
    });
    let error = error_of(move |asked| if of_file(&asked) { wait() } else { asked.well() });
    assert!(error.contains("no answer within 1 s"), "{error}");
    // A byte at a time: the head, the list, a file.
    error_of(move |asked| drip(asked.stream, "HTTP/1.1 200 OK\r\nx: "));
    error_of(move |asked| drip(asked.stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"));
    let error = error_of(move |asked| match of_file(&asked) {
        true => {
            let size = std::fs::metadata(Path::new(TINY).join("model.safetensors")).unwrap().len();
            let head = format!(
                "HTTP/1.1 206 x\r\ncontent-range: bytes 0-{}/{size}\r\ncontent-length: {size}\r\n\r\n",
                size - 1
            );
            drip(asked.stream, &head);
        }
        false => asked.well(),
    });
    assert!(error.contains("less than 1 kB per second"), "{error}");
    // In circles.
    let error = error_of(|mut asked| {
        let to = format!("location: {}\r\n", asked.path);
        asked.say("302 Found", &to, b"");
    });
    assert!(error.contains("redirects more than"), "{error}");
    let error = error_of(|mut asked| {
        let to = format!("location: /{}\r\n", asked.number);
        asked.say("302 Found", &to, b"");
    });
    assert!(error.contains("redirects more than"), "{error}");
    // Without an end: the head, the list, a file.
    error_of(|mut asked| {
        asked.stream.write_all(b"HTTP/1.1 200 OK\r\n").ok();
        while asked.stream.write_all(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").is_ok() {}
    });
    let endless = |mut stream: TcpStream, head: String| {
        stream.write_all(head.as_bytes()).ok();
        while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
    };
    let error = error_of(move |asked| endless(asked.stream, "HTTP/1.1 200 OK\r\n\r\n".into()));
    assert!(error.contains("longer than"), "{error}");
    error_of(move |asked| if of_file(&asked) { endless(asked.stream, format!("{head}\r\n")) } else { asked.well() });
    let error = error_of(move |asked| match of_file(&asked) {
        true => endless(asked.stream, "HTTP/1.1 200 x\r\n\r\n".into()),
        false => asked.well(),
    });
    assert!(error.contains("other bytes than the hub announced"), "{error}");
    // Closed at once, and more promised than is ever sent.
    error_of(|asked| drop(asked.stream.shutdown(Shutdown::Both)));
    let error = error_of(move |mut asked| match of_file(&asked) {
        true => {
            asked.stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 1000000\r\n\r\nabc").ok();
        }
        false => asked.well(),
    });
    assert!(error.contains("the connection ended") || error.contains("isconnected"), "{error}");
    let error = error_of(|mut asked| asked.say("503 x", "", b""));
    assert!(error.contains("503"), "{error}");
}

#[test]
fn retries_are_told_and_a_server_without_ranges_starts_from_the_beginning() {
    let (hub, _) = server(|mut asked| {
        if !asked.is_for_weights() || asked.asks_for_size() {
            return asked.well();
        }
        let bytes = std::fs::read(Path::new(TINY).join("model.safetensors")).unwrap();
        let sent = if asked.headers["range"] == "bytes=0-" { bytes.len() / 2 } else { bytes.len() };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len());
        asked.stream.write_all(head.as_bytes()).ok();
        asked.stream.write_all(&bytes[..sent]).ok();
        asked.stream.shutdown(Shutdown::Write).ok();
        asked.stream.read_to_end(&mut Vec::new()).ok();
    });
    let dir = tempfile::tempdir().unwrap();
    let output = fetch(&format!("http://{hub}"), dir.path());
    let told = text(&output.stderr);
    succeeded(output);
    assert!(told.contains("model.safetensors") && told.contains("trying again (2 of 4)"), "{told}");
    let bytes = std::fs::read(Path::new(TINY).join("model.safetensors")).unwrap();
    let pointer = dir.path().join(format!("hf/hub/models--me--tiny/snapshots/{COMMIT}/model.safetensors"));
    assert_eq!(std::fs::read(&pointer).unwrap(), bytes);
    // As Hugging Face's own tools leave it.
    assert!(std::fs::read_link(&pointer).unwrap().starts_with("../../blobs"));
    assert_eq!(std::fs::read_to_string(dir.path().join("hf/hub/models--me--tiny/refs/main")).unwrap(), COMMIT);
}

#[test]
fn addresses_of_a_hub_that_are_none_are_refused_and_not_shown_with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [
        "localhost:9000",
        "hub",
        "ftp://hub",
        "http://",
        "http://me:hidden@127.0.0.1:1",
        "me:hidden@hub",
        "http://h/?a=b",
    ] {
        let error = failed(fetch(endpoint, dir.path()));
        assert!(error.contains("HF_ENDPOINT") && !error.contains("hidden"), "{endpoint}: {error}");
    }
}

#[test]
fn the_cache_lies_where_the_environment_says() {
    let (hub, dir) = (Hub::start(Trouble::None), tempfile::tempdir().unwrap());
    let cache = dir.path().join("elsewhere");
    let mut command = pipeline();
    command.args(["model", "hf:me/tiny"]).env("HF_ENDPOINT", &hub.address).env("HF_HOME", dir.path().join("home"));
    succeeded(command.env("HF_HUB_CACHE", &cache).env_remove("HF_TOKEN").output().unwrap());
    assert!(cache.join(format!("models--me--tiny/snapshots/{COMMIT}/config.json")).exists());
    assert!(!dir.path().join("home/hub").exists());
    let mut command = pipeline();
    command.args(["model", "hf:me/tiny"]).env("HF_ENDPOINT", &hub.address).env("HF_HOME", dir.path().join("home"));
    let error = failed(command.env("HF_TOKEN", "hf_a\nx: y").output().unwrap());
    assert!(error.contains("HF_TOKEN") && !error.contains("x: y"), "{error}");
}
