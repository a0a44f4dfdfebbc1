//! Writes to a data set of the hub, like Hugging Face's own client: large files go to the Git LFS store, then one
//! commit names them and contains the small files.
//!
//! The token is sent only to the hub, never to the address of the store. Redirects are not followed when sending. A
//! push is complete only after the commit has been read back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use selfrepair_core::progress::Bar;
use serde_json::{Value, json};
use ureq::Body;
use ureq::http::Response;
use url::Url;

use super::lfs::{Content, LFS};
use super::web::{Again, Answer, Failure, QUESTION, TOTAL, Web, encoded};
use super::{checked_name, offline, settings};
use selfrepair_core::{interrupt, progress};

/// Files in one question to the hub.
const AT_ONCE: usize = 200;

/// Pages of a list of files; a hub has a thousand entries on one.
const PAGES: usize = 200;

/// The longest path of a file.
const LONGEST_PATH: usize = 1024;

/// What may be in a commit itself: it is put together in memory.
const IN_COMMIT: u64 = 256 << 20;

/// A file to be in the repository.
pub struct Upload {
    /// Where in the repository.
    pub path: String,
    pub content: Content,
    pub size: u64,
    pub sha256: String,
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
    pub(super) name: String,
    pub(super) web: Web,
}

/// The files of a repository, with the SHA-256 of those in the store of large files.
type Listed = BTreeMap<String, Option<String>>;

/// That `owner/name` can be a data set.
pub fn check_data_set(name: &str) -> Result<()> {
    checked_name(name)?;
    ensure!(name.contains('/'), "hf:{name} names no owner; expected hf:owner/name");
    Ok(())
}

impl DataSet {
    /// Creates the data set if there is none; one that is created is private if so asked.
    ///
    /// # Errors
    /// Without a token, offline, or if the hub refuses.
    pub fn open(name: &str, private: bool) -> Result<Self> {
        check_data_set(name)?;
        ensure!(!offline(), "HF_HUB_OFFLINE is set, so that nothing can be pushed to hf:{name}; unset it");
        let token = settings::checked_token()?.context(
            "there is no token of the hub; set HF_TOKEN to one that may write (hf.co/settings/tokens), or log in with \
             `hf auth login`",
        )?;
        let it = Self { name: name.into(), web: Web::new(Some(token))? };
        it.create(private)?;
        Ok(it)
    }

