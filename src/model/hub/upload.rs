//! Writing to a data set of the hub, as Hugging Face's own client does it: large files go to the store of Git LFS, then
//! one commit names all of them and holds the small ones.
//!
//! The token goes to the hub only, never to where the hub says that files are stored.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hf_hub::Cache;
use selfrepair_core::progress::Bar;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{checked_name, offline, token};

/// How often an upload is begun anew after a broken connection or a server's own error.
const ATTEMPTS: u32 = 4;

/// Files in one question to the hub.
const AT_ONCE: usize = 200;

/// A file to be in the repository.
pub struct Upload {
    /// Where in the repository.
    pub path: String,
    pub content: Content,
    pub size: u64,
    pub sha256: String,
}

pub enum Content {
    File(PathBuf),
    Text(String),
}

/// What a push did.
#[derive(Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Files in the commit; none if the repository had all of them, and then there is no commit.
    pub committed: usize,
    /// Bytes that went to the store of large files.
    pub stored: u64,
    /// Files that the repository had with these bytes.
    pub unchanged: usize,
    pub deleted: usize,
    pub url: String,
}

/// A data set that the token may write to.
pub struct DataSet {
    name: String,
    endpoint: String,
    token: String,
    agent: Agent,
}

impl DataSet {
    /// Creates the data set if there is none; one that is created is private if so asked.
    ///
    /// # Errors
    /// Without a token, offline, or if the hub refuses.
    pub fn open(name: &str, private: bool) -> Result<Self> {
        checked_name(name)?;
        ensure!(name.contains('/'), "hf:{name} names no owner; expected hf:owner/name");
        ensure!(!offline(), "HF_HUB_OFFLINE is set, so that nothing can be pushed to hf:{name}; unset it");
        let token = token(&Cache::from_env()).context(
            "there is no token of the hub; set HF_TOKEN to one that may write (hf.co/settings/tokens), or log in with \
             `hf auth login`",
        )?;
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').to_string();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        let it = Self { name: name.into(), endpoint, token, agent };
        it.create(private)?;
        Ok(it)
    }

    fn create(&self, private: bool) -> Result<()> {
        if self.get(&format!("api/datasets/{}", self.name))?.status() == 200 {
            return Ok(());
        }
        let (owner, name) = self.name.split_once('/').unwrap_or_default();
        let mut asked = json!({ "name": name, "organization": owner, "type": "dataset" });
        if private {
            asked["visibility"] = "private".into();
        }
        let answer = self.post("api/repos/create", "application/json", asked.to_string())?;
        // 409: somebody else created it in between.
        if answer.status() != 409 {
            self.checked("creating the data set", answer)?;
        }
        Ok(())
    }

    /// Makes the repository hold these files. What it holds in one of `folders` and is not among them is deleted; else
    /// what is there stays.
    pub fn push(&self, files: &[Upload], folders: &[&str], message: &str, bar: &Bar) -> Result<Pushed> {
        let there = self.files()?;
        let mut changed = Vec::new();
        for file in files {
            if !self.has(file, &there)? {
                changed.push(file);
            }
        }
        let is_ours = |path: &str| folders.iter().any(|f| path.strip_prefix(f).is_some_and(|p| p.starts_with('/')));
        let gone = |path: &&String| is_ours(path) && !files.iter().any(|f| f.path == **path);
        let deleted: Vec<&String> = there.keys().filter(gone).collect();
        let url = format!("{}/datasets/{}", self.endpoint, self.name);
        let unchanged = files.len() - changed.len();
        if changed.is_empty() && deleted.is_empty() {
            return Ok(Pushed { committed: 0, stored: 0, unchanged, deleted: 0, url });
        }
        let (mut large, mut small) = (Vec::new(), Vec::new());
        for files in changed.chunks(AT_ONCE) {
            let is_large = self.upload_modes(files)?;
            files.iter().zip(is_large).for_each(|(file, yes)| if yes { large.push(*file) } else { small.push(*file) });
        }
        bar.set_length(large.iter().map(|f| f.size).sum::<u64>() >> 10);
        let mut stored = 0;
        for files in large.chunks(AT_ONCE) {
            stored += self.store(files, bar)?;
        }
        self.commit(&large, &small, &deleted, message)?;
        Ok(Pushed { committed: changed.len(), stored, unchanged, deleted: deleted.len(), url })
    }

