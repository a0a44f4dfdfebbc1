//! Files: atomic writes, sorted listings, and SHA-256 checksums.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::own_files;

/// Writes to a temporary name beside `path` and renames, so that a reader sees all of it or nothing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = own_files::create_beside(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
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
    let mut hash = sha256_of(&serde_json::to_vec(parts)?);
    hash.truncate(16);
    Ok(hash)
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
    let mut file = own_files::open_regular(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}
