//! Downloads one file of a repository. The hub's information about it is checked once and pinned; the bytes must have
//! the announced length and checksum.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use selfrepair_core::progress::Bar;
use ureq::http::HeaderMap;
use url::Url;

use super::cache::Cached;
use super::is_identifier;
use super::web::{ATTEMPTS, Again, Answer, Failure, Web, encoded, pause};
use selfrepair_core::files::sha256_of_file;
use selfrepair_core::plain::visible;
use selfrepair_core::untrusted::without_panic;
use selfrepair_core::{interrupt, progress};

/// A broken download that brought so much is taken up again, whatever broke it.
const WORTH_IT: u64 = 64 << 10;

/// One that brought so much counts as the first to fail.
const MUCH: u64 = 16 << 20;

/// What the hub said of a file when it was asked first.
struct Pinned {
    /// The name of its bytes: their SHA-256 if they are in the store of large files.
    id: String,
    size: u64,
}

/// A file at the hub.
pub struct Source<'a> {
    pub web: &'a Web,
    pub cached: &'a Cached,
    pub commit: &'a str,
    pub file: &'a str,
    /// The repository's own address below the hub's: `owner/name`, `datasets/owner/name`.
    pub repository: String,
}

impl Source<'_> {
    /// Fetches the file into the cache; its path there. An error is told by `failed`.
    pub fn fetch(&self, failed: impl Fn(&Failure) -> anyhow::Error) -> Result<PathBuf> {
        let path = format!("{}/resolve/{}/{}", self.repository, self.commit, encoded(self.file));
        let url = self.web.at_hub(&path)?;
        let asked =
            self.web.persist(self.file, || self.web.get(&url, Some("bytes=0-0")), |a| a.response.status().as_u16());
        let pinned = asked.and_then(|answer| self.pinned(&answer)).map_err(|f| failed(&f))?;
        let _held = self.cached.hold(&pinned.id)?;
        let blob = self.cached.blob(&pinned.id);
        if blob.exists() && pinned.mismatch(&blob)?.is_some() {
            fs::remove_file(&blob).with_context(|| format!("cannot remove {}", blob.display()))?;
        }
        if !blob.exists() {
            self.download(&url, &pinned, failed)?;
        }
        self.cached.link(self.commit, self.file, &pinned.id)
    }

    /// What the hub says of the file, checked: it becomes names of files in the cache.
    fn pinned(&self, answer: &Answer) -> Result<Pinned, Failure> {
        let status = answer.response.status().as_u16();
        let total = range_of(answer.response.headers()).and_then(|(_, total)| total);
        // An empty file has no first byte.
        let is_empty = status == 416 && total == Some(0);
        if !(200..300).contains(&status) && !is_empty {
            return Err(Failure::of_status(status));
        }
        let Identity { id, commit } = Identity::of(&answer.hub);
        let wrong = |what: &str, id: &str| {
            let id = self.web.without_token(id);
            Failure::lasting(format!("the hub answered with the {what} `{id}`, which is not valid"))
        };
        let commit = commit.ok_or_else(|| Failure::lasting("the hub does not say of which commit it is".into()))?;
        if commit != self.commit {
            return Err(wrong("commit", &commit));
        }
        let id = id.ok_or_else(|| Failure::lasting("the hub does not say what identifies its bytes (ETag)".into()))?;
        if !is_identifier(&id) {
            return Err(wrong("identifier", &id));
        }
        let length = || number(answer.response.headers(), "content-length").filter(|_| status == 200);
        let linked = number(&answer.hub, "x-linked-size");
        let size = total.or_else(length).or(linked);
        let size = size.ok_or_else(|| Failure::lasting("the hub does not say how long it is".into()))?;
        if linked.is_some_and(|linked| linked != size) {
            return Err(Failure::lasting(format!(
                "the hub announces {} bytes and another length of {size}",
                linked.unwrap_or(0)
            )));
        }
        Ok(Pinned { id, size })
    }

    fn download(&self, url: &Url, pinned: &Pinned, failed: impl Fn(&Failure) -> anyhow::Error) -> Result<()> {
        let mut part = self.cached.open_partial(&pinned.id)?;
        let shown = visible(self.file);
        self.has_room(pinned.size.saturating_sub(part.metadata()?.len()))?;
        let skipped = shown.chars().count().saturating_sub(24);
        let bar = progress::bar(&shown.chars().skip(skipped).collect::<String>(), pinned.size >> 10, "kB");
        let fetched = self.fetch_all(url, pinned, &mut part, &bar);
        bar.finish();
        fetched.map_err(|f| failed(&f))?;
        part.sync_all()?;
        drop(part);
        let path = self.cached.partial(&pinned.id);
        if let Some(differs) = pinned.mismatch(&path)? {
            fs::remove_file(&path).ok();
            let text =
                format!("arrived with other bytes than the hub announced ({differs}) and was not kept; try again");
            return Err(failed(&Failure::lasting(text)));
        }
        let blob = self.cached.blob(&pinned.id);
        fs::rename(&path, &blob).with_context(|| format!("cannot write {}", blob.display()))
    }

    /// That the disk has room for so many bytes, before they are asked for.
    fn has_room(&self, bytes: u64) -> Result<()> {
        let folder = self.cached.blob("");
        let Ok(disk) = rustix::fs::statvfs(&folder) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        ensure!(
            bytes <= free,
            "{}: the download needs {} more in {}, which has {} free; make room or set HF_HUB_CACHE to a folder on \
            another disk",
            self.file,
            progress::bytes(bytes),
            folder.display(),
            progress::bytes(free)
        );
        Ok(())
    }

    /// As many attempts as are worth it, each from where the last one stopped.
    fn fetch_all(&self, url: &Url, pinned: &Pinned, part: &mut File, bar: &Bar) -> Result<(), Failure> {
        let mut number = 1;
        loop {
            let before = length(part)?;
            let Err(failure) = self.attempt(url, pinned, part, bar) else { return Ok(()) };
            let gained = length(part)?.saturating_sub(before);
            if gained >= MUCH {
                number = 1;
            }
            let is_worth_it = match failure.again {
                Again::Never => false,
                Again::AfterProgress => gained >= WORTH_IT,
                Again::Soon => true,
            };
            if !is_worth_it || number >= ATTEMPTS || interrupt::check().is_err() {
                return Err(failure);
            }
            pause(self.file, &failure.text, number)?;
            number += 1;
        }
    }

    /// Appends what is missing.
    fn attempt(&self, url: &Url, pinned: &Pinned, part: &mut File, bar: &Bar) -> Result<(), Failure> {
        let mut have = length(part)?;
        if have > pinned.size {
            have = emptied(part)?;
        }
        if have == pinned.size {
            return Ok(());
        }
        let answer = self.web.get(url, Some(&format!("bytes={have}-")))?;
        pinned.agrees(&answer, self.commit)?;
        match answer.response.status().as_u16() {
            200 => have = emptied(part)?,
            206 => {
                let range = range_of(answer.response.headers());
                let is_asked =
                    range.map_or(have == 0, |(start, total)| start == have && total.is_none_or(|t| t == pinned.size));
                if !is_asked {
                    return Err(Failure::lasting("the server sends another part of the file than requested".into()));
                }
            }
            416 => {
                let text = format!("the hub announced {} bytes, and the server has {have} at most", pinned.size);
                emptied(part)?;
                return Err(Failure::lasting(text));
            }
            status => return Err(Failure::of_status(status)),
        }
        bar.set_position(have >> 10);
        // What is sent beyond the announced end is not read.
        let mut body = self.web.body(answer.response).take(pinned.size - have);
        let mut buffer = vec![0; 64 << 10];
        while have < pinned.size {
            interrupt::check().map_err(|_| Failure::lasting("interrupted".into()))?;
            let read = without_panic(|| Ok(body.read(&mut buffer)));
            let read = match read {
                Ok(read) => read.map_err(|e| self.web.broken(&e))?,
                Err(_) => return Err(Failure::lasting("the answer is malformed".into())),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                let text = format!("the connection ended after {have} of {} bytes", pinned.size);
                return Err(Failure { again: Again::Soon, ..Failure::lasting(text) });
            }
            part.write_all(bytes).map_err(|e| local(&e))?;
            have += bytes.len() as u64;
            bar.set_position(have >> 10);
        }
        Ok(())
    }
}