    /// Every file of the repository, with the SHA-256 of those in the store of large files.
    fn files(&self) -> Result<BTreeMap<String, Option<String>>> {
        let doing = "listing the files";
        let mut files = BTreeMap::new();
        let mut page = Some(format!("api/datasets/{}/tree/main?recursive=true", self.name));
        while let Some(path) = page.take() {
            let answer = self.get(&path)?;
            // A repository without a commit has no tree.
            if answer.status() == 404 && files.is_empty() {
                return Ok(files);
            }
            let mut answer = self.checked(doing, answer)?;
            page = next_page(&answer, &self.endpoint);
            let entries: Vec<Value> = self.read_json(doing, &mut answer)?;
            for entry in entries.iter().filter(|e| e["type"] == "file") {
                let Some(path) = entry["path"].as_str() else { continue };
                files.insert(path.to_string(), entry["lfs"]["oid"].as_str().map(str::to_string));
            }
        }
        Ok(files)
    }

    /// Whether the repository has the file with these bytes. Small files have no checksum of their content there, so they
    /// are compared themselves.
    fn has(&self, file: &Upload, there: &BTreeMap<String, Option<String>>) -> Result<bool> {
        Ok(match (there.get(&file.path), &file.content) {
            (None, _) => false,
            (Some(Some(sha256)), _) => *sha256 == file.sha256,
            (Some(None), content) => {
                let answer = self.get(&format!("datasets/{}/resolve/main/{}", self.name, file.path))?;
                let doing = format!("reading {}", file.path);
                let there = self.checked(&doing, answer)?.body_mut().with_config().limit(file.size + 1).read_to_vec();
                there.is_ok_and(|there| content.read().is_ok_and(|ours| ours == there))
            }
        })
    }

    /// Which of the files the hub wants in the store of large files.
    fn upload_modes(&self, files: &[&Upload]) -> Result<Vec<bool>> {
        let doing = "asking how to upload";
        let mut asked = Vec::new();
        for file in files {
            let sample = file.content.sample()?;
            asked.push(json!({ "path": file.path, "sample": base64(&sample), "size": file.size }));
        }
        let path = format!("api/datasets/{}/preupload/main", self.name);
        let answer = self.post(&path, "application/json", json!({ "files": asked }).to_string())?;
        let answer: Value = self.read_json(doing, &mut self.checked(doing, answer)?)?;
        let modes: BTreeMap<&str, &str> = answer["files"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|f| Some((f["path"].as_str()?, f["uploadMode"].as_str()?)))
            .collect();
        let mode = |file: &&Upload| match modes.get(file.path.as_str()) {
            // The store takes no empty file.
            Some(&"lfs") => Ok(file.size > 0),
            Some(&"regular") => Ok(false),
            other => bail!("hf:{}: the hub does not say how to upload {} ({other:?})", self.name, file.path),
        };
        files.iter().map(mode).collect()
    }