    fn create(&self, private: bool) -> Result<()> {
        let doing = "looking for the data set";
        if self.get(doing, &format!("api/datasets/{}", self.name))?.response.status() == 200 {
            return Ok(());
        }
        let doing = "creating the data set";
        let (owner, name) = self.name.split_once('/').unwrap_or_default();
        let asked = match private {
            true => json!({ "name": name, "organization": owner, "type": "dataset", "visibility": "private" }),
            false => json!({ "name": name, "organization": owner, "type": "dataset" }),
        };
        let answer = self.post_at_hub(doing, "api/repos/create", "application/json", &asked.to_string())?;
        // 409: somebody else created it in between.
        if answer.status() != 409 {
            self.checked(doing, answer)?;
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
        let url = self.web.at_hub(&format!("datasets/{}", self.name))?.to_string();
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
        self.read_back(&changed, &deleted)?;
        Ok(Pushed { committed: changed.len(), stored, unchanged, deleted: deleted.len(), url })
    }

    /// Every file of the repository.
    fn files(&self) -> Result<Listed> {
        let doing = "listing the files";
        let began = Instant::now();
        let (mut files, mut seen) = (BTreeMap::new(), BTreeSet::new());
        let mut page = Some(self.web.at_hub(&format!("api/datasets/{}/tree/main?recursive=true", self.name))?);
        while let Some(url) = page.take() {
            interrupt::check()?;
            ensure!(
                seen.insert(url.to_string()) && seen.len() <= PAGES && began.elapsed() < TOTAL / 3,
                "hf:{}: {doing}: the list does not end; {} pages were read",
                self.name,
                seen.len()
            );
            let answer = self.get_url(doing, &url)?;
            // A repository without a commit has no tree.
            if answer.response.status() == 404 && files.is_empty() {
                return Ok(files);
            }
            let answer = self.checked(doing, answer.response)?;
            page = next_page(&answer, &url, &self.web).map_err(|f| self.failed(doing, &f))?;
            let entries: Vec<Value> = self.web.json(answer).map_err(|f| self.failed(doing, &f))?;
            for entry in entries.iter().filter(|e| e["type"] == "file") {
                let Some(path) = entry["path"].as_str().filter(|p| p.len() <= LONGEST_PATH) else { continue };
                files.insert(path.to_string(), entry.pointer("/lfs/oid").and_then(Value::as_str).map(str::to_string));
            }
        }
        Ok(files)
    }

    /// Whether the repository has the file with these bytes. Small files have no checksum of their content there, so they
    /// are compared themselves.
    fn has(&self, file: &Upload, there: &Listed) -> Result<bool> {
        Ok(match (there.get(&file.path), &file.content) {
            (None, _) => false,
            (Some(Some(sha256)), _) => *sha256 == file.sha256,
            (Some(None), content) => {
                let doing = format!("reading {}", file.path);
                let answer =
                    self.get(&doing, &format!("datasets/{}/resolve/main/{}", self.name, encoded(&file.path)))?;
                let there = self.web.text(self.checked(&doing, answer.response)?, file.size);
                match there {
                    Ok(there) => content.read()? == there,
                    // It is longer.
                    Err(failure) if failure.again == Again::Never => false,
                    Err(failure) => return Err(self.failed(&doing, &failure)),
                }
            }
        })
    }

    /// That the repository now is what was committed: an answer alone is no proof.
    fn read_back(&self, changed: &[&Upload], deleted: &[&String]) -> Result<()> {
        let missing = || -> Result<Option<String>> {
            let there = self.files()?;
            for file in changed {
                if !self.has(file, &there)? {
                    return Ok(Some(file.path.clone()));
                }
            }
            Ok(deleted.iter().find(|path| there.contains_key(**path)).map(|path| path.to_string()))
        };
        let mut differs = missing()?;
        if differs.is_some() {
            // A hub of several machines may need a moment.
            std::thread::sleep(Duration::from_secs(1));
            differs = missing()?;
        }
        match differs {
            None => Ok(()),
            Some(path) => bail!(
                "hf:{}: the hub said that it committed, but `{path}` is not there as it was sent; look at the data set and \
                 push again",
                self.name
            ),
        }
    }

    /// Which of the files the hub wants in the store of large files.
    fn upload_modes(&self, files: &[&Upload]) -> Result<Vec<bool>> {
        let doing = "asking how to upload";
        let mut asked = Vec::new();
        for file in files {
            let sample = file.content.sample()?;
            asked.push(json!({ "path": file.path, "sample": BASE64.encode(&sample), "size": file.size }));
        }
        let path = format!("api/datasets/{}/preupload/main", self.name);
        let answer = self.ask(doing, &path, "application/json", &json!({ "files": asked }))?;
        let listed = answer.get("files").and_then(Value::as_array);
        let modes: BTreeMap<&str, &str> = listed
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

    /// One line of JSON a file, after a header.
    fn commit(&self, large: &[&Upload], small: &[&Upload], deleted: &[&String], message: &str) -> Result<()> {
        let doing = "committing";
        let size: u64 = small.iter().map(|f| f.size).sum();
        ensure!(
            size <= IN_COMMIT,
            "hf:{}: the hub wants {} in the commit itself and not in its store of large files, which is too much",
            self.name,
            progress::bytes(size)
        );
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for file in small {
            let content = BASE64.encode(file.content.read()?);
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
        let answer = self.post(doing, &self.web.at_hub(&path)?, "application/x-ndjson", &body, TOTAL)?;
        let answer: Value = self.web.json(self.checked(doing, answer)?).map_err(|f| self.failed(doing, &f))?;
        ensure!(
            answer.is_object() && answer.get("success") != Some(&Value::Bool(false)),
            "hf:{}: {doing}: the answer is not what a hub says of a commit",
            self.name
        );
        Ok(())
    }

    fn get(&self, doing: &str, path: &str) -> Result<Answer> {
        self.get_url(doing, &self.web.at_hub(path)?)
    }

    fn get_url(&self, doing: &str, url: &Url) -> Result<Answer> {
        let answer = self.web.persist(doing, || self.web.get(url, None), |a| a.response.status().as_u16());
        answer.map_err(|f| self.failed(doing, &f))
    }

    /// Asks with JSON and is answered with JSON.
    pub(super) fn ask(&self, doing: &str, path: &str, content_type: &str, asked: &Value) -> Result<Value> {
        let answer = self.post_at_hub(doing, path, content_type, &asked.to_string())?;
        self.web.json(self.checked(doing, answer)?).map_err(|f| self.failed(doing, &f))
    }

    fn post_at_hub(&self, doing: &str, path: &str, content_type: &str, body: &str) -> Result<Response<Body>> {
        self.post(doing, &self.web.at_hub(path)?, content_type, body, QUESTION)
    }

    pub(super) fn post(
        &self,
        doing: &str,
        url: &Url,
        content_type: &str,
        body: &str,
        wait: Duration,
    ) -> Result<Response<Body>> {
        let accept = if content_type == LFS { LFS } else { "application/json" };
        let send = || self.web.post(url, content_type, accept, body, wait, true);
        self.web.persist(doing, send, |a| a.status().as_u16()).map_err(|f| self.failed(doing, &f))
    }

    pub(super) fn failed(&self, doing: &str, failure: &Failure) -> anyhow::Error {
        if let Err(stop) = interrupt::check() {
            return stop;
        }
        anyhow::anyhow!("hf:{}: {doing}: {}; push again (what is uploaded is not sent twice)", self.name, failure.text)
    }

    /// The hub's answer, if it is not a refusal.
    pub(super) fn checked(&self, doing: &str, answer: Response<Body>) -> Result<Response<Body>> {
        let advice = match answer.status().as_u16() {
            401 => "the hub does not accept the token; set HF_TOKEN to one that may write".to_string(),
            403 => format!(
                "the token may not write to {}; does it belong to that owner, and is it a write token?",
                self.name
            ),
            404 => "there is no such data set, or the token may not see it; is the name right?".to_string(),
            code => format!("the hub answers {code}"),
        };
        self.succeeded(doing, &advice, answer)
    }

    /// The store's answer, if it is not a refusal. It knows of no token: what it does not take has expired, or is too much.
    pub(super) fn taken(&self, doing: &str, answer: Response<Body>) -> Result<Response<Body>> {
        let advice = format!("the store answers {}; push again to resume", answer.status().as_u16());
        self.succeeded(doing, &advice, answer)
    }

    /// The beginning of what a server says.
    pub(super) fn quoted(&self, said: &str) -> String {
        self.web.without_token(&said.chars().take(500).collect::<String>())
    }

    fn succeeded(&self, doing: &str, advice: &str, answer: Response<Body>) -> Result<Response<Body>> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let said = self.web.json::<Value>(answer).ok();
        let said = said.as_ref().and_then(|v| v["error"].as_str().or(v["message"].as_str()));
        let said = said.map_or(String::new(), |s| format!(" (it says: {})", self.quoted(s)));
        bail!("hf:{}: {doing}: {advice}{said}", self.name)
    }
}

/// The address of the next page of a list, which must be on the hub.
fn next_page(answer: &Response<Body>, at: &Url, web: &Web) -> Result<Option<Url>, Failure> {
    let links = answer.headers().get("link").and_then(|l| l.to_str().ok()).unwrap_or_default();
    let Some(next) = links.split(',').find(|link| link.contains("rel=\"next\"")) else { return Ok(None) };
    let url = next.split_once('<').and_then(|(_, rest)| Some(rest.split_once('>')?.0));
    let url = url.and_then(|url| at.join(url).ok()).filter(|url| web.is_at_hub(url));
    url.map(Some).ok_or_else(|| Failure::lasting("the next page of the list is not on the hub".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_followed_at_the_hub_only() {
        let answer = |link: &str| Response::builder().header("link", link).body(Body::builder().data("")).unwrap();
        let mut web = Web::new(None).unwrap();
        web.endpoint = Url::parse("https://hub.example").unwrap();
        let at = web.at_hub("api/x").unwrap();
        let next = |link: &str| next_page(&answer(link), &at, &web).map(|url| url.map(String::from));
        let second = "https://hub.example/api/x?cursor=1".to_string();
        assert_eq!(next("<https://hub.example/api/x?cursor=1>; rel=\"next\"").unwrap(), Some(second.clone()));
        assert_eq!(next("</api/x?cursor=1>; rel=\"next\"").unwrap(), Some(second));
        for elsewhere in
            ["https://elsewhere.example", "https://hub.example.evil", "http://hub.example", "https://hub.example:8443"]
        {
            assert!(next(&format!("<{elsewhere}/api/x>; rel=\"next\"")).is_err(), "{elsewhere}");
        }
        assert!(next("<https://hub.example/api/x>; rel=\"prev\"").unwrap().is_none());
    }
}
