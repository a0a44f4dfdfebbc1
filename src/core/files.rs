//! Files: written whole or not at all, listed in order, and known by their SHA-256.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Writes to a temporary name beside `path` and renames, so that a reader sees all of it or nothing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = temporary(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    let _partial = Partial::of(path);
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A temporary file that goes away if what it should become is given up.
pub struct Partial(PathBuf);

impl Partial {
    pub fn of(path: &Path) -> Self {
        Self(temporary(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more once it has got its name; and what cannot be removed is removed by the next run.
        fs::remove_file(&self.0).ok();
    }
}

/// `x.parquet` → `x.parquet.partial`.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

pub fn remove_temporary_files(folder: &Path) -> Result<()> {
    for path in files_below(folder)? {
        if path.extension().is_some_and(|e| e == "partial") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The files of a folder, sorted.
pub fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.retain(|path| !path.is_dir());
    paths.sort();
    Ok(paths)
}

/// All files below a folder, sorted.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    if !folder.exists() {
        return Ok(out);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        match path.is_dir() {
            true => out.extend(files_below(&path)?),
            false => out.push(path),
        }
    }
    out.sort();
    Ok(out)
}

/// A short hash of anything that can be written as JSON: 16 hexadecimal digits of its SHA-256.
pub fn fingerprint(parts: &impl Serialize) -> Result<String> {
    Ok(sha256_of(&serde_json::to_vec(parts)?)[..16].to_string())
}

/// SHA-256 in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file's bytes.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}
