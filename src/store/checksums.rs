//! Checksums of every file a stage wrote: `<out>/stages/<stage>.sha256`, which `sha256sum -c` understands from inside the
//! run folder. A file is hashed while it is written, and what a stage reads is compared first, so that a byte that
//! changed on disk means that a shard is computed again and not that a number is wrong.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::run_folder::Stage;
use selfrepair_core::files::{hex, sha256_of_file, write_atomically};

/// The checksums of one stage, in memory and on disk.
pub struct Ledger {
    root: PathBuf,
    path: PathBuf,
    /// By path under the run folder.
    sums: Mutex<BTreeMap<String, String>>,
}

impl Ledger {
    /// What an earlier run recorded, if anything.
    pub fn open(root: &Path, stage: Stage) -> Self {
        let path = path(root, stage);
        // A ledger that cannot be read has no lines: what it spoke of is computed again.
        let sums = Mutex::new(read(&path).unwrap_or_default());
        Self { root: root.to_path_buf(), path, sums }
    }

    fn sums(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads anew what is on disk.
    pub fn reload(&self) {
        *self.sums() = read(&self.path).unwrap_or_default();
    }

    /// Forgets everything.
    pub fn clear(&self) -> Result<()> {
        self.sums().clear();
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Adds a finished file. One line is appended; a line that a kill cuts short counts as none.
    pub fn record(&self, file: &Path, sha256: String) -> Result<()> {
        let name = self.relative(file);
        // The line break comes first, so that a line that was cut short spoils no other.
        let line = format!("\n{sha256}  {name}\n");
        let append = || File::options().create(true).append(true).open(&self.path)?.write_all(line.as_bytes());
        append().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.sums().insert(name, sha256);
        Ok(())
    }

    /// Whether the file was recorded and still has those bytes.
    pub fn holds(&self, file: &Path) -> bool {
        let recorded = self.sums().get(&self.relative(file)).cloned();
        recorded.is_some() && sha256_of_file(file).ok() == recorded
    }

    /// Makes the ledger speak of exactly these files, hashing those that were not recorded.
    pub fn seal(&self, files: &[PathBuf]) -> Result<()> {
        let recorded = std::mem::take(&mut *self.sums());
        let sums = files.par_iter().map(|file| {
            let name = self.relative(file);
            let sha256 = recorded.get(&name).cloned().map_or_else(|| sha256_of_file(file), Ok)?;
            Ok((name, sha256))
        });
        let sums: BTreeMap<String, String> = sums.collect::<Result<_>>()?;
        let text: String = sums.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
        write_atomically(&self.path, text.as_bytes())?;
        *self.sums() = sums;
        Ok(())
    }

    fn relative(&self, file: &Path) -> String {
        file.strip_prefix(&self.root).unwrap_or(file).to_string_lossy().into_owned()
    }
}

fn path(root: &Path, stage: Stage) -> PathBuf {
    root.join("stages").join(format!("{}.sha256", stage.name()))
}

fn read(path: &Path) -> Option<BTreeMap<String, String>> {
    // Bytes that are no text make a line that speaks of no file.
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let is_hash = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
    let line =
        |l: &str| l.split_once("  ").filter(|(sum, _)| is_hash(sum)).map(|(s, n)| (n.to_string(), s.to_string()));
    Some(text.lines().filter_map(line).collect())
}

/// Those of a finished stage's files that have other bytes than were written, or are gone. Nothing, if the stage was
/// finished by a version of this program that recorded no checksums.
pub fn damaged(root: &Path, stage: Stage, files: &[(String, u64)]) -> Vec<String> {
    let path = path(root, stage);
    if !path.exists() {
        return Vec::new();
    }
    let sums = read(&path).unwrap_or_default();
    let is_damaged = |name: &str| {
        let recorded = sums.get(name);
        recorded.is_none() || sha256_of_file(&root.join(name)).ok().as_ref() != recorded
    };
    files.par_iter().map(|(name, _)| name).filter(|name| is_damaged(name)).cloned().collect()
}

/// A file that is hashed while it is written.
pub struct Hashed {
    file: File,
    hasher: Sha256,
}

impl Hashed {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, hasher: Sha256::new() })
    }

    /// Has everything reach the disk, and returns the SHA-256 of it in hexadecimal.
    pub fn finish(&self) -> io::Result<String> {
        self.file.sync_all()?;
        Ok(hex(&self.hasher.clone().finalize()))
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_lost_file_and_a_cut_line_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("stages")).unwrap();
        let file = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            fs::write(file(name), name).unwrap();
        }
        let ledger = Ledger::open(dir.path(), Stage::Trace);
        ledger.record(&file("a"), sha256_of_file(&file("a")).unwrap()).unwrap();
        ledger.seal(&[file("a"), file("b")]).unwrap();
        let whole = |files: &[&str]| {
            let files: Vec<(String, u64)> = files.iter().map(|f| (f.to_string(), 1)).collect();
            damaged(dir.path(), Stage::Trace, &files)
        };
        assert_eq!(whole(&["a", "b"]), [""; 0]);
        assert_eq!(whole(&["a", "c"]), ["c"], "not recorded");
        fs::write(file("a"), "A").unwrap();
        assert_eq!(whole(&["a", "b"]), ["a"], "the same size, another byte");
        fs::remove_file(file("b")).unwrap();
        assert_eq!(whole(&["a", "b"]), ["a", "b"]);
        fs::write(file("a"), "a").unwrap();

        // A line that a kill cut short, and one after it.
        let path = path(dir.path(), Stage::Trace);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..40]).unwrap();
        let ledger = Ledger::open(dir.path(), Stage::Trace);
        assert!(!ledger.holds(&file("a")));
        ledger.record(&file("c"), sha256_of_file(&file("c")).unwrap()).unwrap();
        assert!(Ledger::open(dir.path(), Stage::Trace).holds(&file("c")));
    }

    #[test]
    fn a_stage_without_a_ledger_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert!(damaged(dir.path(), Stage::Trace, &[("gone".into(), 1)]).is_empty());
    }
}