    /// Uploads those that the store does not have; how many bytes.
    fn store(&self, files: &[&Upload], bar: &Bar) -> Result<u64> {
        let doing = "asking where to upload";
        let objects: Vec<Value> = files.iter().map(|f| json!({ "oid": f.sha256, "size": f.size })).collect();
        let asked = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": objects,
            "ref": { "name": "main" },
        });
        let path = format!("datasets/{}.git/info/lfs/objects/batch", self.name);
        let answer = self.post(&path, LFS, asked.to_string())?;
        let answer: Value = self.read_json(doing, &mut self.checked(doing, answer)?)?;
        let mut stored = 0;
        for file in files {
            let told = answer["objects"].as_array().into_iter().flatten().find(|o| o["oid"] == file.sha256.as_str());
            let told =
                told.with_context(|| format!("hf:{}: the hub does not say where {} goes", self.name, file.path))?;
            if let Some(message) = told["error"]["message"].as_str() {
                bail!("hf:{}: the hub does not take {}: {}", self.name, file.path, self.without_token(message));
            }
            bar.set_message(&file.path);
            // Without actions, the store has it.
            if let Some(href) = told["actions"]["upload"]["href"].as_str() {
                self.upload(file, href, &told["actions"]["upload"]["header"])?;
                stored += file.size;
            }
            if let Some(href) = told["actions"]["verify"]["href"].as_str() {
                let asked = json!({ "oid": file.sha256, "size": file.size }).to_string();
                // The token is for the hub, should the hub name another place.
                let at_hub = href.strip_prefix(&format!("{}/", self.endpoint));
                let answer = match at_hub {
                    Some(path) => self.post(path, LFS, asked)?,
                    None => self.sent(|| self.agent.post(href).content_type(LFS).send(asked.as_str()))?,
                };
                self.checked(&format!("verifying {}", file.path), answer)?;
            }
            bar.inc(file.size >> 10);
        }
        Ok(stored)
    }

    /// In one piece, or, where the hub wants it so, in parts.
    fn upload(&self, file: &Upload, href: &str, header: &Value) -> Result<()> {
        let doing = format!("uploading {}", file.path);
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        let Some(chunk) = header.get("chunk_size") else {
            let headers: Vec<(String, String)> =
                header.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect();
            let put = || {
                let request = headers.iter().fold(self.agent.put(href), |r, (k, v)| r.header(k, v));
                match &file.content {
                    Content::File(path) => request.send(File::open(path)?),
                    Content::Text(text) => request.send(text),
                }
            };
            self.taken(&doing, self.sent(put)?)?;
            return Ok(());
        };
        let chunk: u64 = text(chunk).parse().ok().filter(|&n| n > 0).with_context(|| {
            format!("hf:{}: {doing}: the hub wants parts of {chunk} bytes, which is no size", self.name)
        })?;
        let mut parts = Vec::new();
        for i in 0..file.size.div_ceil(chunk) {
            let number = i + 1;
            // Their names are numbers, some hubs' with zeros before them.
            let named = header.as_object().into_iter().flatten().find(|(k, _)| k.parse() == Ok(number));
            let place = named.and_then(|(_, place)| place.as_str());
            let place = place.with_context(|| format!("hf:{}: {doing}: no place for part {number}", self.name))?;
            let bytes = file.content.part(i * chunk, chunk)?;
            let answer = self.taken(&doing, self.sent(|| self.agent.put(place).send(&bytes[..]))?)?;
            let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).unwrap_or_default();
            ensure!(!etag.is_empty(), "hf:{}: {doing}: part {number} was not acknowledged", self.name);
            parts.push(json!({ "partNumber": number, "etag": etag }));
        }
        let done = json!({ "oid": file.sha256, "parts": parts }).to_string();
        let answer = self.sent(|| self.agent.post(href).header("accept", LFS).content_type(LFS).send(done.as_str()))?;
        self.taken(&doing, answer)?;
        Ok(())
    }

    /// One line of JSON a file, after a header.
    fn commit(&self, large: &[&Upload], small: &[&Upload], deleted: &[&String], message: &str) -> Result<()> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for file in small {
            let content = base64(&file.content.read()?);
            let value = json!({ "path": file.path, "encoding": "base64", "content": content });
            lines.push(json!({ "key": "file", "value": value }));
        }
        for f in large {
            let value = json!({ "path": f.path, "algo": "sha256", "oid": f.sha256, "size": f.size });
            lines.push(json!({ "key": "lfsFile", "value": value }));
        }
        lines.extend(deleted.iter().map(|path| json!({ "key": "deletedFile", "value": { "path": path } })));
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = format!("api/datasets/{}/commit/main", self.name);
        let answer = self.post(&path, "application/x-ndjson", body)?;
        self.checked("committing", answer)?;
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Response<Body>> {
        let url = format!("{}/{path}", self.endpoint);
        self.sent(|| self.agent.get(&url).header("authorization", &self.bearer()).call())
    }

    fn post(&self, path: &str, content: &str, body: String) -> Result<Response<Body>> {
        let url = format!("{}/{path}", self.endpoint);
        let accept = if content == LFS { LFS } else { "application/json" };
        self.sent(|| {
            let request = self.agent.post(&url).header("authorization", &self.bearer()).header("accept", accept);
            request.content_type(content).send(body.as_str())
        })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Sends until there is an answer that is not the server's own error.
    fn sent(&self, send: impl Fn() -> Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut attempt = 1;
        loop {
            let answer = send();
            let is_final = answer.as_ref().is_ok_and(|a| a.status().as_u16() < 500) || attempt == ATTEMPTS;
            if is_final {
                return answer.map_err(|e| {
                    let error = self.without_token(&e.to_string());
                    anyhow::anyhow!(
                        "hf:{}: {error}; is there a network? (what is uploaded is not sent again)",
                        self.name
                    )
                });
            }
            std::thread::sleep(Duration::from_millis(100 << (2 * attempt)));
            attempt += 1;
        }
    }

    /// The hub's answer, if it is not a refusal.
    fn checked(&self, doing: &str, answer: Response<Body>) -> Result<Response<Body>> {
        let advice = match answer.status().as_u16() {
            401 => "the hub does not accept the token; set HF_TOKEN to one that may write".to_string(),
            403 => format!("the token may not write to {}; is it of that owner, and a token that writes?", self.name),
            404 => "there is no such data set, or the token may not see it; is the name right?".to_string(),
            code => format!("the hub answers {code}"),
        };
        self.succeeded(doing, &advice, answer)
    }

    /// The store's answer, if it is not a refusal. It knows of no token: what it does not take has expired, or is too much.
    fn taken(&self, doing: &str, answer: Response<Body>) -> Result<Response<Body>> {
        let advice = format!("the store answers {}; push again to go on from here", answer.status().as_u16());
        self.succeeded(doing, &advice, answer)
    }

    fn succeeded(&self, doing: &str, advice: &str, mut answer: Response<Body>) -> Result<Response<Body>> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = answer.body_mut().read_to_string().unwrap_or_default();
        let said = serde_json::from_str::<Value>(&body).ok();
        let said = said.as_ref().and_then(|v| v["error"].as_str().or(v["message"].as_str()));
        let said = said.map_or(String::new(), |s| format!(" (it says: {})", self.without_token(s)));
        bail!("hf:{}: {doing}: {advice}{said}", self.name)
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, doing: &str, answer: &mut Response<Body>) -> Result<T> {
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
        serde_json::from_str(&text)
            .with_context(|| format!("hf:{}: {doing}: the answer is not what a hub says", self.name))
    }

    fn without_token(&self, text: &str) -> String {
        text.replace(&self.token, "…")
    }
}

