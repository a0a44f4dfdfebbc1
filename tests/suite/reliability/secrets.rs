//! A token for the hub is sent to the hub and nowhere else.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

const TOKEN: &str = "hf_aVerySecretTokenForThisTest0123456789";

/// A hub that answers everything with `reply`, in which TOKEN stands for what the client sent.
fn hub(reply: &'static str) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let own = address.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
            let sent = headers.iter().any(|h| h.contains(TOKEN));
            *count.lock().unwrap() += usize::from(sent);
            stream.write_all(reply.replace("TOKEN", TOKEN).replace("HUB", &own).as_bytes()).ok();
        }
    });
    (address, asked)
}

fn assert_not_in(folder: &Path) {
    for path in files(folder) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()), "the token is in {}", path.display());
    }
}

#[test]
fn a_token_is_in_no_error_no_log_and_no_file_however_the_hub_fails() {
    let replies = [
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: 40\r\nconnection: close\r\n\r\nTOKEN",
        "HTTP/1.1 403 TOKEN is refused\r\nx-error-message: TOKEN\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 500 TOKEN\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/?token=TOKEN\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: HUB/again?token=TOKEN\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 42\r\nconnection: close\r\n\r\n{\"TOKEN\"",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"siblings\": [], \"sha\": \"TOKEN\"}",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
         {\"siblings\": [{\"rfilename\": \"../TOKEN\"}], \"sha\": \"0123456789abcdef0123456789abcdef01234567\"}",
        "TOKEN is not HTTP\r\n\r\n",
        "",
    ];
    for reply in replies {
        let dir = tempfile::tempdir().unwrap();
        let (address, asked) = hub(reply);
        let (home, out) = (dir.path().join("home"), dir.path().join("out"));
        let mut command = pipeline();
        command.args(["run", "export", "--out"]).arg(&out).args(["--set", "model.source=hf:me/tiny"]);
        command.env("HF_ENDPOINT", &address).env("HF_HOME", &home).env("HF_TOKEN", TOKEN).env("RUST_BACKTRACE", "1");
        let output = command.output().unwrap();
        for stream in [&output.stdout, &output.stderr] {
            assert!(!text(stream).contains(TOKEN), "{reply:?}: {}", text(stream));
        }
        let error = failed(output);
        assert!(error.contains("hf:me/tiny"), "{reply:?}: {error}");
        assert!(*asked.lock().unwrap() > 0, "the token never reached the hub, so that nothing was tested");
        assert_not_in(dir.path());
    }
    println!("ways in which a hub failed: {}", replies.len());
}

/// ONNX Runtime's packages keep a device's number and a list of events, and send them, unless they are told not to.
#[test]
fn no_usage_data_is_kept() {
    let library = selfrepair_model::provision::locate_library().unwrap();
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = out.path().to_str().unwrap();
    let source = format!("model.source={TINY}");
    let run = ["run", "trace", "--out", out, "--set", &source, "--set", "corpus.source=tests/fixtures/corpus.txt"];
    let sizes = ["--set", "corpus.tokens=64", "--set", "corpus.prompt_len=16", "--set", "ablation.heads=[\"L0\"]"];
    let run = [&run[..], &sizes].concat();
    for args in [&["doctor"][..], &["model", TINY], &run] {
        let mut command = pipeline();
        command.args(args).env("HOME", home.path()).env("ORT_DYLIB_PATH", &library.path);
        succeeded(command.env_remove("XDG_CACHE_HOME").env_remove("ORT_DISABLE_TELEMETRY").output().unwrap());
        assert!(files(home.path()).is_empty(), "{args:?}: {:?}", files(home.path()));
    }
    // A program that uses the library and has one thread.
    let mut command = Command::new(crate::examples::path("one_head"));
    command.args([TINY, "L0H1", "the cat sat"]).env("HOME", home.path()).env("ORT_DYLIB_PATH", &library.path);
    succeeded(command.env_remove("XDG_CACHE_HOME").env_remove("ORT_DISABLE_TELEMETRY").output().unwrap());
    assert!(files(home.path()).is_empty(), "{:?}", files(home.path()));
}
