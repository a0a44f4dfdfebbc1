//! Hubs that claim to have stored files, and run folders with foreign files.

use std::time::{Duration, Instant};

use super::*;

/// The hub answers requests of which `part` is one with these bytes.
fn hub_that_says(part: &str, bytes: &str) -> Hub {
    let hub = Hub::start();
    hub.state().raw = Some((part.to_string(), bytes.as_bytes().to_vec()));
    hub
}

fn page(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn a_redirect_of_what_is_sent_is_not_followed() {
    let (_dir, out, home) = run_and_home();
    let steps = [
        "POST /api/repos/create",
        "/preupload/main",
        "/info/lfs/objects/batch",
        "PUT /store/",
        "/info/lfs/verify",
        "/commit/main",
    ];
    for step in steps {
        for status in ["301 x", "302 x", "303 x", "307 x", "308 x"] {
            let hub = hub_that_says(step, &page(status, "location: /welcome\r\n", ""));
            let error = failed(hub.push(&home, &out, TOKEN, &[]));
            assert!(error.contains("/welcome, which is not followed"), "{step} {status}: {error}");
            assert!(hub.state().requests.iter().all(|r| !r.0.contains("/welcome")) && hub.state().commits == 0);
            if step != steps[0] && status != "302 x" {
                // One status is enough for the later steps.
                break;
            }
        }
    }
}

#[test]
fn a_commit_counts_when_it_is_read_back() {
    let (_dir, out, home) = run_and_home();
    let pages = [
        page("200 OK", "content-type: text/html\r\n", "<html>Welcome</html>"),
        page("200 OK", "", "{}"),
        page("200 OK", "", "{\"commitOid\": \"1234\", \"success\": true}"),
        page("200 OK", "", "{\"success\": false}"),
        page("200 OK", "", ""),
    ];
    for said in pages {
        let error = failed(hub_that_says("/commit/main", &said).push(&home, &out, TOKEN, &[]));
        assert!(error.contains("hf:me/self-repair") && error.contains("commit"), "{said}: {error}");
    }
}

#[test]
fn a_hub_that_does_not_end_is_given_up() {
    let (_dir, out, home) = run_and_home();
    let next = |hub: &Hub, to: &str| {
        let link = format!("link: <{to}>; rel=\"next\"\r\n").replace("HUB", &hub.state().address);
        hub.state().raw = Some(("/tree/main".into(), page("200 OK", &link, "[]").into_bytes()));
    };
    let tree = format!("HUB/api/datasets/{SET}/tree/main?recursive=true");
    for (to, words) in [(&*tree, "does not end"), ("http://localhost:1/tree/main", "is not on the hub")] {
        let hub = Hub::start();
        next(&hub, to);
        let error = failed(hub.push(&home, &out, TOKEN, &[]));
        assert!(error.contains(words), "{error}");
    }
    for (part, said) in [("GET /api/datasets", ""), ("/tree/main", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[")] {
        let hub = hub_that_says(part, said);
        hub.state().silent = true;
        let began = Instant::now();
        failed(hub.push(&home, &out, TOKEN, &[]));
        assert!(began.elapsed() < Duration::from_secs(20), "{part}: {:?}", began.elapsed());
    }
}

#[test]
fn a_small_file_that_cannot_be_read_back_is_waited_for_once() {
    let (_dir, out, home) = run_and_home();
    let hub = Hub::start();
    succeeded(hub.push(&home, &out, TOKEN, &[]));
    {
        let mut hub = hub.state();
        hub.requests.clear();
        hub.raw = Some(("/resolve/main/".into(), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[".to_vec()));
        hub.silent = true;
    }
    let error = failed(hub.push(&home, &out, TOKEN, &[]));
    assert!(error.contains("no answer"), "{error}");
    assert_eq!(hub.state().requests.iter().filter(|r| r.0.contains("/resolve/")).count(), 1);
}

#[test]
fn foreign_files_are_not_sent_and_a_link_in_place_of_a_file_is_an_error() {
    let (dir, out, home) = run_and_home();
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("id_rsa"), "PRIVATE KEY").unwrap();
    // A link below the folder of a run is refused whoever made it.
    for (target, name) in [
        (secret.join("id_rsa"), "tables/tokens/secret.txt"),
        (secret.clone(), "figures/home"),
        (out.join("tables/tokens"), "tables/mine"),
    ] {
        let (link, hub) = (out.join(name), Hub::start());
        std::os::unix::fs::symlink(target, &link).unwrap();
        let error = failed(hub.push(&home, &out, TOKEN, &[]));
        assert!(error.contains(name) && error.contains("link") && hub.state().requests.is_empty(), "{name}: {error}");
        std::fs::remove_file(&link).unwrap();
    }
    std::fs::create_dir(out.join("tables/mine")).unwrap();
    std::fs::write(out.join("tables/mine/secret.txt"), "PRIVATE KEY").unwrap();
    std::fs::write(out.join("figures/\u{1b}[31mnotes.txt"), "PRIVATE KEY").unwrap();
    let hub = Hub::start();
    let listed = succeeded(hub.push(&home, &out, TOKEN, &["--dry-run"]));
    assert!(hub.state().requests.is_empty(), "a dry run sends nothing");
    assert!(listed.contains("tables/tokens/tokens.parquet") && listed.contains("nothing was sent"), "{listed}");
    assert!(listed.contains("README.md") && !listed.contains('\u{1b}'), "{listed}");
    for name in ["tables/mine/secret.txt", "notes.txt"] {
        assert!(listed.lines().any(|l| l.contains("not sent") && l.contains(name)), "{name}: {listed}");
    }
    let output = hub.push(&home, &out, TOKEN, &[]);
    assert!(text(&output.stderr).contains("tables/tokens/tokens.parquet"), "it is listed before it is sent");
    succeeded(output);
    {
        let state = hub.state();
        for (path, file) in &state.files {
            let bytes = match file {
                File::Small(bytes) => bytes,
                File::Large(oid) => &state.store[oid],
            };
            assert!(!bytes.windows(11).any(|w| w == b"PRIVATE KEY"), "{path}");
            assert!(!["secret", "mine", "notes"].iter().any(|w| path.contains(w)), "{path}");
            assert!(!(path == "README.md" || path == "tables.md") || !text(bytes).contains("`mine`"), "{path}");
        }
    }
    // A file or a folder of the run, replaced by a link.
    for name in ["tables/tokens/tokens.parquet", "tables/tokens", "tables", "figures", "report/index.html"] {
        let (here, there) = (out.join(name), dir.path().join("there"));
        std::fs::rename(&here, &there).unwrap();
        std::os::unix::fs::symlink(&there, &here).unwrap();
        let hub = Hub::start();
        let error = failed(hub.push(&home, &out, TOKEN, &[]));
        assert!(error.contains("link") && hub.state().requests.is_empty(), "{name}: {error}");
        std::fs::remove_file(&here).unwrap();
        std::fs::rename(&there, &here).unwrap();
    }
}

#[test]
fn names_are_text_in_the_card() {
    let dir = tempfile::tempdir().unwrap();
    let (out, home) = (dir.path().join("out"), dir.path().join("home"));
    let model = dir.path().join("a|<img src=x onerror=y>`[z](javascript:z)");
    std::fs::create_dir_all(&model).unwrap();
    for file in files(Path::new(TINY)).iter().filter(|f| f.parent() == Some(Path::new(TINY))) {
        std::fs::copy(file, model.join(file.file_name().unwrap())).unwrap();
    }
    let source = format!("model.source={:?}", model.display().to_string());
    succeeded(run_tiny("all", &out, &[&source]));
    std::fs::create_dir(&home).unwrap();
    let hub = Hub::start();
    succeeded(hub.push(&home, &out, TOKEN, &[]));
    let state = hub.state();
    let Some(File::Small(card)) = state.files.get("README.md") else { panic!("no card") };
    let card = text(card);
    let title = card.lines().find(|l| l.starts_with("# ")).unwrap();
    assert!(title.contains("a\\|\\<img src\\=x onerror\\=y\\>\\`\\[z\\](javascript\\:z)"), "{title}");
    let row = card.lines().find(|l| l.starts_with("| model |")).unwrap();
    assert!(row.contains("a\\|<img src=x onerror=y>`[z](javascript:z)``"), "{row}");
    assert_eq!(row.replace("\\|", "").matches('|').count(), 3, "{row}");
}