const LFS: &str = "application/vnd.git-lfs+json";

/// Where the list goes on, below the endpoint: the token goes nowhere else.
fn next_page(answer: &Response<Body>, endpoint: &str) -> Option<String> {
    let links = answer.headers().get("link")?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    url.strip_prefix(endpoint)?.strip_prefix('/').map(str::to_string)
}

impl Content {
    fn read(&self) -> Result<Vec<u8>> {
        Ok(match self {
            Content::File(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            Content::Text(text) => text.clone().into_bytes(),
        })
    }

    /// The first bytes, from which the hub sees whether it is text.
    fn sample(&self) -> Result<Vec<u8>> {
        self.part(0, 512)
    }

    fn part(&self, start: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self {
            Content::File(path) => {
                let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                file.seek(SeekFrom::Start(start))?;
                file.take(length).read_to_end(&mut bytes)?;
            }
            Content::Text(text) => {
                text.as_bytes().iter().skip(start as usize).take(length as usize).for_each(|&b| bytes.push(b));
            }
        }
        Ok(bytes)
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= three.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let words = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let coded = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(words.map(|w| base64(w.as_bytes())), coded);
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn parts_of_a_file_are_those_of_its_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789").unwrap();
        for content in [Content::File(file.path().into()), Content::Text("0123456789".into())] {
            assert_eq!(content.part(4, 4).unwrap(), b"4567");
            assert_eq!(content.part(8, 4).unwrap(), b"89");
        }
    }

    #[test]
    fn the_next_page_is_followed_at_the_hub_only() {
        let answer = |link: &str| Response::builder().header("link", link).body(Body::builder().data("")).unwrap();
        let next = |link: &str| next_page(&answer(link), "https://hub.example");
        assert_eq!(next("<https://hub.example/api/x?cursor=1>; rel=\"next\"").as_deref(), Some("api/x?cursor=1"));
        assert_eq!(next("<https://elsewhere.example/api/x>; rel=\"next\""), None);
        assert_eq!(next("<https://hub.example.evil/api/x>; rel=\"next\""), None);
        assert_eq!(next("<https://hub.example/api/x>; rel=\"prev\""), None);
    }
}
