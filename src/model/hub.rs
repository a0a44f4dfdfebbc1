//! Repositories on the Hugging Face hub: `hf:owner/name`, fetched once into the hub's own cache.
//!
//! `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT` have the
//! meaning of Hugging Face's own tools. The token is sent only as a header to the hub. It is in no message and no
//! table.
//!
//! Server answers are checked before use, because commits, identifiers and file names become names in the cache.

mod cache;
mod download;
mod lfs;
mod settings;
mod upload;
mod web;

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use cache::Cached;
use download::Source;
use selfrepair_core::interrupt;
use settings::{offline, token};
use web::{Again, Failure, Web};

pub use lfs::Content;
pub use upload::{DataSet, Pushed, Upload, check_data_set};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

/// Files of a repository at one revision.
pub struct HubRepo {
    name: String,
    kind: Kind,
    revision: String,
    cached: Cached,
    /// The commit that the revision is; checked to be an identifier.
    commit: Option<String>,
    /// `None` when offline.
    online: Option<Online>,
}

struct Online {
    web: Web,
    files: Vec<String>,
}

impl HubRepo {
    /// `name` is `owner/name`, or a name alone for the hub's first models.
    pub fn new(kind: Kind, name: &str, revision: &str) -> Result<Self> {
        checked_name(name)?;
        let revision = if revision.is_empty() { "main" } else { revision };
        ensure!(revision.split('/').all(is_plain), "`{revision}` is not a revision; expected a branch, tag or commit");
        let cached = Cached::new(settings::cache()?, kind, name);
        let (name, revision) = (name.to_string(), revision.to_string());
        let mut repo = Self { name, kind, revision, cached, commit: None, online: None };
        match offline() {
            true => repo.commit = repo.cached.commit_of(&repo.revision),
            false => repo.connect()?,
        }
        Ok(repo)
    }

    /// Asks the hub which commit the revision is, and takes every file from that one: what is cached of an older one is
    /// never mixed in.
    fn connect(&mut self) -> Result<()> {
        let web = Web::new(settings::checked_token()?)?;
        let kind = match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let url = web.at_hub(&format!("api/{kind}/{}/revision/{}", self.name, self.revision.replace('/', "%2F")))?;
        let doing = "listing the files";
        let failed = |failure: Failure| self.failed(doing, &failure);
        let answer = web.persist(doing, || web.get(&url, None), |a| a.response.status().as_u16()).map_err(failed)?;
        let status = answer.response.status().as_u16();
        if !(200..300).contains(&status) {
            return Err(failed(Failure::of_status(status)));
        }
        let info: Value = web.json(answer.response).map_err(failed)?;
        let commit = info.get("sha").and_then(Value::as_str).unwrap_or_default();
        ensure!(
            is_identifier(commit),
            "hf:{}: the hub names the commit `{commit}`, which is not a commit id",
            self.name
        );
        let listed = info.get("siblings").and_then(Value::as_array).into_iter().flatten();
        let files: Vec<String> = listed.filter_map(|f| f["rfilename"].as_str()).map(str::to_string).collect();
        for file in &files {
            ensure!(
                is_below(file),
                "hf:{}: the hub lists a file called `{file}`, which could lead outside the cache",
                self.name
            );
        }
        // What the revision is called now, for a run without a network.
        self.cached.set_commit_of(&self.revision, commit).context("cannot write the hub's cache")?;
        self.commit = Some(commit.to_string());
        self.online = Some(Online { web, files });
        Ok(())
    }

    /// The repository's files, by the hub or, offline, by what is cached.
    pub fn files(&self) -> Result<Vec<String>> {
        if let Some(online) = &self.online {
            return Ok(online.files.clone());
        }
        let snapshot = self.cached.pointer(self.known_commit()?, "");
        let files = selfrepair_core::files::files_below(&snapshot)?;
        let relative = |p: &PathBuf| p.strip_prefix(&snapshot).map(|p| p.to_string_lossy().into_owned()).ok();
        Ok(files.iter().filter_map(relative).collect())
    }

    fn known_commit(&self) -> Result<&str> {
        self.commit.as_deref().with_context(|| {
            format!(
                "hf:{} is not in the cache ({}) and HF_HUB_OFFLINE is set; run once with a network, or copy the cache",
                self.name,
                self.cached.snapshots().display()
            )
        })
    }

    /// One file, from the cache or the hub, its checksum verified where the hub gives one.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        ensure!(is_below(file), "hf:{}: `{file}` is not the name of a file in a repository", self.name);
        let commit = self.known_commit()?;
        let path = self.cached.pointer(commit, file);
        if path.exists() {
            return Ok(path);
        }
        let Some(Online { web, .. }) = &self.online else {
            bail!("hf:{}: `{file}` is not in the cache and HF_HUB_OFFLINE is set; run once with a network", self.name);
        };
        let repository = match self.kind {
            Kind::Model => self.name.clone(),
            Kind::Dataset => format!("datasets/{}", self.name),
        };
        let source = Source { web, cached: &self.cached, commit, file, repository };
        source.fetch(|failure| self.failed(&format!("fetching {file}"), failure))
    }

    fn failed(&self, doing: &str, failure: &Failure) -> anyhow::Error {
        if let Err(stop) = interrupt::check() {
            return stop;
        }
        let advice = match failure.status {
            Some(401 | 403) => {
                "access was refused; set HF_TOKEN to a token that may read it, and accept its licence on the hub".into()
            }
            Some(404) => {
                format!("there is no such repository, file or revision `{}`; is the name right?", self.revision)
            }
            _ if failure.again == Again::Never => failure.text.clone(),
            _ => format!("{}; is there a network? (the next run resumes the download)", failure.text),
        };
        anyhow::anyhow!("hf:{}: {doing}: {advice}", self.name)
    }
}

/// Whether a name from outside stays below the folder that it is joined to.
fn is_below(file: &str) -> bool {
    !file.is_empty()
        && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && Path::new(file).components().all(|c| matches!(c, Component::Normal(_)))
}

fn checked_name(name: &str) -> Result<()> {
    ensure!(
        name.split('/').count() <= 2 && name.split('/').all(is_plain),
        "hf:{name} is not a repository's name; expected hf:owner/name"
    );
    Ok(())
}

/// Compares a file with what the hub gave, if it lies in the hub's cache: there, a large file is named by its SHA-256.
/// `sha256` is that of the bytes that are there now.
pub fn check_cached(path: &Path, sha256: &str) -> Result<()> {
    let Ok(blob) = path.canonicalize() else { return Ok(()) };
    let is_blob = blob.parent().is_some_and(|folder| folder.file_name().is_some_and(|name| name == "blobs"));
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let is_sha256 = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(
        !is_blob || !is_sha256 || *name == *sha256,
        "{} has changed since it was fetched: its sha256 is {sha256}, the hub's was {name}; remove {} and run again",
        path.display(),
        blob.display()
    );
    Ok(())
}

/// What can be part of an address or of a path without meaning anything else.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A text for a user, in which a hub may have echoed the token it was sent.
pub fn without_token(text: &str) -> String {
    match token() {
        Some(token) => text.replace(&token, "(token)"),
        _ => text.to_string(),
    }
}

fn is_identifier(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
