//! `pipeline sql` over a run in an object store, from a small one served on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::*;

/// A list has at most so many entries a page.
const PAGE: usize = 3;

/// One bucket, `runs`, that knows ListObjectsV2, HEAD, and GET with a range.
struct Store {
    address: String,
    /// Method, path with query, and range of each request.
    requests: Arc<Mutex<Vec<[String; 3]>>>,
}

impl Store {
    /// Serves a run's folder below `prefix`.
    fn start(out: &Path, prefix: &str) -> Self {
        let relative = |p: &Path| p.strip_prefix(out).unwrap().display().to_string();
        let objects: BTreeMap<String, Vec<u8>> =
            files(out).iter().map(|p| (format!("{prefix}/{}", relative(p)), std::fs::read(p).unwrap())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<[String; 3]>>> = Arc::default();
        let (seen, objects) = (requests.clone(), Arc::new(objects));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, objects) = (seen.clone(), objects.clone());
                std::thread::spawn(move || answer(stream, &objects, &seen));
            }
        });
        Self { address, requests }
    }

    fn pipeline(&self, arguments: &[&str]) -> Output {
        let mut command = pipeline();
        command.args(arguments).env("AWS_ENDPOINT", &self.address).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret").env("AWS_REGION", "nowhere-1");
        command.output().unwrap()
    }
}

fn answer(mut stream: TcpStream, objects: &BTreeMap<String, Vec<u8>>, seen: &Mutex<Vec<[String; 3]>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let mut words = request.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string())))
        .collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    seen.lock().unwrap().push([method.clone(), path.clone(), range.clone()]);
    let mut reply = |status: &str, more: &str, body: &[u8]| {
        let fixed = "etag: \"1\"\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nconnection: close\r\n";
        let head = format!("HTTP/1.1 {status}\r\n{fixed}{more}content-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok();
        if method != "HEAD" {
            stream.write_all(body).ok();
        }
    };
    if !headers.get("authorization").is_some_and(|a| a.contains("Credential=key/")) {
        return reply("403 Forbidden", "", b"<Error><Code>AccessDenied</Code></Error>");
    }
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let Some(key) = path.strip_prefix("/runs").map(|key| decoded(key.trim_start_matches('/'))) else {
        return reply("404 Not Found", "", b"<Error><Code>NoSuchBucket</Code></Error>");
    };
    if key.is_empty() {
        return reply("200 OK", "content-type: application/xml\r\n", listing(objects, query).as_bytes());
    }
    let Some(bytes) = objects.get(&key) else { return reply("404 Not Found", "", b"") };
    let Some((start, end)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return reply("200 OK", "", bytes);
    };
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    // `bytes=-8` is the last eight.
    let (start, end) = match start.parse::<usize>() {
        Ok(start) => (start, end),
        Err(_) => (bytes.len() - (end - 1).min(bytes.len()), bytes.len()),
    };
    let more = format!("content-range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
    reply("206 Partial Content", &more, &bytes[start..end]);
}

/// ListObjectsV2, a few entries at a time.
fn listing(objects: &BTreeMap<String, Vec<u8>>, query: &str) -> String {
    let parameters: BTreeMap<&str, String> =
        query.split('&').filter_map(|p| p.split_once('=')).map(|(k, v)| (k, decoded(&v.replace('+', " ")))).collect();
    let parameter = |name: &str| parameters.get(name).cloned().unwrap_or_default();
    let prefix = parameter("prefix");
    let mut entries = BTreeSet::new();
    for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        entries.insert(match (parameter("delimiter").as_str(), key[prefix.len()..].find('/')) {
            ("/", Some(at)) => {
                format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", &key[..prefix.len() + at + 1])
            }
            _ => format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"1\"</ETag>\
                 <Size>{}</Size></Contents>",
                bytes.len()
            ),
        });
    }
    let start: usize = parameter("continuation-token").parse().unwrap_or(0);
    let page: String = entries.iter().skip(start).take(PAGE).cloned().collect();
    let more = match start + PAGE < entries.len() {
        true => {
            format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>", start + PAGE)
        }
        false => "<IsTruncated>false</IsTruncated>".to_string(),
    };
    format!("<?xml version=\"1.0\"?><ListBucketResult><Name>runs</Name>{more}{page}</ListBucketResult>")
}

