//! `pipeline sql` over a run in an object store, from a small one served on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

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
