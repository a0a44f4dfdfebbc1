//! Repositories on the Hugging Face hub: `hf:owner/name`, fetched once into the hub's own cache.
//!
//! `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to Hugging Face's own tools. A token is
//! only ever sent as a header: it is in no message and no table.

mod upload;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use selfrepair_core::progress;
use selfrepair_core::files::sha256_of_file;

pub use upload::{Content, DataSet, Pushed, Upload};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

/// Files of a repository at one revision.
pub struct HubRepo {
    name: String,
    revision: String,
    cached: CacheRepo,
    /// `None` when offline.
    online: Option<Online>,
}

struct Online {
    api: Api,
    /// The repository at one commit.
    repo: ApiRepo,
    files: Vec<String>,
}

/// How often a broken connection is taken up again, where it broke off.
const RETRIES: usize = 5;

impl HubRepo {
    /// `name` is `owner/name`, or a name alone for the hub's first models.
    pub fn new(kind: Kind, name: &str, revision: &str) -> Result<Self> {
        checked_name(name)?;
        let revision = if revision.is_empty() { "main" } else { revision };
        ensure!(revision.split('/').all(is_plain), "`{revision}` is not a revision; expected a branch, tag or commit");
        let kind = match kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        let named = Repo::with_revision(name.into(), kind, revision.into());
        let cache = Cache::from_env();
        let mut repo =
            Self { name: name.into(), revision: revision.into(), cached: cache.repo(named.clone()), online: None };
        if !offline() {
            repo.connect(&cache, named, kind)?;
        }
        Ok(repo)
    }

    /// Asks the hub which commit the revision is, and takes every file from that one: what is cached of an older one is
    /// never mixed in.
    fn connect(&mut self, cache: &Cache, named: Repo, kind: RepoType) -> Result<()> {
        let api = ApiBuilder::from_env().with_token(token(cache)).with_retries(RETRIES).build();
        let api = api.map_err(|e| anyhow::anyhow!("cannot set up the hub client: {e}"))?;
        let info = api.repo(named).info().map_err(|e| self.failed("listing the files", &e))?;
        ensure!(is_identifier(&info.sha), "hf:{}: the hub names the commit `{}`, which is none", self.name, info.sha);
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        for file in &files {
            // A name from outside becomes a path here.
            ensure!(
                Path::new(file).components().all(|c| matches!(c, std::path::Component::Normal(_))),
                "hf:{}: the hub lists a file called `{file}`, which could be written elsewhere",
                self.name
            );
        }
        // What the revision is called now, for a run without a network.
        self.cached.create_ref(&info.sha).context("cannot write the hub's cache")?;
        let pinned = Repo::with_revision(self.name.clone(), kind, info.sha);
        self.cached = cache.repo(pinned.clone());
        self.online = Some(Online { repo: api.repo(pinned), api, files });
        Ok(())
    }

    /// The repository's files, by the hub or, offline, by what is cached.
    pub fn files(&self) -> Result<Vec<String>> {
        if let Some(online) = &self.online {
            return Ok(online.files.clone());
        }
        let first = ["config.json", "README.md", ".gitattributes"].iter().find_map(|f| self.cached.get(f));
        let snapshot = match first.as_ref().and_then(|p| p.parent()) {
            Some(folder) => folder.to_path_buf(),
            None => self.cached_snapshot()?,
        };
        let files = selfrepair_core::files::files_below(&snapshot)?;
        let relative = |p: &PathBuf| p.strip_prefix(&snapshot).map(|p| p.to_string_lossy().into_owned()).ok();
        Ok(files.iter().filter_map(relative).collect())
    }

    /// The folder of the revision in the cache, when nothing but the cache may be asked.
    fn cached_snapshot(&self) -> Result<PathBuf> {
        let nowhere = self.cached.pointer_path("");
        let snapshots = std::fs::read_dir(&nowhere).ok();
        let only = snapshots.and_then(|mut s| s.next()).and_then(Result::ok).map(|e| e.path());
        only.with_context(|| {
            format!(
                "hf:{} is not in the cache ({}) and HF_HUB_OFFLINE is set; run once with a network, or copy the cache",
                self.name,
                nowhere.display()
            )
        })
    }

    /// One file, from the cache or the hub, its checksum verified where the hub gives one.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        if let Some(path) = self.cached.get(file) {
            return Ok(path);
        }
        let Some(Online { api, repo, .. }) = &self.online else {
            bail!("hf:{}: `{file}` is not in the cache and HF_HUB_OFFLINE is set; run once with a network", self.name);
        };
        let doing = format!("fetching {file}");
        let metadata = api.metadata(&repo.url(file)).map_err(|e| self.failed(&doing, &e))?;
        // They become names of files and folders in the cache.
        for id in [metadata.etag(), metadata.commit_hash()] {
            ensure!(
                is_identifier(id),
                "hf:{}: the hub answered for `{file}` with the identifier `{id}`, which is none",
                self.name
            );
        }
        let path = repo.download_with_progress(file, Bar::default()).map_err(|e| self.failed(&doing, &e))?;
        let size = std::fs::metadata(&path)?.len();
        let sha256 = metadata.etag().len() == 64;
        let whole = size == metadata.size() as u64 && (!sha256 || sha256_of_file(&path)? == metadata.etag());
        if !whole {
            // The name in the snapshot and the bytes it stands for, so that neither is used again.
            let blob = std::fs::canonicalize(&path)?;
            std::fs::remove_file(&path)?;
            std::fs::remove_file(blob).ok();
            bail!(
                "hf:{}: `{file}` arrived with other bytes than the hub announced ({} of {size} bytes, id {}) and was \
                 not kept; try again",
                self.name,
                metadata.size(),
                metadata.etag()
            );
        }
        Ok(path)
    }

    fn failed(&self, doing: &str, error: &ApiError) -> anyhow::Error {
        let status = match error {
            ApiError::RequestError(e) => match **e {
                ureq::Error::StatusCode(code) => Some(code),
                _ => None,
            },
            _ => None,
        };
        let advice = match status {
            Some(401 | 403) => {
                "access was refused; set HF_TOKEN to a token that may read it, and accept its licence on the hub".into()
            }
            Some(404) => {
                format!("there is no such repository, file or revision `{}`; is the name right?", self.revision)
            }
            _ => format!("{}; is there a network? (a download goes on where it stopped)", error),
        };
        anyhow::anyhow!("hf:{}: {doing}: {advice}", self.name)
    }
}

/// The user's token: `HF_TOKEN`, or what Hugging Face's own login wrote.
fn token(cache: &Cache) -> Option<String> {
    let set = std::env::var("HF_TOKEN").ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
    set.or_else(|| cache.token())
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
    match token(&Cache::from_env()) {
        Some(token) if !token.is_empty() => text.replace(&token, "(token)"),
        _ => text.to_string(),
    }
}

fn is_identifier(id: &str) -> bool {
    !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()))
}

/// The program's progress bar for the hub's client.
#[derive(Default)]
struct Bar(Option<progress::Bar>);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        if let Some(old) = self.0.take() {
            old.finish();
        }
        let name: String = filename.chars().rev().take(24).collect::<Vec<_>>().into_iter().rev().collect();
        self.0 = Some(progress::bar(&name, size as u64 >> 10, "kB"));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(size as u64 >> 10);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish();
        }
    }
}