/// Without `%xx`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex: Vec<u8> = if byte == b'%' { rest.by_ref().take(2).collect() } else { Vec::new() };
        let code = u8::from_str_radix(&String::from_utf8_lossy(&hex), 16);
        bytes.push(code.unwrap_or(byte));
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_run_in_a_bucket_is_queried_as_if_it_lay_here() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // Several shards, and so several pages of the list.
    let settings = ["corpus.tokens=1120", "ablation.heads=L2", "analysis.top_fraction=0.1"];
    succeeded(run_tiny("all", &out, &settings));
    let store = Store::start(&out, "of mine/tiny");
    let here = out.display().to_string();
    let there = "s3://runs/of mine/tiny";
    for query in [
        "show tables",
        "select ablation, layer, head, count(*) as n, avg(self_repair) as repair from ablations
         group by ablation, layer, head order by ablation, layer, head",
        "select prompt, position, text from tokens where prompt = 60 order by position",
        "select name, max(rank) as n from top_contexts group by name order by name",
    ] {
        let sql = |out: &str| succeeded(store.pipeline(&["sql", "--format", "csv", "--out", out, query]));
        assert_eq!(sql(there), sql(&here), "{query}");
    }
    let requests = store.requests.lock().unwrap().clone();
    assert!(requests.iter().any(|r| r[1].contains("continuation-token=3")), "no second page was asked for");
    let of_ablations = |r: &&[String; 3]| r[1].contains("/tables/ablations/") && r[0] == "GET";
    assert!(requests.iter().filter(of_ablations).all(|r| r[2].starts_with("bytes=")), "a whole file was fetched");

    let list = succeeded(store.pipeline(&["tables", "--out", there]));
    assert!(list.lines().any(|l| l.starts_with("tokens ") && l.contains("1,120")), "{list}");
    // A bucket and a folder side by side.
    let both = "select run, count(*) as n from tokens group by run order by run";
    let both = store.pipeline(&["sql", "--format", "csv", "--out", there, "--out", &here, both]);
    assert_eq!(succeeded(both), "run,n\nout,1120\ntiny,1120\n");
}

#[test]
fn a_bucket_that_cannot_be_read_says_what_the_environment_needs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeeded(run_tiny("corpus", &out, &[]));
    let store = Store::start(&out, "tiny");
    let error = failed(store.pipeline(&["sql", "--out", "s3://runs/other", "select 1"]));
    assert!(error.contains("s3://runs/other has no tables"), "{error}");
    let error = failed(store.pipeline(&["sql", "--out", "s3://nobody/tiny", "select 1"]));
    assert!(error.contains("s3://nobody/tiny") && error.contains("AWS_ENDPOINT"), "{error}");
    let mut command = pipeline();
    command.args(["sql", "--out", "s3://runs/tiny", "select 1"]);
    command.env("AWS_ENDPOINT", &store.address).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_ACCESS_KEY_ID", "other").env("AWS_SECRET_ACCESS_KEY", "hidden-words").env("AWS_REGION", "x");
    let error = failed(command.output().unwrap());
    assert!(error.contains("AWS_ACCESS_KEY_ID") && !error.contains("hidden-words"), "{error}");
}

/// `pipeline sql` over a bucket at this address, with a password in the session token.
fn ask(address: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = pipeline();
    command.args(["sql", "--out", "s3://runs/tiny", "select 1"]).env("AWS_ENDPOINT", address);
    command.env("AWS_ALLOW_HTTP", "true").env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "hidden-words");
    command.env("AWS_SESSION_TOKEN", "hidden-session").env("AWS_REGION", "x").env("AWS_TIMEOUT", "2s");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    assert!(!text(&output.stderr).contains("hidden"), "{}", text(&output.stderr));
    output
}

/// Serves every request by one function, which gets the head of the request and its number.
fn serve(answer: impl Fn(TcpStream, &str, usize) + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, answer) = (heads.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (seen, answer) = (seen.clone(), answer.clone());
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: String = lines.take_while(|l| !l.is_empty()).map(|l| l + "\n").collect();
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(head.to_lowercase());
                    seen.len()
                };
                answer(stream, &head, number);
            });
        }
    });
    (address, heads)
}

fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).ok();
}

