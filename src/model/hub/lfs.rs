//! Uploads to the store of large files (Git LFS), and reads the local files that are sent.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use selfrepair_core::progress::Bar;
use serde_json::{Value, json};
use ureq::Body;
use ureq::http::Response;
use url::Url;

use super::upload::{DataSet, Upload};
use super::web::{Failure, QUESTION, TOTAL};

pub const LFS: &str = "application/vnd.git-lfs+json";

/// As many parts as a store takes of one file.
const PARTS: u64 = 10_000;

/// Headers that the HTTP library writes itself.
const OWN_HEADERS: [&str; 6] = ["host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"];

pub enum Content {
    File(PathBuf),
    Text(String),
}

impl DataSet {
    /// Uploads those that the store does not have; how many bytes.
    pub(super) fn store(&self, files: &[&Upload], bar: &Bar) -> Result<u64> {
        let doing = "asking where to upload";
        let objects: Vec<Value> = files.iter().map(|f| json!({ "oid": f.sha256, "size": f.size })).collect();
        let asked = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": objects,
            "ref": { "name": "main" },
        });
        let answer = self.ask(doing, &format!("datasets/{}.git/info/lfs/objects/batch", self.name), LFS, &asked)?;
        let mut stored = 0;
        for file in files {
            let mut objects = answer.get("objects").and_then(Value::as_array).into_iter().flatten();
            let told = objects.find(|o| o["oid"] == file.sha256.as_str());
            let told =
                told.with_context(|| format!("hf:{}: the hub gives no upload address for {}", self.name, file.path))?;
            if let Some(message) = told.pointer("/error/message").and_then(Value::as_str) {
                bail!("hf:{}: the hub does not take {}: {}", self.name, file.path, self.quoted(message));
            }
            bar.set_message(&file.path);
            // Without actions, the store has it.
            let action = |name: &str| told["actions"].get(name).unwrap_or(&Value::Null);
            let upload = action("upload");
            if let Some(href) = upload["href"].as_str() {
                self.upload(file, href, &upload["header"])?;
                stored += file.size;
            }
            if let Some(href) = action("verify")["href"].as_str() {
                let doing = format!("verifying {}", file.path);
                let asked = json!({ "oid": file.sha256, "size": file.size }).to_string();
                let answer = self.post(&doing, &self.address(&doing, href)?, LFS, &asked, QUESTION)?;
                self.checked(&doing, answer)?;
            }
            bar.inc(file.size >> 10);
        }
        Ok(stored)
    }

    /// An address that the hub named. What a hub with encryption is sent goes nowhere without it.
    fn address(&self, doing: &str, href: &str) -> Result<Url> {
        let url = Url::parse(href).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let url = url.filter(|u| u.username().is_empty() && u.password().is_none());
        let url = url.filter(|u| u.scheme() == "https" || self.web.endpoint.scheme() == "http");
        url.with_context(|| format!("hf:{}: {doing}: the hub gives an invalid upload address", self.name))
    }

    /// In one piece, or, where the hub wants it so, in parts.
    fn upload(&self, file: &Upload, href: &str, header: &Value) -> Result<()> {
        let doing = format!("uploading {}", file.path);
        let href = self.address(&doing, href)?;
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        let Some(chunk) = header.get("chunk_size") else {
            let headers = header.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v)));
            let headers: Vec<_> = headers.filter(|(k, _)| !OWN_HEADERS.contains(&k.to_lowercase().as_str())).collect();
            self.put(&doing, &href, &headers, file, 0, file.size)?;
            return Ok(());
        };
        let chunk: u64 = text(chunk).parse().ok().filter(|&n| n > 0).with_context(|| {
            format!("hf:{}: {doing}: the hub wants parts of {chunk} bytes, which is not a valid size", self.name)
        })?;
        let count = file.size.div_ceil(chunk);
        ensure!(
            count <= PARTS,
            "hf:{}: {doing}: the hub wants it in {count} parts; at most {PARTS} are sent",
            self.name
        );
        let mut parts = Vec::new();
        for i in 0..count {
            let number = i + 1;
            // Their names are numbers, some hubs' with zeros before them.
            let named = header.as_object().into_iter().flatten().find(|(k, _)| k.parse() == Ok(number));
            let place = named.and_then(|(_, place)| place.as_str());
            let place = place.with_context(|| format!("hf:{}: {doing}: no place for part {number}", self.name))?;
            let start = i * chunk;
            let place = self.address(&doing, place)?;
            let answer = self.put(&doing, &place, &[], file, start, chunk.min(file.size - start))?;
            let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).unwrap_or_default();
            ensure!(!etag.is_empty(), "hf:{}: {doing}: part {number} was not acknowledged", self.name);
            parts.push(json!({ "partNumber": number, "etag": etag }));
        }
        let done = json!({ "oid": file.sha256, "parts": parts }).to_string();
        // The address is the permission; the token does not go along.
        let send = || self.web.post(&href, LFS, LFS, &done, TOTAL, false);
        let answer = self.web.persist(&doing, send, |a| a.status().as_u16()).map_err(|f| self.failed(&doing, &f))?;
        self.taken(&doing, answer)?;
        Ok(())
    }

    /// A part of a file to a place in the store.
    fn put(
        &self,
        doing: &str,
        place: &Url,
        headers: &[(String, String)],
        file: &Upload,
        start: u64,
        length: u64,
    ) -> Result<Response<Body>> {
        let send = || {
            let bytes = file.content.part(start, length);
            let mut bytes = bytes.map_err(|e| Failure::lasting(format!("{e:#}")))?;
            self.web.put(place, headers, &mut bytes, length)
        };
        let answer = self.web.persist(doing, send, |a| a.status().as_u16()).map_err(|f| self.failed(doing, &f))?;
        self.taken(doing, answer)
    }
}

impl Content {
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.part(0, u64::MAX)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The first bytes, from which the hub sees whether it is text.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.part(0, 512)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn part(&self, start: u64, length: u64) -> Result<Box<dyn Read + '_>> {
        Ok(match self {
            Content::File(path) => {
                let place = || format!("cannot read {}", path.display());
                let mut file = open(path)?;
                file.seek(SeekFrom::Start(start)).with_context(place)?;
                Box::new(file.take(length))
            }
            Content::Text(text) => {
                let mut bytes = Cursor::new(text.as_bytes());
                bytes.set_position(start);
                Box::new(bytes.take(length))
            }
        })
    }
}

/// Opens what is to be sent: a regular file, and no link to one.
pub fn open(path: &std::path::Path) -> Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let is_file = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.is_file();
    ensure!(is_file, "{} is not a regular file; only regular files are sent", path.display());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_file_are_those_of_its_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789").unwrap();
        for content in [Content::File(file.path().into()), Content::Text("0123456789".into())] {
            let part = |start, length| std::io::read_to_string(content.part(start, length).unwrap()).unwrap();
            assert_eq!(part(4, 4), "4567");
            assert_eq!(part(8, 4), "89");
            assert_eq!(content.read().unwrap(), b"0123456789");
        }
    }

    #[test]
    fn a_link_a_folder_and_a_device_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("file"), dir.path().join("link")).unwrap();
        assert!(open(&dir.path().join("file")).is_ok());
        for path in [&dir.path().join("link"), dir.path(), std::path::Path::new("/dev/zero")] {
            assert!(open(path).is_err(), "{}", path.display());
        }
    }
}