impl Pinned {
    /// How the bytes of a file differ from what was announced.
    fn mismatch(&self, path: &Path) -> Result<Option<String>> {
        let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        if size != self.size {
            return Ok(Some(format!("{size} of {} bytes", self.size)));
        }
        let is_sha256 = self.id.len() == 64 && self.id.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_sha256 {
            return Ok(None);
        }
        let sha256 = sha256_of_file(path)?;
        let differs = !sha256.eq_ignore_ascii_case(&self.id);
        Ok(differs.then(|| format!("their SHA-256 is {sha256}, the hub's is {}", self.id)))
    }

    /// That the hub still speaks of the same bytes.
    fn agrees(&self, answer: &Answer, commit: &str) -> Result<(), Failure> {
        let now = Identity::of(&answer.hub);
        let is_same = now.id.is_none_or(|id| id == self.id) && now.commit.is_none_or(|c| c == commit);
        match is_same || answer.response.status().as_u16() >= 400 {
            true => Ok(()),
            false => Err(Failure::lasting("the hub answers twice with different identifiers of one file".into())),
        }
    }
}

/// What identifies a file, as the hub's headers say; not checked.
struct Identity {
    id: Option<String>,
    commit: Option<String>,
}

impl Identity {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let id = text("x-linked-etag").or_else(|| text("etag"));
        Self { id: id.map(|id| id.trim_start_matches("W/").replace('"', "")), commit: text("x-repo-commit") }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// `bytes 100-199/1000`, `bytes */1000`: where it starts, and how long the whole is.
fn range_of(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get("content-range")?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let start = if range == "*" { 0 } else { range.split_once('-')?.0.parse().ok()? };
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start, total))
}

fn length(file: &File) -> Result<u64, Failure> {
    Ok(file.metadata().map_err(|e| local(&e))?.len())
}

fn emptied(file: &mut File) -> Result<u64, Failure> {
    file.set_len(0).map_err(|e| local(&e))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| local(&e))
}

/// A fault of this machine's disk.
fn local(error: &std::io::Error) -> Failure {
    Failure::lasting(format!("cannot write the hub's cache: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn ranges_are_read_in_every_form_and_refused_in_none_that_is_wrong() {
        let range = |text: &str| range_of(&headers(&[("content-range", text)]));
        assert_eq!(range("bytes 100-199/1000"), Some((100, Some(1000))));
        assert_eq!(range("bytes 100-199/*"), Some((100, None)));
        assert_eq!(range("bytes */0"), Some((0, Some(0))));
        for wrong in ["", "bytes", "bytes 1", "bytes -/-", "bytes 1-2/99999999999999999999999", "pages 1-2/3"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_identifier_of_a_large_file_is_that_of_its_bytes() {
        let of = |pairs: &[(&'static str, &str)]| Identity::of(&headers(pairs)).id;
        assert_eq!(of(&[("etag", "W/\"small\"")]).as_deref(), Some("small"));
        assert_eq!(of(&[("etag", "\"pointer\""), ("x-linked-etag", "\"bytes\"")]).as_deref(), Some("bytes"));
        assert_eq!(of(&[]), None);
    }
}