#[test]
fn addresses_and_variables_of_any_form_are_errors_that_name_them() {
    let began = Instant::now();
    for address in [
        "localhost:9000",
        "",
        "http://",
        "me:hidden@host:1",
        "http://me:hidden@127.0.0.1:1/x",
        "file:///x",
        "http://[",
        "\u{e9}",
    ] {
        let error = failed(ask(address, &[]));
        assert!(error.contains("AWS_ENDPOINT"), "{address}: {error}");
    }
    for (name, value) in [
        ("AWS_ENDPOINT_URL", "host"),
        ("AWS_ENDPOINT_URL_S3", "me:hidden@host"),
        ("AWS_SESSION_TOKEN", "hidden\nx: y"),
        ("AWS_ACCESS_KEY_ID", "\u{1b}"),
        ("AWS_SECRET_ACCESS_KEY", "hidden\n"),
        ("AWS_REGION", ""),
        ("AWS_REGION", "a b"),
        ("AWS_ALLOW_HTTP", "perhaps"),
        ("AWS_SKIP_SIGNATURE", "perhaps"),
        ("AWS_PROXY_URL", "me:hidden@"),
        ("AWS_S3_EXPRESS", "true"),
        ("AWS_CHECKSUM_ALGORITHM", "none"),
    ] {
        failed(ask("http://127.0.0.1:1", &[(name, value)]));
    }
    for out in [
        "s3://",
        "s3:///",
        "s3:///x",
        "s3://me:hidden@b/x",
        "s3://b/../x",
        "s3://b//x",
        "s3://b/x?y",
        "s3://b/%zz",
        "s3://b/\u{1b}",
        "s3:/b",
        "S3://",
        "gs://b/x",
        "http://b/x",
        "file:///tmp",
        "hf:me/x",
        "s3:",
    ] {
        for arguments in [&["sql", "--out", out, "select 1"][..], &["tables", "--out", out]] {
            let mut command = pipeline();
            command.args(arguments).env("AWS_ENDPOINT", "http://127.0.0.1:1").env("AWS_ALLOW_HTTP", "true");
            command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "hidden-words");
            let error = failed(command.output().unwrap());
            assert!(!error.contains("hidden"), "{out}: {error}");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

#[test]
fn credentials_of_a_bucket_do_not_follow_a_redirect() {
    let (other, seen_by_other) = serve(|mut stream, _, _| say(&mut stream, "404 x", "", ""));
    let to = other.clone();
    let (store, seen) = serve(move |mut stream, head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        say(&mut stream, "307 x", &format!("location: {to}{path}\r\n"), "");
    });
    failed(ask(&store, &[]));
    assert!(seen.lock().unwrap().iter().any(|head| head.contains("x-amz-security-token: hidden-session")));
    assert!(seen_by_other.lock().unwrap().is_empty(), "a redirect was followed");
    let (store, _) = serve(|mut stream, _, _| say(&mut stream, "301 x", "", ""));
    failed(ask(&store, &[]));
}

#[test]
fn a_bucket_that_does_not_end_is_given_up() {
    let list = |more: &str, token: &str| {
        format!(
            "<?xml version=\"1.0\"?><ListBucketResult><Name>runs</Name><IsTruncated>{more}</IsTruncated>{token}\
             <CommonPrefixes><Prefix>tiny/tables/tokens/</Prefix></CommonPrefixes></ListBucketResult>"
        )
    };
    let token = |n: usize| format!("<NextContinuationToken>{n}</NextContinuationToken>");
    let same = list("true", &token(7));
    let began = Instant::now();
    let (store, _) = serve(|_, _, _| std::thread::sleep(Duration::from_secs(60)));
    failed(ask(&store, &[]));
    let (store, _) = serve(|stream, _, _| drop(stream.shutdown(std::net::Shutdown::Both)));
    failed(ask(&store, &[]));
    let (store, _) = serve(move |mut stream, _, _| say(&mut stream, "200 OK", "", &same));
    let error = failed(ask(&store, &[]));
    assert!(error.contains("does not end"), "{error}");
    let (store, _) = serve(move |mut stream, _, n| say(&mut stream, "200 OK", "", &list("true", &token(n))));
    let error = failed(ask(&store, &[]));
    assert!(error.contains("does not end"), "{error}");
    for status in ["200 OK", "403 x"] {
        let (store, _) = serve(move |mut stream, _, _| {
            stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).ok();
            while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
        });
        failed(ask(&store, &[("AWS_TIMEOUT", "20s")]));
    }
    // A byte at a time.
    let (store, _) = serve(|mut stream, _, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").ok();
        while stream.write_all(b"<").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    failed(ask(&store, &[]));
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
}

#[test]
fn what_is_written_to_a_folder_is_not_written_to_an_address() {
    let dir = tempfile::tempdir().unwrap();
    for address in ["s3://bucket/x", "S3://bucket", "gs://bucket/x", "file:///tmp/x", "hf:me/x", "s3:/bucket"] {
        for arguments in [
            &["run", "corpus", "--out", address][..],
            &["run", "corpus", "--dry-run", "--out", address],
            &["report", "--out", address],
            &["report", "--out", "a", "--out", "b", "--to", address],
            &["sql", "--output", address, "select 1"],
            &["status", "--out", address],
            &["push", "hf:me/x", "--out", address],
        ] {
            let error = failed(pipeline().args(arguments).current_dir(dir.path()).output().unwrap());
            assert!(error.contains("is an address"), "{arguments:?}: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was created");
}
